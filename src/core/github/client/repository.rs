//! Reads of a repository: files, permissions, and pull requests.

use serde::Deserialize;
use stagely_protocol::CommitSha;
use stagely_state::Project;

use super::api::ApiRequest;
use super::error::GithubError;
use super::{Github, repository_of, repository_path};
use crate::core::github::payload::{
    PullRequest, PullRequestPayload, Repository, RepositoryPayload,
};

/// The most of a file that is read: more than any `stagely.yaml` may have.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// The media type of a file's bytes.
const RAW: &str = "application/vnd.github.raw+json";

/// The media type of a commit's id alone.
const SHA: &str = "application/vnd.github.sha";

/// What an account may do in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    None,
    Read,
    Write,
    Admin,
}

#[derive(Deserialize)]
struct PermissionPayload {
    permission: String,
    #[serde(default)]
    role_name: String,
}

impl Github {
    /// Reads a file of a commit; `None` if the commit has no such file.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn file(
        &self,
        project: &Project,
        path: &str,
        commit: &CommitSha,
    ) -> Result<Option<Vec<u8>>, GithubError> {
        let repository = repository_of(project)?;
        let segments = ["contents"].into_iter().chain(path.split('/'));
        let address = format!("{}?ref={commit}", repository_path(repository, segments));
        let what = format!("{path} at {commit} in {repository}");
        let request =
            ApiRequest { accept: RAW, bytes_max: FILE_BYTES_MAX, ..ApiRequest::get(address, what) };
        match self.read(project, repository, &request).await {
            Ok(response) => Ok(Some(response.body.to_vec())),
            // GitHub answers the same for a missing file and for a missing commit.
            Err(GithubError::NotFound(_)) => {
                self.check_commit(project, commit).await.map(|()| None)
            }
            Err(error) => Err(error),
        }
    }

    async fn check_commit(&self, project: &Project, commit: &CommitSha) -> Result<(), GithubError> {
        let repository = repository_of(project)?;
        let address = repository_path(repository, ["commits", commit.as_str()]);
        let what = format!("commit {commit} in {repository}");
        let request = ApiRequest { accept: SHA, ..ApiRequest::get(address, what.clone()) };
        match self.read(project, repository, &request).await {
            Ok(_) => Ok(()),
            Err(GithubError::Refused { status: 422, .. }) => Err(GithubError::NotFound(what)),
            Err(error) => Err(error),
        }
    }

    /// The permission of `account` in the repository.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn permission(
        &self,
        project: &Project,
        account: &str,
    ) -> Result<Permission, GithubError> {
        let repository = repository_of(project)?;
        let address = repository_path(repository, ["collaborators", account, "permission"]);
        let what = format!("the permission of {account} in {repository}");
        let request = ApiRequest::get(address, what);
        let payload: PermissionPayload = match self.read(project, repository, &request).await {
            Ok(response) => response.json(&request)?,
            Err(GithubError::NotFound(_)) => return Ok(Permission::None),
            Err(error) => return Err(error),
        };
        Ok(match (payload.permission.as_str(), payload.role_name.as_str()) {
            ("admin", _) => Permission::Admin,
            ("write" | "maintain", _) | (_, "maintain") => Permission::Write,
            ("read" | "triage", _) => Permission::Read,
            _ => Permission::None,
        })
    }

    /// The repository as it is now.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn repository(&self, project: &Project) -> Result<Repository, GithubError> {
        let repository = repository_of(project)?;
        let address = repository_path(repository, []);
        let request = ApiRequest::get(address, format!("repository {repository}"));
        let response = self.read(project, repository, &request).await?;
        Ok(response.json::<RepositoryPayload>(&request)?.into())
    }

    /// All open pull requests.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn open_pull_requests(
        &self,
        project: &Project,
    ) -> Result<Vec<PullRequest>, GithubError> {
        let repository = repository_of(project)?;
        // In this order a pull request that is opened between two pages moves no other one to an earlier page.
        let query = "state=open&sort=created&direction=asc&per_page=100";
        let address = format!("{}?{query}", repository_path(repository, ["pulls"]));
        let request = ApiRequest::get(address, format!("the open pull requests of {repository}"));
        let mut all: Vec<PullRequest> = Vec::new();
        self.read_pages(project, repository, request, |page: Vec<PullRequestPayload>| {
            all.extend(page.into_iter().map(PullRequest::from));
            true
        })
        .await?;
        Ok(all)
    }

    /// One pull request.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn pull_request(
        &self,
        project: &Project,
        number: u64,
    ) -> Result<PullRequest, GithubError> {
        let repository = repository_of(project)?;
        let address = repository_path(repository, ["pulls", &number.to_string()]);
        let request = ApiRequest::get(address, format!("pull request {number} of {repository}"));
        let response = self.read(project, repository, &request).await?;
        Ok(response.json::<PullRequestPayload>(&request)?.into())
    }
}
