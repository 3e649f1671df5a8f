//! The edge: the API, its description, the agents' WebSocket, and health.

mod agents;
mod auth;
mod binaries;
mod environments;
mod error;
mod extract;
mod github;
mod jobs;
mod machines;
mod pages;
mod projects;
mod runs;
mod sweep;
mod tokens;
mod views;
mod warm_ups;
mod webhooks;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::get;
use secrecy::SecretString;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::binaries::Binaries;
use super::disk::DiskGuard;
use super::github::Github;
use super::github::reconcile::Reconciled;
use super::intake::Intake;
use super::logs::LogStore;
use super::orchestrator::Events;
use super::records::SharedRecords;
use super::secrets::SecretStore;
use super::sessions::Sessions;
use super::sweep::Sweeps;
use crate::api::BASE_PATH;
use crate::config::Config;

use error::ApiError;
use extract::{ApiJson, ApiPath, ApiQuery};

pub(crate) use auth::ApiTokens;
pub(crate) use webhooks::WebhookMemory;

/// The largest request body, in bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What the handlers share.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    /// The settings.
    pub(crate) config: Arc<Config>,
    /// The committed records.
    pub(crate) records: SharedRecords,
    /// The way to the orchestrator.
    pub(crate) events: Events,
    /// Stores new runs.
    pub(crate) intake: Intake,
    /// The logs.
    pub(crate) logs: LogStore,
    /// The connected agents.
    pub(crate) sessions: Sessions,
    /// The secrets of runs and the tokens of machines.
    pub(crate) secrets: SecretStore,
    /// The API's tokens.
    pub(crate) tokens: ApiTokens,
    /// The agent's programs.
    pub(crate) binaries: Binaries,
    /// Refuses new work when the disk is nearly full.
    pub(crate) disk: DiskGuard,
    /// Asks GitHub.
    pub(crate) github: Github,
    /// Compares projects with their repositories.
    pub(crate) reconcile: Reconciled,
    /// Signs what GitHub delivers.
    pub(crate) webhook_secret: Option<SecretString>,
    /// Limits what of it is held at once.
    pub(crate) webhook_memory: WebhookMemory,
    /// Compares providers with the records.
    pub(crate) sweeps: Sweeps,
    /// Fires at shutdown.
    pub(crate) stop: CancellationToken,
}

impl Api {
    /// When to send a ping to whoever holds a WebSocket open: every library answers it, and of a peer
    /// that has vanished the system notices only while something is sent to it.
    fn beats(&self) -> Interval {
        let interval = self.config.agents.heartbeat_interval;
        let mut beats = interval_at(Instant::now() + interval, interval);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beats
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Stagely", description = "The HTTP API of `stagely core`."),
    modifiers(&BearerTokens),
    security(("token" = []))
)]
struct Description;

/// Says how requests are authorized.
struct BearerTokens;

impl utoipa::Modify for BearerTokens {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme =
            SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// All routes.
pub(crate) fn router(api: Api) -> Router {
    let (documented, description) = OpenApiRouter::with_openapi(Description::openapi())
        .nest(
            BASE_PATH,
            OpenApiRouter::new()
                .routes(routes!(runs::create, runs::list))
                .routes(routes!(runs::get))
                .routes(routes!(runs::jobs))
                .routes(routes!(runs::cancel))
                .routes(routes!(runs::rebuild))
                .routes(routes!(runs::approve))
                .routes(routes!(runs::follow))
                .routes(routes!(jobs::get))
                .routes(routes!(jobs::logs))
                .routes(routes!(jobs::follow))
                .routes(routes!(machines::list, machines::add))
                .routes(routes!(machines::remove))
                .routes(routes!(machines::queue))
                .routes(routes!(sweep::plan, sweep::sweep))
                .routes(routes!(environments::list))
                .routes(routes!(environments::close))
                .routes(routes!(environments::rebuild))
                .routes(routes!(projects::list, projects::add))
                .routes(routes!(projects::remove))
                .routes(routes!(github::get))
                .routes(routes!(webhooks::take))
                .routes(routes!(warm_ups::create))
                .routes(routes!(warm_ups::schedule))
                .routes(routes!(tokens::create)),
        )
        .routes(routes!(binaries::get))
        .split_for_parts();
    documented
        .route(&format!("{BASE_PATH}/openapi.json"), get(async move || axum::Json(description)))
        .route(stagely_protocol::CONNECT_PATH, get(agents::connect))
        .merge(pages::router())
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .fallback(async || ApiError::not_found("page", "at this address"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

/// Ready while new work can be stored.
async fn ready(State(api): State<Api>) -> Result<&'static str, StatusCode> {
    match api.disk.check().await {
        Ok(()) if !api.stop.is_cancelled() => Ok("ready\n"),
        _ => Err(StatusCode::SERVICE_UNAVAILABLE),
    }
}
