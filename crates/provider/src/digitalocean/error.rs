//! The errors of a launch: whether another candidate, another moment or another setting can help.

use std::fmt;

use thiserror::Error;

use super::api::ApiError;
use super::images::ImageSetting;
use crate::digitalocean::DigitalOceanSettings;
use crate::{LaunchError, LaunchRequest, MachineSpec, ProviderError};

/// Why one candidate cannot be launched.
#[derive(Debug, Error)]
pub(super) enum CandidateError {
    /// It has no capacity: another candidate may have.
    #[error("{0}")]
    Capacity(String),
    /// A setting prevents it: another candidate may work.
    #[error("{0}")]
    Setting(String),
    /// Other candidates would fail, too.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// Why no candidate was launched, where the API's last error does not say it.
#[derive(Debug, Error)]
pub(super) enum LaunchProblem {
    #[error("{0} (ask DigitalOcean for a higher limit, or lower builders.max-concurrent)")]
    DropletLimit(String),
    #[error("the user data has {bytes} bytes of {max}")]
    UserDataTooLarge { bytes: usize, max: usize },
    #[error("no size is named for it: set {0}")]
    NoSize(String),
    #[error(
        "preview.disk asks for {wanted_gib} GiB, and the largest disk of the sizes for it has {largest_gib} GiB: lower \
         preview.disk in stagely.yaml, or add a larger size to {setting}"
    )]
    NoDisk { wanted_gib: u32, largest_gib: u64, setting: String },
    #[error("DigitalOcean has no machines of {}, unless {setting} names one", .spec.arch)]
    NoArch { spec: MachineSpec, setting: String },
    #[error("{unclear}; and then: {search}")]
    SearchFailed { unclear: ApiError, search: ApiError },
    #[error("DigitalOcean cannot launch it: {0}")]
    Settings(Tried),
    #[error("{0}")]
    NoCapacity(Tried),
}

/// The candidates that were tried, with their errors.
#[derive(Debug)]
pub(super) struct Tried(pub(super) Vec<(String, CandidateError)>);

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (candidate, error)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{candidate}: {error}")?;
        }
        Ok(())
    }
}

impl Tried {
    pub(super) fn into_launch_error(self) -> LaunchError {
        let is_setting =
            |(_, error): &(String, CandidateError)| matches!(error, CandidateError::Setting(_));
        if self.0.iter().all(is_setting) {
            return LaunchError::Permanent(LaunchProblem::Settings(self).into());
        }
        LaunchError::NoCapacity(LaunchProblem::NoCapacity(self).into())
    }
}

impl From<ApiError> for LaunchError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Throttled { wait } => {
                Self::Throttled { cause: error.into(), wait: Some(wait) }
            }
            ApiError::Unclear { .. } => Self::Unclear(error.into()),
            ApiError::Token(_) | ApiError::Refused { .. } => Self::Permanent(error.into()),
        }
    }
}

impl From<ApiError> for ProviderError {
    fn from(error: ApiError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<ApiError> for CandidateError {
    fn from(error: ApiError) -> Self {
        Self::Launch(error.into())
    }
}

/// The setting for the size of `spec`.
pub(super) fn size_setting(spec: &MachineSpec) -> String {
    let MachineSpec { fleet, arch, size, .. } = spec;
    format!("digitalocean.{fleet}s.{arch}.{size}")
}

/// The cause of status 422 for a creation. All have the same error id, so only the message tells them apart.
pub(super) fn creation_error(
    settings: &DigitalOceanSettings,
    request: &LaunchRequest,
    message: String,
) -> CandidateError {
    let lowercase = message.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lowercase.contains(word));
    if has(&["droplet limit"]) {
        let problem = LaunchProblem::DropletLimit(message);
        return CandidateError::Launch(LaunchError::NoCapacity(problem.into()));
    }
    let setting = if has(&["image", "disk"]) {
        ImageSetting::of(settings, request.spec.arch).key()
    } else if has(&["not available", "unavailable", "capacity", "restricted", "temporarily"]) {
        return CandidateError::Capacity(message);
    } else if has(&["vpc"]) {
        "digitalocean.vpc".to_owned()
    } else if has(&["region"]) {
        "digitalocean.regions".to_owned()
    } else if has(&["size"]) {
        size_setting(&request.spec)
    } else {
        "the [digitalocean] table".to_owned()
    };
    CandidateError::Setting(format!("{message} (check {setting})"))
}
