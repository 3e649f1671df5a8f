//! The files that a compose file names.

use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use super::yaml::{Content, MERGE_KEY, Node, path_text};
use super::{FilesError, VARIABLES_FILE, check_size, folder_of, shown};

const INCLUDE_FIELDS: [&str; 3] = ["path", "project_directory", "env_file"];

/// An `env_file` without variables.
const NO_VARIABLES: &str = "/dev/null";

/// The files that one compose file names. Their paths are replaced by absolute ones, because the releases of
/// `docker compose` differ in the folder that a path of an included file is relative to: in some cases it is the current
/// one of the command.
pub(super) struct References<'a> {
    pub(super) checkout: &'a Path,
    /// The folder to which the paths of the file are relative.
    pub(super) base: &'a Path,
    pub(super) path: &'a str,
    /// The compose files among them, each with the folder to which its paths are relative.
    pub(super) compose_files: Vec<(PathBuf, PathBuf)>,
}

pub(super) type Rewritten = Result<Rc<Node>, FilesError>;

impl References<'_> {
    fn unsupported(&self, what: String) -> FilesError {
        FilesError::Unsupported { path: self.path.to_owned(), what }
    }

    pub(super) fn document(&mut self, node: &Rc<Node>) -> Rewritten {
        self.fields(node, |this, name, value| match name {
            "services" => this.services(value),
            "include" => this.includes(value),
            MERGE_KEY => this.merged(value, Self::document),
            _ => Ok(Rc::clone(value)),
        })
    }

    fn services(&mut self, node: &Rc<Node>) -> Rewritten {
        self.fields(node, |this, name, value| match name {
            MERGE_KEY => this.merged(value, Self::services),
            _ => this.service(value),
        })
    }

    fn service(&mut self, node: &Rc<Node>) -> Rewritten {
        self.fields(node, |this, name, value| match name {
            "env_file" => this.paths("env_file", value),
            "label_file" => this.paths("label_file", value),
            "extends" => this.extends(value),
            MERGE_KEY => this.merged(value, Self::service),
            _ => Ok(Rc::clone(value)),
        })
    }

    /// The maps that a merge key brings.
    fn merged(
        &mut self,
        node: &Rc<Node>,
        rewrite: fn(&mut Self, &Rc<Node>) -> Rewritten,
    ) -> Rewritten {
        match &node.content {
            Content::List(_) => self.items(node, rewrite),
            _ => rewrite(self, node),
        }
    }

    fn extends(&mut self, node: &Rc<Node>) -> Rewritten {
        self.refuse_merge("extends", node)?;
        self.fields(node, |this, name, value| match name {
            "file" => {
                let Some(file) = value.path() else { return Ok(Rc::clone(value)) };
                let path = this.resolve("extends.file", file)?;
                this.add_compose_file(&path, folder_of(&path));
                Ok(Node::of_path(&path))
            }
            _ => Ok(Rc::clone(value)),
        })
    }

    fn includes(&mut self, node: &Rc<Node>) -> Rewritten {
        match &node.content {
            Content::List(_) => self.items(node, Self::include),
            _ => self.include(node),
        }
    }

    fn include(&mut self, node: &Rc<Node>) -> Rewritten {
        self.refuse_merge("include", node)?;
        let (paths, directory, env_files) = match &node.content {
            Content::Map(_) => {
                (node.field("path"), node.field("project_directory"), node.field("env_file"))
            }
            _ => (Some(&**node), None, None),
        };
        let resolve_all = |this: &Self, field, node: Option<&Node>| {
            let paths = node.map(Node::paths).unwrap_or_default().into_iter();
            paths.map(|path| this.resolve(field, path)).collect::<Result<Vec<_>, _>>()
        };
        let paths = resolve_all(self, "include", paths)?;
        let Some(first) = paths.first() else { return Ok(Rc::clone(node)) };
        let directory = directory.and_then(Node::path);
        let directory =
            directory.map(|path| self.resolve("include.project_directory", path)).transpose()?;
        let base = directory.clone().unwrap_or_else(|| folder_of(first).to_owned());
        let mut env_files = resolve_all(self, "include.env_file", env_files)?;
        if env_files.is_empty() {
            // Without the field compose reads the `.env` of the project directory, wherever a symlink leads.
            let file = base.join(VARIABLES_FILE);
            self.check_target("include.env_file", &shown(&file, self.checkout), &file)?;
            env_files.push(if file.is_file() { file } else { NO_VARIABLES.into() });
        }
        for path in &paths {
            self.add_compose_file(path, &base);
        }
        let list = |paths: &[PathBuf]| {
            let paths = paths.iter().map(|path| Node::of_path(path)).collect();
            Rc::new(Node { tag: None, content: Content::List(paths) })
        };
        let mut fields = vec![("path", list(&paths)), ("env_file", list(&env_files))];
        fields.extend(directory.map(|path| ("project_directory", Node::of_path(&path))));
        let mut fields: Vec<_> =
            fields.into_iter().map(|(name, value)| (Node::of_text(name), value)).collect();
        if let Content::Map(all) = &node.content {
            let is_known =
                |name: &Node| name.text().is_some_and(|name| INCLUDE_FIELDS.contains(&name));
            // Compose reports unknown ones.
            fields.extend(all.iter().filter(|(name, _)| !is_known(name)).cloned());
        }
        let tag = node.tag.clone().filter(|tag| !tag.starts_with("!!"));
        Ok(Rc::new(Node { tag, content: Content::Map(fields) }))
    }

    fn add_compose_file(&mut self, path: &Path, base: &Path) {
        // `docker compose` reports a file that does not exist.
        if let Ok(file) = path.canonicalize() {
            self.compose_files.push((file, base.to_owned()));
        }
    }

    /// A path, a list of paths, or maps with a `path`.
    fn paths(&mut self, field: &'static str, node: &Rc<Node>) -> Rewritten {
        match &node.content {
            Content::Plain(_) | Content::Quoted(_) => match node.path() {
                Some(path) => {
                    let tag = node.tag.clone().filter(|tag| !tag.starts_with("!!"));
                    let content = Content::Quoted(path_text(&self.resolve(field, path)?));
                    Ok(Rc::new(Node { tag, content }))
                }
                None => Ok(Rc::clone(node)),
            },
            Content::List(_) => self.items(node, |this, item| this.paths(field, item)),
            Content::Map(_) => {
                self.refuse_merge(field, node)?;
                self.fields(node, |this, name, value| match name {
                    "path" => this.paths(field, value),
                    _ => Ok(Rc::clone(value)),
                })
            }
        }
    }

    /// Rewrites the fields of a map.
    fn fields(
        &mut self,
        node: &Rc<Node>,
        mut rewrite: impl FnMut(&mut Self, &str, &Rc<Node>) -> Rewritten,
    ) -> Rewritten {
        let Content::Map(fields) = &node.content else { return Ok(Rc::clone(node)) };
        let mut rewritten = Vec::with_capacity(fields.len());
        for (name, value) in fields {
            let value = match name.text() {
                // Not all parsers take it for a merge key.
                Some(MERGE_KEY)
                    if name.tag.is_some() || matches!(name.content, Content::Quoted(_)) =>
                {
                    return Err(self.unsupported(format!("a quoted or tagged key `{MERGE_KEY}`")));
                }
                Some(text) => rewrite(self, text, value)?,
                None => Rc::clone(value),
            };
            rewritten.push((Rc::clone(name), value));
        }
        Ok(Rc::new(Node { tag: node.tag.clone(), content: Content::Map(rewritten) }))
    }

    /// Rewrites the items of a list.
    fn items(
        &mut self,
        node: &Rc<Node>,
        mut rewrite: impl FnMut(&mut Self, &Rc<Node>) -> Rewritten,
    ) -> Rewritten {
        let Content::List(items) = &node.content else { return Ok(Rc::clone(node)) };
        let items = items.iter().map(|item| rewrite(self, item)).collect::<Result<_, _>>()?;
        Ok(Rc::new(Node { tag: node.tag.clone(), content: Content::List(items) }))
    }

    /// A merge key may bring any field from elsewhere.
    fn refuse_merge(&self, field: &str, node: &Node) -> Result<(), FilesError> {
        match node.field(MERGE_KEY) {
            Some(_) => Err(self.unsupported(format!("a merge key `{MERGE_KEY}` in `{field}`"))),
            None => Ok(()),
        }
    }

    /// The absolute path of the file that `value` names, which may not exist.
    fn resolve(&self, field: &'static str, value: &str) -> Result<PathBuf, FilesError> {
        if value.contains('$') {
            let why = "and paths with variables are not supported in previews";
            return Err(self.outside(field, value, why));
        }
        if value.starts_with(['~', '/']) || value.contains("://") {
            return Err(self.outside(field, value, "which is no path inside the repository"));
        }
        let path = cleaned(&self.base.join(value));
        self.check_target(field, value, &path)?;
        Ok(path)
    }

    /// Checks that `path` does not lead out of the checkout.
    fn check_target(
        &self,
        field: &'static str,
        value: &str,
        path: &Path,
    ) -> Result<(), FilesError> {
        let target = path.canonicalize();
        let is_inside = |path: &Path| path.starts_with(self.checkout);
        if !is_inside(path) || target.is_ok_and(|target| !is_inside(&target)) {
            return Err(self.outside(field, value, "which leads out of the repository"));
        }
        check_size(path, &shown(path, self.checkout))
    }

    fn outside(&self, field: &'static str, value: &str, why: &'static str) -> FilesError {
        FilesError::Outside { path: self.path.to_owned(), field, value: value.to_owned(), why }
    }
}

/// The path without `.` and `..`, as `docker compose` shortens it: by its text.
fn cleaned(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(cleaned.pop()),
            part => cleaned.push(part),
        }
    }
    cleaned
}
