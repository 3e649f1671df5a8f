//! What is known about a compose file without Docker: its services, folders of the repository that they write to, and what
//! it asks for.

mod model;

use std::path::Path;
use std::rc::Rc;

pub use self::model::model;
use super::problem::Position;
use super::tree::{self, Node, Value};

/// A folder of the repository that a service can write to. It is a new one with each deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritableMount {
    pub at: Position,
    pub service: String,
    /// As it stands in the compose file.
    pub source: String,
}

/// The folders of the repository that the services of a compose file can write to. `folder` has the file. Empty if the
/// file cannot be read: Docker Compose says why.
pub fn writable_mounts(text: &str, folder: &Path) -> Vec<WritableMount> {
    let Ok(Some(root)) = tree::read(text) else { return Vec::new() };
    let services = value_of(&root, "services").map(entries).unwrap_or_default();
    let of_service = |(name, service): &(Rc<Node>, Rc<Node>)| {
        let service_name = text_of(name).unwrap_or_default().to_owned();
        let mounts = value_of(service, "volumes").map(items).unwrap_or_default();
        let found = mounts.iter().filter_map(|mount| {
            let source = writable_source(mount).filter(|source| is_folder(folder, source))?;
            Some(WritableMount { at: mount.at, service: service_name.clone(), source })
        });
        found.collect::<Vec<_>>()
    };
    services.iter().flat_map(of_service).collect()
}

/// The names of the services of a compose file. `None` if the file can have others as well, or cannot be read.
pub(super) fn services(text: &str) -> Option<Vec<String>> {
    let root = tree::read(text).ok()??;
    let services = value_of(&root, "services")?;
    let is_complete = value_of(&root, "include").is_none()
        && value_of(&root, "<<").is_none()
        && value_of(services, "<<").is_none();
    if !is_complete || !matches!(services.value, Value::Map(_)) {
        return None;
    }
    entries(services).iter().map(|(name, _)| text_of(name).map(str::to_owned)).collect()
}

/// The path that a mount makes writable, if it is relative to the compose file.
fn writable_source(mount: &Node) -> Option<String> {
    let (source, is_read_only) = match &mount.value {
        Value::Scalar { text, .. } => {
            let mut parts = text.split(':');
            let (source, _target) = (parts.next()?, parts.next()?);
            let mut options = parts.flat_map(|options| options.split(','));
            (source.to_owned(), options.any(|option| option == "ro"))
        }
        Value::Map(_) => {
            let text = |key| value_of(mount, key).and_then(|value| text_of(value));
            if text("type") != Some("bind") {
                return None;
            }
            (text("source")?.to_owned(), text("read_only") == Some("true"))
        }
        Value::List(_) | Value::Tagged => return None,
    };
    // Named volumes begin with a letter, and mounts of the machine are refused.
    (source.starts_with('.') && !is_read_only).then_some(source)
}

/// Whether the path is a folder, or will be one because the engine creates it. Files are mostly settings that are only read.
fn is_folder(folder: &Path, source: &str) -> bool {
    !folder.join(source).is_file()
}

fn entries(node: &Node) -> &[(Rc<Node>, Rc<Node>)] {
    match &node.value {
        Value::Map(entries) => entries,
        _ => &[],
    }
}

fn items(node: &Node) -> &[Rc<Node>] {
    match &node.value {
        Value::List(items) => items,
        _ => &[],
    }
}

fn value_of<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let found = entries(node).iter().find(|(name, _)| text_of(name) == Some(key));
    found.map(|(_, value)| &**value)
}

fn text_of(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(String, String, usize)> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("settings.conf"), "").unwrap();
        let mounts = writable_mounts(text, folder.path());
        mounts.into_iter().map(|mount| (mount.service, mount.source, mount.at.line)).collect()
    }

    #[test]
    fn folders_of_the_repository_that_can_be_written_are_found() {
        let text = "\
services:
  db:
    image: postgres
    volumes:
      - ./data:/var/lib/postgresql/data
      - named:/backup
      - ./init:/docker-entrypoint-initdb.d:ro
      - ./settings.conf:/etc/settings.conf
      - /etc:/host
      - /cache
  web:
    volumes:
      - {type: bind, source: ../uploads, target: /uploads}
      - {type: bind, source: ./static, target: /static, read_only: true}
      - {type: volume, source: named, target: /v}
      - .:/app:z,ro
      - .:/app:z
";
        let expected = [("db", "./data", 5), ("web", "../uploads", 13), ("web", ".", 17)];
        let expected =
            expected.map(|(service, source, line)| (service.to_owned(), source.to_owned(), line));
        assert_eq!(found(text), expected);
    }

    #[test]
    fn the_services_of_a_file_are_known_unless_others_may_be_added() {
        let known = services("services: {web: {extends: {service: base}}, base: {image: busybox}}");
        assert_eq!(known, Some(vec!["web".to_owned(), "base".to_owned()]));
        for text in [
            "",
            "a: [",
            "services: 5",
            "services: {web: {}}\ninclude: [more.yaml]",
            "x: &x {db: {}}\nservices: {<<: *x, web: {}}",
        ] {
            assert_eq!(services(text), None, "{text}");
        }
    }

    #[test]
    fn a_file_of_another_kind_has_no_mounts() {
        for text in ["", "a: [", "services: 5", "services: {web: {volumes: x}}", "- services"] {
            assert_eq!(found(text), []);
        }
    }
}
