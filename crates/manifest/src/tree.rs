//! YAML text → a tree of values with their positions.
//!
//! Serde would stop at the first mistake and turn `1.10` into the number 1.1, so this module reads
//! the parser's events. `granit-parser` is maintained, forbids `unsafe`, and is the parser inside
//! `serde-saphyr`. It limits nesting and look-ahead; this module limits the expansion of aliases.

use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Tag, options};

use super::kind::ValueKind;
use super::limits::{EXPANDED_SIZE_MAX, FILE_DEPTH_MAX};
use super::mistake::Mistake;
use super::problem::Position;

/// One value. Aliases share their node, so a tree takes memory in proportion to its file.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
    /// The size that counts towards [`EXPANDED_SIZE_MAX`].
    size: usize,
    /// The levels below and including this one.
    depth: usize,
}

/// A YAML value.
#[derive(Debug)]
pub(super) enum Value {
    /// `plain`: neither quoted nor a block, so that `~` and `5` are not text.
    Scalar { text: String, plain: bool },
    /// `[…]`
    List(Vec<Rc<Node>>),
    /// `{…}`, including duplicate keys and merge keys.
    Map(Vec<(Rc<Node>, Rc<Node>)>),
    /// A value with a custom tag, such as `!include`.
    Tagged,
}

impl Node {
    /// The kind of the value under the core schema of YAML 1.2.
    pub(super) fn kind(&self) -> ValueKind {
        match &self.value {
            Value::List(_) => ValueKind::List,
            Value::Map(_) => ValueKind::Map,
            Value::Tagged => ValueKind::Tagged,
            Value::Scalar { plain: false, .. } => ValueKind::Text,
            Value::Scalar { text, .. } => match text.as_str() {
                "" | "~" | "null" | "Null" | "NULL" => ValueKind::Nothing,
                "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => ValueKind::Boolean,
                text if is_number(text) => ValueKind::Number,
                _ => ValueKind::Text,
            },
        }
    }
}

fn is_number(text: &str) -> bool {
    let unsigned = text.trim_start_matches(['+', '-']);
    match unsigned.as_bytes() {
        [b'0', b'x', digits @ ..] => digits.iter().all(u8::is_ascii_hexdigit),
        [b'0', b'o', digits @ ..] => digits.iter().all(|digit| (b'0'..=b'7').contains(digit)),
        // Rust reads `inf` and `nan`, which YAML writes with a dot.
        [b'0'..=b'9' | b'.', ..] => {
            matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN")
                || text.parse::<f64>().is_ok()
        }
        _ => false,
    }
}

/// Reads `text`; `None` if it contains only comments.
///
/// # Errors
/// The first mistake after which the rest of the file cannot be trusted.
pub(super) fn read(text: &str) -> Result<Option<Rc<Node>>, (Position, Mistake)> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options! { emit_comments: false }) {
        let (event, span) = event.map_err(|error| syntax_error(&error))?;
        let at = position(span.start);
        builder.take(event, at).map_err(|mistake| (at, mistake))?;
    }
    Ok(builder.root)
}

fn position(marker: Marker) -> Position {
    Position { line: marker.line(), column: marker.col() + 1 }
}

fn syntax_error(error: &ScanError) -> (Position, Mistake) {
    let mistake = match error.kind() {
        ErrorKind::RecursionLimitExceeded => Mistake::TooDeep { max: FILE_DEPTH_MAX },
        ErrorKind::UnknownAnchor => Mistake::UnknownAnchor,
        ErrorKind::TabInIndentation | ErrorKind::TabInBlockIndentation => Mistake::Tab,
        kind => Mistake::Syntax(kind.to_string()),
    };
    (position(*error.marker()), mistake)
}

/// A list or a map that is not closed yet. The children of a map alternate between keys and values.
struct Open {
    at: Position,
    anchor: usize,
    is_map: bool,
    tagged: bool,
    children: Vec<Rc<Node>>,
}

impl Open {
    fn close(self) -> Node {
        let size = 1 + self.children.iter().map(|child| child.size).sum::<usize>();
        let depth = 1 + self.children.iter().map(|child| child.depth).max().unwrap_or(0);
        let value = match (self.tagged, self.is_map) {
            (true, _) => Value::Tagged,
            (false, false) => Value::List(self.children),
            (false, true) => Value::Map(pairs(self.children)),
        };
        Node { at: self.at, value, size, depth }
    }
}

fn pairs(children: Vec<Rc<Node>>) -> Vec<(Rc<Node>, Rc<Node>)> {
    let mut children = children.into_iter();
    let mut pairs = Vec::with_capacity(children.len() / 2);
    while let (Some(key), Some(value)) = (children.next(), children.next()) {
        pairs.push((key, value));
    }
    pairs
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
    documents: usize,
    size: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Position) -> Result<(), Mistake> {
        match event {
            Event::DocumentStart(..) => self.begin_document(),
            Event::SequenceStart(_, anchor, tag) => {
                let tagged = tag.is_some_and(|tag| !tag.is_yaml_core_schema_tag("seq"));
                self.begin(Open { at, anchor, is_map: false, tagged, children: Vec::new() })
            }
            Event::MappingStart(_, anchor, tag) => {
                let tagged = tag.is_some_and(|tag| !tag.is_yaml_core_schema_tag("map"));
                self.begin(Open { at, anchor, is_map: true, tagged, children: Vec::new() })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    let anchor = open.anchor;
                    self.place(Rc::new(open.close()), anchor);
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.grow(1 + text.len())?;
                let node = Node {
                    at,
                    size: 1 + text.len(),
                    depth: 0,
                    value: scalar(text.into(), style, tag.as_deref()),
                };
                self.place(Rc::new(node), anchor);
                Ok(())
            }
            Event::Alias(anchor) => self.repeat(anchor),
            _ => Ok(()),
        }
    }

    fn begin_document(&mut self) -> Result<(), Mistake> {
        self.documents += 1;
        if self.documents > 1 { Err(Mistake::SecondDocument) } else { Ok(()) }
    }

    fn begin(&mut self, open: Open) -> Result<(), Mistake> {
        self.grow(1)?;
        self.open.push(open);
        self.check_depth(0)
    }

    fn repeat(&mut self, anchor: usize) -> Result<(), Mistake> {
        // The parser refuses unknown anchors, so an anchor that is missing here is still open.
        let node = Rc::clone(self.anchors.get(&anchor).ok_or(Mistake::EndlessAlias)?);
        self.grow(node.size)?;
        self.check_depth(node.depth)?;
        self.place(node, 0);
        Ok(())
    }

    fn place(&mut self, node: Rc<Node>, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        match self.open.last_mut() {
            Some(open) => open.children.push(node),
            None => self.root = Some(node),
        }
    }

    fn grow(&mut self, by: usize) -> Result<(), Mistake> {
        self.size += by;
        if self.size > EXPANDED_SIZE_MAX {
            return Err(Mistake::ExpandsTooFar { max_kib: EXPANDED_SIZE_MAX / 1024 });
        }
        Ok(())
    }

    fn check_depth(&self, below: usize) -> Result<(), Mistake> {
        if self.open.len() + below > FILE_DEPTH_MAX {
            return Err(Mistake::TooDeep { max: FILE_DEPTH_MAX });
        }
        Ok(())
    }
}

fn scalar(text: String, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    match tag {
        None => Value::Scalar { text, plain: style == ScalarStyle::Plain },
        Some(tag) if tag.is_yaml_core_schema_tag("str") => Value::Scalar { text, plain: false },
        Some(_) => Value::Tagged,
    }
}
