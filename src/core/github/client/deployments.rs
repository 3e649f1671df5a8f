//! Deployments, which need a permission that apps and tokens may lack.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use stagely_protocol::CommitSha;
use stagely_state::{DeploymentStatus, GithubRepository, Project, Timestamp};
use tracing::warn;

use super::api::{ApiRequest, ApiResponse};
use super::app::TokenUse;
use super::error::GithubError;
use super::{Github, repository_of, repository_path};
use crate::core::clock::now;

/// How long core does without deployments after GitHub has refused one. Somebody may add the permission.
const REFUSAL_LIFE: Duration = Duration::from_hours(1);

/// The key of the environment's id in a deployment's payload.
const MARKER: &str = "stagely";

/// A deployment that is to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDeployment {
    pub commit: CommitSha,
    pub environment: String,
    /// Whether the environment ends some day.
    pub is_transient: bool,
    /// Tells core's deployments from others of the same commit.
    pub marker: String,
    /// Deployments that GitHub gives no further status.
    pub replaced: BTreeSet<u64>,
}

/// The repositories in which core may not write deployments.
#[derive(Debug, Default)]
pub(super) struct DeploymentPermissions {
    refused: Mutex<HashMap<String, Refusal>>,
}

#[derive(Debug)]
struct Refusal {
    at: Timestamp,
    problem: String,
}

impl DeploymentPermissions {
    fn problem(&self, repository: &GithubRepository) -> Option<String> {
        let refused = self.lock();
        let refusal = refused.get(&key(repository));
        let refusal = refusal.filter(|refusal| now().since(refusal.at) < REFUSAL_LIFE);
        refusal.map(|refusal| refusal.problem.clone())
    }

    fn refuse(&self, repository: &GithubRepository, error: &GithubError) {
        let problem = error.to_string();
        let refusal = Refusal { at: now(), problem: problem.clone() };
        if self.lock().insert(key(repository), refusal).is_none() {
            warn!(%repository, problem, "no deployments are written; the permission `Deployments: write` would allow them");
        }
    }

    fn allow(&self, repository: &GithubRepository) {
        self.lock().remove(&key(repository));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Refusal>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(repository: &GithubRepository) -> String {
    repository.as_str().to_ascii_lowercase()
}

#[derive(Deserialize)]
struct DeploymentPayload {
    id: u64,
    /// An object, or the text of one.
    #[serde(default)]
    payload: Value,
}

impl DeploymentPayload {
    fn has_marker(&self, marker: &str) -> bool {
        let parsed = self.payload.as_str().and_then(|text| serde_json::from_str(text).ok());
        let payload: &Value = parsed.as_ref().unwrap_or(&self.payload);
        payload[MARKER] == marker
    }
}

impl Github {
    /// Why core writes no deployments in the repository of `project`; `None` if it may, as far as is known.
    pub fn deployments_problem(&self, project: &Project) -> Option<String> {
        let repository = repository_of(project).ok()?;
        self.inner.deployments.problem(repository)
    }

    /// Creates a deployment, unless there is one with its marker, commit and environment already. Returns its id.
    ///
    /// # Errors
    /// [`GithubError`]. After a refusal for lack of permission, [`deployments_problem`](Self::deployments_problem) says
    /// so.
    pub async fn create_deployment(
        &self,
        project: &Project,
        new: &NewDeployment,
    ) -> Result<u64, GithubError> {
        let repository = repository_of(project)?;
        let list = repository_path(repository, ["deployments"]);
        let what = format!("the deployments of {repository}");
        let query: String = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("sha", new.commit.as_str())
            .append_pair("environment", &new.environment)
            .append_pair("per_page", "100")
            .finish();
        let request = ApiRequest::get(format!("{list}?{query}"), what.clone());
        let response = self.send_deployment(project, repository, &request).await?;
        let known: Vec<DeploymentPayload> = response.json(&request)?;
        let is_known = |known: &&DeploymentPayload| {
            known.has_marker(&new.marker) && !new.replaced.contains(&known.id)
        };
        if let Some(known) = known.iter().find(is_known) {
            return Ok(known.id);
        }
        let body = json!({
            "ref": new.commit,
            "auto_merge": false,
            // Without an empty list GitHub checks all statuses of the commit, among them that of this run.
            "required_contexts": [],
            "payload": { MARKER: new.marker },
            "environment": new.environment,
            "description": "A preview by Stagely",
            "transient_environment": new.is_transient,
            "production_environment": false,
        });
        let request = ApiRequest::post(list, &body, what);
        let response = self.send_deployment(project, repository, &request).await?;
        self.inner.deployments.allow(repository);
        Ok(response.json::<DeploymentPayload>(&request)?.id)
    }

    /// Adds a status to a deployment.
    ///
    /// # Errors
    /// [`GithubError`]; [`GithubError::NotFound`] if somebody deleted the deployment.
    pub async fn set_deployment_status(
        &self,
        project: &Project,
        deployment: u64,
        status: &DeploymentStatus,
    ) -> Result<(), GithubError> {
        let repository = repository_of(project)?;
        let segments = ["deployments", &deployment.to_string(), "statuses"];
        let address = repository_path(repository, segments);
        let body = json!({
            "state": status.state,
            "description": status.description,
            "log_url": status.log_url,
            "environment_url": status.environment_url.as_deref().unwrap_or_default(),
            "auto_inactive": false,
        });
        let what = format!("the statuses of deployment {deployment} of {repository}");
        let request = ApiRequest::post(address, &body, what);
        self.send_for(project, repository, TokenUse::Deployments, &request).await.map(drop)
    }

    /// Sends a request about all deployments, and notes a refusal for lack of permission.
    async fn send_deployment(
        &self,
        project: &Project,
        repository: &GithubRepository,
        request: &ApiRequest,
    ) -> Result<ApiResponse, GithubError> {
        let sent = self.send_for(project, repository, TokenUse::Deployments, request).await;
        sent.inspect_err(|error| {
            let is_refusal = match error {
                GithubError::Refused { status: 403, .. } | GithubError::NotFound(_) => true,
                // GitHub makes no token of the app for what the app may not do.
                GithubError::Refused { status: 422, .. } => request.method == Method::GET,
                GithubError::Refused { .. }
                | GithubError::Unavailable(_)
                | GithubError::Unusable(_)
                | GithubError::RateLimited { .. }
                | GithubError::TooLarge { .. }
                | GithubError::Credentials(_) => false,
            };
            if is_refusal {
                self.inner.deployments.refuse(repository, error);
            }
        })
    }
}
