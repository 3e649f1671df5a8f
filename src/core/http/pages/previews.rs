//! The pages of previews: all that are open, one, and its log.

use std::time::Duration;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use stagely_protocol::{CommitSha, ServiceState};
use stagely_state::ids::PreviewId;
use stagely_state::{Access, Timestamp};
use url::Url;

use super::{
    Id, Member, PAGE_LINES, Visitor, broken, needs_token, not_found, page, plain_log, readable,
    readable_lines, shown_lines,
};
use crate::api::{PreviewStatus, PreviewView};
use crate::core::clock::now;
use crate::core::http::ApiState;
use crate::core::logs::LogId;

/// The digits of a commit in the list.
const COMMIT_DIGITS: usize = 12;

const MIB: u64 = 1 << 20;

#[derive(Template)]
#[template(path = "previews.html")]
struct PreviewsPage {
    goes_on: bool,
    previews: Vec<PreviewRow>,
}

struct PreviewRow {
    id: PreviewId,
    label: String,
    class: &'static str,
    status: &'static str,
    commit: String,
    age: String,
    sleeps_in: String,
}

#[derive(Template)]
#[template(path = "preview.html")]
struct PreviewPage {
    goes_on: bool,
    class: &'static str,
    times: Vec<String>,
    problem: Option<String>,
    /// By the endpoint's name.
    urls: Vec<(String, ShownUrl)>,
    warnings: Vec<String>,
    services: Vec<ServiceRow>,
    /// About its machine and its archive.
    facts: String,
    first_line: u64,
    log: Vec<String>,
    preview: PreviewView,
}

struct ShownUrl {
    link: String,
    /// Without the key.
    text: String,
}

struct ServiceRow {
    name: String,
    state: String,
    image: String,
}

/// All open previews. Their ids are known only to those who may read everything.
pub(super) async fn list(State(api): State<ApiState>, member: Member) -> Response {
    let now = now();
    let records = api.records.read();
    let previews = api.previews(&records, Some(member.role));
    let views = records.previews.values().map(|preview| previews.view(preview));
    let open = views.filter(|view| view.status.is_open());
    let previews: Vec<PreviewRow> = open.map(|view| row(&view, now)).collect();
    page(&PreviewsPage { goes_on: true, previews })
}

fn row(view: &PreviewView, now: Timestamp) -> PreviewRow {
    let commit = view.commit.as_ref().map(CommitSha::as_str).unwrap_or_default();
    PreviewRow {
        id: view.id,
        label: view.label.clone(),
        class: class(view.status),
        status: view.status.as_str(),
        commit: commit.chars().take(COMMIT_DIGITS).collect(),
        age: minutes(now.since(view.created_at)),
        sleeps_in: view.sleeps_at.map(|at| minutes(at.since(now))).unwrap_or_default(),
    }
}

/// The colour of a status.
const fn class(status: PreviewStatus) -> &'static str {
    match status {
        PreviewStatus::Live | PreviewStatus::Updating => "completed",
        PreviewStatus::Failed => "failed",
        PreviewStatus::Deploying
        | PreviewStatus::Archiving
        | PreviewStatus::Asleep
        | PreviewStatus::Waking
        | PreviewStatus::Ending
        | PreviewStatus::Ended => "",
    }
}

/// A time in whole minutes, hours or days.
fn minutes(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match (minutes / 60 / 24, minutes / 60) {
        (0, 0) => format!("{minutes} min"),
        (0, hours) => format!("{hours} h"),
        (days, _) => format!("{days} d"),
    }
}

pub(super) async fn show(State(api): State<ApiState>, visitor: Visitor, Id(id): Id) -> Response {
    let Some(view) = find(&api, &visitor, &id) else { return not_found("preview") };
    if !may_read(&visitor, &view) {
        return needs_token();
    }
    let (first_line, lines) = match view.generation {
        None => (0, Vec::new()),
        Some(generation) => {
            let log = LogId::Services { preview: view.id, generation };
            match api.logs.tail(log, PAGE_LINES).await {
                Ok(tail) => tail,
                Err(error) => return broken(log, &error),
            }
        }
    };
    page(&PreviewPage {
        goes_on: view.status.is_passing() || view.deployment.is_some(),
        class: class(view.status),
        times: times(&view, now()),
        problem: view.problem.as_deref().map(readable_lines),
        urls: view.urls.iter().map(|(name, url)| (name.clone(), shown_url(url))).collect(),
        warnings: view.warnings.iter().map(|warning| readable(warning)).collect(),
        services: view.services.iter().map(|service| service_row(&view, service)).collect(),
        facts: facts(&view),
        first_line,
        log: shown_lines(&lines),
        preview: view,
    })
}

fn times(view: &PreviewView, now: Timestamp) -> Vec<String> {
    let used = format!("last used {} ago", minutes(now.since(view.active_at)));
    let sleeps = view.sleeps_at.map(|at| format!("sleeps in {}", minutes(at.since(now))));
    let ends = view.ends_at.map(|at| format!("ends in {}", minutes(at.since(now))));
    [Some(used), sleeps, ends].into_iter().flatten().collect()
}

fn shown_url(url: &str) -> ShownUrl {
    let text = Url::parse(url).map(|mut url| {
        url.set_query(None);
        url.to_string()
    });
    ShownUrl { link: url.to_owned(), text: text.unwrap_or_default() }
}

fn service_row(view: &PreviewView, service: &ServiceState) -> ServiceRow {
    let code = service.exit_code.map(|code| format!("exit code {code}"));
    let details: Vec<String> = service.health.clone().into_iter().chain(code).collect();
    let details =
        if details.is_empty() { String::new() } else { format!(" ({})", details.join(", ")) };
    ServiceRow {
        name: readable(&service.name),
        state: readable(&format!("{}{details}", service.state)),
        image: view.images.get(&service.name).map(ToString::to_string).unwrap_or_default(),
    }
}

fn facts(view: &PreviewView) -> String {
    let machine = view.machine_id.map(|machine| match view.provider {
        Some(provider) => format!("Machine {machine} of {provider}"),
        None => format!("Machine {machine}"),
    });
    let disk = view.disk_free_bytes.map(|free| format!("{} MiB of its disk are free", free / MIB));
    let archive = view.archive.map(|archive| {
        let age = minutes(now().since(archive.made_at));
        format!("archive of {} MiB, {age} old", archive.bytes.div_ceil(MIB))
    });
    let facts: Vec<String> = [machine, disk, archive].into_iter().flatten().collect();
    facts.join(" · ")
}

/// The log of the services since the last deployment as plain text.
pub(super) async fn log(State(api): State<ApiState>, visitor: Visitor, Id(id): Id) -> Response {
    let Some(view) = find(&api, &visitor, &id) else { return not_found("preview") };
    if !may_read(&visitor, &view) {
        return needs_token();
    }
    let generation = view.generation.unwrap_or_default();
    let log = LogId::Services { preview: view.id, generation };
    plain_log(&api, log)
}

fn find(api: &ApiState, visitor: &Visitor, id: &str) -> Option<PreviewView> {
    let records = api.records.read();
    let preview = records.previews.get(&id.parse().ok()?)?;
    Some(api.previews(&records, visitor.role).view(preview))
}

/// A link to a run, which everybody may follow, opens no log of a preview that is not public.
fn may_read(visitor: &Visitor, view: &PreviewView) -> bool {
    visitor.role.is_some() || view.access == Some(Access::Public)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_minutes_hours_or_days() {
        let shown = [59, 60 * 12, 60 * 130, 60 * 60 * 50].map(Duration::from_secs).map(minutes);
        assert_eq!(shown, ["0 min", "12 min", "2 h", "2 d"]);
    }

    #[test]
    fn a_link_has_the_key_and_its_text_has_none() {
        let url = shown_url("https://pr-7-app.example.com/?stagely-access=key");
        assert_eq!(url.text, "https://pr-7-app.example.com/");
        assert!(url.link.ends_with("stagely-access=key"));
    }
}
