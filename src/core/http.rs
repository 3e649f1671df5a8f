//! The HTTP endpoints: the API and its description, the agents' WebSocket, webhooks, pages, health, and the previews' proxy.

mod agents;
mod artifacts;
mod auth;
mod binaries;
mod client_body;
mod connections;
mod costs;
mod environments;
mod error;
mod extract;
mod front;
mod github;
mod half_closed;
mod jobs;
mod log_streams;
mod machines;
mod paced_stream;
mod pages;
mod preview_exec;
mod previews;
mod previews_api;
mod projects;
mod runs;
mod secrets;
mod server;
mod sweep;
mod tokens;
mod views;
mod warm_ups;
mod webhooks;
mod websockets;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::artifacts::Artifacts;
use super::binaries::Binaries;
use super::disk::DiskGuard;
use super::history::History;
use super::intake::Intake;
use super::logs::LogStore;
use super::orchestrator::Events;
use super::previews::{PreviewActivity, PreviewLinks, PreviewReports};
use super::records::{Records, SharedRecords};
use super::secrets::SecretStore;
use super::sweep::Sweeps;
use crate::api::{BASE_PATH, Role};
use crate::config::Config;

use error::ApiError;
use extract::{ApiJson, ApiPath, ApiQuery};
use front::Front;
use views::Previews;

pub(crate) use agents::AgentEndpoint;
pub(crate) use auth::{ApiTokens, admin_token};
pub(crate) use github::GithubStatus;
pub(crate) use log_streams::LogReaders;
pub(crate) use previews::{PreviewParts, PreviewProxy, Tunnels};
pub(crate) use server::Server;
pub(crate) use webhooks::WebhookEndpoint;
pub(crate) use websockets::WebSockets;

/// The largest request body, in bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The parts that the handlers of the API and the pages use.
#[derive(Clone, Debug)]
pub(crate) struct ApiState {
    pub(crate) config: Arc<Config>,
    pub(crate) records: SharedRecords,
    pub(crate) history: History,
    pub(crate) events: Events,
    pub(crate) intake: Intake,
    pub(crate) logs: LogStore,
    pub(crate) artifacts: Artifacts,
    pub(crate) log_readers: LogReaders,
    pub(crate) secrets: SecretStore,
    pub(crate) tokens: ApiTokens,
    pub(crate) disk: DiskGuard,
    pub(crate) github: GithubStatus,
    pub(crate) sweeps: Sweeps,
    pub(crate) preview_links: PreviewLinks,
    pub(crate) preview_reports: PreviewReports,
    pub(crate) preview_activity: PreviewActivity,
    pub(crate) tunnels: Tunnels,
    pub(crate) sockets: WebSockets,
}

impl ApiState {
    /// The previews in `records` as somebody with a token of this role may see them.
    fn previews<'a>(&'a self, records: &'a Records, role: Option<Role>) -> Previews<'a> {
        Previews {
            records,
            links: &self.preview_links,
            reports: &self.preview_reports,
            with_keys: role >= Some(Role::Write),
        }
    }
}

/// The endpoints, each with the parts that it uses.
pub(crate) struct Endpoints {
    pub(crate) api: ApiState,
    pub(crate) agents: AgentEndpoint,
    pub(crate) binaries: Binaries,
    pub(crate) webhooks: WebhookEndpoint,
    pub(crate) previews: PreviewProxy,
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

fn front(endpoints: Endpoints) -> Front {
    let Endpoints { api, agents, binaries, webhooks, previews } = endpoints;
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
                .routes(routes!(artifacts::read))
                .routes(routes!(machines::list, machines::add))
                .routes(routes!(machines::remove))
                .routes(routes!(machines::queue))
                .routes(routes!(sweep::plan, sweep::sweep))
                .routes(routes!(environments::list))
                .routes(routes!(environments::close))
                .routes(routes!(environments::rebuild))
                .routes(routes!(previews_api::list))
                .routes(routes!(previews_api::get, previews_api::end))
                .routes(routes!(previews_api::sleep))
                .routes(routes!(previews_api::wake))
                .routes(routes!(previews_api::reset))
                .routes(routes!(previews_api::extend))
                .routes(routes!(previews_api::logs))
                .routes(routes!(previews_api::follow))
                .routes(routes!(preview_exec::exec))
                .routes(routes!(projects::list, projects::add))
                .routes(routes!(projects::remove))
                .routes(routes!(secrets::list))
                .routes(routes!(secrets::set, secrets::remove))
                .routes(routes!(github::get))
                .merge(OpenApiRouter::new().routes(routes!(webhooks::take)).with_state(webhooks))
                .routes(routes!(warm_ups::create))
                .routes(routes!(warm_ups::schedule))
                .routes(routes!(costs::get))
                .routes(routes!(costs::allow))
                .routes(routes!(tokens::create)),
        )
        .merge(OpenApiRouter::new().routes(routes!(binaries::get)).with_state(binaries))
        .split_for_parts();
    // As text, which takes a tenth of the memory.
    let description = Bytes::from(description.to_json().expect("its keys are strings"));
    let describe = async move || ([(CONTENT_TYPE, "application/json")], description);
    let router = documented
        .route(&format!("{BASE_PATH}/openapi.json"), get(describe))
        .merge(agents.router())
        .merge(previews.router(api.records.clone()))
        .merge(pages::router())
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .fallback(async || ApiError::not_found("page", "at this address"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api.clone());
    let artifacts = pages::artifacts::router().with_state(api);
    Front::new(router, artifacts, previews)
}

/// Ready while new work can be stored.
async fn ready(State(api): State<ApiState>) -> Result<&'static str, StatusCode> {
    match api.disk.check().await {
        Ok(()) if !api.sockets.stop.is_cancelled() => Ok("ready\n"),
        _ => Err(StatusCode::SERVICE_UNAVAILABLE),
    }
}
