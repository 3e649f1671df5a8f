//! Reports to a target that fails as GitHub does, on a paused clock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use stagely_protocol::CommitSha;
use stagely_state::{
    CommitStatus, DeploymentState, DeploymentStatus, Environment, PreviewState, RunState,
    StatusState,
};
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::core::clock::now;
use crate::core::github::NewDeployment;
use crate::core::github::report::fixtures::{
    DEPLOY, ENVIRONMENT, MACHINE, ReportFixture, commit, job_id, links, user_failure,
};
use crate::core::logs::LogSettings;

const INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
enum Failure {
    ResponseLost,
    Refused,
}

#[derive(Default)]
struct TargetState {
    comments: BTreeMap<u64, String>,
    statuses: BTreeMap<(CommitSha, String), CommitStatus>,
    /// The time of each attempt to write a comment.
    attempted_at: Vec<Instant>,
    created: usize,
    edited: usize,
    statuses_set: usize,
    down_until: Option<Instant>,
    comments_allowed_at: Option<Instant>,
    /// The failures of the next attempts to write a comment.
    failures: VecDeque<Failure>,
    deployments: BTreeMap<u64, FakeDeployment>,
    /// The failures of the next requests about deployments.
    deployment_failures: VecDeque<DeploymentFailure>,
    /// Requests about deployments.
    deployment_requests: usize,
    may_not_deploy: bool,
}

#[derive(Debug)]
struct FakeDeployment {
    commit: CommitSha,
    states: Vec<DeploymentState>,
    /// Whether it has had too many statuses.
    is_full: bool,
}

#[derive(Clone, Copy, Debug)]
enum DeploymentFailure {
    ResponseLost,
    /// The app lacks the permission.
    Forbidden,
    /// GitHub knows no such commit.
    NoRef,
}

#[derive(Clone, Default)]
struct FakeTarget(Arc<Mutex<TargetState>>);

impl FakeTarget {
    fn state(&self) -> MutexGuard<'_, TargetState> {
        self.0.lock().unwrap()
    }

    fn comment(&self) -> String {
        let state = self.state();
        assert_eq!(state.comments.len(), 1);
        state.comments.values().next().unwrap().clone()
    }

    fn run_status(&self, commit: &CommitSha) -> StatusState {
        self.state().statuses[&(commit.clone(), "stagely".to_owned())].state
    }

    /// Fails as the next failure says, or succeeds.
    fn write<T>(&self, write: impl FnOnce(&mut TargetState) -> T) -> Result<T, GithubError> {
        let mut state = self.state();
        state.attempted_at.push(Instant::now());
        state.check()?;
        match state.failures.pop_front() {
            Some(Failure::Refused) => {
                Err(GithubError::Refused { status: 403, message: "not you".to_owned() })
            }
            Some(Failure::ResponseLost) => {
                write(&mut state);
                Err(GithubError::Unavailable("the connection broke".to_owned()))
            }
            None => Ok(write(&mut state)),
        }
    }
}

impl TargetState {
    /// The states that GitHub shows, by the first digit of the commit.
    fn shown_deployments(&self) -> Vec<(String, Option<DeploymentState>)> {
        let shown = self.deployments.values().map(|deployment| {
            let digit = deployment.commit.as_str()[..1].to_owned();
            (digit, deployment.states.last().copied())
        });
        shown.collect()
    }

    fn deployment_failure(&mut self) -> Result<bool, GithubError> {
        self.deployment_requests += 1;
        self.check()?;
        let refused = |status, message: &str| {
            Err(GithubError::Refused { status, message: message.to_owned() })
        };
        match self.deployment_failures.pop_front() {
            None => Ok(false),
            Some(DeploymentFailure::ResponseLost) => Ok(true),
            Some(DeploymentFailure::Forbidden) => {
                self.may_not_deploy = true;
                refused(403, "Resource not accessible by integration")
            }
            Some(DeploymentFailure::NoRef) => refused(422, "No ref found"),
        }
    }
    fn check(&self) -> Result<(), GithubError> {
        if self.down_until.is_some_and(|until| Instant::now() < until) {
            return Err(GithubError::Unavailable("502".to_owned()));
        }
        Ok(())
    }
}

impl ReportTarget for FakeTarget {
    async fn comment_allowed(&self) {
        let allowed_at = self.state().comments_allowed_at;
        tokio::time::sleep_until(allowed_at.unwrap_or_else(Instant::now)).await;
    }

    async fn status_allowed(&self) {}

    async fn find_comment(&self, marker: &str) -> Result<Option<u64>, GithubError> {
        let state = self.state();
        state.check()?;
        Ok(state.comments.iter().find(|(_, body)| body.contains(marker)).map(|(id, _)| *id))
    }

    async fn create_comment(&self, body: &str) -> Result<u64, GithubError> {
        self.write(|state| {
            state.created += 1;
            let id = 100 + state.created as u64;
            state.comments.insert(id, body.to_owned());
            id
        })
    }

    async fn edit_comment(&self, comment: u64, body: &str) -> Result<(), GithubError> {
        if !self.state().comments.contains_key(&comment) {
            return Err(GithubError::NotFound("comment".to_owned()));
        }
        self.write(|state| {
            state.edited += 1;
            state.comments.insert(comment, body.to_owned());
        })
    }

    async fn set_status(
        &self,
        commit: &CommitSha,
        context: &str,
        status: &CommitStatus,
    ) -> Result<(), GithubError> {
        let mut state = self.state();
        state.check()?;
        state.statuses_set += 1;
        state.statuses.insert((commit.clone(), context.to_owned()), status.clone());
        Ok(())
    }

    fn may_deploy(&self) -> bool {
        !self.state().may_not_deploy
    }

    async fn create_deployment(&self, new: &NewDeployment) -> Result<u64, GithubError> {
        let mut state = self.state();
        let is_lost = state.deployment_failure()?;
        assert_eq!((&*new.environment, new.is_transient), ("pr-7", true));
        let known = state
            .deployments
            .iter()
            .find(|(id, known)| known.commit == new.commit && !new.replaced.contains(id));
        let id = known.map_or(500 + state.deployments.len() as u64, |(id, _)| *id);
        let commit = new.commit.clone();
        state.deployments.entry(id).or_insert(FakeDeployment {
            commit,
            states: Vec::new(),
            is_full: false,
        });
        lost(is_lost, id)
    }

    async fn set_deployment_status(
        &self,
        deployment: u64,
        status: &DeploymentStatus,
    ) -> Result<(), GithubError> {
        let mut state = self.state();
        let is_lost = state.deployment_failure()?;
        let Some(known) = state.deployments.get_mut(&deployment) else {
            return Err(GithubError::NotFound("deployment".to_owned()));
        };
        if known.is_full {
            let message = "the maximum number of statuses".to_owned();
            return Err(GithubError::Refused { status: 422, message });
        }
        let url = status.environment_url.as_deref();
        let is_live = status.state == DeploymentState::Success;
        assert_eq!(url, is_live.then_some("https://pr-7-app.preview.example/"));
        known.states.push(status.state);
        lost(is_lost, ())
    }
}

fn lost<T>(is_lost: bool, value: T) -> Result<T, GithubError> {
    if is_lost {
        return Err(GithubError::Unavailable("the connection broke".to_owned()));
    }
    Ok(value)
}

/// Records with a pull request, and its reporter.
struct Core {
    records: SharedRecords,
    target: FakeTarget,
    queue: ReportQueue,
    logs: LogStore,
    _folder: TempDir,
}

impl Core {
    fn new(fixture: ReportFixture) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            LogSettings { job_bytes_max: 1 << 20, cache_bytes: 1 << 20, disk_free_min_bytes: 0 };
        let records = SharedRecords::new(fixture.records);
        let core = Self {
            queue: ReportQueue::new(&records),
            records,
            target: FakeTarget::default(),
            logs: LogStore::open(&folder.path().join("logs.redb"), settings).unwrap(),
            _folder: folder,
        };
        core.change(|_| {});
        core
    }

    /// Changes the records and wants a report.
    fn change(&self, change: impl FnOnce(&mut ReportFixture)) {
        self.records.write(|records| {
            let mut fixture = ReportFixture::of(std::mem::take(records));
            change(&mut fixture);
            fixture.environment().report.wanted += 1;
            *records = fixture.records;
        });
    }

    fn environment(&self) -> Environment {
        self.records.read().environments[&ENVIRONMENT].clone()
    }

    fn reporter(&self) -> EnvironmentReporter<FakeTarget> {
        EnvironmentReporter {
            target: self.target.clone(),
            has_comment: true,
            environment: ENVIRONMENT,
            records: self.records.clone(),
            logs: self.logs.clone(),
            public_url: "https://core.example/".parse().unwrap(),
            approval_label: "ok-to-build".to_owned(),
            open_logs: true,
            links: links().clone(),
            queue: self.queue.clone(),
            interval: INTERVAL,
        }
    }

    /// Runs the effect once and stores its outcome as the state does.
    async fn publish(&self) -> Result<(), String> {
        let (wanted, result) = self.reporter().publish().await;
        self.records.write(|records| {
            let report = &mut records.environments.get_mut(&ENVIRONMENT).unwrap().report;
            report.published = wanted;
            if let Ok(published) = &result {
                report.comment = published.comment;
                report.comment_digest = published.comment_digest.clone();
                report.commit = published.commit.clone();
                report.statuses = published.statuses.clone();
                report.deployments = published.deployments.clone();
            }
        });
        result.map(|_| ())
    }

    /// Runs the effect again until the newest records are published.
    async fn publish_all(&self) {
        loop {
            self.publish().await.unwrap();
            let report = self.environment().report;
            if report.published >= report.wanted {
                return;
            }
        }
    }
}

fn end(fixture: &mut ReportFixture) {
    fixture.completed(1, 3);
    fixture.end_run(RunState::Completed);
}

#[tokio::test(start_paused = true)]
async fn twenty_quick_changes_are_one_edit_with_the_last_state() {
    let core = Core::new(ReportFixture::many(1));
    let changes = async {
        for number in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            core.change(|fixture| fixture.job(1).warnings.push(format!("warning {number}")));
        }
        core.change(end);
    };
    tokio::join!(changes, core.publish_all());
    core.publish_all().await;
    let state = core.target.state();
    assert_eq!((state.created, state.edited), (1, 1));
    assert!(state.attempted_at[1] - state.attempted_at[0] >= INTERVAL);
    drop(state);
    let text = core.target.comment();
    assert!(text.contains("✅ Build completed") && text.contains("warning 19"), "{text}");
    assert_eq!(core.target.run_status(&commit()), StatusState::Success);
}

#[tokio::test(start_paused = true)]
async fn statuses_do_not_wait_for_the_comment_and_both_have_the_end() {
    let core = Core::new(ReportFixture::many(1));
    let hour = Duration::from_hours(1);
    core.target.state().comments_allowed_at = Some(Instant::now() + hour);
    let ending = async {
        tokio::time::sleep(hour / 2).await;
        assert_eq!(core.target.run_status(&commit()), StatusState::Pending);
        core.change(end);
        tokio::time::sleep(INTERVAL).await;
        assert_eq!(core.target.run_status(&commit()), StatusState::Success);
        assert!(core.target.state().comments.is_empty());
    };
    tokio::join!(ending, core.publish_all());
    assert!(core.target.comment().contains("✅ Build completed"));
    let state = core.target.state();
    assert_eq!((state.created, state.edited), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_response_there_is_no_second_comment_and_the_pause_lasts() {
    let core = Core::new(ReportFixture::many(1));
    core.target.state().failures = [Failure::ResponseLost, Failure::ResponseLost].into();
    core.publish_all().await;
    let state = core.target.state();
    // A lost creation, then an edit of the found comment that is lost, too, then a further edit.
    assert_eq!((state.created, state.edited), (1, 2));
    for pair in state.attempted_at.windows(2) {
        assert!(pair[1] - pair[0] >= INTERVAL, "{:?}", state.attempted_at);
    }
    drop(state);
    assert!(core.target.comment().contains("⏳ Building"));
}

#[tokio::test(start_paused = true)]
async fn after_an_hour_without_github_the_end_is_published_once() {
    let core = Core::new(ReportFixture::many(1));
    core.target.state().down_until = Some(Instant::now() + Duration::from_hours(1));
    let builds = async {
        for minute in 0..50 {
            tokio::time::sleep(Duration::from_mins(1)).await;
            core.change(|fixture| fixture.job(1).warnings.push(format!("warning {minute}")));
        }
        core.change(end);
    };
    tokio::join!(builds, core.publish_all());
    {
        let state = core.target.state();
        assert_eq!((state.created, state.edited), (1, 0));
        assert_eq!(state.statuses_set, 2, "those of the run and of the job");
    }
    assert!(core.target.comment().contains("✅ Build completed"));
    assert_eq!(core.target.run_status(&commit()), StatusState::Success);
}

#[tokio::test(start_paused = true)]
async fn a_write_waits_for_the_end_of_a_rate_limit() {
    let core = Core::new(ReportFixture::many(1));
    let until = now().after(Duration::from_mins(10));
    let begin = Instant::now();
    let error = GithubError::RateLimited { until };
    let write = WriteKind { what: "a comment", permission: "x" };
    core.reporter().wait_for_retry(error, &mut WRITE_RETRIES.start(), write).await.unwrap();
    let waited = begin.elapsed();
    assert!(waited > Duration::from_secs(595) && waited < Duration::from_secs(603), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_comment_is_created_again() {
    let core = Core::new(ReportFixture::many(1));
    core.publish_all().await;
    core.target.state().comments.clear();
    core.change(end);
    core.publish_all().await;
    assert!(core.target.comment().contains("✅ Build completed"));
    assert_eq!(core.environment().report.comment, Some(102));
    assert_eq!(core.target.state().created, 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_reported_and_the_successful_part_is_not_written_again() {
    let core = Core::new(ReportFixture::many(1));
    core.target.state().failures = [Failure::Refused].into();
    let problem = core.publish().await.unwrap_err();
    assert!(problem.contains("not you") && problem.contains("Pull requests: write"), "{problem}");
    assert_eq!(core.target.state().statuses_set, 2);
    // The next change is published after the pause.
    core.change(|fixture| fixture.job(1).warnings.push("w".to_owned()));
    core.publish_all().await;
    let state = core.target.state();
    assert_eq!((state.created, state.statuses_set), (1, 2));
    assert!(state.attempted_at[1] - state.attempted_at[0] >= INTERVAL, "{:?}", state.attempted_at);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_comment_is_edited_with_or_without_its_stored_id() {
    for is_stored in [true, false] {
        let mut core = Core::new(ReportFixture::many(1));
        core.publish_all().await;
        core.queue = ReportQueue::new(&core.records);
        core.change(|fixture| {
            end(fixture);
            if !is_stored {
                fixture.environment().report.comment = None;
                fixture.environment().report.comment_digest = None;
            }
        });
        core.publish_all().await;
        let state = core.target.state();
        assert_eq!((state.created, state.edited), (1, 1), "stored: {is_stored}");
        drop(state);
        assert!(core.target.comment().contains("✅ Build completed"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_report_is_not_written() {
    let core = Core::new(ReportFixture::many(1));
    core.publish_all().await;
    core.change(|_| {});
    core.publish_all().await;
    let state = core.target.state();
    assert_eq!((state.created, state.edited, state.statuses_set), (1, 0, 2));
    drop(state);
    let report = core.environment().report;
    assert_eq!(report.published, report.wanted);
}

#[tokio::test(start_paused = true)]
async fn only_the_newest_run_is_reported() {
    let core = Core::new(ReportFixture::many(1));
    core.publish_all().await;
    let newer: CommitSha = "b".repeat(40).parse().unwrap();
    core.change(|fixture| fixture.start_run(4, newer.clone()));
    // A late change of the older run.
    core.change(|fixture| fixture.failed(1, user_failure("", 1), ""));
    core.publish_all().await;
    let text = core.target.comment();
    assert!(text.contains("commit `bbbbbbbbbbbb`") && !text.contains("❌"), "{text}");
    assert_eq!(core.target.run_status(&newer), StatusState::Pending);
    let job = (commit(), "stagely/job1 (linux/amd64)".to_owned());
    assert_eq!(core.target.state().statuses[&job].state, StatusState::Pending);
}

#[tokio::test(start_paused = true)]
async fn a_branch_has_statuses_and_no_comment() {
    let core = Core::new(ReportFixture::many(1));
    let reporter = EnvironmentReporter { has_comment: false, ..core.reporter() };
    let published = reporter.publish().await.1.unwrap();
    assert_eq!((published.comment, published.statuses.len()), (None, 2));
    assert_eq!(core.target.state().comments.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn reports_of_ended_runs_go_first() {
    let mut fixture = ReportFixture::many(1);
    let busy = fixture.copy_environment(50);
    let ended = ENVIRONMENT;
    end(&mut fixture);
    let queue = ReportQueue::new(&SharedRecords::new(fixture.records));
    let mut permits = Vec::new();
    for _ in 0..3 {
        permits.push(queue.comment_permit(busy).await);
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for environment in [busy, ended, busy, ended] {
        let (queue, order) = (queue.clone(), Arc::clone(&order));
        waiting.push(tokio::spawn(async move {
            let permit = queue.comment_permit(environment).await;
            order.lock().unwrap().push(environment);
            drop(permit);
        }));
        tokio::task::yield_now().await;
    }
    // A waiter that has gone is passed over.
    let gone = tokio::time::timeout(Duration::from_secs(1), queue.comment_permit(ended)).await;
    assert!(gone.is_err());
    assert!(order.lock().unwrap().is_empty());
    permits.pop();
    for task in waiting {
        task.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [ended, ended, busy, busy]);
    drop(permits);
    // All permits have been returned.
    let all = futures_util::future::join_all((0..3).map(|_| queue.comment_permit(busy)));
    tokio::time::timeout(Duration::from_secs(1), all).await.expect("permits are free");
}

const LIVE: PreviewState = PreviewState::Live { machine: MACHINE };

/// A pull request whose preview is live.
async fn live() -> Core {
    let mut fixture = ReportFixture::many(1);
    end(&mut fixture);
    fixture.add_deployment();
    fixture.running(DEPLOY);
    fixture.preview(PreviewState::Deploying { job: job_id(DEPLOY) });
    let core = Core::new(fixture);
    core.publish_all().await;
    core.change(|fixture| {
        fixture.completed(DEPLOY, 5);
        fixture.preview(LIVE);
    });
    core.publish_all().await;
    core
}

#[tokio::test(start_paused = true)]
async fn a_preview_has_a_deployment_for_each_commit_that_it_shows() {
    let core = live().await;
    let of = |core: &Core| {
        core.target.state().deployments.values().map(|of| of.states.clone()).collect::<Vec<_>>()
    };
    assert_eq!(of(&core), [[DeploymentState::InProgress, DeploymentState::Success]]);
    let target = "https://pr-7-app.preview.example/";
    let status = (commit(), "stagely/preview".to_owned());
    assert_eq!(core.target.state().statuses[&status].target_url, target);

    core.change(|fixture| {
        fixture.preview(PreviewState::Asleep);
    });
    core.publish_all().await;
    core.change(|fixture| {
        fixture.preview(LIVE);
    });
    core.publish_all().await;
    let first = of(&core).remove(0);
    assert_eq!(first[2..], [DeploymentState::Inactive, DeploymentState::Success]);

    // A newer commit takes its place once it is live.
    let newer: CommitSha = "b".repeat(40).parse().unwrap();
    core.change(|fixture| {
        fixture.start_run(4, newer);
        fixture.add_deployment();
        fixture.preview(PreviewState::Updating { machine: MACHINE, job: job_id(DEPLOY) });
    });
    core.publish_all().await;
    let shown = |core: &Core| core.target.state().shown_deployments();
    let (a, b) = ("a".to_owned(), "b".to_owned());
    let both = [
        (a.clone(), Some(DeploymentState::Success)),
        (b.clone(), Some(DeploymentState::InProgress)),
    ];
    assert_eq!(shown(&core), both);
    core.change(|fixture| {
        fixture.completed(DEPLOY, 5);
        fixture.preview(LIVE).shown = None;
        fixture.preview(LIVE);
    });
    core.publish_all().await;
    let replaced =
        [(a.clone(), Some(DeploymentState::Inactive)), (b.clone(), Some(DeploymentState::Success))];
    assert_eq!(shown(&core), replaced);
    assert_eq!(core.environment().report.deployments.len(), 1);

    core.change(|fixture| {
        fixture.preview(PreviewState::Ended);
    });
    core.publish_all().await;
    assert_eq!(shown(&core)[1], (b, Some(DeploymentState::Inactive)));
    assert_eq!(core.environment().report.deployments, []);
}

#[tokio::test(start_paused = true)]
async fn an_update_that_failed_leaves_the_former_deployment_active() {
    let core = live().await;
    let newer: CommitSha = "b".repeat(40).parse().unwrap();
    core.change(|fixture| {
        fixture.start_run(4, newer);
        fixture.add_deployment();
        fixture.preview(PreviewState::Updating { machine: MACHINE, job: job_id(DEPLOY) });
    });
    core.publish_all().await;
    core.change(|fixture| {
        fixture.failed(DEPLOY, user_failure("", 1), "web ended");
        fixture.end_run(RunState::Failed { plan_error: None });
        fixture.preview(LIVE);
    });
    core.publish_all().await;
    let shown = core.target.state().shown_deployments();
    let states: Vec<_> = shown.into_iter().filter_map(|(_, state)| state).collect();
    assert_eq!(states, [DeploymentState::Success, DeploymentState::Failure]);
}

#[tokio::test(start_paused = true)]
async fn without_the_permission_there_are_statuses_alone() {
    let core = Core::new(ReportFixture::many(1));
    core.target.state().deployment_failures = [DeploymentFailure::Forbidden].into();
    core.change(|fixture| {
        end(fixture);
        fixture.add_deployment();
        fixture.completed(DEPLOY, 5);
        fixture.preview(LIVE);
    });
    core.publish_all().await;
    core.change(|fixture| {
        fixture.preview(PreviewState::Asleep);
    });
    core.publish_all().await;
    let state = core.target.state();
    assert_eq!((state.deployment_requests, state.deployments.len()), (1, 0));
    let status = (commit(), "stagely/preview".to_owned());
    assert_eq!(state.statuses[&status].state, StatusState::Success);
    drop(state);
    assert_eq!(core.environment().report.problem, None);
}

#[tokio::test(start_paused = true)]
async fn a_commit_without_a_deployment_is_tried_once() {
    let core = Core::new(ReportFixture::many(1));
    core.target.state().deployment_failures = [DeploymentFailure::NoRef].into();
    for _ in 0..3 {
        core.change(|fixture| {
            end(fixture);
            fixture.preview(LIVE);
        });
        core.publish_all().await;
    }
    assert_eq!(core.target.state().deployment_requests, 1);
}

#[tokio::test(start_paused = true)]
async fn lost_responses_and_full_deployments_lead_to_one_active_deployment() {
    let core = Core::new(ReportFixture::many(1));
    core.target.state().deployment_failures =
        [DeploymentFailure::ResponseLost, DeploymentFailure::ResponseLost].into();
    core.change(|fixture| {
        end(fixture);
        fixture.preview(LIVE);
    });
    core.publish_all().await;
    assert_eq!(core.target.state().deployments.len(), 1);

    core.target.state().deployments.get_mut(&500).unwrap().is_full = true;
    core.change(|fixture| {
        fixture.preview(PreviewState::Asleep);
    });
    core.publish_all().await;
    core.change(|fixture| {
        fixture.preview(LIVE);
    });
    core.publish_all().await;
    let shown = core.target.state().shown_deployments();
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert_eq!(shown[1].1, Some(DeploymentState::Success));

    // Somebody deletes it.
    core.target.state().deployments.clear();
    core.change(|fixture| {
        fixture.preview(PreviewState::Archiving { machine: MACHINE, since: now(), wakes: true });
    });
    core.publish_all().await;
    let shown = core.target.state().shown_deployments();
    assert_eq!(shown, [("a".to_owned(), Some(DeploymentState::InProgress))]);
}
