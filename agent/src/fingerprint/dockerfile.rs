//! What a Dockerfile says of its stages, as far as a cache miss needs it.
//!
//! Source: Dockerfile reference, and `BuildKit`'s `frontend/dockerfile/{parser,dockerfile2llb}`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::{Captures, Regex};
use stagely_protocol::BuildArgs;

use super::files::{Short, short};
use crate::mask::is_secret_name;

/// `$NAME` and `${NAME}`, also with `:-word` and the like.
static VARIABLE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\$(?:\{(\w+)(?::?([-+])([^}]*))?\}|(\w+))").expect("a fixed pattern")
});

/// `<<EOF`, `<<-"EOF"`, but not `<<<`. A match without groups is quoted text, where there is none.
static HEREDOC: LazyLock<Regex> = LazyLock::new(|| {
    let quoted = r#"\\.|"(?:[^"\\]|\\.)*"|'[^']*'"#;
    let heredoc = r#"(?:^|\s)\d*<<(-?)["']?([A-Za-z_.]\w*)["']?"#;
    Regex::new(&format!("{quoted}|{heredoc}")).expect("a fixed pattern")
});

/// `NAME=value` in ARG and ENV.
static ASSIGNMENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"(\w+)=("(?:[^"\\]|\\.)*"|'[^']*'|\S*)"#).expect("a fixed pattern")
});

/// One instruction, continued lines joined.
#[derive(Debug)]
struct Instruction {
    /// In upper case.
    keyword: String,
    /// The rest, with its here-documents.
    text: String,
}

/// An instruction that makes a step.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) keyword: String,
    pub(super) text: String,
    /// Digests the instruction with all before it in its stage that it depends on, as the Dockerfile
    /// writes them: no value of an argument is in it.
    pub(super) key: Short,
    /// The build arguments that it depends on.
    pub(super) args: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Stage {
    /// As `BuildKit` names it in steps; empty in a Dockerfile of one stage.
    pub(super) label: String,
    /// The image that it begins with, arguments expanded; a stage's name where `parent` is set.
    pub(super) image: String,
    /// The stage that it begins with.
    pub(super) parent: Option<usize>,
    pub(super) layers: Vec<Layer>,
    scope: Scope,
}

/// What an instruction depends on besides itself.
#[derive(Clone, Debug, Default)]
struct Scope {
    /// Digests the steps so far.
    files: Short,
    /// Digests ENV, SHELL and USER so far.
    settings: Short,
    /// The declared arguments.
    args: BTreeSet<String>,
    /// The arguments that each variable depends on.
    variables: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Dockerfile {
    pub(super) stages: Vec<Stage>,
    /// Digests the value of each declared argument, given or default. Secret ones are missing: what
    /// has few possible values could be found out from its digest.
    pub(super) args: BTreeMap<String, Short>,
}

impl Dockerfile {
    /// Reads what it understands; the rest is for `BuildKit` to refuse.
    pub(super) fn parse(text: &str, given: &BuildArgs) -> Self {
        let instructions = instructions(text);
        let count = instructions.iter().filter(|it| it.keyword == "FROM").count();
        let mut reader = Reader::new(given);
        for instruction in &instructions {
            reader.take(instruction, count);
        }
        reader.finish()
    }

    /// The stage that a step of this label belongs to. `BuildKit` leaves the label of a single stage
    /// out, but not where an image to copy from or a named context counts as another one.
    pub(super) fn stage(&self, label: &str) -> Option<usize> {
        match &self.stages[..] {
            [_] => Some(0),
            stages => stages.iter().position(|stage| stage.label == label),
        }
    }

    /// Whether `name`, in `--from`, is a stage and not an image or a named context.
    pub(super) fn has_stage(&self, name: &str) -> bool {
        self.stages.iter().any(|stage| stage.label == name)
    }
}

struct Reader<'a> {
    given: &'a BuildArgs,
    stages: Vec<Stage>,
    names: BTreeMap<String, usize>,
    /// The arguments that stand before the first FROM.
    global: BTreeMap<String, String>,
    /// The values of each argument, wherever declared.
    values: BTreeMap<String, BTreeSet<String>>,
    /// Arguments that are secret, or made of secrets.
    secret: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn new(given: &'a BuildArgs) -> Self {
        Self {
            given,
            stages: Vec::new(),
            names: BTreeMap::new(),
            global: BTreeMap::new(),
            values: BTreeMap::new(),
            secret: BTreeSet::new(),
        }
    }

    fn take(&mut self, instruction: &Instruction, count: usize) {
        match instruction.keyword.as_str() {
            "FROM" => self.begin_stage(&instruction.text, count),
            "ARG" => self.declare(&instruction.text),
            _ => {
                if let Some(stage) = self.stages.last_mut() {
                    stage.take(instruction);
                }
            }
        }
    }

    fn begin_stage(&mut self, text: &str, count: usize) {
        let mut words = text.split_whitespace().filter(|word| !word.starts_with("--"));
        let image = expand(words.next().unwrap_or_default(), &self.global);
        let name = words.next().filter(|word| word.eq_ignore_ascii_case("as"));
        let name = name.and_then(|_| words.next()).map(str::to_ascii_lowercase);
        let index = self.stages.len();
        let label = match &name {
            _ if count == 1 => String::new(),
            Some(name) => name.clone(),
            None => format!("stage-{index}"),
        };
        let parent = self.names.get(&image.to_ascii_lowercase()).copied();
        let scope = parent.map(|parent| self.stages[parent].scope.clone()).unwrap_or_default();
        self.stages.push(Stage { label, image, parent, layers: Vec::new(), scope });
        if let Some(name) = name {
            self.names.insert(name, index);
        }
    }

    /// An ARG, which may declare several.
    fn declare(&mut self, text: &str) {
        let assigned = ASSIGNMENT.captures_iter(text);
        let mut declared: Vec<(String, Option<String>)> =
            assigned.map(|it| (it[1].to_owned(), Some(it[2].to_owned()))).collect();
        let rest = ASSIGNMENT.replace_all(text, " ");
        declared.extend(rest.split_whitespace().map(|name| (name.to_owned(), None)));
        for (name, default) in declared {
            self.declare_one(name, default);
        }
    }

    fn declare_one(&mut self, name: String, default: Option<String>) {
        let mut sources = default.iter().flat_map(|text| variables(text));
        let is_secret =
            is_secret_name(&name) || sources.any(|source| self.secret.contains(&source));
        drop(sources);
        if is_secret {
            self.secret.insert(name.clone());
        }
        let default = default.map(|text| expand(text.trim_matches(['"', '\'']), &self.global));
        let value = self.given.0.get(&name).cloned().or(default);
        match self.stages.last_mut() {
            Some(stage) => {
                stage.scope.args.insert(name.clone());
                stage.scope.variables.insert(name.clone(), [name.clone()].into());
                // Without a default of its own it takes the global one's.
                let value = value.or_else(|| self.global.get(&name).cloned());
                self.values.entry(name).or_default().extend(value);
            }
            None => _ = self.global.insert(name, value.unwrap_or_default()),
        }
    }

    fn finish(self) -> Dockerfile {
        let shown = self.values.into_iter().filter(|(name, _)| !self.secret.contains(name));
        let digest = |values: &BTreeSet<String>| short(values.iter().map(String::as_bytes));
        let args = shown.map(|(name, values)| (name, digest(&values))).collect();
        Dockerfile { stages: self.stages, args }
    }
}

impl Stage {
    fn take(&mut self, instruction: &Instruction) {
        let Instruction { keyword, text } = instruction;
        let scope = &mut self.scope;
        match keyword.as_str() {
            "RUN" | "COPY" | "ADD" | "WORKDIR" => {
                let layer = scope.layer(instruction);
                scope.files = short([&scope.files[..], keyword.as_bytes(), text.as_bytes()]);
                self.layers.push(layer);
            }
            "ENV" | "SHELL" | "USER" => {
                scope.settings = short([&scope.settings[..], keyword.as_bytes(), text.as_bytes()]);
                if keyword == "ENV" {
                    scope.set(text);
                }
            }
            _ => {}
        }
    }
}

impl Scope {
    fn layer(&self, instruction: &Instruction) -> Layer {
        let Instruction { keyword, text } = instruction;
        let is_run = keyword == "RUN";
        // The others see settings only through the variables that they name.
        let settings = if is_run || text.contains('$') { &self.settings[..] } else { &[] };
        let key = short([&self.files[..], settings, keyword.as_bytes(), text.as_bytes()]);
        let args = if is_run { self.args.clone() } else { self.args_in(text) };
        Layer { keyword: keyword.clone(), text: text.clone(), key, args }
    }

    fn args_in(&self, text: &str) -> BTreeSet<String> {
        let known = variables(text).filter_map(|name| self.variables.get(&name));
        known.flatten().cloned().collect()
    }

    /// An ENV.
    fn set(&mut self, text: &str) {
        let mut assigned: Vec<(String, BTreeSet<String>)> = ASSIGNMENT
            .captures_iter(text)
            .map(|it| (it[1].to_owned(), self.args_in(&it[2])))
            .collect();
        if let (true, Some((name, value))) = (assigned.is_empty(), text.split_once(' ')) {
            assigned.push((name.to_owned(), self.args_in(value)));
        }
        // An argument of the same name is hidden from here on.
        self.variables.extend(assigned);
    }
}

fn variables(text: &str) -> impl Iterator<Item = String> {
    VARIABLE
        .captures_iter(text)
        .filter_map(|it| it.get(1).or(it.get(4)).map(|name| name.as_str().to_owned()))
}

/// Puts values in the place of variables.
fn expand(text: &str, values: &BTreeMap<String, String>) -> String {
    let replace = |it: &Captures<'_>| {
        let name = it.get(1).or(it.get(4)).map_or("", |name| name.as_str());
        let value = values.get(name).filter(|value| !value.is_empty()).cloned();
        let word = it.get(3).map_or("", |word| word.as_str()).to_owned();
        match it.get(2).map(|sign| sign.as_str()) {
            Some("-") => value.unwrap_or(word),
            Some(_) => value.map_or(String::new(), |_| word),
            None => value.unwrap_or_default(),
        }
    };
    VARIABLE.replace_all(text, replace).into_owned()
}

fn instructions(text: &str) -> Vec<Instruction> {
    let escape = escape_character(text);
    let (mut instructions, mut lines) = (Vec::new(), text.lines());
    let mut joined = String::new();
    while let Some(line) = lines.next() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        if let Some(begun) = line.trim_end().strip_suffix(escape) {
            joined.push_str(begun);
            continue;
        }
        joined.push_str(line);
        let whole = std::mem::take(&mut joined);
        let (keyword, rest) = whole.trim().split_once(char::is_whitespace).unwrap_or((&whole, ""));
        let keyword = keyword.to_ascii_uppercase();
        let mut text = rest.trim().to_owned();
        if matches!(keyword.as_str(), "RUN" | "COPY" | "ADD") {
            take_heredocs(&mut text, &mut lines);
        }
        instructions.push(Instruction { keyword, text });
    }
    instructions
}

fn take_heredocs<'a>(text: &mut String, lines: &mut impl Iterator<Item = &'a str>) {
    let found = HEREDOC.captures_iter(text);
    let ends: Vec<(bool, String)> = found
        .filter_map(|it| Some((it.get(1)?.as_str() == "-", it.get(2)?.as_str().to_owned())))
        .collect();
    for (strips_tabs, end) in ends {
        for line in lines.by_ref() {
            text.push('\n');
            text.push_str(line);
            let line = if strips_tabs { line.trim_start_matches('\t') } else { line };
            if line == end {
                break;
            }
        }
    }
}

/// `# escape=` among the first lines chooses another one, for paths of Windows.
fn escape_character(text: &str) -> char {
    let directives = text.lines().map_while(|line| line.trim().strip_prefix('#'));
    let mut pairs = directives.map_while(|line| line.split_once('='));
    let escape = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("escape"));
    escape.and_then(|(_, value)| value.trim().chars().next()).unwrap_or('\\')
}
