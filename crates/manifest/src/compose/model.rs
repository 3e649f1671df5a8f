//! A compose file as `docker compose config` prints it, as far as that is known without Docker.

use std::path::Path;
use std::rc::Rc;

use serde_json::{Map, Value as Json, json};

use super::{entries, items, text_of};
use crate::kind::ValueKind;
use crate::tree::{self, Node, Value};

/// Fields of services that `docker compose config` replaces by what they name.
const RESOLVED: [&str; 3] = ["env_file", "extends", "label_file"];

/// The model of a compose file whose folder is `folder`: `{"services": {…}, …}` with absolute paths. Values with variables,
/// services with profiles, and what the file includes or extends are not in it. `None` if the file cannot be read.
pub fn model(text: &str, folder: &Path) -> Option<Json> {
    let root = tree::read(text).ok()??;
    let Json::Object(mut model) = json_of(&root)? else { return None };
    if let Some(services) = model.get_mut("services").and_then(Json::as_object_mut) {
        services.retain(|_, service| service.get("profiles").is_none());
        for service in services.values_mut().filter_map(Json::as_object_mut) {
            service.retain(|field, _| !RESOLVED.contains(&field.as_str()));
            for mount in
                service.get_mut("volumes").and_then(Json::as_array_mut).into_iter().flatten()
            {
                complete_mount(mount, folder);
            }
        }
    }
    for kind in ["configs", "secrets"] {
        let sources = model.get_mut(kind).and_then(Json::as_object_mut);
        for source in sources.into_iter().flat_map(|sources| sources.values_mut()) {
            make_absolute(source, "file", folder);
        }
    }
    Some(Json::Object(model))
}

/// The value in JSON; `None` for one with a variable or a tag of its own.
fn json_of(node: &Node) -> Option<Json> {
    let value = match &node.value {
        Value::Tagged => return None,
        Value::Scalar { text, .. } if text.replace("$$", "").contains('$') => return None,
        Value::Scalar { text, .. } => match node.kind() {
            ValueKind::Nothing => Json::Null,
            ValueKind::Boolean => text.eq_ignore_ascii_case("true").into(),
            ValueKind::Number => text.parse::<f64>().map_or_else(|_| json!(text), Json::from),
            _ => json!(text),
        },
        Value::List(_) => items(node).iter().filter_map(|item| json_of(item)).collect(),
        Value::Map(_) => Json::Object(fields(entries(node))),
    };
    Some(value)
}

/// The fields of a map, with those that it merges.
fn fields(entries: &[(Rc<Node>, Rc<Node>)]) -> Map<String, Json> {
    let mut fields = Map::new();
    let values = entries.iter().filter_map(|(name, value)| Some((text_of(name)?, json_of(value)?)));
    let (merged, own): (Vec<_>, Vec<_>) = values.partition(|(name, _)| *name == "<<");
    for (_, merged) in merged {
        let maps = if let Json::Array(maps) = merged { maps } else { vec![merged] };
        // The first map has priority.
        for map in maps.into_iter().rev() {
            if let Json::Object(map) = map {
                fields.extend(map);
            }
        }
    }
    fields.extend(own.into_iter().map(|(name, value)| (name.to_owned(), value)));
    fields
}

/// Gives a mount the long form, `{"type": …}`.
fn complete_mount(mount: &mut Json, folder: &Path) {
    if let Json::String(text) = mount {
        let parts: Vec<&str> = text.split(':').collect();
        let source = parts[0];
        *mount = match parts.get(1) {
            Some(target) if source.starts_with(['/', '.', '~']) => json!({
                "type": "bind",
                "source": source,
                "target": target,
                "read_only": parts[2..].iter().any(|options| options.split(',').any(|one| one == "ro")),
            }),
            _ => json!({ "type": "volume" }),
        };
    }
    if mount["type"] == "bind" {
        make_absolute(mount, "source", folder);
    }
}

fn make_absolute(value: &mut Json, field: &str, folder: &Path) {
    if let Some(Json::String(path)) = value.get_mut(field) {
        // `~` is the home of somebody, which is in no repository.
        let base = if path.starts_with('~') { Path::new("/") } else { folder };
        *path = base.join(&*path).display().to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_completed_as_far_as_it_is_known() {
        let text = "\
x-base: &base {privileged: true, cap_add: [NET_ADMIN]}
services:
  web:
    <<: *base
    privileged: ${PRIVILEGED}
    pid: host
    env_file: web.env
    volumes: ['/run/docker.sock:/run/docker.sock:z,ro', './a:/a', 'data:/b', '~/x:/x', /cache,
      {type: bind, source: c, target: /c}]
  db: {<<: [{init: true}, {init: false, tty: true}], extends: base, command: 'echo $$HOME'}
  debug: {profiles: [debug], privileged: true}
secrets: {key: {file: ./key}, token: {environment: TOKEN}}
volumes: {data: }
";
        let bind = |source: &str, target: &str, read_only: bool| json!({"type": "bind", "source": source, "target": target, "read_only": read_only});
        let volume = json!({"type": "volume"});
        let expected = json!({
            "x-base": {"privileged": true, "cap_add": ["NET_ADMIN"]},
            "services": {
                "web": {
                    "privileged": true,
                    "cap_add": ["NET_ADMIN"],
                    "pid": "host",
                    "volumes": [
                        bind("/run/docker.sock", "/run/docker.sock", true),
                        bind("/src/./a", "/a", false),
                        volume,
                        bind("/~/x", "/x", false),
                        volume,
                        {"type": "bind", "source": "/src/c", "target": "/c"},
                    ],
                },
                "db": {"init": true, "tty": true, "command": "echo $$HOME"},
            },
            "secrets": {"key": {"file": "/src/./key"}, "token": {"environment": "TOKEN"}},
            "volumes": {"data": null},
        });
        assert_eq!(model(text, Path::new("/src")), Some(expected));
        assert_eq!(model("services: [", Path::new("/src")), None);
        assert_eq!(model("- a", Path::new("/src")), None);
    }
}
