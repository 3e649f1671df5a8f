//! Reads maps by their keys: duplicates, `<<`, missing and unknown keys.

use std::collections::HashMap;
use std::rc::Rc;

use super::kind::ValueKind;
use super::mistake::Mistake;
use super::problem::{Collector, Position};
use super::suggest::{closest, shown};
use super::tree::{Node, Value};

/// A value with its path and key.
pub(super) struct Field<'a> {
    pub(super) path: String,
    pub(super) key: &'a str,
    pub(super) key_at: Position,
    node: &'a Node,
}

impl<'a> Field<'a> {
    /// The whole file.
    pub(super) const fn root(node: &'a Node) -> Self {
        Self { path: String::new(), key: "", key_at: Position::START, node }
    }

    /// The position of a mistake in the value: that of its key if there is no value.
    pub(super) fn at(&self) -> Position {
        match self.kind() {
            ValueKind::Nothing => self.key_at,
            _ => self.node.at,
        }
    }

    pub(super) fn kind(&self) -> ValueKind {
        self.node.kind()
    }

    pub(super) fn wanted(&self, wanted: &'static str, hint: Option<&'static str>) -> Mistake {
        Mistake::Wanted { wanted, found: self.kind(), hint }
    }

    /// The text of a scalar as it was written, whatever its YAML type.
    pub(super) fn scalar(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The text of a string. Numbers and booleans are refused, because other readers of the file (and
    /// the JSON Schema) do not see how they were written.
    pub(super) fn text(&self) -> Result<&'a str, Mistake> {
        match (self.scalar(), self.kind()) {
            (Some(text), ValueKind::Text) => Ok(text),
            (_, ValueKind::Number | ValueKind::Boolean) => {
                Err(self.wanted("text", Some("put it in quotes")))
            }
            _ => Err(self.wanted("text", None)),
        }
    }

    /// The entries of a list; `None` for other values.
    pub(super) fn list(&self) -> Option<Vec<Self>> {
        let Value::List(items) = &self.node.value else { return None };
        let item = |(index, node): (usize, &'a Rc<Node>)| Self {
            path: format!("{}[{index}]", self.path),
            key: "",
            key_at: node.at,
            node,
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// The entries of a map in their order, those of `<<` last; `None` for other values. The first of
    /// two equal keys counts, and a key of the map itself takes precedence over a merged key.
    pub(super) fn map(&self, problems: &mut Collector) -> Option<Vec<Self>> {
        let Value::Map(pairs) = &self.node.value else { return None };
        let mut entries = Entries::default();
        let mut merged = Vec::new();
        for (key, node) in pairs {
            match &key.value {
                Value::Scalar { text, plain: true } if text == "<<" => merged.push((key.at, node)),
                Value::Scalar { text, .. } => {
                    let field = Field { path: self.below(text), key: text, key_at: key.at, node };
                    entries.add_own(field, problems);
                }
                _ => problems.add(key.at, &*self.path, Mistake::KeyNotText(key.kind())),
            }
        }
        if let [_, (second, _), ..] = merged[..] {
            let first_line = merged[0].0.line;
            problems.add(second, self.below("<<"), Mistake::DuplicateKey { first_line });
        }
        for (at, node) in merged {
            self.merge(at, node, &mut entries, problems);
        }
        Some(entries.fields)
    }

    fn merge(
        &self,
        at: Position,
        node: &'a Node,
        entries: &mut Entries<'a>,
        problems: &mut Collector,
    ) {
        let source = Field { path: self.path.clone(), key: "<<", key_at: at, node };
        if let Some(fields) = source.map(problems) {
            for field in fields {
                entries.add_merged(field);
            }
        } else if let Value::List(nodes) = &node.value
            && nodes.iter().all(|node| node.kind() == ValueKind::Map)
        {
            for node in nodes {
                self.merge(at, node, entries, problems);
            }
        } else {
            problems.add(at, self.below("<<"), Mistake::MergeNotMap(source.kind()));
        }
    }

    fn below(&self, key: &str) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        format!("{}{dot}{}", self.path, shown(key))
    }
}

#[derive(Default)]
struct Entries<'a> {
    fields: Vec<Field<'a>>,
    positions: HashMap<&'a str, Position>,
}

impl<'a> Entries<'a> {
    fn add_own(&mut self, field: Field<'a>, problems: &mut Collector) {
        if let Some(first) = self.positions.get(field.key) {
            let mistake = Mistake::DuplicateKey { first_line: first.line };
            problems.add(field.key_at, field.path, mistake);
        } else {
            self.add_merged(field);
        }
    }

    fn add_merged(&mut self, field: Field<'a>) {
        if !self.positions.contains_key(field.key) {
            self.positions.insert(field.key, field.key_at);
            self.fields.push(field);
        }
    }
}

/// The entries of a map with fixed keys. Known keys are removed one by one; the rest is unknown.
pub(super) struct Fields<'a> {
    path: String,
    key_at: Position,
    left: Vec<Field<'a>>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Opens a map; other values are a mistake.
    pub(super) fn open(
        field: &Field<'a>,
        wanted: &'static str,
        problems: &mut Collector,
    ) -> Option<Self> {
        let Some(left) = field.map(problems) else {
            problems.add(field.at(), &*field.path, field.wanted(wanted, None));
            return None;
        };
        let (path, key_at) = (field.path.clone(), field.key_at);
        Some(Self { path, key_at, left, known: Vec::new() })
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        let index = self.left.iter().position(|field| field.key == key)?;
        Some(self.left.swap_remove(index))
    }

    /// Takes a required key.
    pub(super) fn require(
        &mut self,
        key: &'static str,
        hint: &'static str,
        problems: &mut Collector,
    ) -> Option<Field<'a>> {
        let field = self.take(key);
        if field.is_none() {
            let dot = if self.path.is_empty() { "" } else { "." };
            let path = format!("{}{dot}{key}", self.path);
            problems.add(self.key_at, path, Mistake::MissingKey { hint });
        }
        field
    }

    /// Takes a key and reads its value.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        read: fn(&Field<'_>) -> Result<T, Mistake>,
        problems: &mut Collector,
    ) -> Option<T> {
        read_value(&self.take(key)?, read, problems)
    }

    /// Takes the keys that begin with `x-`. As in Compose files, they hold what anchors share.
    pub(super) fn take_extensions(&mut self) {
        self.left.retain(|field| !field.key.starts_with("x-"));
    }

    /// Notes every key that was not taken.
    pub(super) fn finish(self, problems: &mut Collector) {
        for field in self.left {
            let mistake = match closest(field.key, self.known.iter().copied()) {
                Some(word) => Mistake::MisspelledKey(word),
                None => Mistake::UnknownKey { known: self.known.clone() },
            };
            problems.add(field.key_at, field.path, mistake);
        }
    }
}

/// Reads one value, or notes its mistake.
pub(super) fn read_value<T>(
    field: &Field<'_>,
    read: fn(&Field<'_>) -> Result<T, Mistake>,
    problems: &mut Collector,
) -> Option<T> {
    read(field).map_err(|mistake| problems.add(field.at(), &*field.path, mistake)).ok()
}
