//! The JSON Schema of each key, where the form in the file differs from the type.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::keywords::{EMULATIONS, MACHINE_SIZES, PLATFORMS};
use super::limits::{
    BUILD_ARGS_MAX, BUILDS_MAX, CACHE_FROM_MAX, DEPENDS_ON_MAX, GLOB_BYTES_MAX, GLOBS_MAX,
    MATRIX_ENTRIES_MAX, MATRIX_KEYS_MAX, MATRIX_VALUES_MAX, NAME_CHARACTERS_MAX, PATH_BYTES_MAX,
};

/// The pattern of a build's name.
const BUILD_NAME: &str = "^[a-zA-Z0-9_][a-zA-Z0-9_-]*$";

/// The pattern of a path that is relative to the repository's root.
pub(super) const PATH: &str = r"^[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*$";

/// The pattern of a variable's name.
pub(super) const VARIABLE_NAME: &str = "^[A-Za-z_][A-Za-z0-9_]*$";

/// `version` has one value, so the type `Manifest` does not keep it.
pub(super) fn manifest_as_written(schema: &mut Schema) {
    add_property(
        schema,
        "version",
        json!({"description": "The version of this file's format.", "type": "integer", "const": 2}),
    );
    schema.insert("required".to_owned(), json!(["builds"]));
    schema.insert("patternProperties".to_owned(), json!({"^x-": {}}));
}

/// `platform` is the short form of `platforms`, and only the context is required.
pub(super) fn build_as_written(schema: &mut Schema) {
    add_property(
        schema,
        "platform",
        json!({
            "description": "The platform that the image is built for.",
            "type": "string", "enum": PLATFORMS, "default": PLATFORMS[0],
        }),
    );
    schema.insert("required".to_owned(), json!(["context"]));
    schema.insert("not".to_owned(), json!({"required": ["platform", "platforms"]}));
}

pub(super) fn add_property(schema: &mut Schema, key: &str, property: Value) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.insert(key.to_owned(), property);
    }
}

pub(super) fn name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": NAME_CHARACTERS_MAX,
        "pattern": r"^[^\x00-\x1f\x7f]+$",
    })
}

pub(super) fn builds<Build: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "minProperties": 1, "maxProperties": BUILDS_MAX,
        "propertyNames": {"pattern": BUILD_NAME, "maxLength": 95},
        "additionalProperties": generator.subschema_for::<Build>(),
    })
}

pub(super) fn path(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": PATH_BYTES_MAX,
        "pattern": PATH,
    })
}

pub(super) fn dockerfile(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = path(generator);
    schema.insert("default".to_owned(), json!("Dockerfile"));
    schema
}

pub(super) fn platforms(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "items": {"type": "string", "enum": PLATFORMS},
        "minItems": 1, "uniqueItems": true,
    })
}

pub(super) fn machine(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "enum": MACHINE_SIZES.map(|(name, _)| name), "default": "medium",
    })
}

pub(super) fn build_args(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": BUILD_ARGS_MAX,
        "propertyNames": variable_name(),
        "additionalProperties": scalar(),
    })
}

pub(super) fn variable_name() -> Value {
    json!({"pattern": VARIABLE_NAME, "maxLength": NAME_CHARACTERS_MAX})
}

pub(super) fn scalar() -> Value {
    json!({"type": ["string", "number", "boolean"]})
}

/// Without `uniqueItems`: to a schema, `3.1` and `3.10` are the same number.
pub(super) fn matrix(_: &mut SchemaGenerator) -> Schema {
    let combinations = json!({
        "type": "array", "minItems": 1, "maxItems": MATRIX_ENTRIES_MAX,
        "items": {
            "type": "object", "minProperties": 1, "maxProperties": MATRIX_KEYS_MAX,
            "propertyNames": variable_name(), "additionalProperties": scalar(),
        },
    });
    json_schema!({
        "type": "object", "minProperties": 1, "maxProperties": MATRIX_KEYS_MAX + 2,
        "properties": {"include": combinations, "exclude": combinations},
        "propertyNames": variable_name(),
        "additionalProperties": {
            "type": "array", "minItems": 1, "maxItems": MATRIX_VALUES_MAX, "items": scalar(),
        },
    })
}

pub(super) fn depends_on(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": DEPENDS_ON_MAX, "uniqueItems": true,
        "items": {"type": "string", "pattern": BUILD_NAME},
    })
}

pub(super) fn branches(_: &mut SchemaGenerator) -> Schema {
    globs(r"^[^!\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")
}

pub(super) fn paths(_: &mut SchemaGenerator) -> Schema {
    globs(r"^[^!/\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")
}

fn globs(pattern: &str) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": GLOBS_MAX, "uniqueItems": true,
        "items": {"type": "string", "maxLength": GLOB_BYTES_MAX, "pattern": pattern},
    })
}

pub(super) fn emulation(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "enum": EMULATIONS.map(|(name, _)| name), "default": "allow",
    })
}

pub(super) fn submodules(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"enum": [true, false, "shallow"], "default": true})
}

pub(super) fn target(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "maxLength": NAME_CHARACTERS_MAX,
        "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]*$",
    })
}

pub(super) fn timeout(_: &mut SchemaGenerator) -> Schema {
    time("30m")
}

/// A time with this default.
pub(super) fn time(default: &str) -> Schema {
    json_schema!({
        "type": "string", "default": default, "minLength": 2,
        "pattern": "^([0-9]{1,6}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$",
    })
}

pub(super) fn cache_from(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": CACHE_FROM_MAX, "uniqueItems": true,
        "items": {"type": "string", "pattern": r"^[A-Za-z0-9\[][A-Za-z0-9._/:@\[\]+-]*$", "maxLength": 512},
    })
}
