//! `/github`: the state of the connection to GitHub.

use axum::Json;
use axum::extract::State;

use super::ApiState;
use super::auth::Reader;
use crate::api::{GithubView, ReconciledView};
use crate::config::GithubCredentials;
use crate::core::github::Github;
use crate::core::github::reconcile::status::ReconcileStatus;

/// The parts whose health is shown.
#[derive(Clone, Debug)]
pub(crate) struct GithubStatus {
    pub(crate) client: Github,
    pub(crate) reconciled: ReconcileStatus,
    pub(crate) has_webhook_secret: bool,
}

/// Shows the state of the connection to GitHub: the credentials, the rate limit, and when each project was last
/// compared with its repository.
#[utoipa::path(get, path = "/github", responses((status = 200, body = GithubView)))]
pub(super) async fn get(State(api): State<ApiState>, _: Reader) -> Json<GithubView> {
    let health = api.github.client.health();
    let credentials = match api.config.github.credentials() {
        GithubCredentials::App => "app",
        GithubCredentials::Token => "token",
        GithubCredentials::None => "none",
    };
    let records = api.records.read();
    let linked = records.projects.values().filter(|project| project.github.is_some());
    let projects = linked.map(|project| {
        let last = api.github.reconciled.last(project.id);
        ReconciledView {
            project: project.name.clone(),
            reconciled_at: last.as_ref().map(|last| last.at),
            problem: last.and_then(|last| last.problem),
            deployments_problem: api.github.client.deployments_problem(project),
        }
    });
    Json(GithubView {
        credentials: credentials.to_owned(),
        webhook_secret: api.github.has_webhook_secret,
        remaining: health.remaining,
        resets_at: health.resets_at,
        blocked_until: health.blocked_until,
        problem: health.problem.or_else(|| api.github.reconciled.deliveries_problem()),
        projects: projects.collect(),
    })
}
