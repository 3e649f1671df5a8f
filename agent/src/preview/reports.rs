//! PREVIEW: the last one of each preview, and those that core does not have.

use std::time::Duration;

use stagely_protocol::{AgentMessage, LogAck, Preview, PreviewState, ResumedJob, WireId};
use tokio::time::Instant;

use super::Previews;

/// The free disk space is reported again after this time, if it has changed.
const DISK_INTERVAL: Duration = Duration::from_mins(1);

/// The report of an archived preview is forgotten when a session has lasted for so long since it was sent: core has stored it,
/// and would have asked again.
const ARCHIVED_AGE: Duration = Duration::from_mins(10);

/// A smaller change of the free disk space is not reported.
const DISK_BYTES_MIN: u64 = 256 * 1024 * 1024;

/// The last PREVIEW of a preview.
#[derive(Debug)]
pub(super) struct Report {
    message: Preview,
    at: Instant,
    is_due: bool,
    /// When it was sent in this session.
    sent_at: Option<Instant>,
}

impl Report {
    fn is_stored(&self) -> bool {
        let is_old = self.sent_at.is_some_and(|sent_at| sent_at.elapsed() >= ARCHIVED_AGE);
        self.message.state == PreviewState::Archived && is_old
    }
}

impl Previews {
    /// Makes `message` the state of its preview, which is sent if it differs from the one before.
    pub(super) fn report(&self, message: Preview) {
        let mut shared = self.shared();
        let now = Instant::now();
        if let Some(known) = shared.reports.get(&message.preview_id) {
            let without_disk =
                |report: &Preview| Preview { disk_free_bytes: None, ..report.clone() };
            let free = |report: &Preview| report.disk_free_bytes.unwrap_or(0);
            let has_disk_changed = now >= known.at + DISK_INTERVAL
                && free(&message).abs_diff(free(&known.message)) >= DISK_BYTES_MIN;
            if without_disk(&known.message) == without_disk(&message) && !has_disk_changed {
                return;
            }
        }
        tracing::info!(preview = %message.preview_id, state = ?message.state, "the state of a preview has changed");
        let report = Report { at: now, is_due: true, sent_at: None, message };
        shared.reports.insert(report.message.preview_id.clone(), report);
        self.wake.notify_one();
    }

    /// Forgets the last state, so that the next one is sent also if it is the same, and what was expected of it.
    pub(crate) fn forget_report(&self, preview: &WireId) {
        let mut shared = self.shared();
        shared.reports.remove(preview);
        shared.returning.remove(preview);
    }

    /// The messages that are due in a session, at most `messages_max` of them LOG, and when to call again without a wake-up.
    pub(crate) fn due(&self, messages_max: usize) -> (Vec<String>, Option<Instant>) {
        self.forget_stored_reports();
        let (mut messages, next) = self.logs.due(messages_max);
        let mut shared = self.shared();
        let due = shared.reports.values_mut().filter(|report| report.is_due);
        messages.extend(due.map(|report| {
            report.is_due = false;
            report.sent_at = Some(Instant::now());
            AgentMessage::Preview(report.message.clone()).to_json()
        }));
        (messages, next)
    }

    /// Forgets archived previews whose reports core has stored.
    fn forget_stored_reports(&self) {
        let mut shared = self.shared();
        let stored: Vec<_> =
            shared.reports.extract_if(.., |_, report| report.is_stored()).collect();
        drop(shared);
        for (preview, _) in stored {
            let folder = self.preview_folder(&preview);
            // Unless it is deployed again.
            let Some(_lock) = self.try_lock(&preview) else { continue };
            if folder.archived().is_some()
                && let Err(error) = folder.remove()
            {
                tracing::warn!(%preview, %error, "cannot remove the report of an archived preview");
            }
        }
    }

    /// Core has stored lines. `false`: not of a preview.
    pub(crate) fn acknowledge(&self, ack: &LogAck) -> bool {
        self.logs.acknowledge(ack)
    }

    /// A session has opened: core may not have stored what was sent in the one before. `logs`: the logs that core wants,
    /// those of jobs among them.
    pub(crate) fn resume(&self, logs: &[ResumedJob]) {
        self.logs.resume(logs);
        for report in self.shared().reports.values_mut() {
            (report.is_due, report.sent_at) = (true, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::endpoints::Endpoints;
    use crate::preview::PreviewSettings;

    #[tokio::test(start_paused = true)]
    async fn reports_of_archived_previews_are_forgotten_when_a_session_has_lasted() {
        let folder = tempfile::tempdir().unwrap();
        let settings = PreviewSettings {
            machine: "vm_1".parse().unwrap(),
            work_dir: folder.path().to_owned(),
            docker_host: None,
            grace: Duration::ZERO,
            core: None,
            endpoints: Endpoints::default(),
        };
        let previews = Previews::new(settings, std::sync::Arc::default());
        let sent = || previews.due(1).0.len();
        for (name, state) in [
            ("ended", PreviewState::Archived),
            ("asleep", PreviewState::Archived),
            ("awake", PreviewState::Serving),
        ] {
            let id: WireId = name.parse().unwrap();
            drop(previews.lock(&id).await);
            let report = Preview::new(id.clone(), 1, state);
            if name == "asleep" {
                let files = previews.preview_folder(&id);
                files.deployment(&"job_1".parse().unwrap()).create().unwrap();
                files.set_archived(&report).unwrap();
                files.remove_archived().unwrap();
            }
            previews.report(report);
        }
        assert_eq!(sent(), 3);
        advance(ARCHIVED_AGE / 2).await;
        // Another session: core may have lost them.
        previews.resume(&[]);
        assert_eq!(sent(), 3);
        advance(ARCHIVED_AGE / 2).await;
        assert_eq!(sent(), 0);
        assert_eq!(previews.known().len(), 1);
        advance(ARCHIVED_AGE / 2).await;
        assert_eq!(sent(), 0);
        assert_eq!(previews.known(), []);
        previews.resume(&[]);
        assert_eq!(sent(), 1);
        previews.forget_locks(&[]);
        assert!(previews.shared().locks.is_empty());
    }
}
