//! The requests that a comparison sends, behind a trait: the tests decide when a response comes.

use stagely_state::{Project, Timestamp};

use crate::core::github::{
    DeliveryContent, FailedDelivery, Github, GithubError, PullRequest, Repository,
};

/// The reads of [`Github`] that a comparison needs.
pub(crate) trait GithubReads: Sync {
    fn repository(
        &self,
        project: &Project,
    ) -> impl Future<Output = Result<Repository, GithubError>> + Send;
    fn open_pull_requests(
        &self,
        project: &Project,
    ) -> impl Future<Output = Result<Vec<PullRequest>, GithubError>> + Send;
    fn pull_request(
        &self,
        project: &Project,
        number: u64,
    ) -> impl Future<Output = Result<PullRequest, GithubError>> + Send;
    fn failed_deliveries(
        &self,
        since: Timestamp,
    ) -> impl Future<Output = Result<Vec<FailedDelivery>, GithubError>> + Send;
    fn delivery(
        &self,
        id: u64,
    ) -> impl Future<Output = Result<DeliveryContent, GithubError>> + Send;
}

impl GithubReads for Github {
    async fn repository(&self, project: &Project) -> Result<Repository, GithubError> {
        self.repository(project).await
    }
    async fn open_pull_requests(&self, project: &Project) -> Result<Vec<PullRequest>, GithubError> {
        self.open_pull_requests(project).await
    }
    async fn pull_request(
        &self,
        project: &Project,
        number: u64,
    ) -> Result<PullRequest, GithubError> {
        self.pull_request(project, number).await
    }
    async fn failed_deliveries(
        &self,
        since: Timestamp,
    ) -> Result<Vec<FailedDelivery>, GithubError> {
        self.failed_deliveries(since).await
    }
    async fn delivery(&self, id: u64) -> Result<DeliveryContent, GithubError> {
        self.delivery(id).await
    }
}
