//! Reads `JUnit` files: those of the test runners of all languages, which agree on little more than the names of elements.

use std::io::{self, Read};

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use thiserror::Error;

use super::cases::{Cases, Outcome, ReadCase};
use super::files::{FoundFile, Visitor};
use crate::mask::Masker;

/// The most files, the largest one, and the most bytes of all of them.
const FILES_MAX: usize = 1_000;
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
const ALL_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Suites in suites.
const DEPTH_MAX: usize = 100;

/// What is kept of a text, from its end.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// The most warnings about files.
const WARNINGS_MAX: usize = 10;

/// Why a file was not read to its end. What stands before that counts.
#[derive(Debug, Error)]
enum JunitError {
    #[error("{source} at byte {at}")]
    Xml {
        at: u64,
        #[source]
        source: quick_xml::Error,
    },
    #[error("it ends within an element")]
    Incomplete,
    #[error("its elements nest more than {DEPTH_MAX} deep")]
    TooDeep,
}

/// Reads the files of one attempt.
pub(super) struct JunitFiles {
    cases: Cases,
    /// How many had suites.
    suites: usize,
    files: usize,
    bytes: u64,
    warnings: Vec<String>,
}

impl JunitFiles {
    pub(super) fn new(masker: Masker) -> Self {
        Self { cases: Cases::new(masker), suites: 0, files: 0, bytes: 0, warnings: Vec::new() }
    }

    /// Sentences about files that could not be used.
    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// `None`: no file was of the format.
    pub(super) fn cases(self) -> Option<Cases> {
        (self.suites > 0).then_some(self.cases)
    }

    fn warn(&mut self, warning: String) {
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(warning);
        }
    }
}

impl Visitor for JunitFiles {
    fn visit(&mut self, file: &FoundFile<'_>, content: &mut dyn Read) -> io::Result<()> {
        let FoundFile { name, bytes, .. } = *file;
        if self.files >= FILES_MAX {
            self.warn(format!("only the first {FILES_MAX} JUnit files are read"));
            return Ok(());
        }
        self.files += 1;
        if bytes > FILE_BYTES_MAX || self.bytes + bytes > ALL_BYTES_MAX {
            let (one, all) = (FILE_BYTES_MAX >> 20, ALL_BYTES_MAX >> 20);
            self.warn(format!(
                "the JUnit file `{name}` is not read: a file may have {one} MiB, and all {all} MiB"
            ));
            return Ok(());
        }
        self.bytes += bytes;
        let mut content_bytes = Vec::new();
        content.take(bytes).read_to_end(&mut content_bytes)?;
        self.cases.begin_file();
        let (has_suites, read) = read(&text_of(&content_bytes), &mut self.cases);
        self.suites += usize::from(has_suites);
        if let Err(error) = read {
            self.warn(format!("the JUnit file `{name}` is damaged: {error}"));
        }
        Ok(())
    }
}

/// The text of a file in the encoding that its first bytes name, or else UTF-8.
fn text_of(bytes: &[u8]) -> String {
    let (encoding, _) = encoding_rs::Encoding::for_bom(bytes).unwrap_or((encoding_rs::UTF_8, 0));
    encoding.decode(bytes).0.into_owned()
}

/// What an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Suite,
    Case,
    /// `failure` or `error` of a case.
    Failure,
    /// A failure of a case that passed when Maven tried it again.
    Flaky,
    Skipped,
    /// What a case wrote.
    Output,
    Other,
}

impl Element {
    fn of(name: &str, parent: Option<Self>) -> Self {
        match (name, parent) {
            ("testsuites", None) | ("testsuite", None | Some(Self::Suite)) => Self::Suite,
            ("testcase", Some(Self::Suite)) => Self::Case,
            ("failure" | "error", Some(Self::Case)) => Self::Failure,
            ("flakyFailure" | "flakyError", Some(Self::Case)) => Self::Flaky,
            ("skipped", Some(Self::Case)) => Self::Skipped,
            ("system-out" | "system-err", Some(Self::Case)) => Self::Output,
            _ => Self::Other,
        }
    }
}

/// A case whose end has not been read.
#[derive(Default)]
struct OpenCase {
    read: ReadCase,
    has_failed: bool,
    is_flaky: bool,
    is_skipped: bool,
    /// What it wrote.
    output: String,
}

/// What is being read.
struct Parser<'a> {
    cases: &'a mut Cases,
    open: Vec<Element>,
    /// The names of the suites around.
    suites: Vec<String>,
    case: OpenCase,
    has_suites: bool,
}

/// Adds the cases of a file to `cases`. Returns whether it is of this format at all.
fn read(text: &str, cases: &mut Cases) -> (bool, Result<(), JunitError>) {
    let mut parser = Parser {
        cases,
        open: Vec::new(),
        suites: Vec::new(),
        case: OpenCase::default(),
        has_suites: false,
    };
    let result = parser.read(text);
    if result.is_err() && parser.case.has_failed {
        // The runner died while it wrote: what it said about this case counts.
        parser.end_case();
    }
    (parser.has_suites, result)
}

impl Parser<'_> {
    fn read(&mut self, text: &str) -> Result<(), JunitError> {
        let mut reader = Reader::from_str(text);
        // Some runners write such texts.
        reader.config_mut().allow_dangling_amp = true;
        loop {
            let event = reader.read_event();
            let event =
                event.map_err(|source| JunitError::Xml { at: reader.error_position(), source })?;
            match event {
                Event::Start(start) => self.begin(&start)?,
                Event::Empty(start) => {
                    self.begin(&start)?;
                    self.end();
                }
                Event::End(_) => self.end(),
                Event::Text(text) => self.add_text(&text.xml10_content()),
                Event::CData(text) => self.add_text(&text.xml10_content()),
                Event::GeneralRef(reference) => {
                    let char = reference.resolve_char_ref().ok().flatten();
                    let name = reference.xml10_content();
                    let known = quick_xml::escape::resolve_predefined_entity(&name);
                    match (char, known) {
                        (Some(char), _) => self.add_text(char.encode_utf8(&mut [0; 4])),
                        (None, Some(text)) => self.add_text(text),
                        (None, None) => self.add_text(&format!("&{name};")),
                    }
                }
                Event::Eof if self.open.is_empty() => return Ok(()),
                Event::Eof => return Err(JunitError::Incomplete),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        }
    }

    fn begin(&mut self, start: &BytesStart<'_>) -> Result<(), JunitError> {
        if self.open.len() >= DEPTH_MAX {
            return Err(JunitError::TooDeep);
        }
        let name = start.local_name();
        let element = Element::of(name.as_ref(), self.open.last().copied());
        self.has_suites |= element == Element::Suite;
        self.open.push(element);
        match element {
            Element::Suite => self.suites.push(attribute(start, "name")),
            Element::Case => self.case = self.new_case(start),
            Element::Failure => {
                self.case.has_failed = true;
                self.explain(start);
            }
            Element::Flaky => {
                self.case.is_flaky = true;
                self.explain(start);
            }
            Element::Skipped => self.case.is_skipped = true,
            Element::Output | Element::Other => {}
        }
        Ok(())
    }

    fn new_case(&self, start: &BytesStart<'_>) -> OpenCase {
        let own = [attribute(start, "classname"), attribute(start, "file")];
        let mut suites = own.iter().chain(self.suites.iter().rev());
        let suite = suites.find(|suite| !suite.trim().is_empty()).cloned();
        let name = attribute(start, "name");
        let status = attribute(start, "status");
        let read = ReadCase {
            suite: suite.unwrap_or_default(),
            name: if name.trim().is_empty() { "(without a name)".to_owned() } else { name },
            seconds: seconds(&attribute(start, "time")),
            ..ReadCase::default()
        };
        // GoogleTest has no element for that.
        let is_skipped = matches!(&*status, "notrun" | "skipped" | "disabled");
        OpenCase { read, is_skipped, ..OpenCase::default() }
    }

    /// The first failure of a case has its message.
    fn explain(&mut self, start: &BytesStart<'_>) {
        if self.case.read.message.is_empty() {
            let message = attribute(start, "message");
            self.case.read.message =
                if message.is_empty() { attribute(start, "type") } else { message };
        }
    }

    fn add_text(&mut self, text: &str) {
        let into = self.open.iter().rev().find(|element| **element != Element::Other);
        match into {
            Some(Element::Failure | Element::Flaky) => add_end(&mut self.case.read.text, text),
            Some(Element::Output) => add_end(&mut self.case.output, text),
            _ => {}
        }
    }

    fn end(&mut self) {
        match self.open.pop() {
            Some(Element::Suite) => {
                self.suites.pop();
            }
            Some(Element::Case) => self.end_case(),
            _ => {}
        }
    }

    fn end_case(&mut self) {
        let mut case = std::mem::take(&mut self.case);
        let outcome = match case {
            OpenCase { has_failed: true, .. } => Outcome::Failed,
            OpenCase { is_flaky: true, .. } => Outcome::Flaky,
            OpenCase { is_skipped: true, .. } => Outcome::Skipped,
            OpenCase { .. } => Outcome::Passed,
        };
        if case.read.text.trim().is_empty() {
            case.read.text = case.output;
        }
        self.cases.add(outcome, &case.read);
    }
}

/// Adds `more`, and forgets whole lines at the beginning if the text is too long.
fn add_end(text: &mut String, more: &str) {
    text.push_str(more);
    // Not for each piece: that would be slow.
    if text.len() > 2 * TEXT_BYTES_MAX {
        let start = text.ceil_char_boundary(text.len() - TEXT_BYTES_MAX);
        let line = text[start..].find('\n').map_or(start, |end| start + end + 1);
        text.drain(..line);
    }
}

/// The value of an attribute, at most [`TEXT_BYTES_MAX`] of it; empty without one. A damaged one stays as it is.
fn attribute(start: &BytesStart<'_>, name: &str) -> String {
    let mut attributes = start.attributes();
    let mut attributes = attributes.with_checks(false).flatten();
    let found = attributes.find(|attribute| attribute.key.as_ref() == name);
    let value = found.map(|attribute| match attribute.normalized_value(XmlVersion::Implicit1_0) {
        Ok(value) => value.into_owned(),
        Err(_) => attribute.value.into_owned(),
    });
    let mut value: String = value.unwrap_or_default();
    // Each case gets a copy of the name of its suite.
    value.truncate(value.floor_char_boundary(TEXT_BYTES_MAX));
    value
}

/// A time such as `1.5`, or `1,234.5` as Maven writes it.
fn seconds(text: &str) -> f64 {
    let seconds = text.replace(',', "").parse().unwrap_or(0.0);
    if f64::is_finite(seconds) { seconds.max(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests;
