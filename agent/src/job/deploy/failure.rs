//! Why services did not become ready: the container that failed, and its last lines.

use super::{Deploying, JobError};
use crate::job::error::end_of;
use crate::preview::containers;
use crate::preview::ready::{NotReady, failed};

/// The longest last line in a message, in bytes. The message also has the name of the container and its exit code.
const LAST_LINE_BYTES_MAX: usize = 1024;

/// The longest of a container's last lines in the log, in bytes.
const LINE_BYTES_MAX: usize = 4 * 1024;

impl Deploying<'_> {
    /// The failure of the first service that has failed, whose last lines are added to the log.
    pub(super) async fn service_failure(&self) -> Option<JobError> {
        let failure = failed(&self.containers().await.ok()?)?;
        Some(self.explain(failure).await)
    }

    /// Adds the last lines of the container that failed to the log, and the last one to the message.
    pub(super) async fn explain(&self, failure: NotReady) -> JobError {
        let mut error = JobError::new(failure.reason(), &failure);
        let Some(container) = failure.container() else { return error };
        let lines = containers::last_lines(&self.engine, container).await;
        let count = match lines.len() {
            1 => "The last line".to_owned(),
            count => format!("The last {count} lines"),
        };
        self.log.info(&format!("{failure}. {count} of its container:"));
        for line in &lines {
            // Masked before it is cut: a part of a secret is not recognized.
            self.log.info(&end_of(&self.log.masker().mask(line), LINE_BYTES_MAX));
        }
        if let Some(last) = self.last_of(&lines) {
            error.message = format!("{failure}; its last line: {last}");
        }
        error
    }

    /// The last line of a container for a message, if there is one that is not blank.
    pub(super) async fn last_line(&self, container: &str) -> Option<String> {
        self.last_of(&containers::last_lines(&self.engine, container).await)
    }

    fn last_of(&self, lines: &[String]) -> Option<String> {
        let last = lines.iter().rev().find(|line| !line.trim().is_empty())?;
        Some(end_of(&self.log.masker().mask(last), LAST_LINE_BYTES_MAX).into_owned())
    }
}
