//! The JSON Schema of each key of the section `preview`, where the form in the file differs from the type.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::json;

use super::{Endpoint, Preview, PreviewAccess, PreviewTrigger, SINGLE_SERVICE, ServiceCommand};
use crate::limits::{
    BUILD_ARG_BYTES_MAX, BUILDS_MAX, COMMAND_TEXTS_MAX, ENDPOINT_NAME_CHARACTERS_MAX,
    ENDPOINTS_MAX, ENV_MAX, IMAGE_TAG_MAX, NAME_CHARACTERS_MAX, PATH_BYTES_MAX, PUBLIC_PATHS_MAX,
    SECRETS_MAX,
};
use crate::value_schemas::{self, VARIABLE_NAME, add_property, scalar, time};

/// The pattern of a service's name in a compose file.
const SERVICE_NAME: &str = "^[A-Za-z0-9_.][A-Za-z0-9_.-]*$";

pub(crate) fn section(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<Preview>()
}

/// The type [`PreviewSource`](super::PreviewSource) joins four keys, of which each form has two.
pub(super) fn preview_as_written(schema: &mut Schema) {
    add_property(
        schema,
        "compose",
        json!({
            "description": "The compose file of the commit, relative to the repository's root.",
            "type": "string", "minLength": 1, "maxLength": PATH_BYTES_MAX,
            "pattern": value_schemas::PATH,
        }),
    );
    let variant = json!({"type": "string", "minLength": 1, "maxLength": IMAGE_TAG_MAX});
    add_property(
        schema,
        "images",
        json!({
            "description": "With `compose`: which services run which images, a map of services to \
                builds. A service that is not here runs the image of the build of its own name, if there \
                is one. The image of a build with a matrix is named by its combination \
                (`app-node_version-18`).",
            "type": "object", "maxProperties": BUILDS_MAX,
            "propertyNames": {"pattern": SERVICE_NAME, "maxLength": NAME_CHARACTERS_MAX},
            "additionalProperties": variant,
        }),
    );
    let mut image = variant;
    image["description"] = json!(format!(
        "Instead of `compose`: the build whose image runs, as a single container. Its service and its \
         endpoint are called `{SINGLE_SERVICE}`. The image of a build with a matrix is named by its \
         combination (`app-node_version-18`)."
    ));
    add_property(schema, "image", image);
    add_property(
        schema,
        "port",
        json!({
            "description": "With `image`: the port on which the container listens for HTTP.",
            "type": "integer", "minimum": 1, "maximum": u16::MAX,
        }),
    );
    add_property(
        schema,
        "health",
        json!({
            "description": "With `image`: the request that says whether the container works. With \
                `compose` each endpoint has its own.",
            "$ref": "#/$defs/Health",
        }),
    );
    schema.remove("required");
    let with_service = json!({"required": ["service"]});
    let alone = json!({"properties": {"service": {"const": SINGLE_SERVICE}}});
    schema.insert(
        "oneOf".to_owned(),
        json!([
            {
                "required": ["compose", "endpoints"],
                "properties": {
                    "image": false, "port": false, "health": false,
                    "migrate": with_service, "seed": with_service,
                },
            },
            {
                "required": ["image", "port"],
                "properties": {
                    "compose": false, "images": false, "endpoints": false,
                    "migrate": alone, "seed": alone,
                },
            },
        ]),
    );
}

pub(super) fn endpoint_as_written(schema: &mut Schema) {
    schema.insert("required".to_owned(), json!(["service", "port"]));
}

pub(super) fn health_as_written(schema: &mut Schema) {
    schema.remove("required");
}

pub(super) fn command_as_written(schema: &mut Schema) {
    schema.insert("required".to_owned(), json!(["command"]));
}

pub(super) fn endpoints(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "minProperties": 1, "maxProperties": ENDPOINTS_MAX,
        "propertyNames": {
            "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": ENDPOINT_NAME_CHARACTERS_MAX,
        },
        "additionalProperties": generator.subschema_for::<Endpoint>(),
    })
}

pub(crate) fn env(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": ENV_MAX,
        "propertyNames": value_schemas::variable_name(), "additionalProperties": scalar(),
    })
}

pub(crate) fn secrets(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": SECRETS_MAX, "uniqueItems": true,
        "items": {"type": "string", "pattern": VARIABLE_NAME, "maxLength": NAME_CHARACTERS_MAX},
    })
}

pub(super) fn command_in_service(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<ServiceCommand>()
}

pub(super) fn service(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": SERVICE_NAME, "maxLength": NAME_CHARACTERS_MAX})
}

pub(super) fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "minimum": 1, "maximum": u16::MAX})
}

pub(super) fn health_path(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "default": "/", "maxLength": PATH_BYTES_MAX,
        "pattern": r"^/[A-Za-z0-9/._~!$&'()+,;=:@%?*-]*$",
    })
}

pub(super) fn status(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "default": "200-399",
        "anyOf": [
            {"type": "integer", "minimum": 100, "maximum": 599},
            {"type": "string", "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"},
        ],
    })
}

pub(crate) fn command(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": COMMAND_TEXTS_MAX,
        "items": {"type": "string", "minLength": 1, "maxLength": BUILD_ARG_BYTES_MAX},
    })
}

pub(super) fn on(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "enum": PreviewTrigger::NAMES.map(|(name, _)| name),
        "default": PreviewTrigger::NAMES[0].0,
    })
}

pub(super) fn access(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "enum": PreviewAccess::NAMES.map(|(name, _)| name),
        "default": PreviewAccess::NAMES[0].0,
    })
}

pub(super) fn disk(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "default": "20GiB", "pattern": "^([1-9][0-9]|1[0-9]{2}|200)GiB$",
    })
}

pub(super) fn public_paths(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": PUBLIC_PATHS_MAX, "uniqueItems": true,
        "items": {
            "type": "string", "maxLength": PATH_BYTES_MAX + 1,
            "pattern": r"^/[A-Za-z0-9/._~!$&'()+,;=:@%-]*\*?$",
        },
    })
}

pub(super) fn health_timeout(_: &mut SchemaGenerator) -> Schema {
    time("2m")
}

pub(super) fn command_timeout(_: &mut SchemaGenerator) -> Schema {
    time("10m")
}

pub(super) fn ttl(_: &mut SchemaGenerator) -> Schema {
    time("7d")
}

pub(super) fn sleep_after(_: &mut SchemaGenerator) -> Schema {
    let with_unit = time("20m");
    json_schema!({"default": "20m", "anyOf": [{"const": "never"}, with_unit]})
}
