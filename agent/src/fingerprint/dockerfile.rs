//! Parses a Dockerfile, as far as the search for a cache miss needs it.
//!
//! Source: Dockerfile reference, and `BuildKit`'s `frontend/dockerfile/{parser,dockerfile2llb}`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::{Captures, Regex};
use stagely_protocol::BuildArgs;

use super::files::{ShortDigest, short_digest};
use crate::mask::is_secret_name;

/// `$NAME` and `${NAME}`, also with `:-word` and the like.
static VARIABLE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\$(?:\{(\w+)(?::?([-+])([^}]*))?\}|(\w+))").expect("a fixed pattern")
});

/// `<<EOF`, `<<-"EOF"`, but not `<<<`. A match without groups is quoted text, which contains no here-document.
static HEREDOC: LazyLock<Regex> = LazyLock::new(|| {
    let quoted = r#"\\.|"(?:[^"\\]|\\.)*"|'[^']*'"#;
    let heredoc = r#"(?:^|\s)\d*<<(-?)["']?([A-Za-z_.]\w*)["']?"#;
    Regex::new(&format!("{quoted}|{heredoc}")).expect("a fixed pattern")
});

/// `NAME=value` in ARG and ENV.
static ASSIGNMENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"(\w+)=("(?:[^"\\]|\\.)*"|'[^']*'|\S*)"#).expect("a fixed pattern")
});

/// One instruction, with its continuation lines joined.
#[derive(Debug)]
struct Instruction {
    /// In upper case.
    keyword: String,
    /// The arguments, with their here-documents.
    text: String,
}

/// An instruction that makes a step.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) keyword: String,
    pub(super) text: String,
    /// The digest of the instruction and of all instructions before it in its stage that it depends on, as the
    /// Dockerfile writes them, so without values of build arguments.
    pub(super) key: ShortDigest,
    /// The build arguments that it depends on.
    pub(super) args: BTreeSet<String>,
}

impl Layer {
    /// The stage or image that COPY copies from.
    fn source(&self) -> Option<&str> {
        let mut flags = self.text.split_whitespace().take_while(|word| word.starts_with("--"));
        flags.find_map(|flag| flag.strip_prefix("--from=")).filter(|_| self.keyword == "COPY")
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Stage {
    /// The name after AS, in lower case.
    name: Option<String>,
    /// The platform that FROM names, with the arguments that are declared before it expanded.
    platform: Option<String>,
    /// Its name in `BuildKit`'s steps; empty in a Dockerfile of one stage.
    pub(super) label: String,
    /// Its base image, with arguments expanded; the name of a stage if `parent` is set.
    pub(super) image: String,
    /// The stage that it is based on.
    pub(super) parent: Option<usize>,
    pub(super) layers: Vec<Layer>,
    scope: Scope,
}

/// Everything that the next instruction of a stage depends on.
#[derive(Clone, Debug, Default)]
struct Scope {
    /// The digest of the steps so far.
    files: ShortDigest,
    /// The digest of ENV, SHELL and USER so far.
    settings: ShortDigest,
    /// The declared build arguments.
    args: BTreeSet<String>,
    /// The build arguments that each variable depends on.
    variables: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Dockerfile {
    pub(super) stages: Vec<Stage>,
    /// The digest of the value of each declared argument. Secret arguments are missing: a value of which there are
    /// only few possible ones can be found from its digest.
    pub(super) args: BTreeMap<String, ShortDigest>,
}

impl Dockerfile {
    /// Parses the instructions that it knows and ignores the others. `BuildKit` reports errors.
    pub(crate) fn parse(text: &str, build_args: &BuildArgs) -> Self {
        let instructions = instructions(text);
        let count = instructions.iter().filter(|instruction| instruction.keyword == "FROM").count();
        let mut parser = Parser::new(build_args);
        for instruction in &instructions {
            parser.push(instruction, count);
        }
        parser.finish()
    }

    /// The stage of a step with this label. `BuildKit` omits the label of a single stage, unless an image to copy from
    /// or a named context counts as another stage.
    pub(super) fn stage(&self, label: &str) -> Option<usize> {
        match &self.stages[..] {
            [_] => Some(0),
            stages => stages.iter().position(|stage| stage.label == label),
        }
    }

    /// What `name` refers to in this Dockerfile.
    pub(crate) fn name_use(&self, name: &str) -> NameUse {
        let Some(index) = self.stages.iter().position(|stage| stage.name.as_deref() == Some(name))
        else {
            return NameUse::Free;
        };
        let is_outside = |stage: &Stage| stage.parent.is_none() && stage.image == name;
        if self.stages[..=index].iter().any(is_outside) { NameUse::Both } else { NameUse::Stage }
    }

    /// The platform that the base of the stage `target` names; `None`: the last stage.
    pub(crate) fn platform_of_target(&self, target: Option<&str>) -> Option<&str> {
        let named =
            |name: &str| self.stages.iter().find(|stage| stage.name.as_deref() == Some(name));
        let mut stage = match target {
            Some(name) => named(&name.to_ascii_lowercase()),
            None => self.stages.last(),
        }?;
        while let Some(parent) = stage.parent {
            stage = &self.stages[parent];
        }
        stage.platform.as_deref()
    }

    /// The images of registries whose programs must run on the platform that is built for: base images of stages that
    /// do not choose a platform themselves, and images that files are copied from. `contexts` are the names of named
    /// contexts.
    pub(crate) fn images_of_target(&self, contexts: &BTreeSet<&str>) -> BTreeSet<String> {
        let bases = self.stages.iter().filter(|stage| stage.is_for_target());
        let copied = self.stages.iter().flat_map(|stage| &stage.layers).filter_map(Layer::source);
        let names = bases.map(|stage| stage.image.as_str()).chain(copied);
        let is_image = |name: &&str| {
            let is_index = name.bytes().all(|byte| byte.is_ascii_digit());
            let is_stage = self.stages.iter().any(|stage| stage.name.as_deref() == Some(name));
            *name != "scratch"
                && !is_index
                && !is_stage
                && !name.contains('$')
                && !contexts.contains(name)
        };
        names.filter(is_image).map(str::to_owned).collect()
    }

    /// Whether `name`, in `--from`, names a stage, and neither an image nor a named context.
    pub(super) fn has_stage(&self, name: &str) -> bool {
        self.stages.iter().any(|stage| stage.label == name)
    }
}

/// What a name that several things may have refers to in a Dockerfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameUse {
    /// No stage has the name.
    Free,
    Stage,
    /// A stage, and also an image that is not a stage: `FROM base AS base`.
    Both,
}

struct Parser<'a> {
    build_args: &'a BuildArgs,
    stages: Vec<Stage>,
    names: BTreeMap<String, usize>,
    /// The arguments that are declared before the first FROM.
    global: BTreeMap<String, String>,
    /// The values of each argument, in all stages.
    values: BTreeMap<String, BTreeSet<String>>,
    /// The arguments that are secret, or whose default contains a secret one.
    secret: BTreeSet<String>,
}

impl<'a> Parser<'a> {
    fn new(build_args: &'a BuildArgs) -> Self {
        Self {
            build_args,
            stages: Vec::new(),
            names: BTreeMap::new(),
            global: BTreeMap::new(),
            values: BTreeMap::new(),
            secret: BTreeSet::new(),
        }
    }

    /// Adds one instruction. `stage_count` is the number of stages in all.
    fn push(&mut self, instruction: &Instruction, stage_count: usize) {
        match instruction.keyword.as_str() {
            "FROM" => self.begin_stage(&instruction.text, stage_count),
            "ARG" => self.declare(&instruction.text),
            _ => {
                if let Some(stage) = self.stages.last_mut() {
                    stage.push(instruction);
                }
            }
        }
    }

    fn begin_stage(&mut self, text: &str, stage_count: usize) {
        let (flags, rest): (Vec<&str>, Vec<&str>) =
            text.split_whitespace().partition(|word| word.starts_with("--"));
        let platform = flags.iter().find_map(|flag| flag.strip_prefix("--platform="));
        let platform = platform.map(|platform| expand_known(platform, &self.global));
        let mut words = rest.into_iter();
        let image = expand(words.next().unwrap_or_default(), &self.global);
        let name = words.next().filter(|word| word.eq_ignore_ascii_case("as"));
        let name = name.and_then(|_| words.next()).map(str::to_ascii_lowercase);
        let index = self.stages.len();
        let label = match &name {
            _ if stage_count == 1 => String::new(),
            Some(name) => name.clone(),
            None => format!("stage-{index}"),
        };
        let parent = self.names.get(&image.to_ascii_lowercase()).copied();
        let scope = parent.map(|parent| self.stages[parent].scope.clone()).unwrap_or_default();
        if let Some(name) = &name {
            self.names.insert(name.clone(), index);
        }
        self.stages.push(Stage { name, platform, label, image, parent, layers: Vec::new(), scope });
    }

    /// Adds an ARG, which may declare several arguments.
    fn declare(&mut self, text: &str) {
        let assigned = ASSIGNMENT.captures_iter(text);
        let mut declared: Vec<(String, Option<String>)> =
            assigned.map(|pair| (pair[1].to_owned(), Some(pair[2].to_owned()))).collect();
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
        let value = self.build_args.0.get(&name).cloned().or(default);
        match self.stages.last_mut() {
            Some(stage) => {
                stage.scope.args.insert(name.clone());
                stage.scope.variables.insert(name.clone(), [name.clone()].into());
                // Without a value it inherits that of the global argument.
                let value = value.or_else(|| self.global.get(&name).cloned());
                self.values.entry(name).or_default().extend(value);
            }
            None => _ = self.global.insert(name, value.unwrap_or_default()),
        }
    }

    fn finish(self) -> Dockerfile {
        let shown = self.values.into_iter().filter(|(name, _)| !self.secret.contains(name));
        let digest = |values: &BTreeSet<String>| short_digest(values.iter().map(String::as_bytes));
        let args = shown.map(|(name, values)| (name, digest(&values))).collect();
        Dockerfile { stages: self.stages, args }
    }
}

impl Stage {
    /// Whether its base is an image of the platform that is built for.
    fn is_for_target(&self) -> bool {
        let is_target = |platform: &str| platform.contains("TARGETPLATFORM");
        self.parent.is_none() && self.platform.as_deref().is_none_or(is_target)
    }

    fn push(&mut self, instruction: &Instruction) {
        let Instruction { keyword, text } = instruction;
        let scope = &mut self.scope;
        match keyword.as_str() {
            "RUN" | "COPY" | "ADD" | "WORKDIR" => {
                let layer = scope.layer(instruction);
                scope.files = short_digest([&scope.files[..], keyword.as_bytes(), text.as_bytes()]);
                self.layers.push(layer);
            }
            "ENV" | "SHELL" | "USER" => {
                scope.settings =
                    short_digest([&scope.settings[..], keyword.as_bytes(), text.as_bytes()]);
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
        // Other instructions depend on settings only through the variables that they use.
        let settings = if is_run || text.contains('$') { &self.settings[..] } else { &[] };
        let key = short_digest([&self.files[..], settings, keyword.as_bytes(), text.as_bytes()]);
        let args = if is_run { self.args.clone() } else { self.args_in(text) };
        Layer { keyword: keyword.clone(), text: text.clone(), key, args }
    }

    fn args_in(&self, text: &str) -> BTreeSet<String> {
        let known = variables(text).filter_map(|name| self.variables.get(&name));
        known.flatten().cloned().collect()
    }

    /// Adds the variables of an ENV.
    fn set(&mut self, text: &str) {
        let mut assigned: Vec<(String, BTreeSet<String>)> = ASSIGNMENT
            .captures_iter(text)
            .map(|pair| (pair[1].to_owned(), self.args_in(&pair[2])))
            .collect();
        if let (true, Some((name, value))) = (assigned.is_empty(), text.split_once(' ')) {
            assigned.push((name.to_owned(), self.args_in(value)));
        }
        // A variable hides an argument of the same name.
        self.variables.extend(assigned);
    }
}

fn variables(text: &str) -> impl Iterator<Item = String> {
    VARIABLE.captures_iter(text).map(|variable| variable_name(&variable).to_owned())
}

fn variable_name<'a>(variable: &Captures<'a>) -> &'a str {
    variable.get(1).or(variable.get(4)).map_or("", |name| name.as_str())
}

/// Replaces variables by their values.
fn expand(text: &str, values: &BTreeMap<String, String>) -> String {
    let replace = |variable: &Captures<'_>| {
        let name = variable_name(variable);
        let value = values.get(name).filter(|value| !value.is_empty()).cloned();
        let word = variable.get(3).map_or("", |word| word.as_str()).to_owned();
        match variable.get(2).map(|sign| sign.as_str()) {
            Some("-") => value.unwrap_or(word),
            Some(_) => value.map_or(String::new(), |_| word),
            None => value.unwrap_or_default(),
        }
    };
    VARIABLE.replace_all(text, replace).into_owned()
}

/// Like [`expand`], but leaves unknown variables, such as `BuildKit`'s own `$BUILDPLATFORM`.
fn expand_known(text: &str, values: &BTreeMap<String, String>) -> String {
    let is_known =
        variables(text).all(|name| values.get(&name).is_some_and(|value| !value.is_empty()));
    if is_known { expand(text, values) } else { text.to_owned() }
}

fn instructions(text: &str) -> Vec<Instruction> {
    let escape = escape_character(text);
    let (mut instructions, mut lines) = (Vec::new(), text.lines());
    let mut joined = String::new();
    while let Some(line) = lines.next() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        if let Some(continued) = line.trim_end().strip_suffix(escape) {
            joined.push_str(continued);
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
    let heredocs = HEREDOC.captures_iter(text).filter_map(|heredoc| {
        let strips_tabs = heredoc.get(1)?.as_str() == "-";
        Some((strips_tabs, heredoc.get(2)?.as_str().to_owned()))
    });
    for (strips_tabs, end) in heredocs.collect::<Vec<_>>() {
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

/// The escape character. `# escape=` among the first lines changes it, for Windows paths.
fn escape_character(text: &str) -> char {
    let directives = text.lines().map_while(|line| line.trim().strip_prefix('#'));
    let mut pairs = directives.map_while(|line| line.split_once('='));
    let escape = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("escape"));
    escape.and_then(|(_, value)| value.trim().chars().next()).unwrap_or('\\')
}
