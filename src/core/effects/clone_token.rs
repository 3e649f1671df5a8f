//! Tokens for repositories of runs that have no token of their own.

use std::time::Duration;

use secrecy::SecretString;
use stagely_protocol::ErrorChain;
use stagely_state::{Project, Run};
use tracing::warn;

use crate::core::github::{Github, GithubError};
use crate::core::retry::{Retry, RetryPolicy};

/// The longest wait, also during a rate limit, because at its end the token may be obsolete.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Without a limit, for callers that have their own.
pub(super) const CLONE_TOKEN_RETRIES: RetryPolicy =
    RetryPolicy::new(Duration::from_secs(1), WAIT_MAX);

/// Whether to request a token again.
pub(super) fn retry_clone_token(error: &GithubError) -> Retry {
    match error.retry() {
        Retry::After(wait) => Retry::After(wait.min(WAIT_MAX)),
        retry => retry,
    }
}

/// Requests tokens for repositories at GitHub.
#[derive(Clone, Debug)]
pub(crate) struct CloneTokens {
    pub(crate) github: Github,
}

impl CloneTokens {
    /// A token for one job or one plan. `None` if the repository can be cloned without one, or if no token is allowed:
    /// the builds of a fork run a stranger's code, so they never get a person's token.
    pub(super) async fn repository_token(
        &self,
        run: &Run,
        project: &Project,
    ) -> Result<Option<SecretString>, GithubError> {
        // Other servers get no token of GitHub.
        if project.github.is_none() || run.repository != project.repository {
            return Ok(None);
        }
        let is_private = run.github.as_ref().map(|github| github.is_private);
        if run.from_fork && is_private == Some(false) {
            return Ok(None);
        }
        match self.github.clone_token(project, run.from_fork).await {
            Err(error) if !error.is_transient() && is_private != Some(true) => {
                warn!(run = %run.id, error = %ErrorChain(&error), "the repository is cloned without a token");
                Ok(None)
            }
            token => token,
        }
    }

    /// Whether `run` is of a fork and needs a token, and there is no app that could create one.
    pub(super) fn lacks_foreign_token(&self, run: &Run) -> bool {
        let is_private = run.github.as_ref().is_some_and(|github| github.is_private);
        run.from_fork && is_private && !self.github.has_app()
    }
}
