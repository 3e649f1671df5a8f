//! Compose files as values: how they are read, and how they are written again.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, Tag, options};

use super::FilesError;

/// The most values of a compose file with its aliases expanded.
const VALUES_MAX: usize = 200_000;

/// The most bytes of these values.
const TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;

pub(super) const MERGE_KEY: &str = "<<";

/// A value of a compose file.
pub(super) struct Node {
    /// As it is written: `!reset`. It does not change the value.
    pub(super) tag: Option<String>,
    pub(super) content: Content,
}

pub(super) enum Content {
    /// Its type depends on the text.
    Plain(String),
    Quoted(String),
    List(Vec<Rc<Node>>),
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

/// How much a compose file has with its aliases expanded.
#[derive(Default)]
pub(super) struct Size {
    values: usize,
    text_bytes: usize,
}

impl Size {
    pub(super) const fn is_too_large(&self) -> bool {
        self.values > VALUES_MAX || self.text_bytes > TEXT_BYTES_MAX
    }

    pub(super) fn add(&mut self, node: &Node) {
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

impl Node {
    pub(super) fn of_text(text: &str) -> Rc<Self> {
        Rc::new(Self { tag: None, content: Content::Quoted(text.to_owned()) })
    }

    pub(super) fn of_path(path: &Path) -> Rc<Self> {
        Self::of_text(&path_text(path))
    }

    /// The path that the value is; `None` also for null and the empty text.
    pub(super) fn path(&self) -> Option<&str> {
        let is_null = |text: &str| matches!(text, "~" | "null" | "Null" | "NULL");
        match &self.content {
            Content::Plain(text) if is_null(text) && self.tag.as_deref() != Some("!!str") => None,
            _ => self.text().filter(|text| !text.is_empty()),
        }
    }

    /// The paths of a path or a list of them.
    pub(super) fn paths(&self) -> Vec<&str> {
        match &self.content {
            Content::List(items) => items.iter().filter_map(|item| item.path()).collect(),
            _ => self.path().into_iter().collect(),
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Plain(text) | Content::Quoted(text) => Some(text),
            Content::List(_) | Content::Map(_) => None,
        }
    }

    pub(super) fn field(&self, wanted: &str) -> Option<&Self> {
        let Content::Map(fields) = &self.content else { return None };
        let found = fields.iter().find(|(name, _)| name.text() == Some(wanted));
        found.map(|(_, value)| &**value)
    }

    /// Appends the value on one line. All texts are quoted but for those that may be numbers, booleans or null.
    pub(super) fn write(&self, out: &mut String) {
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

/// The text for a path. Compose replaces `$NAME` in it.
pub(super) fn path_text(path: &Path) -> String {
    path.display().to_string().replace('$', "$$")
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
pub(super) fn parse(text: &str, path: &str) -> Result<Vec<Rc<Node>>, FilesError> {
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
