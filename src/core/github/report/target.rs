//! Where it is told: the few requests that this takes.

use stagely_protocol::CommitSha;
use stagely_state::{CommitStatus, Project};

use crate::core::github::{Github, GithubError};

/// A pull request and the commits of its repository.
pub(crate) trait Place: Sync {
    /// Waits until a comment may be written.
    fn room_for_comment(&self) -> impl Future<Output = ()> + Send;

    /// Waits until a status may be written.
    fn room_for_status(&self) -> impl Future<Output = ()> + Send;

    /// The comment that begins with `marker`.
    fn find_comment(
        &self,
        marker: &str,
    ) -> impl Future<Output = Result<Option<u64>, GithubError>> + Send;

    /// Writes a comment. It may be written although this fails.
    fn create_comment(&self, body: &str) -> impl Future<Output = Result<u64, GithubError>> + Send;

    /// Writes a comment anew.
    fn edit_comment(
        &self,
        comment: u64,
        body: &str,
    ) -> impl Future<Output = Result<(), GithubError>> + Send;

    /// Sets a status of a commit.
    fn set_status(
        &self,
        commit: &CommitSha,
        context: &str,
        status: &CommitStatus,
    ) -> impl Future<Output = Result<(), GithubError>> + Send;
}

/// A repository at GitHub.
pub(crate) struct AtGithub {
    pub(crate) github: Github,
    pub(crate) project: Project,
    /// The pull request. Nobody asks for a comment where there is none.
    pub(crate) number: Option<u64>,
}

impl AtGithub {
    fn number(&self) -> Result<u64, GithubError> {
        self.number.ok_or_else(|| GithubError::NotFound("pull request of this branch".to_owned()))
    }
}

impl Place for AtGithub {
    async fn room_for_comment(&self) {
        self.github.room_for_comment().await;
    }

    async fn room_for_status(&self) {
        self.github.room_for_status().await;
    }

    async fn find_comment(&self, marker: &str) -> Result<Option<u64>, GithubError> {
        self.github.find_comment(&self.project, self.number()?, marker).await
    }

    async fn create_comment(&self, body: &str) -> Result<u64, GithubError> {
        self.github.create_comment(&self.project, self.number()?, body).await
    }

    async fn edit_comment(&self, comment: u64, body: &str) -> Result<(), GithubError> {
        self.github.edit_comment(&self.project, comment, body).await
    }

    async fn set_status(
        &self,
        commit: &CommitSha,
        context: &str,
        status: &CommitStatus,
    ) -> Result<(), GithubError> {
        self.github.set_status(&self.project, commit, context, status).await
    }
}
