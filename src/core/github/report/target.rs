//! The requests that a report sends, behind a trait: the tests let them fail as GitHub does.

use stagely_protocol::CommitSha;
use stagely_state::{CommitStatus, DeploymentStatus, Project};

use crate::core::github::{Github, GithubError, NewDeployment};

/// A pull request and the commits of its repository.
pub(crate) trait ReportTarget: Sync {
    /// Waits until a comment may be written.
    fn comment_allowed(&self) -> impl Future<Output = ()> + Send;

    /// Waits until a status may be written.
    fn status_allowed(&self) -> impl Future<Output = ()> + Send;

    /// The id of the comment that begins with `marker`.
    fn find_comment(
        &self,
        marker: &str,
    ) -> impl Future<Output = Result<Option<u64>, GithubError>> + Send;

    /// Writes a comment. After an error it may exist all the same.
    fn create_comment(&self, body: &str) -> impl Future<Output = Result<u64, GithubError>> + Send;

    fn edit_comment(
        &self,
        comment: u64,
        body: &str,
    ) -> impl Future<Output = Result<(), GithubError>> + Send;

    fn set_status(
        &self,
        commit: &CommitSha,
        context: &str,
        status: &CommitStatus,
    ) -> impl Future<Output = Result<(), GithubError>> + Send;

    /// Whether deployments may be written, as far as is known.
    fn may_deploy(&self) -> bool;

    /// Creates a deployment, or finds the one that an earlier attempt created. Returns its id.
    fn create_deployment(
        &self,
        deployment: &NewDeployment,
    ) -> impl Future<Output = Result<u64, GithubError>> + Send;

    fn set_deployment_status(
        &self,
        deployment: u64,
        status: &DeploymentStatus,
    ) -> impl Future<Output = Result<(), GithubError>> + Send;
}

/// A repository at GitHub, and maybe one of its pull requests.
pub(crate) struct GithubTarget {
    pub(crate) github: Github,
    pub(crate) project: Project,
    /// The pull request; `None` for a branch, which has no comment.
    pub(crate) number: Option<u64>,
}

impl GithubTarget {
    fn number(&self) -> Result<u64, GithubError> {
        self.number.ok_or_else(|| GithubError::NotFound("pull request of this branch".to_owned()))
    }
}

impl ReportTarget for GithubTarget {
    async fn comment_allowed(&self) {
        self.github.comment_allowed().await;
    }

    async fn status_allowed(&self) {
        self.github.status_allowed().await;
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

    fn may_deploy(&self) -> bool {
        self.github.deployments_problem(&self.project).is_none()
    }

    async fn create_deployment(&self, deployment: &NewDeployment) -> Result<u64, GithubError> {
        self.github.create_deployment(&self.project, deployment).await
    }

    async fn set_deployment_status(
        &self,
        deployment: u64,
        status: &DeploymentStatus,
    ) -> Result<(), GithubError> {
        self.github.set_deployment_status(&self.project, deployment, status).await
    }
}
