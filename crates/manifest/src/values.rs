//! Checks single values: a path, a platform, a time.

use std::time::Duration;

use stagely_protocol::paths::normalize;
use stagely_protocol::{Arch, Emulation, ImageRef, Platform};
use stagely_state::MachineSize;
use strsim::damerau_levenshtein;

use super::fault::Fault;
use super::fields::Field;
use super::globs;
use super::suggest::{closest, shown};
use super::tree::Kind;

/// The longest path, in bytes.
pub(super) const PATH_BYTES_MAX: usize = 1024;

/// The longest `name` and `target`, in characters.
pub(super) const NAME_CHARACTERS_MAX: usize = 100;

/// The longest build argument, in bytes: Linux takes 128 KiB for one argument of a command.
pub(super) const BUILD_ARG_BYTES_MAX: usize = 32 * 1024;

/// The longest that a build may be allowed to take.
pub(super) const TIMEOUT_MAX: Duration = Duration::from_hours(24);

/// The platforms that images are built for.
pub(super) const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64"];

/// The words for machine sizes.
pub(super) const MACHINE_SIZES: [(&str, MachineSize); 4] = [
    ("small", MachineSize::Small),
    ("medium", MachineSize::Medium),
    ("large", MachineSize::Large),
    ("xlarge", MachineSize::Xlarge),
];

/// The words for what is allowed of emulation.
pub(super) const EMULATIONS: [(&str, Emulation); 2] =
    [("allow", Emulation::Allow), ("forbid", Emulation::Forbid)];

/// `version: 2`.
pub(super) fn version(field: &Field<'_>) -> Result<(), Fault> {
    match (field.scalar(), field.kind()) {
        (Some("2"), Kind::Number) => Ok(()),
        (Some(text), Kind::Number | Kind::Text) => Err(Fault::Version(text.to_owned())),
        _ => Err(field.wanted("the number 2", None)),
    }
}

/// The project's name, for people.
pub(super) fn name(field: &Field<'_>) -> Result<String, Fault> {
    short_text(field, NAME_CHARACTERS_MAX).map(str::to_owned)
}

fn short_text<'a>(field: &Field<'a>, max: usize) -> Result<&'a str, Fault> {
    let text = field.text()?;
    if text.trim().is_empty() {
        return Err(Fault::EmptyText { hint: None });
    }
    if text.chars().nth(max).is_some() {
        return Err(Fault::TooLong { max, unit: "characters" });
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::ControlCharacter);
    }
    Ok(text)
}

/// The name of a build, which becomes part of job names and image tags.
pub(super) fn check_build_name(name: &str) -> Result<(), Fault> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(Fault::BuildName);
    }
    // Docker's tags begin with a letter, a digit or `_`.
    if name.starts_with('-') { Err(Fault::BuildNameDash) } else { Ok(()) }
}

/// A folder, from the repository's root.
pub(super) fn context(field: &Field<'_>) -> Result<String, Fault> {
    let path = path(field, Some("write `.` for the repository's root"))?;
    normalize(&path).map_err(Fault::Path)?;
    Ok(path)
}

/// A file. Where it leads depends on the context, so that is checked later.
pub(super) fn dockerfile(field: &Field<'_>) -> Result<String, Fault> {
    path(field, None)
}

fn path(field: &Field<'_>, hint: Option<&'static str>) -> Result<String, Fault> {
    let text = field.text()?;
    if text.is_empty() {
        return Err(Fault::EmptyText { hint });
    }
    if text.len() > PATH_BYTES_MAX {
        return Err(Fault::TooLong { max: PATH_BYTES_MAX, unit: "bytes" });
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::ControlCharacter);
    }
    Ok(text.to_owned())
}

/// `linux/amd64` or `linux/arm64`.
pub(super) fn platform(field: &Field<'_>) -> Result<Platform, Fault> {
    let text = field.text()?;
    text.parse().map_err(|_| match meant_platform(text) {
        Some(platform) => {
            Fault::MisspelledPlatform { text: text.to_owned(), suggestion: platform.to_string() }
        }
        None => Fault::UnknownPlatform(text.to_owned()),
    })
}

/// `arm64`, `aarch64`, `linux/arm64/v8`, `Linux/ARM64` and one slip of the finger. Not more than
/// one: `linux/arm` is another processor.
fn meant_platform(text: &str) -> Option<Platform> {
    let lower = text.to_lowercase();
    let arch = lower.strip_prefix("linux/").unwrap_or(&lower);
    let arch = arch.strip_suffix("/v8").unwrap_or(arch);
    let of_name = arch.parse::<Arch>().ok();
    let of_slip = || {
        let near = |arch: &Arch| damerau_levenshtein(&lower, &Platform(*arch).to_string()) == 1;
        if lower.len() > 20 { None } else { Arch::ALL.into_iter().find(near) }
    };
    of_name.or_else(of_slip).map(Platform)
}

/// `small`, `medium`, `large` or `xlarge`.
pub(super) fn machine(field: &Field<'_>) -> Result<MachineSize, Fault> {
    let text = field.text()?;
    if let Some((_, size)) = MACHINE_SIZES.into_iter().find(|(name, _)| *name == text) {
        return Ok(size);
    }
    Err(match closest(text, MACHINE_SIZES.map(|(name, _)| name)) {
        Some(suggestion) => Fault::MisspelledMachine { text: text.to_owned(), suggestion },
        None => Fault::UnknownMachine(text.to_owned()),
    })
}

/// `45m`, `1h30m`, `90s`: more than nothing and at most [`TIMEOUT_MAX`].
pub(super) fn timeout(field: &Field<'_>) -> Result<Duration, Fault> {
    let (Some(text), Kind::Text | Kind::Number) = (field.scalar(), field.kind()) else {
        return Err(field.wanted("a time such as `45m`", None));
    };
    if !text.is_empty() && text.len() < 10 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Fault::TimeoutUnit(text.to_owned()));
    }
    let duration = parse_timeout(text).ok_or_else(|| Fault::Timeout(text.to_owned()))?;
    if duration.is_zero() {
        return Err(Fault::TimeoutZero);
    }
    if duration > TIMEOUT_MAX {
        return Err(Fault::TimeoutTooLong(shown(text)));
    }
    Ok(duration)
}

/// Hours, minutes and seconds, in this order and each at most once.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (hours, text) = leading_count(text, 'h')?;
    let (minutes, text) = leading_count(text, 'm')?;
    let (seconds, text) = leading_count(text, 's')?;
    if !text.is_empty() || hours.or(minutes).or(seconds).is_none() {
        return None;
    }
    let seconds_of = |count: Option<u64>, unit: u64| count.unwrap_or(0) * unit;
    let sum = seconds_of(hours, 3600) + seconds_of(minutes, 60) + seconds_of(seconds, 1);
    Some(Duration::from_secs(sum))
}

/// Splits `12h30m` at `h` into 12 and `30m`. Without the unit there is no count; what stands before
/// the unit must be 1 to 6 digits.
fn leading_count(text: &str, unit: char) -> Option<(Option<u64>, &str)> {
    let Some((digits, rest)) = text.split_once(unit) else { return Some((None, text)) };
    let valid = (1..=6).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if valid { Some((Some(digits.parse().ok()?), rest)) } else { None }
}

/// A build argument's name.
pub(super) fn check_build_arg_name(name: &str) -> Result<(), Fault> {
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !starts_well || !name.bytes().all(allowed) {
        return Err(Fault::BuildArgName);
    }
    if name.len() > NAME_CHARACTERS_MAX {
        return Err(Fault::TooLong { max: NAME_CHARACTERS_MAX, unit: "characters" });
    }
    Ok(())
}

/// A build argument as it was written: `1.10` stays `1.10`, and `true` stays `true`.
pub(super) fn build_arg<'a>(field: &Field<'a>) -> Result<&'a str, Fault> {
    let text = match (field.scalar(), field.kind()) {
        (_, Kind::Nothing) => return Err(Fault::BuildArgNull),
        (Some(text), _) => text,
        _ => return Err(field.wanted("text, a number or a boolean", None)),
    };
    if text.len() > BUILD_ARG_BYTES_MAX {
        return Err(Fault::TooLong { max: BUILD_ARG_BYTES_MAX, unit: "bytes" });
    }
    // No command line can carry it.
    if text.contains('\0') { Err(Fault::ControlCharacter) } else { Ok(text) }
}

/// The name or number of a stage of the Dockerfile.
pub(super) fn target(field: &Field<'_>) -> Result<String, Fault> {
    let text = short_text(field, NAME_CHARACTERS_MAX)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !text.starts_with(|first: char| first.is_ascii_alphanumeric()) || !text.bytes().all(allowed)
    {
        return Err(Fault::Target(text.to_owned()));
    }
    Ok(text.to_owned())
}

/// An image reference.
pub(super) fn image_ref(field: &Field<'_>) -> Result<ImageRef, Fault> {
    let text = field.text()?;
    text.parse().map_err(|_| Fault::ImageRef(text.to_owned()))
}

/// `allow` or `forbid`.
pub(super) fn emulation(field: &Field<'_>) -> Result<Emulation, Fault> {
    let text = field.text()?;
    let known = EMULATIONS.into_iter().find(|(name, _)| *name == text);
    known.map(|(_, emulation)| emulation).ok_or_else(|| Fault::Emulation(text.to_owned()))
}

/// A value of a matrix as it was written. It is a part of names, so it is short and in one line.
pub(super) fn matrix_value(field: &Field<'_>) -> Result<String, Fault> {
    let text = build_arg(field)?;
    if text.chars().nth(NAME_CHARACTERS_MAX).is_some() {
        return Err(Fault::TooLong { max: NAME_CHARACTERS_MAX, unit: "characters" });
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::ControlCharacter);
    }
    Ok(text.to_owned())
}

/// A pattern over branch names.
pub(super) fn branch_glob(field: &Field<'_>) -> Result<String, Fault> {
    let text = field.text()?;
    globs::check_branch(text)?;
    Ok(text.to_owned())
}

/// A pattern over paths.
pub(super) fn path_glob(field: &Field<'_>) -> Result<String, Fault> {
    let text = field.text()?;
    globs::check_path(text)?;
    Ok(text.to_owned())
}
