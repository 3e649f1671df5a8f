//! `/github`: how core gets on with GitHub.

use axum::Json;
use axum::extract::State;

use super::Api;
use super::auth::Reader;
use crate::api::{GithubView, ReconciledView};
use crate::config::GithubCredentials;

/// Shows how core gets on with GitHub: its credentials, what it may still ask, and when each project was
/// last compared with its repository.
#[utoipa::path(get, path = "/github", responses((status = 200, body = GithubView)))]
pub(super) async fn get(State(api): State<Api>, _: Reader) -> Json<GithubView> {
    let health = api.github.health();
    let credentials = match api.config.github.credentials() {
        GithubCredentials::App => "app",
        GithubCredentials::Token => "token",
        GithubCredentials::None => "none",
    };
    let records = api.records.read();
    let linked = records.projects.values().filter(|project| project.github.is_some());
    let projects = linked.map(|project| {
        let last = api.reconcile.last(project.id);
        ReconciledView {
            project: project.name.clone(),
            reconciled_at: last.as_ref().map(|last| last.at),
            problem: last.and_then(|last| last.problem),
        }
    });
    Json(GithubView {
        credentials: credentials.to_owned(),
        webhook_secret: api.webhook_secret.is_some(),
        remaining: health.remaining,
        resets_at: health.resets_at,
        blocked_until: health.blocked_until,
        problem: health.problem.or_else(|| api.reconcile.problem()),
        projects: projects.collect(),
    })
}
