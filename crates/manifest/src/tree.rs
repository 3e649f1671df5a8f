//! YAML text → a tree of values, each of which knows where it stands.
//!
//! Serde would stop at the first mistake and turn `1.10` into the number 1.1, so this listens to
//! the parser's events. `granit-parser` is maintained, forbids `unsafe`, and is the parser inside
//! `serde-saphyr`. It limits nesting and look-ahead; what aliases may grow to is limited here.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Tag, options};

use super::fault::Fault;
use super::problem::Position;

/// The largest file, in bytes.
pub(super) const FILE_BYTES_MAX: usize = 256 * 1024;

/// How deep a file may nest, aliases included. A manifest needs 5.
const DEPTH_MAX: usize = 32;

/// How large a file may grow by its aliases, in bytes of text and one more for each value. Without
/// aliases a file stays below twice [`FILE_BYTES_MAX`].
const SIZE_MAX: usize = 1024 * 1024;

/// One value. Aliases share theirs, so a tree takes no more memory than its file deserves.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
    /// What it counts towards [`SIZE_MAX`].
    size: usize,
    /// The levels below and including this one.
    depth: usize,
}

/// A value as YAML has it.
#[derive(Debug)]
pub(super) enum Value {
    /// `plain`: without quotes and not a block, so that `~` or `5` mean something else than text.
    Scalar { text: String, plain: bool },
    /// `[…]`
    List(Vec<Rc<Node>>),
    /// `{…}`, with duplicate keys and merge keys still in it.
    Map(Vec<(Rc<Node>, Rc<Node>)>),
    /// A value with a tag of its own, such as `!include`.
    Tagged,
}

/// What a value is, in the words of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    Boolean,
    Number,
    Text,
    List,
    Map,
    Tagged,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Boolean => "a boolean",
            Self::Number => "a number",
            Self::Text => "text",
            Self::List => "a list",
            Self::Map => "a map",
            Self::Tagged => "a value with a tag",
        })
    }
}

impl Node {
    /// What YAML 1.2 (core schema) says the value is.
    pub(super) fn kind(&self) -> Kind {
        match &self.value {
            Value::List(_) => Kind::List,
            Value::Map(_) => Kind::Map,
            Value::Tagged => Kind::Tagged,
            Value::Scalar { plain: false, .. } => Kind::Text,
            Value::Scalar { text, .. } => match text.as_str() {
                "" | "~" | "null" | "Null" | "NULL" => Kind::Nothing,
                "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Kind::Boolean,
                text if is_number(text) => Kind::Number,
                _ => Kind::Text,
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

/// Reads `text`; `None`: it holds nothing but comments.
///
/// # Errors
/// The first mistake after which the rest of the file cannot be trusted.
pub(super) fn read(text: &str) -> Result<Option<Rc<Node>>, (Position, Fault)> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options! { emit_comments: false }) {
        let (event, span) = event.map_err(|error| syntax_error(&error))?;
        let at = position(span.start);
        builder.take(event, at).map_err(|fault| (at, fault))?;
    }
    Ok(builder.root)
}

fn position(marker: Marker) -> Position {
    Position { line: marker.line(), column: marker.col() + 1 }
}

fn syntax_error(error: &ScanError) -> (Position, Fault) {
    let fault = match error.kind() {
        ErrorKind::RecursionLimitExceeded => Fault::TooDeep { max: DEPTH_MAX },
        ErrorKind::UnknownAnchor => Fault::UnknownAnchor,
        ErrorKind::TabInIndentation | ErrorKind::TabInBlockIndentation => Fault::Tab,
        kind => Fault::Syntax(kind.to_string()),
    };
    (position(*error.marker()), fault)
}

/// A list or a map whose end has not come. The children of a map are key, value, key, value…
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
    fn take(&mut self, event: Event<'_>, at: Position) -> Result<(), Fault> {
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

    fn begin_document(&mut self) -> Result<(), Fault> {
        self.documents += 1;
        if self.documents > 1 { Err(Fault::SecondDocument) } else { Ok(()) }
    }

    fn begin(&mut self, open: Open) -> Result<(), Fault> {
        self.grow(1)?;
        self.open.push(open);
        self.check_depth(0)
    }

    fn repeat(&mut self, anchor: usize) -> Result<(), Fault> {
        // The parser has refused unknown names, so what is not here yet is still open.
        let node = Rc::clone(self.anchors.get(&anchor).ok_or(Fault::EndlessAlias)?);
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

    fn grow(&mut self, by: usize) -> Result<(), Fault> {
        self.size += by;
        if self.size > SIZE_MAX {
            return Err(Fault::ExpandsTooFar { max_kib: SIZE_MAX / 1024 });
        }
        Ok(())
    }

    fn check_depth(&self, below: usize) -> Result<(), Fault> {
        if self.open.len() + below > DEPTH_MAX {
            return Err(Fault::TooDeep { max: DEPTH_MAX });
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
