//! Comments and statuses: all that core writes to GitHub.

use serde::Deserialize;
use serde_json::json;
use stagely_protocol::CommitSha;
use stagely_state::{CommitStatus, Project};

use super::api::ApiRequest;
use super::error::GithubError;
use super::{Github, repository_of, repository_path};

#[derive(Deserialize)]
struct CommentPayload {
    id: u64,
    #[serde(default)]
    body: Option<String>,
}

impl Github {
    /// Waits until a comment may be written. This may take minutes, so callers wait first and then make the
    /// text.
    pub async fn comment_allowed(&self) {
        self.inner.write_limiter.comment_allowed().await;
    }

    /// Waits until a status may be written, as [`comment_allowed`](Self::comment_allowed).
    pub async fn status_allowed(&self) {
        self.inner.write_limiter.status_allowed().await;
    }

    /// The oldest comment of a pull request that begins with `marker`.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn find_comment(
        &self,
        project: &Project,
        number: u64,
        marker: &str,
    ) -> Result<Option<u64>, GithubError> {
        let repository = repository_of(project)?;
        let list = repository_path(repository, ["issues", &number.to_string(), "comments"]);
        let what = format!("the comments of pull request {number} of {repository}");
        let request = ApiRequest::get(format!("{list}?per_page=100"), what);
        let has_marker = |comment: &CommentPayload| {
            comment.body.as_ref().is_some_and(|body| body.starts_with(marker))
        };
        let mut found = None;
        self.read_pages(project, repository, request, |page: Vec<CommentPayload>| {
            found = page.iter().find(|comment| has_marker(comment)).map(|comment| comment.id);
            found.is_none()
        })
        .await?;
        Ok(found)
    }

    /// Writes a comment and returns its id.
    ///
    /// # Errors
    /// [`GithubError`]; the comment may be there all the same.
    pub async fn create_comment(
        &self,
        project: &Project,
        number: u64,
        body: &str,
    ) -> Result<u64, GithubError> {
        let repository = repository_of(project)?;
        let address = repository_path(repository, ["issues", &number.to_string(), "comments"]);
        let what = format!("the comments of pull request {number} of {repository}");
        let request = ApiRequest::post(address, &json!({ "body": body }), what);
        let response = self.write(project, repository, &request).await?;
        Ok(response.json::<CommentPayload>(&request)?.id)
    }

    /// Replaces the text of a comment.
    ///
    /// # Errors
    /// [`GithubError`]; [`GithubError::NotFound`] if somebody deleted the comment.
    pub async fn edit_comment(
        &self,
        project: &Project,
        comment: u64,
        body: &str,
    ) -> Result<(), GithubError> {
        let repository = repository_of(project)?;
        let address = repository_path(repository, ["issues", "comments", &comment.to_string()]);
        let what = format!("comment {comment} of {repository}");
        let request = ApiRequest::patch(address, &json!({ "body": body }), what);
        self.write(project, repository, &request).await.map(drop)
    }

    /// Sets a status of a commit.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn set_status(
        &self,
        project: &Project,
        commit: &CommitSha,
        context: &str,
        status: &CommitStatus,
    ) -> Result<(), GithubError> {
        let repository = repository_of(project)?;
        let address = repository_path(repository, ["statuses", commit.as_str()]);
        let body = json!({
            "state": status.state,
            "description": status.description,
            "target_url": status.target_url,
            "context": context,
        });
        let what = format!("the statuses of {commit} in {repository}");
        let request = ApiRequest::post(address, &body, what);
        self.write(project, repository, &request).await.map(drop)
    }
}
