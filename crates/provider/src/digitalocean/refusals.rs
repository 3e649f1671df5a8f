//! What a refusal means: whether another candidate, another moment or another setting mends it.

use reqwest::StatusCode;

use super::api::ApiError;
use super::images::Choice;
use crate::digitalocean::DigitalOceanSettings;
use crate::{LaunchError, LaunchRequest, ProviderError};

/// What came of one candidate.
#[derive(Debug)]
pub(super) enum Refused {
    /// Nothing free: another one may be had.
    Capacity(String),
    /// It cannot be had as long as the configuration is this: another one may be.
    Setting(String),
    /// It is the same with every candidate.
    Launch(LaunchError),
}

impl From<ApiError> for LaunchError {
    fn from(error: ApiError) -> Self {
        match &error {
            ApiError::Throttled { wait } => {
                Self::Throttled { message: error.to_string(), wait: Some(*wait) }
            }
            ApiError::Unclear { .. } => Self::Unclear(error.to_string()),
            ApiError::Token(_) => Self::Permanent(error.to_string()),
            ApiError::Refused { .. } => Self::Permanent(explained(&error)),
        }
    }
}

impl From<ApiError> for ProviderError {
    fn from(error: ApiError) -> Self {
        Self(explained(&error))
    }
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self::Launch(error.into())
    }
}

/// The error, and what to do about it where that is the same for every request.
fn explained(error: &ApiError) -> String {
    let fix = match error.refused() {
        Some(StatusCode::UNAUTHORIZED) => {
            "the token is wrong or has expired: make a new one for digitalocean.token-file or \
             DIGITALOCEAN_TOKEN"
        }
        Some(StatusCode::FORBIDDEN) => {
            "the account is locked, or the token lacks a scope: it needs account:read, \
             droplet:create, droplet:delete, droplet:read, image:read, regions:read, sizes:read, \
             tag:create, tag:delete and tag:read, and vpc:read for digitalocean.vpc"
        }
        _ => return error.to_string(),
    };
    format!("{error}; {fix}")
}

/// What a 422 to a creation means. All have one id, so it is their words that tell them apart.
pub(super) fn of_creation(
    config: &DigitalOceanSettings,
    request: &LaunchRequest,
    message: &str,
) -> Refused {
    let words = message.to_ascii_lowercase();
    let says = |any: &[&str]| any.iter().any(|word| words.contains(word));
    if says(&["droplet limit"]) {
        let problem = format!(
            "{message} (ask DigitalOcean for a higher limit, or lower builders.max-concurrent)"
        );
        return Refused::Launch(LaunchError::NoCapacity(problem));
    }
    let (fleet, arch, size) = (request.fleet, request.arch, request.size);
    let setting = if says(&["image", "disk"]) {
        Choice::of(config, arch).setting()
    } else if says(&["not available", "unavailable", "capacity", "restricted", "temporarily"]) {
        return Refused::Capacity(message.to_owned());
    } else if says(&["vpc"]) {
        "digitalocean.vpc".to_owned()
    } else if says(&["region"]) {
        "digitalocean.regions".to_owned()
    } else if says(&["size"]) {
        format!("digitalocean.{fleet}s.{arch}.{size}")
    } else {
        "the [digitalocean] table".to_owned()
    };
    Refused::Setting(format!("{message} (check {setting})"))
}

/// What to tell when no candidate could be had.
pub(super) fn of_all(problems: &[(String, Refused)]) -> LaunchError {
    let text = |(tried, refused): &(String, Refused)| match refused {
        Refused::Capacity(problem) | Refused::Setting(problem) => format!("{tried}: {problem}"),
        Refused::Launch(error) => format!("{tried}: {error}"),
    };
    let told = problems.iter().map(text).collect::<Vec<_>>().join("; ");
    let is_setting = |(_, refused): &(String, Refused)| matches!(refused, Refused::Setting(_));
    if problems.iter().all(is_setting) {
        return LaunchError::Permanent(format!("DigitalOcean cannot launch it: {told}"));
    }
    LaunchError::NoCapacity(told)
}
