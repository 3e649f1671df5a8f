//! Files and folders of the machine that a compose file mounts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Check, entries, is_empty};

/// A mount of a file or folder of the machine.
pub(super) struct BindMount {
    /// The service, secret or config that mounts it, as messages name it.
    pub(super) owner: String,
    pub(super) source: PathBuf,
    pub(super) is_writable: bool,
}

/// Returns a sentence for each file or folder of the checkout that one of `services` may write to. Each deployment has a
/// checkout of its own.
pub(crate) fn lost_writes(file: &Value, services: &[String], checkout: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (name, service) in entries(file, "services").filter(|(name, _)| services.contains(name)) {
        let mounts = service.get("volumes").and_then(Value::as_array).into_iter().flatten();
        for mount in mounts.filter(|mount| is_writable(mount)) {
            let text = |field: &str| mount.get(field).and_then(Value::as_str).unwrap_or_default();
            let source = path_of(text("source"));
            let source = source.canonicalize().unwrap_or(source);
            if text("type") == "bind" && source.starts_with(checkout) {
                found.push(format!(
                    "the service `{name}` mounts `{}` of the repository at `{}` and may write to it. Each push has a new \
                     checkout: what the service has written there is lost then, and also when the preview sleeps. Use a named \
                     volume for data, or mount with `:ro`",
                    relative(&source, checkout),
                    text("target"),
                ));
            }
        }
    }
    found
}

/// Returns a sentence for each secret or config of `services` whose file does not exist, or whose variable the text
/// `variables` of the file `.env` does not set. Docker Compose notices that only when it creates the container.
pub(crate) fn missing_sources(
    file: &Value,
    services: &[String],
    checkout: &Path,
    variables: &str,
) -> Vec<String> {
    let mut found = Vec::new();
    for (kind, one) in [("secrets", "secret"), ("configs", "config")] {
        let users = entries(file, "services").filter(|(name, _)| services.contains(name));
        let used: BTreeSet<&str> = users
            .filter_map(|(_, service)| service.get(kind)?.as_array())
            .flatten()
            .filter_map(|item| item.get("source")?.as_str())
            .collect();
        for (name, source) in entries(file, kind).filter(|(name, _)| used.contains(name.as_str())) {
            let text = |field: &str| source.get(field).and_then(Value::as_str);
            if let Some(path) = text("file").map(path_of).filter(|path| !path.exists()) {
                found.push(format!(
                    "the {one} `{name}` has `file: {}`, which the repository does not have: `environment` takes it from a \
                     variable",
                    relative(&path, checkout)
                ));
            }
            if let Some(variable) = text("environment").filter(|name| !is_set(name, variables)) {
                found.push(format!(
                    "the {one} `{name}` has `environment: {variable}`, which neither `preview` of stagely.yaml nor the file \
                     .env sets"
                ));
            }
        }
    }
    found
}

/// Whether the text of an environment file sets a variable.
fn is_set(name: &str, variables: &str) -> bool {
    variables.lines().any(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with(['=', ':']))
    })
}

fn is_writable(mount: &Value) -> bool {
    mount.get("read_only").is_none_or(is_empty)
}

/// A path of the checkout as people write it.
fn relative(path: &Path, checkout: &Path) -> String {
    let path = path.strip_prefix(checkout).unwrap_or(path);
    if path == Path::new("") { ".".to_owned() } else { path.display().to_string() }
}

/// The path that a text of the compose file stands for. Compose replaces `$NAME` in it.
pub(super) fn path_of(text: &str) -> PathBuf {
    text.replace("$$", "$").into()
}

/// The reverse of [`path_of`].
pub(super) fn text_of(path: &Path) -> Value {
    path.display().to_string().replace('$', "$$").into()
}

impl Check<'_> {
    pub(super) fn mount(&mut self, service: &str, mount: &mut Value) {
        let text = |field: &str| mount.get(field).and_then(Value::as_str).unwrap_or_default();
        let (kind, source) = (text("type"), text("source"));
        match kind {
            "volume" | "tmpfs" => {}
            "bind" => {
                let field = format!("volumes: {source}");
                let propagation = mount.pointer("/bind/propagation").and_then(Value::as_str);
                if !propagation.is_none_or(|text| matches!(text, "" | "private" | "rprivate")) {
                    self.refuse(service, &field, "its `propagation` reaches the machine");
                }
                match self.inside(&path_of(source)) {
                    Ok(source) => {
                        mount["source"] = text_of(&source);
                        self.binds.push(BindMount {
                            owner: format!("the service `{service}`"),
                            source,
                            is_writable: is_writable(mount),
                        });
                    }
                    Err(why) => self.refuse(service, &field, &why),
                }
            }
            kind => {
                self.refuse(
                    service,
                    &format!("volumes: type {kind}"),
                    "previews do not support it",
                );
            }
        }
    }

    /// Follows the symlinks of a path of the machine, which may not exist. The engine follows them, too.
    pub(super) fn inside(&self, path: &Path) -> Result<PathBuf, String> {
        if path.ends_with("docker.sock") || path.ends_with("containerd.sock") {
            return Err("it gives access to the machine".to_owned());
        }
        let mut existing = path;
        loop {
            match existing.canonicalize() {
                Ok(found) => {
                    let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
                    let is_plain = rest
                        .components()
                        .all(|part| matches!(part, std::path::Component::Normal(_)));
                    // The path must be the same in the compose file that is run.
                    if found.to_str().is_none() {
                        return Err("its path is not UTF-8".to_owned());
                    }
                    if found.starts_with(self.checkout) && is_plain {
                        // An empty rest would add a slash.
                        return Ok(if existing == path { found } else { found.join(rest) });
                    }
                    return Err("only files of the repository can be mounted".to_owned());
                }
                // A symlink whose target does not exist.
                Err(_) if existing.is_symlink() => {
                    return Err("it is a link to something that does not exist".to_owned());
                }
                Err(_) => match existing.parent() {
                    Some(parent) => existing = parent,
                    None => return Err("only files of the repository can be mounted".to_owned()),
                },
            }
        }
    }

    /// A container that may write to a folder can replace what is in it by a link to a folder of the machine, which the engine
    /// follows when it mounts it the next time.
    pub(super) fn nested_binds(&mut self) {
        let mut found = Vec::new();
        for inner in &self.binds {
            let outer = self.binds.iter().find(|outer| {
                outer.is_writable
                    && outer.source != inner.source
                    && inner.source.starts_with(&outer.source)
            });
            if let Some(outer) = outer {
                let shown = |path: &Path| relative(path, self.checkout);
                let (inner_path, outer_path) = (shown(&inner.source), shown(&outer.source));
                found.push(format!(
                    "{} mounts `{inner_path}`, a part of `{outer_path}`, to which {} may write: mount `{outer_path}` \
                     with `:ro`",
                    inner.owner, outer.owner
                ));
            }
        }
        self.found.extend(found);
    }
}
