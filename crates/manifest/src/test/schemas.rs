//! The JSON Schema of each key of the section `test`, where the form in the file differs from the type.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::json;

use super::{Test, TestPlace};
use crate::limits::{
    GLOB_BYTES_MAX, GLOBS_MAX, IMAGE_TAG_MAX, TEST_RETRIES_MAX, TEST_SHARDS_MAX, TESTS_MAX,
};

pub(crate) fn section(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "minProperties": 1, "maxProperties": TESTS_MAX,
        "propertyNames": {"pattern": "^[a-zA-Z0-9_][a-zA-Z0-9_-]*$"},
        "additionalProperties": generator.subschema_for::<Test>(),
    })
}

pub(super) fn test_as_written(schema: &mut Schema) {
    schema.insert("required".to_owned(), json!(["image"]));
    schema.insert(
        "if".to_owned(),
        json!({"properties": {"on": {"const": "preview"}}, "required": ["on"]}),
    );
    schema.insert("then".to_owned(), json!({"properties": {"machine": false, "shards": false}}));
}

pub(super) fn image(_: &mut SchemaGenerator) -> Schema {
    let longest = IMAGE_TAG_MAX.max(512);
    json_schema!({"type": "string", "minLength": 1, "maxLength": longest})
}

pub(super) fn on(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "enum": TestPlace::NAMES.map(|(name, _)| name), "default": "tester",
    })
}

pub(super) fn shards(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "minimum": 1, "maximum": TEST_SHARDS_MAX, "default": 1})
}

pub(super) fn retries(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "minimum": 0, "maximum": TEST_RETRIES_MAX, "default": 0})
}

pub(super) fn patterns(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": GLOBS_MAX, "uniqueItems": true,
        "items": {
            "type": "string", "minLength": 1, "maxLength": GLOB_BYTES_MAX,
            "pattern": r"^[^!\x00-\x1f\x7f][^\x00-\x1f\x7f]*$",
        },
    })
}
