//! The tags of droplets, and the removal of tags that have become useless.
//!
//! The account keeps a tag when its last droplet is deleted. With two tags a machine that would be tens of thousands
//! in a year.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use stagely_state::ids::{CoreId, JobId, MachineId, PreviewId};

use crate::LaunchRequest;

/// The tag of all droplets of all cores.
const TAG: &str = "stagely";
const CORE_TAG: &str = "stagely:core:";
const MACHINE_TAG: &str = "stagely:machine:";
const FLEET_TAG: &str = "stagely:fleet:";
const JOB_TAG: &str = "stagely:job:";
const PREVIEW_TAG: &str = "stagely:preview:";

/// A tag without droplets is only removed when its machine or job is older than this. The API does not count a droplet
/// that is being created.
const AGE_MIN: Duration = Duration::from_hours(1);

/// All tags of the droplet of a request's machine.
pub(super) fn of_machine(core_id: &CoreId, request: &LaunchRequest) -> Vec<String> {
    let fleet = format!("{FLEET_TAG}{}", request.spec.fleet);
    let mut tags = vec![TAG.to_owned(), of_core(core_id), machine_tag(request.machine), fleet];
    tags.extend(request.job.map(|job| format!("{JOB_TAG}{job}")));
    tags.extend(request.preview.map(|preview| format!("{PREVIEW_TAG}{preview}")));
    tags
}

pub(super) fn of_core(core_id: &CoreId) -> String {
    format!("{CORE_TAG}{core_id}")
}

pub(super) fn machine_tag(machine: MachineId) -> String {
    format!("{MACHINE_TAG}{machine}")
}

/// The machine that `tag` names. The API keeps the case in which a tag was first created.
pub(super) fn machine(tag: &str) -> Option<MachineId> {
    tag.to_ascii_lowercase().strip_prefix(MACHINE_TAG)?.parse().ok()
}

/// A tag of the account, in the form of the API.
#[derive(Debug, Deserialize)]
pub(super) struct Tag {
    pub(super) name: String,
    resources: Resources,
}

#[derive(Debug, Deserialize)]
struct Resources {
    count: u64,
}

impl Tag {
    /// Whether it belongs to a machine, job or preview whose droplet is gone. A preview that wakes gets its tag again.
    pub(super) fn is_left_over(&self, now: SystemTime) -> bool {
        let job = || self.name.strip_prefix(JOB_TAG)?.parse().ok().map(JobId::bits);
        let preview = || self.name.strip_prefix(PREVIEW_TAG)?.parse().ok().map(PreviewId::bits);
        let id = machine(&self.name).map(MachineId::bits).or_else(job).or_else(preview);
        let Some(id) = id else { return false };
        let created = UNIX_EPOCH + Duration::from_millis(ulid::Ulid(id).timestamp_ms());
        let age = now.duration_since(created).unwrap_or_default();
        self.resources.count == 0 && age > AGE_MIN
    }
}

#[cfg(test)]
mod tests {
    use stagely_protocol::Arch;
    use stagely_state::MachineSize;

    use super::*;
    use crate::fixtures::{machine_id, request, spec};

    #[test]
    fn only_old_tags_of_machines_and_jobs_are_left_over() {
        let machine = machine_id();
        let tag = |name: &str, count| Tag { name: name.to_owned(), resources: Resources { count } };
        let (now, later) = (SystemTime::now(), SystemTime::now() + 2 * AGE_MIN);

        assert!(tag(&machine_tag(machine), 0).is_left_over(later));
        let (job, preview) =
            (JobId::from_bits(machine.bits()), PreviewId::from_bits(machine.bits()));
        for name in [format!("{JOB_TAG}{job}"), format!("{PREVIEW_TAG}{preview}")] {
            assert!(tag(&name, 0).is_left_over(later), "{name}");
        }
        assert!(!tag(&machine_tag(machine), 0).is_left_over(now));
        assert!(!tag(&machine_tag(machine), 1).is_left_over(later));
        let others =
            ["stagely", "stagely:core:01abc", "stagely:machine:mine", "stagely:fleet:preview"];
        for other in others.into_iter().chain(["web"]) {
            assert!(!tag(other, 0).is_left_over(later), "{other}");
        }
    }

    #[test]
    fn tags_have_only_allowed_characters() {
        let core_id = CoreId::from(&*ulid::Ulid::generate().to_string().to_lowercase());
        let machine = machine_id();
        let request = LaunchRequest {
            job: Some(JobId::from_bits(machine.bits())),
            preview: Some(PreviewId::from_bits(machine.bits())),
            ..request(machine, spec(Arch::Amd64, MachineSize::Small), "")
        };
        for tag in of_machine(&core_id, &request) {
            let is_allowed =
                |letter: char| letter.is_ascii_alphanumeric() || ":-_".contains(letter);
            assert!(tag.len() <= 255 && tag.chars().all(is_allowed), "{tag}");
        }
    }
}
