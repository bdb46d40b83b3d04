//! JSON Schema of the calls and answers of `exec` and `http` hooks, for editors, generators and tests.
//!
//! The schema of a call is generated from the types that are sent. The schema of an answer uses the lists that
//! the reader uses. So the schema matches the behavior. `spid hook schema` prints it.
//!
//! A call may have more members than its schema knows, because the contract grows by members. An answer may
//! not: a misspelled member would never reach a buyer, so both the schema and spid refuse it.
//!
//! ```
//! let schema = spid_hook::schema::answer();
//! // Any validator reads it, for example the crate `jsonschema`:
//! assert!(jsonschema::is_valid(&schema, &serde_json::json!({"instance_id": "tenant-1"})));
//! assert!(!jsonschema::is_valid(&schema, &serde_json::json!({"instance": "tenant-1"})));
//! ```

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::answer::{APP_FIELDS, HOST_FIELDS};
use super::{
    CreateCall, ExpireCall, OtherCall, PaymentCall, RefundRenewCall, ReleaseCall, RenewCall, SCHEMA,
    SignOnCall, UpgradeCall,
};
use crate::callback::Action;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Returns the schema of a call.
pub fn call() -> Value {
    // `for_serialize`: the schema describes what spid sends, so every member that is always sent is required.
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let calls = [
        of::<CreateCall>(Action::Create, &mut generator),
        of::<RenewCall>(Action::Renew, &mut generator),
        of::<RefundRenewCall>(Action::RefundRenew, &mut generator),
        of::<UpgradeCall>(Action::Upgrade, &mut generator),
        of::<ExpireCall>(Action::Expire, &mut generator),
        of::<ReleaseCall>(Action::Release, &mut generator),
        of::<SignOnCall>(Action::SignOn, &mut generator),
        of::<PaymentCall>(Action::Payment, &mut generator),
        of::<OtherCall>(Action::Other, &mut generator),
    ];
    let mut schema = json!({
        "$schema": DIALECT,
        "title": format!("{SCHEMA}: a call"),
        "description": "Call to a hook: on standard input, or as the body of a POST.",
        "oneOf": calls,
        "$defs": generator.take_definitions(true),
    });
    reword(&mut schema);
    schema
}

/// Adapts the descriptions, which come from the Rust types: JSON says null for `None`.
fn reword(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::String(text)) = members.get_mut("description") {
                *text = text.replace("`None`", "null").replace('\n', " ");
            }
            members.values_mut().for_each(reword);
        }
        Value::Array(items) => items.iter_mut().for_each(reword),
        _ => {}
    }
}

/// Returns the schema of one action's call: its own members, plus the version and the name of the action.
fn of<C: JsonSchema>(action: Action, generator: &mut SchemaGenerator) -> Schema {
    // The version and the action are added to each call when it is serialized, so add them here, too.
    let mut schema = C::json_schema(generator);
    for (name, value) in [("schema", SCHEMA), ("action", action.as_str())] {
        member(&mut schema, name, json!({ "const": value }));
    }
    schema
}

/// Adds a required member to an object's schema.
fn member(schema: &mut Schema, name: &str, value: Value) {
    let members = schema.ensure_object();
    if let Some(properties) = members.entry("properties").or_insert_with(|| json!({})).as_object_mut() {
        properties.insert(name.to_owned(), value);
    }
    if let Some(required) = members.entry("required").or_insert_with(|| json!([])).as_array_mut() {
        required.push(Value::from(name));
    }
}

/// Returns the schema of an answer.
pub fn answer() -> Value {
    json!({
        "$schema": DIALECT,
        "title": format!("{SCHEMA}: an answer"),
        "description": "Answer of a hook: on standard output, or as the body of the response.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "instance_id": text("Id of the instance at the marketplace. Default: the marketplace's order business id."),
            "app": section("URLs and login of the application.", &APP_FIELDS),
            "host": section("The machine, for products that sell one.", &HOST_FIELDS),
            "info": free("Remarks for the buyer, under any name."),
            "secret_info": free("Secret remarks for the buyer, under any name; encrypted at rest."),
            "redirect": text("URL to which the browser goes. Required for a sign-on."),
            "body": { "description": "Free JSON. Required for `other`." },
            "pending": text("The work is accepted and completed later with `spid instances complete`; the text says what it waits for."),
            "refuse": text("Reason of a refusal, with exit code 65 or status 422. The work will not be done."),
            "retry_after": {
                "description": "Minimum delay before the next attempt after a failure, in seconds.",
                "type": ["integer", "null"],
                "minimum": 0,
            },
        },
    })
}

/// Returns the schema of a text. A number or a boolean is accepted as a text, and null counts as not sent.
fn text(description: &str) -> Value {
    json!({ "description": description, "type": ["string", "number", "boolean", "null"] })
}

fn scalar() -> Value {
    json!({ "type": ["string", "number", "boolean", "null"] })
}

/// Returns the schema of a section with a fixed list of fields. An unknown field is invalid.
fn section(description: &str, names: &[&str]) -> Value {
    let properties: Map<String, Value> = names.iter().map(|name| ((*name).to_owned(), scalar())).collect();
    json!({
        "description": description,
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": properties,
    })
}

/// Returns the schema of a section whose fields may have any name.
fn free(description: &str) -> Value {
    json!({
        "description": description,
        "type": ["object", "null"],
        "additionalProperties": scalar(),
    })
}

#[cfg(test)]
mod tests {
    use jsonschema::Validator;

    use super::super::answer::ParsedAnswer;
    use super::super::call::tests::{a_call, an_instance};
    use super::*;
    use crate::callback::Callback;

    fn validator(schema: &Value) -> Validator {
        jsonschema::draft202012::new(schema).unwrap()
    }

    #[test]
    fn every_call_is_one_of_its_own_action_and_of_no_other() {
        let calls = validator(&call());
        for action in Action::ALL {
            let mut sent =
                serde_json::to_value(a_call(&Callback::new(action, "x"), Some(&an_instance()))).unwrap();
            let wrong = calls.iter_errors(&sent).map(|error| error.to_string()).collect::<Vec<_>>();
            assert!(wrong.is_empty(), "{action}: {wrong:?}");
            sent["grown"] = json!(true);
            assert!(calls.is_valid(&sent), "{action}: contracts grow by members");
            assert!(!call().to_string().contains("None"), "a word of Rust");
            sent["schema"] = json!("spid.hook/2");
            assert!(!calls.is_valid(&sent), "{action}: another version");
        }
    }

    #[test]
    fn every_member_of_a_call_is_in_its_schema_and_must_be_there() {
        let calls = validator(&call());
        let text = call().to_string();
        for action in Action::ALL {
            let sent =
                serde_json::to_value(a_call(&Callback::new(action, "x"), Some(&an_instance()))).unwrap();
            for name in sent.as_object().unwrap().keys() {
                assert!(text.contains(&format!("\"{name}\":{{")), "{name} is not described");
                let mut less = sent.clone();
                less.as_object_mut().unwrap().remove(name);
                assert!(!calls.is_valid(&less), "{action} without {name}");
            }
        }
    }

    #[test]
    fn the_schema_of_answers_accepts_what_is_read_and_refuses_what_is_not() {
        let answers = validator(&answer());
        let mut tried = vec![
            json!({}),
            json!([]),
            json!("done"),
            json!({ "app": [] }),
            json!({ "app": { "password": ["x"] } }),
            json!({ "app": { "frontend_url": "x" } }),
            json!({ "host": { "port": "x" } }),
            json!({ "info": { "anything": 8080, "x": null } }),
            json!({ "secret_info": { "anything": { "deep": 1 } } }),
            json!({ "instanceId": "x" }),
            json!({ "body": [1, { "a": null }] }),
            json!({ "body": null }),
            json!({ "retry_after": "90" }),
            json!({ "retry_after": -1 }),
            json!({ "redirect": { } }),
        ];
        let names: Vec<String> = answer()["properties"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(names.len(), 10);
        for name in names {
            let right = match name.as_str() {
                "app" | "host" | "info" | "secret_info" => json!({}),
                "retry_after" => json!(90),
                _ => json!("text"),
            };
            tried.extend([json!({ &name: right }), json!({ &name: null })]);
        }
        for (section, fields) in [("app", APP_FIELDS.as_slice()), ("host", &HOST_FIELDS)] {
            tried.extend(fields.iter().map(|field| json!({ section: { *field: "x" } })));
        }
        for said in tried {
            let read = ParsedAnswer::read(said.to_string().as_bytes()).is_ok();
            assert_eq!(answers.is_valid(&said), read, "{said}");
        }
    }
}
