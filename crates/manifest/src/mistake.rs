//! Every mistake of `stagely.yaml`, and its message.

use stagely_protocol::Platform;
use stagely_protocol::paths::PathError;
use thiserror::Error;

use super::keywords::{EMULATIONS, MACHINE_SIZES, PLATFORMS};
use super::kind::ValueKind;
use super::suggest::{closest, listed, shown};
use super::template::TemplateError;

/// A mistake in one value. Messages show foreign text through [`shown`].
#[derive(Debug, Error)]
pub(super) enum Mistake {
    // The file.
    #[error("the file is larger than {max_kib} KiB")]
    FileTooLarge { max_kib: usize },
    #[error("the file is not UTF-8 text")]
    NotUtf8,
    #[error("not valid YAML: {0}")]
    Syntax(String),
    #[error("the file nests more than {max} deep")]
    TooDeep { max: usize },
    #[error("aliases make the file larger than {max_kib} KiB")]
    ExpandsTooFar { max_kib: usize },
    #[error("not valid YAML: a tab cannot indent; use spaces")]
    Tab,
    #[error("not valid YAML: this alias names no anchor above it")]
    UnknownAnchor,
    #[error("this alias stands inside the very value it names")]
    EndlessAlias,
    #[error("a second document begins here; `stagely.yaml` is a single one")]
    SecondDocument,
    #[error("the file is empty; it needs at least `builds:` with one build")]
    EmptyFile,

    // Maps.
    #[error("expected {wanted}, found {found}{}", then(*hint))]
    Wanted { wanted: &'static str, found: ValueKind, hint: Option<&'static str> },
    #[error("a key must be text, but this is {0}")]
    KeyNotText(ValueKind),
    #[error("`<<` must be a map or a list of maps, not {0}")]
    MergeNotMap(ValueKind),
    #[error("is given twice, first on line {first_line}")]
    DuplicateKey { first_line: usize },
    #[error("unknown key; did you mean `{0}`?")]
    MisspelledKey(&'static str),
    #[error("unknown key; known here are {}", listed(known.iter().copied()))]
    UnknownKey { known: Vec<&'static str> },
    #[error("is missing; {hint}")]
    MissingKey { hint: &'static str },
    #[error("at most {max} are allowed, found {found}")]
    TooMany { found: usize, max: usize },

    // Text.
    #[error("is empty{}", then(*hint))]
    EmptyText { hint: Option<&'static str> },
    #[error("is longer than {max} {unit}")]
    TooLong { max: usize, unit: &'static str },
    #[error("holds a control character")]
    ControlCharacter,

    // Values.
    #[error("`{}` is not a known version; the only one is 2, without quotes", shown(.0))]
    Version(String),
    #[error("needs at least one build")]
    NoBuilds,
    #[error("a build's name is made of letters (a-z, A-Z), digits, `_` and `-`")]
    BuildName,
    #[error("a build's name cannot start with `-`, because image tags cannot")]
    BuildNameDash,
    #[error(
        "is too long: {what} has at most {max} characters, and this has {length}{}",
        counted(suffix)
    )]
    NameTooLong { what: &'static str, length: usize, suffix: String, max: usize },
    #[error(
        "its {what} `{}` belongs to build `{}` (line {other_line}) already{}",
        shown(name),
        shown(other),
        if *but_for_case { ", but for upper and lower case" } else { "" }
    )]
    NameTaken {
        what: &'static str,
        name: String,
        other: String,
        other_line: usize,
        but_for_case: bool,
    },
    #[error(
        "two of its combinations and platforms would have the {what} `{}`; change a value of the \
         matrix",
        shown(name)
    )]
    OwnNameTwice { what: &'static str, name: String },
    #[error("`{}` is not supported; did you mean `{suggestion}`?", shown(text))]
    MisspelledPlatform { text: String, suggestion: String },
    #[error("`{}` is not supported; supported are {}", shown(.0), listed(PLATFORMS))]
    UnknownPlatform(String),
    #[error("`{0}` is named twice")]
    Twice(String),
    #[error("`platform` and `platforms` are both given; keep one")]
    BothPlatformKeys,
    #[error("names no platform; leave it out for `linux/amd64`")]
    NoPlatforms,
    #[error("`{}` is not a machine size; did you mean `{suggestion}`?", shown(text))]
    MisspelledMachine { text: String, suggestion: &'static str },
    #[error(
        "`{}` is not a machine size; there are {}",
        shown(.0),
        listed(MACHINE_SIZES.map(|(name, _)| name))
    )]
    UnknownMachine(String),
    #[error("`{0}` has no unit; write `{0}m` for minutes or `{0}s` for seconds")]
    TimeUnit(String),
    #[error("`{}` is not a time; write it like `45m`, `1h30m` or `90s`", shown(.0))]
    Time(String),
    #[error("`{}` is neither `never` nor a time such as `20m`", shown(.0))]
    TimeOrNever(String),
    #[error("must be more than nothing; write it like `45m`, `1h30m` or `90s`")]
    TimeZero,
    #[error("`{text}` is shorter than {min}, the least that is possible")]
    TimeTooShort { text: String, min: String },
    #[error("`{text}` is longer than {max}, the most that {max_of}")]
    TimeTooLong { text: String, max: String, max_of: &'static str },
    #[error("{what} is made of letters (a-z, A-Z), digits and `_`, and starts with no digit")]
    VariableName { what: &'static str },
    #[error("has no value; write `\"\"` for an empty one")]
    NoValue,
    #[error("{0}")]
    Template(TemplateError),
    #[error("`{}` is not the name of a build stage", shown(.0))]
    Target(String),
    #[error(
        "`{}` is not an image reference such as `registry.example.com/team/app:cache`",
        shown(.0)
    )]
    ImageRef(String),
    #[error("{}", spelled_out(.0))]
    Path(PathError),
    #[error(
        "the compose file `{}` has no service `{}`; {}",
        shown(compose), shown(service), meant(suggestion.as_deref(), known)
    )]
    NoService { service: String, compose: String, suggestion: Option<String>, known: Vec<String> },
    #[error("`{}` is not possible here; {}", shown(text), meant(suggestion.as_deref(), known))]
    Keyword { text: String, suggestion: Option<String>, known: Vec<String> },
    #[error("`{}` is neither {}", shown(.0), EMULATIONS.map(|(name, _)| format!("`{name}`")).join(" nor "))]
    Emulation(String),
    #[error("names no {what}; leave it out instead")]
    EmptyList { what: &'static str },
    #[error("`{}` is not a pattern: {problem}", shown(text))]
    Glob { text: String, problem: String },
    #[error(
        "a pattern that begins with `!` is not supported; list the {what} patterns that count \
         (`\\!` is the character itself)"
    )]
    GlobNegated { what: &'static str },

    // The matrix.
    #[error(
        "names no build argument; map one to a list of values, such as `NODE_VERSION: [18, 20]`"
    )]
    EmptyMatrix,
    #[error("is in `{other}` too; keep one")]
    SetTwice { other: &'static str },
    #[error("is not in the lists of this matrix; {}", meant(suggestion.as_deref(), known))]
    UnknownMatrixKey { suggestion: Option<String>, known: Vec<String> },
    #[error("excludes nothing: no combination of the lists has these values")]
    ExcludesNothing,
    #[error("`exclude` leaves no combination")]
    NoCombinations,
    #[error(
        "makes {jobs} jobs ({combinations} combinations, {each} {} each), but a build has at most {max}",
        if *each == 1 { "job" } else { "jobs" }
    )]
    TooManyJobs { jobs: usize, combinations: usize, each: usize, max: usize },
    #[error(
        "its lists make {combinations} combinations before `exclude`, but a build has at most {max} \
         jobs"
    )]
    TooManyCombinations { combinations: u128, max: usize },
    #[error(
        "the combinations `{}` and `{}` are both called `{}`: in tags and job names upper case is \
         lower case, and other characters than letters, digits, `_`, `.` and `-` are `-`",
        shown(first),
        shown(second),
        shown(name)
    )]
    SameVariant { name: String, first: String, second: String },

    // Dependencies.
    #[error("a build cannot depend on itself")]
    DependsOnItself,
    #[error("there is no build `{}`; {}", shown(name), meant(suggestion.as_deref(), known))]
    UnknownBuild { name: String, suggestion: Option<String>, known: Vec<String> },
    #[error(
        "the builds make {jobs} jobs together, but a file has at most {max}; give them fewer \
         combinations or platforms"
    )]
    TooManyJobsInAll { jobs: usize, max: usize },
    #[error(
        "these builds make {images} images, but a build uses at most {max}; give them fewer \
         combinations, or depend on fewer"
    )]
    TooManyImages { images: usize, max: usize },
    #[error(
        "this build is made for {missing}, and `{}` is not; add {missing} to the `platforms` of `{}`",
        shown(needed),
        shown(needed)
    )]
    PlatformNotBuilt { needed: String, missing: Platform },
    #[error("these builds wait for each other: {0}")]
    Cycle(String),
    #[error("`{argument}` is the argument that names the image of `{image}`; call yours otherwise")]
    ImageArgumentSet { argument: String, image: String },
    #[error(
        "the images of `{first}` and `{second}` would both be the build argument `{argument}`; rename \
         one"
    )]
    SameImageArgument { argument: String, first: String, second: String },

    // The preview.
    #[error("needs `compose` with `endpoints`, or `image` with `port`")]
    NoPreviewSource,
    #[error("`compose` and `image` are both given; keep one")]
    BothPreviewSources,
    #[error("goes with `{form}` alone; {hint}")]
    OtherPreviewForm { form: &'static str, hint: &'static str },
    #[error(
        "`{}` has a matrix and makes several images; name one of them, such as `{}`",
        shown(name),
        shown(example)
    )]
    ImageOfMatrix { name: String, example: String },
    #[error(
        "`{}` is not the name of a compose service: letters (a-z, A-Z), digits, `_`, `.` and `-`, \
         and no `-` first",
        shown(.0)
    )]
    ServiceName(String),
    #[error("with `image` there is one service, `{only}`; leave this out")]
    OtherService { only: &'static str },
    #[error(
        "an endpoint's name is made of lower-case letters (a-z), digits and `-`, and neither starts \
         nor ends with `-`"
    )]
    EndpointName,
    #[error("needs at least one endpoint; the first is the preview's URL")]
    NoEndpoints,
    #[error("`{}` is not a port: a number from 1 to 65535", shown(.0))]
    Port(String),
    #[error(
        "`{}` is neither a status nor a range of them: write `200` or `200-399`, with numbers from \
         100 to 599",
        shown(.0)
    )]
    Status(String),
    #[error("the first number of `{0}` is larger than the second")]
    StatusOrder(String),
    #[error("`{}` does not start with `/`", shown(.0))]
    UrlPathStart(String),
    #[error("`{}` cannot stand here in the path of an address; write it percent-encoded", shown(.0))]
    UrlPathCharacter(String),
    #[error("`*` can only be the last character")]
    StarInside,
    #[error("`{}` is not a size; write it like `20GiB`", shown(.0))]
    Disk(String),
    #[error("`{}` is not between {min}GiB and {max}GiB", shown(text))]
    DiskRange { text: String, min: u64, max: u64 },

    // Tests.
    #[error(
        "a test's name is made of letters (a-z, A-Z), digits, `_` and `-`, and does not start with `-`"
    )]
    TestName,
    #[error("there is no section `preview`; leave this out")]
    NoPreviewToTest,
    #[error("goes with `on: tester` alone; leave this out")]
    OnlyOnTester,
    #[error("must be a number from {min} to {max}")]
    NumberRange { min: u32, max: u32 },
    #[error("is a variable that Stagely sets; call yours otherwise")]
    ReservedVariable,
}

impl Mistake {
    pub(super) fn unknown_matrix_key<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Self {
        let known: Vec<_> = known.map(shown).collect();
        let suggestion = closest(key, known.iter().map(String::as_str)).map(str::to_owned);
        Self::UnknownMatrixKey { suggestion, known }
    }
}

fn meant(suggestion: Option<&str>, known: &[String]) -> String {
    match (suggestion, known) {
        (Some(word), _) => format!("did you mean `{word}`?"),
        (None, []) => "there is no other".to_owned(),
        (None, known) => format!("there are {}", listed(known.iter().map(String::as_str))),
    }
}

fn counted(suffix: &str) -> String {
    if suffix.is_empty() { String::new() } else { format!(" with `{suffix}`") }
}

fn then(hint: Option<&str>) -> String {
    hint.map(|hint| format!("; {hint}")).unwrap_or_default()
}

/// Includes the error of the file system, which tells the user how to fix the path.
fn spelled_out(error: &PathError) -> String {
    match error {
        PathError::Io { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}
