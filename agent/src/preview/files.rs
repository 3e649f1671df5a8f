//! The files that `docker compose` reads while it reads a compose file. They must be files of the repository, because their
//! contents end up in containers and in messages.
//!
//! Two parsers of YAML may read one text differently: `docker compose` takes U+0085 for a line break, which YAML 1.2 does
//! not. So the compose files are written again from what was checked, in a form in which nothing is ambiguous, and with
//! absolute paths of the files that they name.

#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, Tag, options};
use thiserror::Error;

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The most compose files of a preview.
const FILES_MAX: usize = 64;

/// The most values of a compose file with its aliases expanded.
const VALUES_MAX: usize = 200_000;

/// The most bytes of these values.
const TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;

const MERGE_KEY: &str = "<<";

const INCLUDE_FIELDS: [&str; 3] = ["path", "project_directory", "env_file"];

const VARIABLES_FILE: &str = ".env";

/// An `env_file` without variables.
const NO_VARIABLES: &str = "/dev/null";

/// Why the files of a compose file cannot be read.
#[derive(Debug, Error)]
pub(crate) enum FilesError {
    #[error("there is no file `{0}` in the repository")]
    Missing(String),
    #[error("cannot read `{path}`")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is not valid YAML: {detail}")]
    Syntax { path: String, detail: String },
    #[error("`{path}` is too large")]
    TooLarge { path: String },
    #[error("`{path}` has `{field}: {value}`, {why}")]
    Outside { path: String, field: &'static str, value: String, why: &'static str },
    #[error("`{path}` has {what}, which previews do not support")]
    Unsupported { path: String, what: String },
}

/// A value of a compose file.
struct Node {
    /// As it is written: `!reset`. It does not change the value.
    tag: Option<String>,
    content: Content,
}

enum Content {
    /// Its type depends on the text.
    Plain(String),
    Quoted(String),
    List(Vec<Rc<Node>>),
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

/// The compose file of a checkout, and the `.env` beside it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ComposeFiles {
    pub(crate) main: PathBuf,
    pub(crate) variables: Option<PathBuf>,
}

/// Finds the compose file `path` in `checkout`, a path without symlinks.
///
/// # Errors
/// [`FilesError`], also if a symlink or `..` leads out of the checkout. If `is_checked`, the files that it names must be in
/// the checkout, too, and all compose files are written again.
pub(crate) fn find(
    checkout: &Path,
    path: &str,
    is_checked: bool,
) -> Result<ComposeFiles, FilesError> {
    let main = checkout.join(path).canonicalize().ok();
    let main = main.filter(|main| main.starts_with(checkout) && main.is_file());
    let main = main.ok_or_else(|| FilesError::Missing(path.to_owned()))?;
    let variables = variables(checkout, folder_of(&main))?;
    if is_checked {
        check(checkout, &main)?;
    }
    Ok(ComposeFiles { main, variables })
}

fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

/// A path as messages show it.
fn shown(path: &Path, checkout: &Path) -> String {
    path.strip_prefix(checkout).unwrap_or(path).display().to_string()
}

/// The file `.env` of a folder.
///
/// # Errors
/// [`FilesError::TooLarge`]
fn variables(checkout: &Path, folder: &Path) -> Result<Option<PathBuf>, FilesError> {
    let path = folder.join(VARIABLES_FILE);
    let found = path.canonicalize().ok();
    let Some(found) = found.filter(|file| file.starts_with(checkout) && file.is_file()) else {
        return Ok(None);
    };
    check_size(&found, &shown(&path, checkout))?;
    Ok(Some(found))
}

/// Checks that a file, if there is one, is not too large to be read.
fn check_size(file: &Path, path: &str) -> Result<(), FilesError> {
    let is_too_large =
        |metadata: fs::Metadata| metadata.is_file() && metadata.len() > FILE_BYTES_MAX;
    if fs::metadata(file).is_ok_and(is_too_large) {
        return Err(FilesError::TooLarge { path: path.to_owned() });
    }
    Ok(())
}

/// Checks the files that `main` names, and those that these name, and writes the compose files among them again.
fn check(checkout: &Path, main: &Path) -> Result<(), FilesError> {
    let mut waiting = VecDeque::from([(main.to_owned(), folder_of(main).to_owned())]);
    let mut seen = BTreeSet::new();
    let mut written: BTreeMap<PathBuf, (String, String)> = BTreeMap::new();
    while let Some((file, base)) = waiting.pop_front() {
        if !seen.insert((file.clone(), base.clone())) {
            continue;
        }
        let path = shown(&file, checkout);
        if seen.len() > FILES_MAX {
            return Err(FilesError::TooLarge { path });
        }
        let documents = read(&file, &path)?;
        let mut references =
            References { checkout, base: &base, path: &path, compose_files: Vec::new() };
        let mut text = String::new();
        for document in &documents {
            text.push_str("---\n");
            references.document(document)?.write(&mut text);
            text.push('\n');
        }
        waiting.extend(references.compose_files);
        match written.entry(file) {
            Entry::Vacant(entry) => drop(entry.insert((path, text))),
            Entry::Occupied(entry) if entry.get().1 != text => {
                let what = "paths that are relative to two folders: it is included or extended in two ways";
                return Err(FilesError::Unsupported { path, what: what.to_owned() });
            }
            Entry::Occupied(_) => {}
        }
    }
    for (file, (path, text)) in written {
        fs::write(file, text).map_err(|source| FilesError::Io { path, source })?;
    }
    Ok(())
}

/// The documents of one compose file.
fn read(file: &Path, path: &str) -> Result<Vec<Rc<Node>>, FilesError> {
    check_size(file, path)?;
    let text = fs::read_to_string(file)
        .map_err(|source| FilesError::Io { path: path.to_owned(), source })?;
    let documents = parse(&text, path)?;
    let mut size = Size::default();
    for document in &documents {
        size.add(document);
    }
    if size.is_too_large() {
        return Err(FilesError::TooLarge { path: path.to_owned() });
    }
    Ok(documents)
}

/// How much a compose file has with its aliases expanded.
#[derive(Default)]
struct Size {
    values: usize,
    text_bytes: usize,
}

impl Size {
    const fn is_too_large(&self) -> bool {
        self.values > VALUES_MAX || self.text_bytes > TEXT_BYTES_MAX
    }

    fn add(&mut self, node: &Node) {
        self.values += 1;
        if self.is_too_large() {
            return;
        }
        match &node.content {
            Content::Plain(text) | Content::Quoted(text) => self.text_bytes += text.len(),
            Content::List(items) => items.iter().for_each(|item| self.add(item)),
            Content::Map(fields) => {
                for (name, value) in fields {
                    self.add(name);
                    self.add(value);
                }
            }
        }
    }
}

/// The files that one compose file names. Their paths are replaced by absolute ones, because the releases of
/// `docker compose` differ in the folder that a path of an included file is relative to: in some cases it is the current
/// one of the command.
struct References<'a> {
    checkout: &'a Path,
    /// The folder to which the paths of the file are relative.
    base: &'a Path,
    path: &'a str,
    /// The compose files among them, each with the folder to which its paths are relative.
    compose_files: Vec<(PathBuf, PathBuf)>,
}

type Rewritten = Result<Rc<Node>, FilesError>;

impl References<'_> {
    fn unsupported(&self, what: String) -> FilesError {
        FilesError::Unsupported { path: self.path.to_owned(), what }
    }

    fn document(&mut self, node: &Rc<Node>) -> Rewritten {
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

/// The text for a path. Compose replaces `$NAME` in it.
fn path_text(path: &Path) -> String {
    path.display().to_string().replace('$', "$$")
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

impl Node {
    fn of_text(text: &str) -> Rc<Self> {
        Rc::new(Self { tag: None, content: Content::Quoted(text.to_owned()) })
    }

    fn of_path(path: &Path) -> Rc<Self> {
        Self::of_text(&path_text(path))
    }

    /// The path that the value is; `None` also for null and the empty text.
    fn path(&self) -> Option<&str> {
        let is_null = |text: &str| matches!(text, "~" | "null" | "Null" | "NULL");
        match &self.content {
            Content::Plain(text) if is_null(text) && self.tag.as_deref() != Some("!!str") => None,
            _ => self.text().filter(|text| !text.is_empty()),
        }
    }

    /// The paths of a path or a list of them.
    fn paths(&self) -> Vec<&str> {
        match &self.content {
            Content::List(items) => items.iter().filter_map(|item| item.path()).collect(),
            _ => self.path().into_iter().collect(),
        }
    }

    fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Plain(text) | Content::Quoted(text) => Some(text),
            Content::List(_) | Content::Map(_) => None,
        }
    }

    fn field(&self, wanted: &str) -> Option<&Self> {
        let Content::Map(fields) = &self.content else { return None };
        let found = fields.iter().find(|(name, _)| name.text() == Some(wanted));
        found.map(|(_, value)| &**value)
    }

    /// Appends the value on one line. All texts are quoted but for those that may be numbers, booleans or null.
    fn write(&self, out: &mut String) {
        if let Some(tag) = &self.tag {
            out.push_str(tag);
            out.push(' ');
        }
        match &self.content {
            Content::Plain(text) if text.is_empty() && self.tag.as_deref() != Some("!!str") => {
                out.push_str("null");
            }
            Content::Plain(text) if text == MERGE_KEY || is_unambiguous(text) => out.push_str(text),
            Content::Plain(text) | Content::Quoted(text) => quote(text, out),
            Content::List(items) => {
                out.push('[');
                for item in items {
                    item.write(out);
                    out.push_str(", ");
                }
                out.push(']');
            }
            Content::Map(fields) => {
                out.push('{');
                for (name, value) in fields {
                    name.write(out);
                    out.push_str(": ");
                    value.write(out);
                    out.push_str(", ");
                }
                out.push('}');
            }
        }
    }
}

/// Whether a plain text is the same wherever it stands. All numbers, booleans and nulls are.
fn is_unambiguous(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+~-".contains(&byte);
    text.bytes().all(is_allowed) && text.bytes().any(|byte| !b"-.".contains(&byte))
}

/// Appends `text` in double quotes, in ASCII.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            ' '..='~' => out.push(character),
            // Writing to a String cannot fail.
            _ => drop(write!(out, "\\U{:08x}", u32::from(character))),
        }
    }
    out.push('"');
}

/// A tag as it is written, if `docker compose` reads a value with it as it is written. It decodes `!!binary`.
fn known_tag(tag: &Tag) -> Option<String> {
    if tag.handle() == "!" && matches!(tag.suffix(), "reset" | "override") {
        return Some(format!("!{}", tag.suffix()));
    }
    tag.core_suffix().map(|suffix| format!("!!{suffix}"))
}

/// A list or map whose end was not read yet.
struct Open {
    is_map: bool,
    anchor: usize,
    tag: Option<String>,
    children: Vec<Rc<Node>>,
}

/// Reads the documents of the compose file `path`.
fn parse(text: &str, path: &str) -> Result<Vec<Rc<Node>>, FilesError> {
    let syntax = |detail| FilesError::Syntax { path: path.to_owned(), detail };
    let mut open: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, Rc<Node>> = HashMap::new();
    let mut documents = Vec::new();
    for event in Parser::new_from_str_with_options(text, options! { emit_comments: false }) {
        let (event, span) = event
            .map_err(|error| syntax(format!("line {}: {}", error.marker().line(), error.kind())))?;
        let tag = match &event {
            Event::Scalar(_, _, _, Some(tag))
            | Event::SequenceStart(_, _, Some(tag))
            | Event::MappingStart(_, _, Some(tag)) => Some(known_tag(tag).ok_or_else(|| {
                let what = format!("the tag `{}{}`", tag.original_handle(), tag.suffix());
                FilesError::Unsupported { path: path.to_owned(), what }
            })?),
            _ => None,
        };
        let (node, anchor) = match event {
            Event::SequenceStart(_, anchor, _) => {
                open.push(Open { is_map: false, anchor, tag, children: Vec::new() });
                continue;
            }
            Event::MappingStart(_, anchor, _) => {
                open.push(Open { is_map: true, anchor, tag, children: Vec::new() });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { is_map, anchor, tag, children }) = open.pop() else { continue };
                let content = if is_map { pairs(children) } else { Content::List(children) };
                (Rc::new(Node { tag, content }), anchor)
            }
            Event::Scalar(text, style, anchor, _) => {
                let is_plain = style == ScalarStyle::Plain;
                let content = if is_plain { Content::Plain } else { Content::Quoted }(text.into());
                (Rc::new(Node { tag, content }), anchor)
            }
            Event::Alias(anchor) => {
                let node = anchors.get(&anchor).map(Rc::clone);
                let line = span.start.line();
                (node.ok_or_else(|| syntax(format!("line {line}: an alias contains itself")))?, 0)
            }
            _ => continue,
        };
        if anchor != 0 {
            anchors.insert(anchor, Rc::clone(&node));
        }
        match open.last_mut() {
            Some(open) => open.children.push(node),
            None => documents.push(node),
        }
    }
    Ok(documents)
}

fn pairs(children: Vec<Rc<Node>>) -> Content {
    let mut children = children.into_iter();
    let mut pairs = Vec::with_capacity(children.len() / 2);
    while let (Some(key), Some(value)) = (children.next(), children.next()) {
        pairs.push((key, value));
    }
    Content::Map(pairs)
}
