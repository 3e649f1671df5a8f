//! Parses a Dockerfile, as far as the search for a cache miss needs it.
//!
//! Source: Dockerfile reference, and `BuildKit`'s `frontend/dockerfile/{parser,dockerfile2llb}`.

mod instructions;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::{Captures, Regex};
use stagely_protocol::BuildArgs;

use self::instructions::{Instruction, instructions};
use self::words::{flags, unquoted};
use super::files::{ShortDigest, short_digest};
use crate::mask::is_secret_name;

/// `$NAME` and `${NAME}`, also with `:-word` and the like.
static VARIABLE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\$(?:\{(\w+)(?::?([-+])([^}]*))?\}|(\w+))").expect("a fixed pattern")
});

/// `NAME=value` in ARG and ENV.
static ASSIGNMENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"(\w+)=("(?:[^"\\]|\\.)*"|'[^']*'|\S*)"#).expect("a fixed pattern")
});

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
    /// The stages and images whose files the step uses.
    fn sources(&self) -> Vec<String> {
        let (flags, _) = flags(&self.text);
        let values = |name: &str| -> Vec<String> {
            flags.iter().filter_map(|flag| flag.strip_prefix(name)).map(str::to_owned).collect()
        };
        match self.keyword.as_str() {
            "COPY" => values("--from="),
            "RUN" => values("--mount=").iter().filter_map(|mount| mount_source(mount)).collect(),
            _ => Vec::new(),
        }
    }
}

/// The stage or image that `mount` shows: `type=bind,from=base,target=/base`.
fn mount_source(mount: &str) -> Option<String> {
    let options = mount.split(',').filter_map(|option| option.split_once('='));
    let mut sources = options.filter(|(name, _)| name.trim().eq_ignore_ascii_case("from"));
    sources.next_back().map(|(_, source)| source.to_owned())
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
        let is_outside =
            |stage: &Stage| stage.parent.is_none() && is_same_image(&stage.image, name);
        if self.stages[..=index].iter().any(is_outside) { NameUse::Both } else { NameUse::Stage }
    }

    /// How `name`, in any case, is written as the image of a stage, or as an image to copy or mount from.
    pub(crate) fn spelling(&self, name: &str) -> Option<String> {
        let layers = self.stages.iter().flat_map(|stage| &stage.layers);
        let bases = self.stages.iter().filter(|stage| stage.parent.is_none());
        let images = bases.map(|stage| stage.image.clone()).chain(layers.flat_map(Layer::sources));
        images.into_iter().find(|image| image.eq_ignore_ascii_case(name))
    }

    /// The stage `target`, by its name or number; `None`: the last one.
    fn target_stage(&self, target: Option<&str>) -> Option<&Stage> {
        let Some(target) = target else { return self.stages.last() };
        let name = target.to_ascii_lowercase();
        let named = self.stages.iter().find(|stage| stage.name.as_ref() == Some(&name));
        // No name begins with a digit.
        named.or_else(|| self.stages.get(target.parse::<usize>().ok()?))
    }

    /// `target` as `BuildKit` takes it, which finds stages by their names alone.
    pub(crate) fn target(&self, target: &str) -> Target {
        let Some(stage) = self.target_stage(Some(target)) else {
            return Target::Stage(target.to_owned());
        };
        let is_last = self.stages.last().is_some_and(|last| std::ptr::eq(last, stage));
        match &stage.name {
            Some(name) => Target::Stage(name.clone()),
            None if is_last => Target::Last,
            None => Target::Unnamed,
        }
    }

    /// The platform that the base of the stage `target` names; `None`: the last stage.
    pub(crate) fn platform_of_target(&self, target: Option<&str>) -> Option<&str> {
        let mut stage = self.target_stage(target)?;
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
        let layers = self.stages.iter().flat_map(|stage| &stage.layers);
        let names = bases.map(|stage| stage.image.clone()).chain(layers.flat_map(Layer::sources));
        let is_image = |name: &String| {
            let is_index = name.bytes().all(|byte| byte.is_ascii_digit());
            let lower = name.to_ascii_lowercase();
            let is_stage = self.stages.iter().any(|stage| stage.name.as_ref() == Some(&lower));
            name != "scratch"
                && !is_index
                && !is_stage
                && !name.contains('$')
                && !contexts.iter().any(|context| is_same_image(name, context))
        };
        names.filter(is_image).collect()
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

/// How `BuildKit` is asked for a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// By this name, which the Dockerfile may lack.
    Stage(String),
    /// Without a name, because it is the last stage.
    Last,
    /// In no way: another stage than the last one has no name.
    Unnamed,
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
        let (flags, rest) = flags(text);
        let platform = flags.iter().find_map(|flag| flag.strip_prefix("--platform="));
        let platform = platform.map(|platform| expand_known(platform, &self.global));
        let mut words = rest.split_whitespace();
        let image = unquoted(&expand(words.next().unwrap_or_default(), &self.global));
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

/// Whether `BuildKit` takes the image that a context is named after for `image`.
fn is_same_image(image: &str, context: &str) -> bool {
    let image = image.strip_prefix("docker.io/").unwrap_or(image);
    let image = image.strip_prefix("library/").unwrap_or(image);
    image.strip_suffix(":latest").unwrap_or(image) == context
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Dockerfile {
        Dockerfile::parse(text, &BuildArgs::default())
    }

    #[test]
    fn a_stage_is_found_however_the_lines_before_it_are_written() {
        for before in [
            "\u{feff}",
            "FROM a\nRUN <<EOF-1\nFROM x AS y\nEOF-1\n",
            "FROM a\nRUN <<\"MY EOF\"\ntext \\\nMY EOF\n",
            "FROM a\nONBUILD RUN <<EOF\ntext \\\nEOF\n",
            "FROM a\nRUN <<NEVER\n",
        ] {
            let dockerfile = parsed(&format!("{before}FROM b AS base\nFROM base\n"));
            assert_eq!(dockerfile.name_use("base"), NameUse::Stage, "{before}");
        }
    }

    #[test]
    fn the_name_of_a_stage_may_also_be_that_of_an_image() {
        for image in ["base", "\"base\"", "base:latest", "docker.io/library/base"] {
            let dockerfile = parsed(&format!("FROM {image} AS base\n"));
            assert_eq!(dockerfile.name_use("base"), NameUse::Both, "{image}");
        }
        assert_eq!(parsed("FROM base:1 AS base").name_use("base"), NameUse::Stage);
    }

    #[test]
    fn images_are_found_as_they_are_written() {
        for text in [
            "FROM Base",
            "FROM a\nCOPY --from=Base / /",
            "FROM a\nRUN --mount=from=Base,target=/b true",
        ] {
            assert_eq!(parsed(text).spelling("base").as_deref(), Some("Base"), "{text}");
        }
        assert_eq!(
            parsed("FROM a AS Base\nFROM base\nCOPY --from=b Base /").spelling("base"),
            None
        );
    }

    #[test]
    fn all_images_whose_files_are_used_are_compared() {
        let text = "FROM \"a:1\" AS One\nCOPY --from=\"b:1\" / /\nCOPY --from=ONE / /\n\
            RUN --network=none --mount=type=bind,from=c:1,target=/c --mount=type=cache,target=/d,from=d:1 true\n\
            COPY --from=0 / /\nFROM context:latest\nRUN echo --mount=from=e:1\n";
        let images = parsed(text).images_of_target(&["context"].into());
        assert_eq!(images, ["a:1", "b:1", "c:1", "d:1"].map(String::from).into());
    }

    #[test]
    fn a_stage_is_also_found_by_its_number() {
        let dockerfile =
            parsed("FROM --platform=linux/arm64 a AS One\nFROM --platform=linux/amd64 b\nFROM c\n");
        for (target, found) in [
            ("0", Target::Stage("one".to_owned())),
            ("ONE", Target::Stage("one".to_owned())),
            ("1", Target::Unnamed),
            ("2", Target::Last),
            ("3", Target::Stage("3".to_owned())),
            ("two", Target::Stage("two".to_owned())),
        ] {
            assert_eq!(dockerfile.target(target), found, "{target}");
        }
        assert_eq!(dockerfile.platform_of_target(Some("1")), Some("linux/amd64"));
        assert_eq!(dockerfile.platform_of_target(None), None);
    }
}
