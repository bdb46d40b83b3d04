//! OpenAPI 3.1 document of the listener, made of the types that are sent.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::entitlements::{Entitlement, Entitlements};
use super::instances::AppInstances;
use crate::observe::limits;
use spid_hook::instance::State;

/// Returns the document.
pub(super) fn document() -> Value {
    // OpenAPI 3.1 uses JSON Schema 2020-12; its definitions have their place under `components`.
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = SchemaGenerator::new(settings);
    let paths = json!({
        "/v1/entitlements/{name}": {"get": entitlement(&mut generator)},
        "/v1/entitlements": {"get": entitlements(&mut generator)},
        "/v1/instances": {"get": instances(&mut generator)},
        "/v1/openapi.json": {"get": {
            "operationId": "openapi",
            "summary": "This document",
            "responses": with_refusals(
                json!({"200": {"description": "The document.", "content": {"application/json": {}}}}),
                &[400],
            ),
        }},
    });
    let schemas: Value = generator.take_definitions(true).into();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "spid for the seller's application",
            "version": "1",
            "description": "Entitlements and instances of what was sold on cloud marketplaces.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
            "responses": {"Error": error_response()},
        },
    })
}

fn entitlement(generator: &mut SchemaGenerator) -> Value {
    operation(
        "Ask if one customer may use the service",
        "Answers from the last committed state. With `If-None-Match` and `wait` it waits for a change.",
        vec![
            path_parameter("name", "Any name of the instance: its id, or the one that the marketplace uses."),
            account(),
            parameter(
                "wait",
                "Seconds to wait for a change, like 30s. Needs `If-None-Match`.",
                json!({"type": "string", "pattern": "^([0-9]|[1-5][0-9]|60)s?$"}),
            ),
            json!({"name": "If-None-Match", "in": "header", "required": false, "schema": text_schema(),
                "description": "The `ETag` of the answer that is known."}),
        ],
        &generator.subschema_for::<Entitlement>().to_value(),
        &[(304, "Nothing has changed.")],
        &[404, 409],
    )
}

fn entitlements(generator: &mut SchemaGenerator) -> Value {
    operation(
        "Ask about every instance, of a buyer or of a tenant",
        "Released instances are left out.",
        vec![buyer(), tenant(), account()],
        &generator.subschema_for::<Entitlements>().to_value(),
        &[],
        &[],
    )
}

fn instances(generator: &mut SchemaGenerator) -> Value {
    let states = State::ALL.map(State::as_str);
    operation(
        "List instances",
        "Lists what the token may see, the newest first.",
        vec![
            parameter("state", "Only this state.", json!({"type": "string", "enum": states})),
            buyer(),
            tenant(),
            account(),
            parameter(
                "before",
                "The `next` of the page before.",
                json!({"type": "string", "pattern": "^[0-9]{1,18}$"}),
            ),
            parameter(
                "limit",
                "Rows of a page.",
                json!({"type": "integer", "minimum": 1, "maximum": limits::LIST_MAX_COUNT}),
            ),
        ],
        &generator.subschema_for::<AppInstances>().to_value(),
        &[],
        &[],
    )
}

fn account() -> Value {
    parameter("account", "Account of the instance, if the token has several.", text_schema())
}

fn buyer() -> Value {
    parameter("buyer", "Only this buyer: the account at the marketplace.", text_schema())
}

fn tenant() -> Value {
    parameter("tenant", "Only this tenant, who has claimed the instances.", text_schema())
}

fn error_response() -> Value {
    json!({"description": "The request was refused.", "content": {"application/json": {"schema": {
        "type": "object",
        "required": ["code", "error"],
        "properties": {
            "code": {"type": "string", "description": "Stable word for programs."},
            "error": {"type": "string", "description": "Sentence for people."},
        },
    }}}})
}

/// Any text without a NUL byte, not empty.
fn text_schema() -> Value {
    json!({"type": "string", "pattern": "^[^\\u0000]+$"})
}

fn parameter(name: &str, description: &str, schema: Value) -> Value {
    json!({"name": name, "in": "query", "required": false, "description": description, "schema": schema})
}

fn path_parameter(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "description": description, "schema": text_schema()})
}

fn operation(
    summary: &str,
    description: &str,
    parameters: Vec<Value>,
    schema: &Value,
    empty: &[(u16, &str)],
    refusals: &[u16],
) -> Value {
    let mut responses = json!({"200": {
        "description": "The answer.",
        "content": {"application/json": {"schema": schema}},
    }});
    if let Some(members) = responses.as_object_mut() {
        for (status, description) in empty {
            members.insert(status.to_string(), json!({"description": description}));
        }
    }
    let mut all = vec![400, 403];
    all.extend(refusals);
    let id = summary.to_lowercase().replace(' ', "-");
    json!({
        "operationId": id,
        "summary": summary,
        "description": description,
        "parameters": parameters,
        "responses": with_refusals(responses, &all),
    })
}

/// Adds the refusals that every path has, and these.
fn with_refusals(mut responses: Value, refusals: &[u16]) -> Value {
    if let Some(members) = responses.as_object_mut() {
        for status in [401, 405, 429, 500, 503].iter().chain(refusals) {
            members.insert(status.to_string(), json!({"$ref": "#/components/responses/Error"}));
        }
    }
    responses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        let mut references = 0;
        for part in text.split("\"$ref\":\"#").skip(1) {
            let pointer = part.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            references += 1;
        }
        assert!(references > 10, "{references}");
        assert!(document.pointer("/components/schemas/Entitlement/properties/entitled").is_some(), "{text}");
    }
}
