//! Reads and checks single values of the section `preview`.

use std::ops::RangeInclusive;

use super::{PreviewAccess, PreviewTrigger};
use crate::fields::Field;
use crate::kind::ValueKind;
use crate::limits::{
    BUILD_ARG_BYTES_MAX, DISK_GIB_MAX, DISK_GIB_MIN, ENDPOINT_NAME_CHARACTERS_MAX, GIB_BYTES,
    IMAGE_TAG_MAX, NAME_CHARACTERS_MAX, PATH_BYTES_MAX,
};
use crate::mistake::Mistake;
use crate::suggest::closest;
use crate::values::check_variable_name;

/// `pull_requests`, `label` or `manual`.
pub(super) fn trigger(field: &Field<'_>) -> Result<PreviewTrigger, Mistake> {
    keyword(field, &PreviewTrigger::NAMES)
}

/// `link`, `public` or `token`.
pub(super) fn access(field: &Field<'_>) -> Result<PreviewAccess, Mistake> {
    keyword(field, &PreviewAccess::NAMES)
}

/// One of the words `known`.
pub(crate) fn keyword<T: Copy>(field: &Field<'_>, known: &[(&str, T)]) -> Result<T, Mistake> {
    let text = field.text()?;
    if let Some((_, value)) = known.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names = || known.iter().map(|(name, _)| *name);
    let suggestion = closest(text, names()).map(str::to_owned);
    let known = names().map(str::to_owned).collect();
    Err(Mistake::Keyword { text: text.to_owned(), suggestion, known })
}

/// The name of a build or of a combination of its matrix. Whether it exists is checked later.
pub(super) fn variant(field: &Field<'_>) -> Result<String, Mistake> {
    let text = field.text()?;
    if text.is_empty() {
        return Err(Mistake::EmptyText { hint: None });
    }
    if text.chars().nth(IMAGE_TAG_MAX).is_some() {
        return Err(Mistake::TooLong { max: IMAGE_TAG_MAX, unit: "characters" });
    }
    Ok(text.to_owned())
}

/// The name of a service in a compose file.
pub(super) fn service(field: &Field<'_>) -> Result<String, Mistake> {
    let text = field.text()?;
    check_service(text)?;
    Ok(text.to_owned())
}

/// A service's name that starts with `-` would be an option of `docker compose`.
pub(super) fn check_service(name: &str) -> Result<(), Mistake> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if name.is_empty() || name.starts_with('-') || !name.bytes().all(allowed) {
        return Err(Mistake::ServiceName(name.to_owned()));
    }
    if name.len() > NAME_CHARACTERS_MAX {
        return Err(Mistake::TooLong { max: NAME_CHARACTERS_MAX, unit: "characters" });
    }
    Ok(())
}

/// Checks the name of an endpoint, which becomes part of a DNS label.
pub(super) fn check_endpoint_name(name: &str) -> Result<(), Mistake> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let has_outer_dash = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || has_outer_dash || !name.bytes().all(allowed) {
        return Err(Mistake::EndpointName);
    }
    if name.len() > ENDPOINT_NAME_CHARACTERS_MAX {
        return Err(Mistake::TooLong { max: ENDPOINT_NAME_CHARACTERS_MAX, unit: "characters" });
    }
    Ok(())
}

/// A number from 1 to 65535, in decimal digits.
pub(super) fn port(field: &Field<'_>) -> Result<u16, Mistake> {
    match (field.scalar(), field.kind()) {
        (Some(text), ValueKind::Number) => {
            let is_plain = text.starts_with(|first| matches!(first, '1'..='9'));
            let port = text.parse().ok().filter(|_| is_plain);
            port.ok_or_else(|| Mistake::Port(text.to_owned()))
        }
        (Some(text), ValueKind::Text) if text.parse::<u16>().is_ok() => {
            Err(field.wanted("a number", Some("write it without quotes")))
        }
        (Some(text), ValueKind::Text) => Err(Mistake::Port(text.to_owned())),
        _ => Err(field.wanted("a number from 1 to 65535", None)),
    }
}

/// `200` or `200-399`.
pub(super) fn status(field: &Field<'_>) -> Result<RangeInclusive<u16>, Mistake> {
    let (Some(text), ValueKind::Text | ValueKind::Number) = (field.scalar(), field.kind()) else {
        return Err(field.wanted("a status such as `200`, or a range such as `200-399`", None));
    };
    let number = |text: &str| {
        let is_status = text.len() == 3 && text.starts_with(|first| matches!(first, '1'..='5'));
        text.parse::<u16>().ok().filter(|_| is_status)
    };
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (number(low), number(high)) {
        (Some(low), Some(high)) if low <= high => Ok(low..=high),
        (Some(_), Some(_)) => Err(Mistake::StatusOrder(text.to_owned())),
        _ => Err(Mistake::Status(text.to_owned())),
    }
}

/// The path of a request, which may have a query.
pub(super) fn health_path(field: &Field<'_>) -> Result<String, Mistake> {
    let path = field.text()?;
    check_url_path(path, "?*")?;
    Ok(path.to_owned())
}

/// A path, or the start of paths followed by `*`.
pub(super) fn public_path(field: &Field<'_>) -> Result<String, Mistake> {
    let path = field.text()?;
    let fixed = path.strip_suffix('*').unwrap_or(path);
    if fixed.contains('*') {
        return Err(Mistake::StarInside);
    }
    check_url_path(fixed, "")?;
    Ok(path.to_owned())
}

/// Checks that `path` starts with `/` and has only the characters of RFC 3986 for paths (but for `*`), and
/// those of `others`.
fn check_url_path(path: &str, others: &str) -> Result<(), Mistake> {
    if !path.starts_with('/') {
        return Err(Mistake::UrlPathStart(path.to_owned()));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(Mistake::TooLong { max: PATH_BYTES_MAX, unit: "bytes" });
    }
    let allowed = |character: char| {
        character.is_ascii_alphanumeric()
            || "/-._~!$&'()+,;=:@%".contains(character)
            || others.contains(character)
    };
    match path.chars().find(|character| !allowed(*character)) {
        Some(character) => Err(Mistake::UrlPathCharacter(character.to_string())),
        None => Ok(()),
    }
}

/// A size such as `20GiB`.
pub(super) fn disk_bytes(field: &Field<'_>) -> Result<u64, Mistake> {
    let (Some(text), ValueKind::Text | ValueKind::Number) = (field.scalar(), field.kind()) else {
        return Err(field.wanted("a size such as `20GiB`", None));
    };
    let digits = text.strip_suffix("GiB").filter(|digits| digits.len() < 10);
    let is_plain = |digits: &&str| digits.starts_with(|first| matches!(first, '1'..='9'));
    let gib = digits.filter(is_plain).and_then(|digits| digits.parse::<u64>().ok());
    let gib = gib.ok_or_else(|| Mistake::Disk(text.to_owned()))?;
    let (min, max) = (DISK_GIB_MIN, DISK_GIB_MAX);
    if (min..=max).contains(&gib) {
        Ok(gib * GIB_BYTES)
    } else {
        Err(Mistake::DiskRange { text: text.to_owned(), min, max })
    }
}

/// The name of a secret, which is that of its environment variable.
pub(super) fn secret_name(field: &Field<'_>) -> Result<String, Mistake> {
    let name = field.text()?;
    check_variable_name(name, "a secret's name")?;
    Ok(name.to_owned())
}

/// The program of a command, or one of its arguments.
pub(super) fn command_text(field: &Field<'_>) -> Result<String, Mistake> {
    let text = field.text()?;
    if text.is_empty() {
        return Err(Mistake::EmptyText { hint: None });
    }
    if text.len() > BUILD_ARG_BYTES_MAX {
        return Err(Mistake::TooLong { max: BUILD_ARG_BYTES_MAX, unit: "bytes" });
    }
    // An argument cannot contain NUL.
    if text.contains('\0') { Err(Mistake::ControlCharacter) } else { Ok(text.to_owned()) }
}
