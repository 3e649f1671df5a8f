//! Reads and checks single values: paths, platforms, names.

use stagely_protocol::paths::normalize;
use stagely_protocol::{Arch, Emulation, ImageRef, Platform, Submodules};
use stagely_state::MachineSize;
use strsim::damerau_levenshtein;

use super::fields::Field;
use super::globs;
use super::keywords::{EMULATIONS, MACHINE_SIZES, SUBMODULES};
use super::kind::ValueKind;
use super::limits::{BUILD_ARG_BYTES_MAX, NAME_CHARACTERS_MAX, PATH_BYTES_MAX};
use super::mistake::Mistake;
use super::suggest::closest;

/// `version: 2`.
pub(super) fn version(field: &Field<'_>) -> Result<(), Mistake> {
    match (field.scalar(), field.kind()) {
        (Some("2"), ValueKind::Number) => Ok(()),
        (Some(text), ValueKind::Number | ValueKind::Text) => Err(Mistake::Version(text.to_owned())),
        _ => Err(field.wanted("the number 2", None)),
    }
}

/// The project's name, for people.
pub(super) fn name(field: &Field<'_>) -> Result<String, Mistake> {
    short_text(field, NAME_CHARACTERS_MAX).map(str::to_owned)
}

fn short_text<'a>(field: &Field<'a>, max: usize) -> Result<&'a str, Mistake> {
    let text = field.text()?;
    if text.trim().is_empty() {
        return Err(Mistake::EmptyText { hint: None });
    }
    if text.chars().nth(max).is_some() {
        return Err(Mistake::TooLong { max, unit: "characters" });
    }
    if text.chars().any(char::is_control) {
        return Err(Mistake::ControlCharacter);
    }
    Ok(text)
}

/// Checks the name of a build, which becomes part of job names and image tags.
pub(super) fn check_build_name(name: &str) -> Result<(), Mistake> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(Mistake::BuildName);
    }
    // Docker's tags begin with a letter, a digit or `_`.
    if name.starts_with('-') { Err(Mistake::BuildNameDash) } else { Ok(()) }
}

/// A folder, relative to the repository's root.
pub(super) fn context(field: &Field<'_>) -> Result<String, Mistake> {
    let path = path(field, Some("write `.` for the repository's root"))?;
    normalize(&path).map_err(Mistake::Path)?;
    Ok(path)
}

/// A file. Its location depends on the context, so it is checked later.
pub(super) fn dockerfile(field: &Field<'_>) -> Result<String, Mistake> {
    path(field, None)
}

/// A file, relative to the repository's root.
pub(super) fn file(field: &Field<'_>) -> Result<String, Mistake> {
    let path = path(field, None)?;
    normalize(&path).map_err(Mistake::Path)?;
    Ok(path)
}

fn path(field: &Field<'_>, hint: Option<&'static str>) -> Result<String, Mistake> {
    let text = field.text()?;
    if text.is_empty() {
        return Err(Mistake::EmptyText { hint });
    }
    if text.len() > PATH_BYTES_MAX {
        return Err(Mistake::TooLong { max: PATH_BYTES_MAX, unit: "bytes" });
    }
    if text.chars().any(char::is_control) {
        return Err(Mistake::ControlCharacter);
    }
    Ok(text.to_owned())
}

/// `linux/amd64` or `linux/arm64`.
pub(super) fn platform(field: &Field<'_>) -> Result<Platform, Mistake> {
    let text = field.text()?;
    text.parse().map_err(|_| match meant_platform(text) {
        Some(platform) => {
            Mistake::MisspelledPlatform { text: text.to_owned(), suggestion: platform.to_string() }
        }
        None => Mistake::UnknownPlatform(text.to_owned()),
    })
}

/// The platform meant by `arm64`, `aarch64`, `linux/arm64/v8`, `Linux/ARM64` or a text with one typo. Two
/// edits would turn `linux/arm`, another processor, into `linux/arm64`.
fn meant_platform(text: &str) -> Option<Platform> {
    let lower = text.to_lowercase();
    let arch = lower.strip_prefix("linux/").unwrap_or(&lower);
    let arch = arch.strip_suffix("/v8").unwrap_or(arch);
    let of_name = arch.parse::<Arch>().ok();
    let of_typo = || {
        let near = |arch: &Arch| damerau_levenshtein(&lower, &Platform(*arch).to_string()) == 1;
        if lower.len() > 20 { None } else { Arch::ALL.into_iter().find(near) }
    };
    of_name.or_else(of_typo).map(Platform)
}

/// `small`, `medium`, `large` or `xlarge`.
pub(super) fn machine(field: &Field<'_>) -> Result<MachineSize, Mistake> {
    let text = field.text()?;
    if let Some((_, size)) = MACHINE_SIZES.into_iter().find(|(name, _)| *name == text) {
        return Ok(size);
    }
    Err(match closest(text, MACHINE_SIZES.map(|(name, _)| name)) {
        Some(suggestion) => Mistake::MisspelledMachine { text: text.to_owned(), suggestion },
        None => Mistake::UnknownMachine(text.to_owned()),
    })
}

/// Messages about the name of a build argument start with this.
pub(super) const BUILD_ARG_NAME: &str = "a build argument's name";

/// Checks the name of a build argument, a variable or a secret. `what` names it in messages.
pub(super) fn check_variable_name(name: &str, what: &'static str) -> Result<(), Mistake> {
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !starts_well || !name.bytes().all(allowed) {
        return Err(Mistake::VariableName { what });
    }
    if name.len() > NAME_CHARACTERS_MAX {
        return Err(Mistake::TooLong { max: NAME_CHARACTERS_MAX, unit: "characters" });
    }
    Ok(())
}

/// The value of a variable as it was written: `1.10` stays `1.10`, and `true` stays `true`.
pub(super) fn variable_value<'a>(field: &Field<'a>) -> Result<&'a str, Mistake> {
    let text = match (field.scalar(), field.kind()) {
        (_, ValueKind::Nothing) => return Err(Mistake::NoValue),
        (Some(text), _) => text,
        _ => return Err(field.wanted("text, a number or a boolean", None)),
    };
    if text.len() > BUILD_ARG_BYTES_MAX {
        return Err(Mistake::TooLong { max: BUILD_ARG_BYTES_MAX, unit: "bytes" });
    }
    // A command line cannot contain NUL.
    if text.contains('\0') { Err(Mistake::ControlCharacter) } else { Ok(text) }
}

/// The name or number of a stage of the Dockerfile.
pub(super) fn target(field: &Field<'_>) -> Result<String, Mistake> {
    let text = short_text(field, NAME_CHARACTERS_MAX)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !text.starts_with(|first: char| first.is_ascii_alphanumeric()) || !text.bytes().all(allowed)
    {
        return Err(Mistake::Target(text.to_owned()));
    }
    Ok(text.to_owned())
}

pub(super) fn image_ref(field: &Field<'_>) -> Result<ImageRef, Mistake> {
    let text = field.text()?;
    text.parse().map_err(|_| Mistake::ImageRef(text.to_owned()))
}

/// `allow` or `forbid`.
pub(super) fn emulation(field: &Field<'_>) -> Result<Emulation, Mistake> {
    let text = field.text()?;
    let known = EMULATIONS.into_iter().find(|(name, _)| *name == text);
    known.map(|(_, emulation)| emulation).ok_or_else(|| Mistake::Emulation(text.to_owned()))
}

/// `true`, `false` or `shallow`.
pub(super) fn submodules(field: &Field<'_>) -> Result<Submodules, Mistake> {
    let found = match (field.scalar(), field.kind()) {
        (Some(text), ValueKind::Boolean) => SUBMODULES.iter().find(|(name, _)| *name == text),
        (Some("shallow"), ValueKind::Text) => SUBMODULES.last(),
        _ => None,
    };
    let wanted = || field.wanted("`true`, `false` or `shallow`", None);
    found.map(|(_, submodules)| *submodules).ok_or_else(wanted)
}

/// A value of a matrix as it was written. It becomes part of names, so it is short and on one line.
pub(super) fn matrix_value(field: &Field<'_>) -> Result<String, Mistake> {
    let text = variable_value(field)?;
    if text.chars().nth(NAME_CHARACTERS_MAX).is_some() {
        return Err(Mistake::TooLong { max: NAME_CHARACTERS_MAX, unit: "characters" });
    }
    if text.chars().any(char::is_control) {
        return Err(Mistake::ControlCharacter);
    }
    Ok(text.to_owned())
}

/// A pattern of branch names.
pub(super) fn branch_glob(field: &Field<'_>) -> Result<String, Mistake> {
    let text = field.text()?;
    globs::check_branch(text)?;
    Ok(text.to_owned())
}

/// A pattern of paths.
pub(super) fn path_glob(field: &Field<'_>) -> Result<String, Mistake> {
    let text = field.text()?;
    globs::check_path(text)?;
    Ok(text.to_owned())
}
