//! Rounds of comparisons: lists, events that come while a list is read, and failed deliveries.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use serde_json::{Value, json};
use stagely_state::ids::RunId;
use stagely_state::{
    DeliveryId, Environment, ForkPolicy, GithubLink, Head, HeadSource, Run, Snapshot, State,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::fixtures::{commit, listed};
use super::*;
use crate::core::clock::new_id;
use crate::core::disk::DiskGuard;
use crate::core::fixtures::{self, RunningOrchestrator};
use crate::core::github::{DeliveryContent, FailedDelivery};
use crate::core::orchestrator::Events;
use crate::core::store::Store;

/// A GitHub whose responses a test chooses.
#[derive(Clone)]
struct FakeGithub {
    responses: Arc<Mutex<Responses>>,
    events: Events,
    /// How many lists of pull requests were read.
    lists: Arc<AtomicUsize>,
}

type Refusal = fn() -> GithubError;

#[derive(Default)]
struct Responses {
    listed: BTreeMap<ProjectId, Result<Vec<PullRequest>, Refusal>>,
    /// Responses to requests for one pull request.
    single: BTreeMap<u64, Result<PullRequest, Refusal>>,
    /// An event that is stored while the list is read.
    meanwhile: Option<Event>,
    failed: Vec<FailedDelivery>,
    deliveries: BTreeMap<u64, Result<(&'static str, Value), Refusal>>,
    /// The deliveries that were read.
    read: Vec<u64>,
}

impl FakeGithub {
    fn responses(&self) -> MutexGuard<'_, Responses> {
        self.responses.lock().unwrap()
    }
}

fn response<T>(response: Option<&Result<T, Refusal>>) -> Result<T, GithubError>
where
    T: Clone,
{
    match response {
        Some(Ok(response)) => Ok(response.clone()),
        Some(Err(refusal)) => Err(refusal()),
        None => Err(GithubError::NotFound("such thing".to_owned())),
    }
}

impl GithubReads for FakeGithub {
    async fn repository(&self, project: &Project) -> Result<Repository, GithubError> {
        let full_name = project.github.as_ref().unwrap().repository.clone();
        Ok(Repository { full_name, default_branch: "main".to_owned(), is_private: false })
    }
    async fn open_pull_requests(&self, project: &Project) -> Result<Vec<PullRequest>, GithubError> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        let meanwhile = self.responses().meanwhile.take();
        if let Some(event) = meanwhile {
            self.events.store(event).await.unwrap();
        }
        response(self.responses().listed.get(&project.id))
    }
    async fn pull_request(&self, _: &Project, number: u64) -> Result<PullRequest, GithubError> {
        response(self.responses().single.get(&number))
    }
    async fn failed_deliveries(&self, _: Timestamp) -> Result<Vec<FailedDelivery>, GithubError> {
        Ok(self.responses().failed.clone())
    }
    async fn delivery(&self, id: u64) -> Result<DeliveryContent, GithubError> {
        let mut responses = self.responses();
        responses.read.push(id);
        let (event, payload) = response(responses.deliveries.get(&id))?;
        let payload = payload.to_string().into_bytes();
        Ok(DeliveryContent { event: event.to_owned(), payload })
    }
}

/// An orchestrator and a reconciler, with the projects `acme/shop-1` and `acme/shop-2`.
struct Core {
    _folder: TempDir,
    github: FakeGithub,
    records: SharedRecords,
    events: Events,
    reconciler: Reconciler<FakeGithub>,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

const SHOP: ProjectId = ProjectId::from_bits(1);
const OTHER: ProjectId = ProjectId::from_bits(2);

fn project(id: ProjectId, name: &str) -> (ProjectId, Project) {
    let repository = format!("acme/{name}").parse().unwrap();
    let link = GithubLink { repository, forks: ForkPolicy::Approval, is_configured: false };
    (id, Project { github: Some(link), ..Project::new(id, name.to_owned(), String::new()) })
}

impl Core {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
        let mut config = Config::default();
        config.builders.provider = None;
        // Nothing listens there, so plans and reports wait.
        config.github.api_url = "http://127.0.0.1:1".parse().unwrap();
        let projects = [project(SHOP, "shop-1"), project(OTHER, "shop-2")].into();
        let state = State::load(config.limits(), Snapshot { projects, ..Snapshot::default() });
        let RunningOrchestrator { records, events, secrets, stop, task } =
            fixtures::start_orchestrator(folder.path(), config.clone(), store, state);
        let github =
            FakeGithub { responses: Arc::default(), events: events.clone(), lists: Arc::default() };
        github.responses().listed = [(SHOP, Ok(Vec::new())), (OTHER, Ok(Vec::new()))].into();
        let disk = DiskGuard::new(folder.path().to_owned(), 0);
        let reconciler = Reconciler {
            github: github.clone(),
            config: Arc::new(config),
            records: records.clone(),
            intake: Intake::new(records.clone(), events.clone(), secrets, disk),
            status: ReconcileStatus::default(),
        };
        Self { _folder: folder, github, records, events, reconciler, stop, task }
    }

    fn list(&self, project: ProjectId, listed: &[PullRequest]) {
        self.github.responses().listed.insert(project, Ok(listed.to_vec()));
    }

    /// Compares once, with these open pull requests of the first project.
    async fn round(&self, listed: &[PullRequest]) -> Option<Timestamp> {
        self.list(SHOP, listed);
        self.reconciler.round().await
    }

    fn environment(&self, project: ProjectId, number: u64) -> Option<Environment> {
        let records = self.records.read();
        let mut all = records.environments.values();
        all.find(|environment| {
            environment.project == project && environment.pull_request == Some(number)
        })
        .cloned()
    }

    /// The commit of a pull request of the first project, and whether it is open.
    fn head(&self, number: u64) -> Option<(CommitSha, bool)> {
        let environment = self.environment(SHOP, number)?;
        Some((environment.head?.commit, !environment.state.is_closed()))
    }

    /// The event of a delivery about a push to pull request 1.
    fn push(&self, digit: &str, at: u64) -> Event {
        let environment = self.environment(SHOP, 1).unwrap();
        let (commit, at) = (commit(digit), Timestamp(at));
        let head = Head { commit, before: None, at, is_first: false };
        let id = new_id::<RunId>();
        let run = Box::new(Run::new(id, &environment, String::new(), now()));
        Event::HeadMoved { run, environment, head, source: HeadSource::Delivery }
    }

    /// Adds a failed delivery, which GitHub shows under the number `id`.
    fn fail(&self, id: u64, delivery: u128, content: Result<(&'static str, Value), Refusal>) {
        let delivery = DeliveryId(delivery);
        let mut github = self.github.responses();
        github.failed.push(FailedDelivery { id, delivery, at: now() });
        github.deliveries.insert(id, content);
    }

    fn problem(&self, project: ProjectId) -> Option<String> {
        self.reconciler.status.last(project).unwrap().problem
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_pull_request_without_a_delivery_is_found_and_so_is_its_next_commit() {
    let core = Core::start();

    core.round(&[listed(1, "a")]).await;
    assert_eq!(core.head(1), Some((commit("a"), true)));
    core.round(&[listed(1, "a")]).await;
    assert_eq!(core.records.read().runs.len(), 1, "the commit is built once");

    core.round(&[listed(1, "b")]).await;
    assert_eq!(core.head(1), Some((commit("b"), true)));
    assert_eq!((core.problem(SHOP), core.problem(OTHER)), (None, None));
    core.stop().await;
}

#[tokio::test]
async fn a_missing_pull_request_is_closed_only_if_github_shows_it_as_closed() {
    let core = Core::start();
    core.round(&[listed(1, "a"), listed(2, "a"), listed(3, "a")]).await;
    let closed = PullRequest {
        state: PullRequestState::Closed,
        closed_at: Some(Timestamp(9)),
        ..listed(1, "a")
    };
    core.github.responses().single = [(1, Ok(closed)), (2, Ok(listed(2, "a")))].into();

    core.round(&[]).await;

    assert_eq!(core.head(1), Some((commit("a"), false)));
    assert_eq!(core.head(2), Some((commit("a"), true)), "it was reopened meanwhile");
    assert_eq!(core.head(3), Some((commit("a"), true)), "GitHub has no such number");
    assert_eq!(core.problem(SHOP), None);
    core.stop().await;
}

#[tokio::test]
async fn a_push_that_arrives_while_the_list_is_read_wins() {
    let core = Core::start();
    core.round(&[listed(1, "a")]).await;
    core.github.responses().meanwhile = Some(core.push("c", 5));

    core.round(&[listed(1, "b")]).await;

    assert_eq!(core.head(1), Some((commit("c"), true)));
    core.stop().await;
}

#[tokio::test]
async fn a_closing_that_arrives_while_the_list_is_read_wins() {
    let core = Core::start();
    core.round(&[listed(1, "a")]).await;
    let environment = core.environment(SHOP, 1).unwrap().id;
    let closing = Event::PullRequestClosed { environment, at: Timestamp(5) };
    core.github.responses().meanwhile = Some(closing);

    core.round(&[listed(1, "b")]).await;

    assert_eq!(core.head(1), Some((commit("a"), false)));
    core.stop().await;
}

#[tokio::test]
async fn an_opening_that_arrives_while_the_list_is_read_wins() {
    let core = Core::start();
    core.round(&[listed(1, "a")]).await;
    core.github.responses().meanwhile = Some(core.push("b", 9));
    let closed = PullRequest {
        state: PullRequestState::Closed,
        closed_at: Some(Timestamp(5)),
        ..listed(1, "a")
    };
    core.github.responses().single = [(1, Ok(closed))].into();

    core.round(&[]).await;

    assert_eq!(core.head(1), Some((commit("b"), true)), "it was opened after that closing");
    core.stop().await;
}

#[tokio::test]
async fn a_failed_comparison_does_not_stop_other_projects() {
    let core = Core::start();
    core.github.responses().listed.insert(SHOP, Err(|| GithubError::Unavailable("502".to_owned())));
    core.list(OTHER, &[listed(1, "a")]);

    assert_eq!(core.reconciler.round().await, None);

    assert!(core.environment(OTHER, 1).is_some());
    assert!(core.problem(SHOP).unwrap().contains("502"));
    assert_eq!(core.problem(OTHER), None);
    core.stop().await;
}

const NEVER: Timestamp = Timestamp(u64::MAX);

#[tokio::test]
async fn the_next_round_starts_at_the_end_of_a_rate_limit() {
    let core = Core::start();
    core.github.responses().listed.insert(SHOP, Err(|| GithubError::RateLimited { until: NEVER }));
    assert_eq!(core.reconciler.round().await, Some(NEVER));

    let past = || GithubError::RateLimited { until: Timestamp(0) };
    core.github.responses().listed.insert(SHOP, Err(past));
    let (lists, status) = (Arc::clone(&core.github.lists), core.reconciler.status.clone());
    let before = lists.load(Ordering::SeqCst);
    let Core { reconciler, stop, task, github, .. } = core;
    let running = tokio::spawn(reconciler.run(stop.clone()));
    let begun = std::time::Instant::now();
    while lists.load(Ordering::SeqCst) < before + 4 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(1), "rounds have a pause");
    assert!(begun.elapsed() < Duration::from_mins(1), "the round does not wait for the interval");

    github.responses().listed.insert(SHOP, Ok(vec![]));
    status.trigger();
    stop.cancel();
    running.await.unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_trigger_starts_a_round_before_the_interval_ends() {
    let core = Core::start();
    let (lists, status) = (Arc::clone(&core.github.lists), core.reconciler.status.clone());
    let Core { reconciler, stop, task, .. } = core;
    let running = tokio::spawn(reconciler.run(stop.clone()));
    let wait = async |count| {
        while lists.load(Ordering::SeqCst) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_mins(1);
    tokio::time::timeout(limit, wait(2)).await.expect("the first round starts at once");

    status.trigger();

    tokio::time::timeout(limit, wait(4)).await.expect("the trigger starts a round");
    stop.cancel();
    running.await.unwrap();
    task.await.unwrap().unwrap();
}

// Deliveries that failed.

fn repository(name: &str) -> Value {
    json!({ "full_name": format!("acme/{name}"), "default_branch": "main", "private": false })
}

/// A comment on pull request 1 of the first project that asks for its end.
fn cancel(comment: u64) -> (&'static str, Value) {
    let payload = json!({
        "action": "created",
        "repository": repository("shop-1"),
        "issue": { "number": 1, "pull_request": {} },
        "comment": {
            "id": comment, "body": "/stagely cancel", "user": { "login": "carol" },
            "created_at": "2026-11-24T12:00:00Z",
        },
    });
    ("issue_comment", payload)
}

/// The opening of pull request 9.
fn opened(name: &str) -> (&'static str, Value) {
    let payload = json!({
        "action": "opened",
        "repository": repository(name),
        "sender": { "login": "bob" },
        "pull_request": {
            "number": 9, "state": "open",
            "head": { "sha": "b".repeat(40), "ref": "fix", "repo": { "id": 1 } },
            "base": { "ref": "main", "repo": { "id": 1 } },
            "created_at": "2026-11-24T11:00:00Z",
            "updated_at": "2026-11-24T12:00:00Z",
        },
    });
    ("pull_request", payload)
}

impl Core {
    fn last_command(&self) -> u64 {
        self.environment(SHOP, 1).unwrap().last_command
    }

    fn read(&self) -> Vec<u64> {
        self.github.responses().read.clone()
    }
}

#[tokio::test]
async fn a_failed_delivery_is_ingested_once() {
    let core = Core::start();
    core.fail(10, 1, Ok(cancel(3)));
    core.fail(11, 1, Ok(cancel(3)));

    core.round(&[listed(1, "a")]).await;
    core.round(&[listed(1, "a")]).await;

    assert_eq!((core.last_command(), core.read()), (3, vec![10]));
    assert_eq!(core.reconciler.status.deliveries_problem(), None);
    core.stop().await;
}

#[tokio::test]
async fn a_delivery_that_is_stored_already_is_not_read() {
    let core = Core::start();
    core.fail(10, 1, Ok(cancel(3)));
    let delivery = DeliveryId(1);
    core.events.store(Event::Delivered { delivery, event: None }).await.unwrap();

    core.round(&[listed(1, "a")]).await;

    assert_eq!((core.last_command(), core.read()), (0, vec![]));
    core.stop().await;
}

#[tokio::test]
async fn an_unreadable_failed_delivery_does_not_stop_the_others() {
    let core = Core::start();
    core.fail(10, 1, Err(|| GithubError::NotFound("delivery 10".to_owned())));
    core.fail(11, 2, Err(|| GithubError::Unavailable("502".to_owned())));
    core.fail(12, 3, Err(|| GithubError::Refused { status: 200, message: "long".to_owned() }));
    core.fail(13, 4, Ok(("issue_comment", json!({ "action": 1 }))));
    core.fail(14, 5, Ok(cancel(3)));
    core.fail(15, 1, Ok(cancel(4)));

    assert_eq!(core.round(&[listed(1, "a")]).await, None);

    assert_eq!(core.read(), [10, 11, 12, 13, 14, 15]);
    assert_eq!(core.last_command(), 4, "another try of the first is shown");
    let problem = core.reconciler.status.deliveries_problem().unwrap();
    assert!(problem.starts_with("a failed delivery cannot be read: "), "{problem}");
    core.round(&[listed(1, "a")]).await;
    assert_eq!(core.read()[6..], [11, 12], "they may be readable later");
    core.stop().await;
}

#[tokio::test]
async fn an_unavailable_github_ends_the_reading_of_failed_deliveries() {
    let core = Core::start();
    for id in 10..20 {
        core.fail(id, id.into(), Err(|| GithubError::Unavailable("502".to_owned())));
    }

    core.round(&[listed(1, "a")]).await;

    assert_eq!(core.read(), [10, 11, 12]);
    assert!(core.reconciler.status.deliveries_problem().unwrap().contains("502"));
    core.stop().await;
}

#[tokio::test]
async fn a_rate_limit_ends_the_reading_of_failed_deliveries() {
    let core = Core::start();
    core.fail(10, 1, Err(|| GithubError::RateLimited { until: NEVER }));
    core.fail(11, 2, Ok(cancel(3)));

    assert_eq!(core.round(&[listed(1, "a")]).await, Some(NEVER));

    assert_eq!((core.last_command(), core.read()), (0, vec![10]));
    core.stop().await;
}

#[tokio::test]
async fn a_list_outdates_failed_deliveries_about_pull_requests() {
    let core = Core::start();
    core.fail(10, 1, Ok(opened("Shop-1")));
    core.fail(11, 2, Ok(opened("shop-2")));
    core.github
        .responses()
        .listed
        .insert(OTHER, Err(|| GithubError::Unavailable("502".to_owned())));

    core.round(&[]).await;

    assert_eq!(core.environment(SHOP, 9), None, "the list does not have it any more");
    assert!(core.environment(OTHER, 9).is_some(), "the list of its project could not be read");
    let known: Vec<DeliveryId> = core.records.read().deliveries.keys().copied().collect();
    assert_eq!(known, [DeliveryId(1), DeliveryId(2)]);
    core.stop().await;
}
