//! The schemas of hooks, checked with another implementation of JSON Schema.

use jsonschema::Validator;
use serde_json::Value;

/// The two schemas of the contract.
pub(crate) struct Contract {
    call: Validator,
    answer: Validator,
}

impl Contract {
    pub(crate) fn new() -> Contract {
        let validator = |schema: &Value| jsonschema::draft202012::new(schema).unwrap();
        Contract {
            call: validator(&spid::hook::schema::call()),
            answer: validator(&spid::hook::schema::answer()),
        }
    }

    pub(crate) fn check_call(&self, from: &str, call: &Value) {
        check(&self.call, from, call);
    }

    pub(crate) fn check_answer(&self, from: &str, answer: &Value) {
        check(&self.answer, from, answer);
    }
}

fn check(validator: &Validator, from: &str, value: &Value) {
    let wrong: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty(), "{from}: {wrong:?}\n{value:#}");
}
