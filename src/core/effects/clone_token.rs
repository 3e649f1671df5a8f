//! The token that opens a run's repository, where its caller gave none.

use std::time::Duration;

use secrecy::SecretString;
use stagely_state::{Project, Run};
use tracing::warn;

use crate::core::clock::now;
use crate::core::github::{Github, GithubError};

/// The first wait for a GitHub that does not answer.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// The longest, also where GitHub names a later moment: by then nobody may wait for the answer any more.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Gets tokens that open repositories at GitHub.
#[derive(Clone, Debug)]
pub(crate) struct CloneTokens {
    pub(crate) github: Github,
}

impl CloneTokens {
    /// A token for one job or one plan. `None` where the repository can be cloned without, or nothing is
    /// known that may be given away: builds of a fork run what a stranger wrote, so they never get a
    /// token that a person made.
    pub(super) async fn minted_token(
        &self,
        run: &Run,
        project: &Project,
    ) -> Result<Option<SecretString>, GithubError> {
        // Another server gets no token of GitHub's.
        if project.github.is_none() || run.repository != project.repository {
            return Ok(None);
        }
        let is_private = run.github.as_ref().map(|github| github.is_private);
        if run.from_fork && is_private == Some(false) {
            return Ok(None);
        }
        match self.github.clone_token(project, run.from_fork).await {
            // What is public, or may be, can be cloned without.
            Err(error) if !error.is_transient() && is_private != Some(true) => {
                warn!(run = %run.id, %error, "the repository is cloned without a token");
                Ok(None)
            }
            token => token,
        }
    }

    /// Whether `run` needs a token and there is none that a fork's build may have.
    pub(super) fn lacks_foreign_token(&self, run: &Run) -> bool {
        let is_private = run.github.as_ref().is_some_and(|github| github.is_private);
        run.from_fork && is_private && !self.github.has_app()
    }
}

/// The waits for a GitHub that does not answer.
pub(super) struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(WAIT_MIN)
    }
}

impl Patience {
    /// How long to wait after `error`; `None` if asking again is of no use.
    pub(super) fn after(&mut self, error: &GithubError) -> Option<Duration> {
        if !error.is_transient() {
            return None;
        }
        let wait = match error {
            GithubError::RateLimited { until } => until.since(now()).clamp(WAIT_MIN, WAIT_MAX),
            _ => self.0,
        };
        self.0 = (self.0 * 2).min(WAIT_MAX);
        warn!(%error, "asking GitHub again in {wait:?}");
        Some(wait)
    }
}
