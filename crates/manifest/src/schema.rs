//! The JSON Schema of `stagely.yaml`, made from [`Manifest`].

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use serde_json::Value;

use super::manifest::Manifest;

/// Returns the JSON Schema (draft 2020-12) for editors and other tools.
///
/// The schema accepts every file that [`parse`](super::parse) accepts. It does not check `..` in paths,
/// colliding names or unknown variables.
pub fn json_schema() -> Schema {
    SchemaSettings::draft2020_12()
        .with_transform(RecursiveTransform(join_lines))
        .into_generator()
        .into_root_schema_for::<Manifest>()
}

/// Removes the line breaks of doc comments: editors wrap descriptions themselves.
fn join_lines(schema: &mut Schema) {
    if let Some(Value::String(description)) = schema.get_mut("description") {
        *description = description.replace('\n', " ");
    }
}
