//! What GitHub is told, on a paused clock, of a place that fails as GitHub does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use stagely_state::{Environment, RunState, StatusState};
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::core::github::report::fixtures::{ENVIRONMENT, World, commit, user_failure};
use crate::core::logs::LogSettings;

const INTERVAL: Duration = Duration::from_secs(5);

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// It is done, and its answer does not arrive.
    Lost,
    /// It is refused.
    Refused,
}

/// What is kept at the place.
#[derive(Default)]
struct Kept {
    comments: BTreeMap<u64, String>,
    statuses: BTreeMap<(CommitSha, String), CommitStatus>,
    /// When each write of a comment was asked for.
    asked: Vec<Instant>,
    created: usize,
    edited: usize,
    stated: usize,
    down_until: Option<Instant>,
    /// No comment may be written before.
    room_at: Option<Instant>,
    /// What becomes of the next writes of comments.
    answers: VecDeque<Answer>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Kept>>);

impl Fake {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap()
    }

    /// The only comment.
    fn comment(&self) -> String {
        let kept = self.kept();
        assert_eq!(kept.comments.len(), 1);
        kept.comments.values().next().unwrap().clone()
    }

    fn whole(&self, commit: &CommitSha) -> StatusState {
        self.kept().statuses[&(commit.clone(), "stagely".to_owned())].state
    }

    /// Does what was said of the next write, or all of it.
    fn write<T>(&self, done: impl FnOnce(&mut Kept) -> T) -> Result<T, GithubError> {
        let mut kept = self.kept();
        kept.asked.push(Instant::now());
        kept.check()?;
        match kept.answers.pop_front() {
            Some(Answer::Refused) => {
                Err(GithubError::Refused { status: 403, message: "not you".to_owned() })
            }
            Some(Answer::Lost) => {
                done(&mut kept);
                Err(GithubError::Unavailable("the connection broke".to_owned()))
            }
            None => Ok(done(&mut kept)),
        }
    }
}

impl Kept {
    fn check(&self) -> Result<(), GithubError> {
        if self.down_until.is_some_and(|until| Instant::now() < until) {
            return Err(GithubError::Unavailable("502".to_owned()));
        }
        Ok(())
    }
}

impl Place for Fake {
    async fn room_for_comment(&self) {
        let room_at = self.kept().room_at;
        tokio::time::sleep_until(room_at.unwrap_or_else(Instant::now)).await;
    }

    async fn room_for_status(&self) {}

    async fn find_comment(&self, marker: &str) -> Result<Option<u64>, GithubError> {
        let kept = self.kept();
        kept.check()?;
        Ok(kept.comments.iter().find(|(_, body)| body.contains(marker)).map(|(id, _)| *id))
    }

    async fn create_comment(&self, body: &str) -> Result<u64, GithubError> {
        self.write(|kept| {
            kept.created += 1;
            let id = 100 + kept.created as u64;
            kept.comments.insert(id, body.to_owned());
            id
        })
    }

    async fn edit_comment(&self, comment: u64, body: &str) -> Result<(), GithubError> {
        if !self.kept().comments.contains_key(&comment) {
            return Err(GithubError::NotFound("comment".to_owned()));
        }
        self.write(|kept| {
            kept.edited += 1;
            kept.comments.insert(comment, body.to_owned());
        })
    }

    async fn set_status(
        &self,
        commit: &CommitSha,
        context: &str,
        status: &CommitStatus,
    ) -> Result<(), GithubError> {
        let mut kept = self.kept();
        kept.check()?;
        kept.stated += 1;
        kept.statuses.insert((commit.clone(), context.to_owned()), status.clone());
        Ok(())
    }
}

/// Core as far as it tells.
struct Core {
    records: SharedRecords,
    place: Fake,
    reporting: Reporting,
    logs: LogStore,
    _folder: TempDir,
}

impl Core {
    fn new(world: World) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            LogSettings { job_bytes_max: 1 << 20, cache_bytes: 1 << 20, disk_free_min_bytes: 0 };
        let records = SharedRecords::new(world.records);
        let core = Self {
            reporting: Reporting::new(&records),
            records,
            place: Fake::default(),
            logs: LogStore::open(&folder.path().join("logs.redb"), settings).unwrap(),
            _folder: folder,
        };
        core.change(|_| {});
        core
    }

    /// Changes the records, and wants that told.
    fn change(&self, change: impl FnOnce(&mut World)) {
        self.records.write(|records| {
            let mut world = World::of(std::mem::take(records));
            change(&mut world);
            world.environment().report.wanted += 1;
            *records = world.records;
        });
    }

    fn environment(&self) -> Environment {
        self.records.read().environments[&ENVIRONMENT].clone()
    }

    fn teller(&self) -> Teller<Fake> {
        Teller {
            place: self.place.clone(),
            has_comment: true,
            environment: ENVIRONMENT,
            records: self.records.clone(),
            logs: self.logs.clone(),
            public_url: "https://core.example/".parse().unwrap(),
            approval_label: "ok-to-build".to_owned(),
            reporting: self.reporting.clone(),
            interval: INTERVAL,
        }
    }

    /// Lets the effect run once, and notes what comes of it as the state does.
    async fn tell(&self) -> Result<(), String> {
        let (wanted, result) = self.teller().tell().await;
        self.records.write(|records| {
            let report = &mut records.environments.get_mut(&ENVIRONMENT).unwrap().report;
            report.told = wanted;
            if let Ok(told) = &result {
                report.comment = told.comment;
                report.comment_digest = told.comment_digest.clone();
                report.commit = told.commit.clone();
                report.statuses = told.statuses.clone();
            }
        });
        result.map(|_| ())
    }

    /// Runs the effect again while there is something that was not told.
    async fn tell_all(&self) {
        loop {
            self.tell().await.unwrap();
            let report = self.environment().report;
            if report.told >= report.wanted {
                return;
            }
        }
    }
}

fn end(world: &mut World) {
    world.completed(1, 3);
    world.end_run(RunState::Completed);
}

#[tokio::test(start_paused = true)]
async fn twenty_quick_changes_are_few_edits_and_the_last_arrives() {
    let core = Core::new(World::many(1));
    let changes = async {
        for number in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            core.change(|world| world.job(1).warnings.push(format!("warning {number}")));
        }
        core.change(end);
    };
    tokio::join!(changes, core.tell_all());
    core.tell_all().await;
    let kept = core.place.kept();
    assert_eq!((kept.created, kept.edited), (1, 1));
    assert!(kept.asked[1] - kept.asked[0] >= INTERVAL);
    drop(kept);
    let said = core.place.comment();
    assert!(said.contains("✅ Build completed") && said.contains("warning 19"), "{said}");
    assert_eq!(core.place.whole(&commit()), StatusState::Success);
}

#[tokio::test(start_paused = true)]
async fn while_comments_wait_for_room_the_end_is_in_the_statuses_and_then_in_the_first_comment() {
    let core = Core::new(World::many(1));
    let hour = Duration::from_hours(1);
    core.place.kept().room_at = Some(Instant::now() + hour);
    let ending = async {
        tokio::time::sleep(hour / 2).await;
        assert_eq!(core.place.whole(&commit()), StatusState::Pending);
        core.change(end);
        tokio::time::sleep(INTERVAL).await;
        assert_eq!(core.place.whole(&commit()), StatusState::Success);
        assert!(core.place.kept().comments.is_empty());
    };
    tokio::join!(ending, core.tell_all());
    assert!(core.place.comment().contains("✅ Build completed"));
    let kept = core.place.kept();
    assert_eq!((kept.created, kept.edited), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_answer_there_is_no_second_comment_and_the_pause_is_kept() {
    let core = Core::new(World::many(1));
    core.place.kept().answers = [Answer::Lost, Answer::Lost].into();
    core.tell_all().await;
    let kept = core.place.kept();
    // Written, found again and written anew, of which the answer is lost, and once more.
    assert_eq!((kept.created, kept.edited), (1, 2));
    for pair in kept.asked.windows(2) {
        assert!(pair[1] - pair[0] >= INTERVAL, "{:?}", kept.asked);
    }
    drop(kept);
    assert!(core.place.comment().contains("⏳ Building"));
}

#[tokio::test(start_paused = true)]
async fn after_an_hour_without_github_the_end_is_told_once() {
    let core = Core::new(World::many(1));
    core.place.kept().down_until = Some(Instant::now() + Duration::from_hours(1));
    let builds = async {
        for minute in 0..50 {
            tokio::time::sleep(Duration::from_mins(1)).await;
            core.change(|world| world.job(1).warnings.push(format!("warning {minute}")));
        }
        core.change(end);
    };
    tokio::join!(builds, core.tell_all());
    {
        let kept = core.place.kept();
        assert_eq!((kept.created, kept.edited), (1, 0));
        assert_eq!(kept.stated, 2, "the whole and the job");
    }
    assert!(core.place.comment().contains("✅ Build completed"));
    assert_eq!(core.place.whole(&commit()), StatusState::Success);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_waited_for() {
    let core = Core::new(World::many(1));
    let until = now().after(Duration::from_mins(10));
    let begin = Instant::now();
    let error = GithubError::RateLimited { until };
    let mut patience = patience();
    core.teller().be_patient(error, &mut patience, "it", "x").await.unwrap();
    let waited = begin.elapsed();
    assert!(waited > Duration::from_secs(595) && waited < Duration::from_secs(603), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_comment_that_somebody_deleted_is_made_anew() {
    let core = Core::new(World::many(1));
    core.tell_all().await;
    core.place.kept().comments.clear();
    core.change(end);
    core.tell_all().await;
    assert!(core.place.comment().contains("✅ Build completed"));
    assert_eq!(core.environment().report.comment, Some(102));
    assert_eq!(core.place.kept().created, 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_reported_and_what_went_well_is_not_written_again() {
    let core = Core::new(World::many(1));
    core.place.kept().answers = [Answer::Refused].into();
    let problem = core.tell().await.unwrap_err();
    assert!(problem.contains("not you") && problem.contains("Pull requests: write"), "{problem}");
    assert_eq!(core.place.kept().stated, 2);
    // The next change is tried, after the pause.
    core.change(|world| world.job(1).warnings.push("w".to_owned()));
    core.tell_all().await;
    let kept = core.place.kept();
    assert_eq!((kept.created, kept.stated), (1, 2));
    assert!(kept.asked[1] - kept.asked[0] >= INTERVAL, "{:?}", kept.asked);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_comment_is_edited_whether_its_id_was_noted_or_not() {
    for is_noted in [true, false] {
        let mut core = Core::new(World::many(1));
        core.tell_all().await;
        core.reporting = Reporting::new(&core.records);
        core.change(|world| {
            end(world);
            if !is_noted {
                world.environment().report.comment = None;
                world.environment().report.comment_digest = None;
            }
        });
        core.tell_all().await;
        let kept = core.place.kept();
        assert_eq!((kept.created, kept.edited), (1, 1), "noted: {is_noted}");
        drop(kept);
        assert!(core.place.comment().contains("✅ Build completed"));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_where_nothing_changed() {
    let core = Core::new(World::many(1));
    core.tell_all().await;
    core.change(|_| {});
    core.tell_all().await;
    let kept = core.place.kept();
    assert_eq!((kept.created, kept.edited, kept.stated), (1, 0, 2));
    drop(kept);
    let report = core.environment().report;
    assert_eq!(report.told, report.wanted);
}

#[tokio::test(start_paused = true)]
async fn only_the_newest_run_is_told_of() {
    let core = Core::new(World::many(1));
    core.tell_all().await;
    let newer: CommitSha = "b".repeat(40).parse().unwrap();
    core.change(|world| world.start_run(4, newer.clone()));
    // What still comes of the older run.
    core.change(|world| world.failed(1, user_failure("", 1), ""));
    core.tell_all().await;
    let said = core.place.comment();
    assert!(said.contains("commit `bbbbbbbbbbbb`") && !said.contains("❌"), "{said}");
    assert_eq!(core.place.whole(&newer), StatusState::Pending);
    let job = (commit(), "stagely/job1 (linux/amd64)".to_owned());
    assert_eq!(core.place.kept().statuses[&job].state, StatusState::Pending);
}

#[tokio::test(start_paused = true)]
async fn a_branch_has_statuses_and_no_comment() {
    let core = Core::new(World::many(1));
    let teller = Teller { has_comment: false, ..core.teller() };
    let told = teller.tell().await.1.unwrap();
    assert_eq!((told.comment, told.statuses.len()), (None, 2));
    assert_eq!(core.place.kept().comments.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn ends_are_told_before_what_goes_on() {
    let mut world = World::many(1);
    let busy = world.copy_environment(50);
    let ended = ENVIRONMENT;
    end(&mut world);
    let reporting = Reporting::new(&SharedRecords::new(world.records));
    let mut turns = Vec::new();
    for _ in 0..3 {
        turns.push(reporting.comment_turn(busy).await);
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for environment in [busy, ended, busy, ended] {
        let (reporting, order) = (reporting.clone(), Arc::clone(&order));
        waiting.push(tokio::spawn(async move {
            let turn = reporting.comment_turn(environment).await;
            order.lock().unwrap().push(environment);
            drop(turn);
        }));
        tokio::task::yield_now().await;
    }
    // One that waits no more is passed over.
    let gone = tokio::time::timeout(Duration::from_secs(1), reporting.comment_turn(ended)).await;
    assert!(gone.is_err());
    assert!(order.lock().unwrap().is_empty());
    turns.pop();
    for task in waiting {
        task.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [ended, ended, busy, busy]);
    drop(turns);
    // All turns are there again.
    let all = futures_util::future::join_all((0..3).map(|_| reporting.comment_turn(busy)));
    tokio::time::timeout(Duration::from_secs(1), all).await.expect("turns are free");
}
