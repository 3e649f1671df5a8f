//! Lists, what is heard while they are made, and deliveries that failed.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use stagely_state::ids::RunId;
use stagely_state::{Environment, ForkPolicy, GithubLink, Head, HeadSource, Run, Snapshot, State};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::core::clock::new_id;
use crate::core::disk::DiskGuard;
use crate::core::fixtures::{self, RunningOrchestrator};
use crate::core::orchestrator::Events;
use crate::core::store::Store;

/// A GitHub that says what a test wants.
#[derive(Clone)]
struct Fake {
    said: Arc<Mutex<Said>>,
    events: Events,
    lists: Arc<AtomicUsize>,
}

type Refusal = fn() -> GithubError;

#[derive(Default)]
struct Said {
    listed: BTreeMap<ProjectId, Result<Vec<PullRequest>, Refusal>>,
    /// Pull requests that are asked for one by one.
    single: BTreeMap<u64, Result<PullRequest, Refusal>>,
    /// What core is told while the list is made.
    meanwhile: Option<Event>,
    failed: Vec<FailedDelivery>,
    deliveries: BTreeMap<u64, Result<(&'static str, Value), Refusal>>,
    /// The deliveries that were read.
    read: Vec<u64>,
}

impl Fake {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap()
    }
}

fn unless_refused<T>(answer: Option<&Result<T, Refusal>>) -> Result<T, GithubError>
where
    T: Clone,
{
    match answer {
        Some(Ok(answer)) => Ok(answer.clone()),
        Some(Err(refusal)) => Err(refusal()),
        None => Err(GithubError::NotFound("such thing".to_owned())),
    }
}

impl Source for Fake {
    async fn repository(&self, project: &Project) -> Result<Repository, GithubError> {
        let full_name = project.github.as_ref().unwrap().repository.clone();
        Ok(Repository { full_name, default_branch: "main".to_owned(), is_private: false })
    }
    async fn open_pull_requests(&self, project: &Project) -> Result<Vec<PullRequest>, GithubError> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        let meanwhile = self.said().meanwhile.take();
        if let Some(event) = meanwhile {
            self.events.store(event).await.unwrap();
        }
        unless_refused(self.said().listed.get(&project.id))
    }
    async fn pull_request(&self, _: &Project, number: u64) -> Result<PullRequest, GithubError> {
        unless_refused(self.said().single.get(&number))
    }
    async fn failed_deliveries(&self, _: Timestamp) -> Result<Vec<FailedDelivery>, GithubError> {
        Ok(self.said().failed.clone())
    }
    async fn delivery(&self, id: u64) -> Result<(String, Vec<u8>), GithubError> {
        let mut said = self.said();
        said.read.push(id);
        let (event, payload) = unless_refused(said.deliveries.get(&id))?;
        Ok((event.to_owned(), payload.to_string().into_bytes()))
    }
}

/// A core of its records and this task, with the projects `acme/shop-1` and `acme/shop-2`.
struct Core {
    _folder: TempDir,
    github: Fake,
    records: SharedRecords,
    events: Events,
    reconcile: Reconcile<Fake>,
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
        // Nobody is there: what is to be planned or told waits.
        config.github.api_url = "http://127.0.0.1:1".parse().unwrap();
        let projects = [project(SHOP, "shop-1"), project(OTHER, "shop-2")].into();
        let state = State::load(config.limits(), Snapshot { projects, ..Snapshot::default() });
        let RunningOrchestrator { records, events, secrets, stop, task } =
            fixtures::start_orchestrator(folder.path(), config.clone(), store, state);
        let github = Fake { said: Arc::default(), events: events.clone(), lists: Arc::default() };
        github.said().listed = [(SHOP, Ok(Vec::new())), (OTHER, Ok(Vec::new()))].into();
        let disk = DiskGuard::new(folder.path().to_owned(), 0);
        let reconcile = Reconcile {
            source: github.clone(),
            config: Arc::new(config),
            records: records.clone(),
            intake: Intake::new(records.clone(), events.clone(), secrets, disk),
            reconciled: Reconciled::default(),
        };
        Self { _folder: folder, github, records, events, reconcile, stop, task }
    }

    fn list(&self, project: ProjectId, listed: &[PullRequest]) {
        self.github.said().listed.insert(project, Ok(listed.to_vec()));
    }

    /// Compares once, with these open pull requests of the first project.
    async fn round(&self, listed: &[PullRequest]) -> Option<Timestamp> {
        self.list(SHOP, listed);
        self.reconcile.round().await
    }

    fn environment(&self, project: ProjectId, number: u64) -> Option<Environment> {
        let records = self.records.read();
        let mut all = records.environments.values();
        all.find(|it| it.project == project && it.pull_request == Some(number)).cloned()
    }

    /// The commit of a pull request of the first project, and whether it is open.
    fn head(&self, number: u64) -> Option<(CommitSha, bool)> {
        let environment = self.environment(SHOP, number)?;
        Some((environment.head?.commit, !environment.closed))
    }

    /// A push to pull request 1, as a delivery tells of it.
    fn push(&self, digit: &str, at: u64) -> Event {
        let environment = self.environment(SHOP, 1).unwrap();
        let (commit, at) = (commit(digit), Timestamp(at));
        let head = Head { commit, before: None, at, is_first: false };
        let id = new_id::<RunId>();
        let run = Box::new(Run::new(id, &environment, String::new(), now()));
        Event::HeadMoved { run, environment, head, source: HeadSource::Delivery }
    }

    /// Lets GitHub have failed to deliver `said`, which it shows under the number `id`.
    fn fail(&self, id: u64, delivery: u128, said: Result<(&'static str, Value), Refusal>) {
        let delivery = DeliveryId(delivery);
        let mut github = self.github.said();
        github.failed.push(FailedDelivery { id, delivery, at: now() });
        github.deliveries.insert(id, said);
    }

    fn problem(&self, project: ProjectId) -> Option<String> {
        self.reconcile.reconciled.last(project).unwrap().problem
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn commit(digit: &str) -> CommitSha {
    digit.repeat(40).parse().unwrap()
}

fn listed(number: u64, head: &str) -> PullRequest {
    PullRequest {
        number,
        is_open: true,
        is_draft: false,
        head: commit(head),
        head_branch: "fix".to_owned(),
        is_from_fork: false,
        base_branch: "main".to_owned(),
        author: "alice".to_owned(),
        is_known_contributor: false,
        created_at: Timestamp(1),
        updated_at: Timestamp(1),
        closed_at: None,
    }
}

fn believed(number: u64, head: Option<&str>, is_closed: bool) -> (u64, Believed) {
    let environment = EnvironmentId::from_bits(u128::from(number));
    (number, Believed { environment, head: head.map(commit), is_closed })
}

#[test]
fn what_differs_is_found_and_what_does_not_is_left_alone() {
    let known = BTreeMap::from([
        believed(1, Some("a"), false),
        believed(2, Some("a"), false),
        believed(3, Some("a"), true),
        believed(4, None, false),
        believed(5, Some("a"), false),
        believed(6, Some("a"), true),
    ]);
    let list = [listed(1, "a"), listed(2, "b"), listed(3, "a"), listed(4, "a"), listed(7, "a")];

    let Differences { moved, missing } = compare(&known, &list);

    let moved: Vec<u64> = moved.iter().map(|it| it.number).collect();
    assert_eq!((moved, missing), (vec![2, 3, 4, 7], vec![5]));
}

#[tokio::test]
async fn a_pull_request_that_no_delivery_told_of_is_found_and_so_is_its_next_commit() {
    let core = Core::start();

    core.round(&[listed(1, "a")]).await;
    assert_eq!(core.head(1), Some((commit("a"), true)));
    core.round(&[listed(1, "a")]).await;
    assert_eq!(core.records.read().runs.len(), 1, "it is built once");

    core.round(&[listed(1, "b")]).await;
    assert_eq!(core.head(1), Some((commit("b"), true)));
    assert_eq!((core.problem(SHOP), core.problem(OTHER)), (None, None));
    core.stop().await;
}

#[tokio::test]
async fn a_pull_request_that_is_missing_is_closed_if_github_says_so() {
    let core = Core::start();
    core.round(&[listed(1, "a"), listed(2, "a"), listed(3, "a")]).await;
    let closed = PullRequest { is_open: false, closed_at: Some(Timestamp(9)), ..listed(1, "a") };
    core.github.said().single = [(1, Ok(closed)), (2, Ok(listed(2, "a")))].into();

    core.round(&[]).await;

    assert_eq!(core.head(1), Some((commit("a"), false)));
    assert_eq!(core.head(2), Some((commit("a"), true)), "it was opened again meanwhile");
    assert_eq!(core.head(3), Some((commit("a"), true)), "GitHub has no such number");
    assert_eq!(core.problem(SHOP), None);
    core.stop().await;
}

#[tokio::test]
async fn a_push_that_is_heard_of_while_the_list_is_made_wins() {
    let core = Core::start();
    core.round(&[listed(1, "a")]).await;
    core.github.said().meanwhile = Some(core.push("c", 5));

    core.round(&[listed(1, "b")]).await;

    assert_eq!(core.head(1), Some((commit("c"), true)));
    core.stop().await;
}

#[tokio::test]
async fn a_closing_that_is_heard_of_while_the_list_is_made_wins() {
    let core = Core::start();
    core.round(&[listed(1, "a")]).await;
    let environment = core.environment(SHOP, 1).unwrap().id;
    let closing = Event::PullRequestClosed { environment, at: Timestamp(5) };
    core.github.said().meanwhile = Some(closing);

    core.round(&[listed(1, "b")]).await;

    assert_eq!(core.head(1), Some((commit("a"), false)));
    core.stop().await;
}

#[tokio::test]
async fn an_opening_that_is_heard_of_while_the_list_is_made_wins() {
    let core = Core::start();
    core.round(&[listed(1, "a")]).await;
    core.github.said().meanwhile = Some(core.push("b", 9));
    let closed = PullRequest { is_open: false, closed_at: Some(Timestamp(5)), ..listed(1, "a") };
    core.github.said().single = [(1, Ok(closed))].into();

    core.round(&[]).await;

    assert_eq!(core.head(1), Some((commit("b"), true)), "it was opened after that closing");
    core.stop().await;
}

#[tokio::test]
async fn a_project_that_cannot_be_compared_stops_no_other() {
    let core = Core::start();
    core.github.said().listed.insert(SHOP, Err(|| GithubError::Unavailable("502".to_owned())));
    core.list(OTHER, &[listed(1, "a")]);

    assert_eq!(core.reconcile.round().await, None);

    assert!(core.environment(OTHER, 1).is_some());
    assert!(core.problem(SHOP).unwrap().contains("502"));
    assert_eq!(core.problem(OTHER), None);
    core.stop().await;
}

const NEVER: Timestamp = Timestamp(u64::MAX);

#[tokio::test]
async fn the_moment_at_which_github_answers_again_is_waited_for() {
    let core = Core::start();
    core.github.said().listed.insert(SHOP, Err(|| GithubError::RateLimited { until: NEVER }));
    assert_eq!(core.reconcile.round().await, Some(NEVER));

    let past = || GithubError::RateLimited { until: Timestamp(0) };
    core.github.said().listed.insert(SHOP, Err(past));
    let (lists, reconciled) = (Arc::clone(&core.github.lists), core.reconcile.reconciled.clone());
    let before = lists.load(Ordering::SeqCst);
    let Core { reconcile, stop, task, github, .. } = core;
    let running = tokio::spawn(reconcile.run(stop.clone()));
    let begun = std::time::Instant::now();
    while lists.load(Ordering::SeqCst) < before + 4 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(1), "it does not ask without pause");
    assert!(begun.elapsed() < Duration::from_mins(1), "nor after the whole interval");

    github.said().listed.insert(SHOP, Ok(vec![]));
    reconciled.wake();
    stop.cancel();
    running.await.unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_wishes_it_need_not_wait_for_the_interval() {
    let core = Core::start();
    let (lists, reconciled) = (Arc::clone(&core.github.lists), core.reconcile.reconciled.clone());
    let Core { reconcile, stop, task, .. } = core;
    let running = tokio::spawn(reconcile.run(stop.clone()));
    let wait = async |count| {
        while lists.load(Ordering::SeqCst) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_mins(1);
    tokio::time::timeout(limit, wait(2)).await.expect("it begins at once");

    reconciled.wake();

    tokio::time::timeout(limit, wait(4)).await.expect("it is woken");
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
        self.github.said().read.clone()
    }
}

#[tokio::test]
async fn what_github_failed_to_deliver_is_taken_once() {
    let core = Core::start();
    core.fail(10, 1, Ok(cancel(3)));
    core.fail(11, 1, Ok(cancel(3)));

    core.round(&[listed(1, "a")]).await;
    core.round(&[listed(1, "a")]).await;

    assert_eq!((core.last_command(), core.read()), (3, vec![10]));
    assert_eq!(core.reconcile.reconciled.problem(), None);
    core.stop().await;
}

#[tokio::test]
async fn what_came_at_a_later_try_is_not_read() {
    let core = Core::start();
    core.fail(10, 1, Ok(cancel(3)));
    let delivery = DeliveryId(1);
    core.events.store(Event::Delivered { delivery, event: None }).await.unwrap();

    core.round(&[listed(1, "a")]).await;

    assert_eq!((core.last_command(), core.read()), (0, vec![]));
    core.stop().await;
}

#[tokio::test]
async fn a_failed_delivery_that_cannot_be_read_keeps_no_other_from_it() {
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
    let problem = core.reconcile.reconciled.problem().unwrap();
    assert!(problem.starts_with("a failed delivery cannot be read: "), "{problem}");
    core.round(&[listed(1, "a")]).await;
    assert_eq!(core.read()[6..], [11, 12], "they may be readable later");
    core.stop().await;
}

#[tokio::test]
async fn a_github_that_is_away_is_not_asked_for_all_failed_deliveries() {
    let core = Core::start();
    for id in 10..20 {
        core.fail(id, id.into(), Err(|| GithubError::Unavailable("502".to_owned())));
    }

    core.round(&[listed(1, "a")]).await;

    assert_eq!(core.read(), [10, 11, 12]);
    assert!(core.reconcile.reconciled.problem().unwrap().contains("502"));
    core.stop().await;
}

#[tokio::test]
async fn a_limit_that_is_reached_between_two_failed_deliveries_is_waited_for() {
    let core = Core::start();
    core.fail(10, 1, Err(|| GithubError::RateLimited { until: NEVER }));
    core.fail(11, 2, Ok(cancel(3)));

    assert_eq!(core.round(&[listed(1, "a")]).await, Some(NEVER));

    assert_eq!((core.last_command(), core.read()), (0, vec![10]));
    core.stop().await;
}

#[tokio::test]
async fn what_a_list_says_of_pull_requests_outdates_a_failed_delivery() {
    let core = Core::start();
    core.fail(10, 1, Ok(opened("Shop-1")));
    core.fail(11, 2, Ok(opened("shop-2")));
    core.github.said().listed.insert(OTHER, Err(|| GithubError::Unavailable("502".to_owned())));

    core.round(&[]).await;

    assert_eq!(core.environment(SHOP, 9), None, "the list does not have it any more");
    assert!(core.environment(OTHER, 9).is_some(), "nothing else told of it");
    let known: Vec<DeliveryId> = core.records.read().deliveries.keys().copied().collect();
    assert_eq!(known, [DeliveryId(1), DeliveryId(2)]);
    core.stop().await;
}
