//! The way of a log line: from the agent's spool over the wire into the store. Whatever is cut,
//! repeated, lost or restarted, the store holds exactly the lines, in order, once.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use stagely::core::logs::{AppendError, LogSettings, LogStore, StoredLine};
use stagely_agent::spool::Spool;
use stagely_protocol::{
    AgentMessage, CUT_MARK, LINE_BYTES_MAX, LogLine, Status, StatusState, Stream, WireId,
};
use stagely_state::Attempt;
use stagely_state::ids::JobId;
use tokio::runtime::Runtime;

const JOB: JobId = JobId::from_bits(7);
const FIRST: Attempt = first_of(JOB);
const MIB: u64 = 1 << 20;

const fn first_of(job: JobId) -> Attempt {
    Attempt { job, number: 1 }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn open(path: &Path, job_bytes_max: u64) -> LogStore {
    open_with(path, LogSettings { job_bytes_max, cache_bytes: 1 << 20, disk_free_min_bytes: 0 })
}

fn open_with(path: &Path, settings: LogSettings) -> LogStore {
    LogStore::open(path, settings).unwrap()
}

fn line(t: u64, stream: Stream, data: &str) -> LogLine<'_> {
    LogLine { t, stream, data: data.into() }
}

fn lines<'a>(texts: &[&'a str]) -> Vec<LogLine<'a>> {
    texts.iter().map(|text| line(0, Stream::Stdout, text)).collect()
}

async fn append(
    store: &LogStore,
    attempt: Attempt,
    first: Option<u64>,
    lines: &[LogLine<'_>],
) -> Result<u64, AppendError> {
    store.append(attempt, first, lines).await?.stored().await
}

/// Reads all of a log, `page` lines at a time.
async fn read_all(store: &LogStore, attempt: Attempt, page: usize) -> Vec<StoredLine> {
    let mut all: Vec<StoredLine> = Vec::new();
    loop {
        let lines = store.read(attempt, all.len() as u64, page).await.unwrap();
        if lines.is_empty() {
            return all;
        }
        all.extend(lines);
    }
}

async fn texts(store: &LogStore, job: JobId) -> Vec<String> {
    read_all(store, first_of(job), 1_000).await.into_iter().map(|line| line.data).collect()
}

struct Database {
    /// Removed at the end.
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Database {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs.redb");
        Self { _folder: folder, path }
    }

    fn open(&self) -> LogStore {
        open(&self.path, MIB)
    }
}

#[tokio::test]
async fn single_lines_without_numbers_follow_one_another() {
    let database = Database::new();
    let store = database.open();
    for number in 0..500_u64 {
        let text = format!("line {number}");
        let next = append(&store, FIRST, None, &lines(&[&text])).await.unwrap();
        assert_eq!(next, number + 1);
    }
    let expected: Vec<String> = (0..500).map(|number| format!("line {number}")).collect();
    assert_eq!(texts(&store, JOB).await, expected);
}

#[tokio::test]
async fn a_gap_is_refused_with_the_next_expected_line() {
    let database = Database::new();
    let store = database.open();
    append(&store, FIRST, Some(0), &lines(&["a", "b"])).await.unwrap();

    let refused = append(&store, FIRST, Some(3), &lines(&["d"])).await;

    assert!(matches!(refused, Err(AppendError::Gap { expected: 2 })), "{refused:?}");
    assert_eq!(texts(&store, JOB).await, ["a", "b"]);
    assert_eq!(append(&store, FIRST, Some(1), &lines(&["b", "c", "d"])).await.unwrap(), 4);
    assert_eq!(texts(&store, JOB).await, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn a_line_that_its_agent_did_not_cut_is_cut_and_marked() {
    let database = Database::new();
    let store = database.open();
    let long = "ü".repeat(LINE_BYTES_MAX);
    append(&store, FIRST, None, &lines(&[&long, "after"])).await.unwrap();

    let stored = texts(&store, JOB).await;

    assert_eq!(stored[1], "after");
    let kept = stored[0].strip_suffix(CUT_MARK).unwrap();
    assert!(long.starts_with(kept));
    assert!((LINE_BYTES_MAX - 3..=LINE_BYTES_MAX).contains(&stored[0].len()));
}

#[tokio::test]
async fn a_log_over_its_limit_is_cut_once_and_its_agent_goes_on() {
    let database = Database::new();
    let mut store = open(&database.path, MIB);
    let text = "x".repeat(60_000);
    let batch = lines(&[text.as_str(); 4]);
    for number in 0..10 {
        if number == 6 {
            store.close().await;
            store = open(&database.path, MIB);
        }
        let next = append(&store, FIRST, Some(number * 4), &batch).await.unwrap();
        assert_eq!(next, (number + 1) * 4, "lines that are not kept are taken all the same");
    }
    append(&store, first_of(JobId::from_bits(8)), None, &lines(&["another log"])).await.unwrap();

    let stored = texts(&store, JOB).await;

    let (last, kept) = stored.split_last().unwrap();
    assert_eq!(kept.len(), 16, "four batches are less than 1 MiB, five are more");
    assert!(kept.iter().all(|line| *line == text));
    assert_eq!(last, "[log cut: more than 1 MiB; the rest is not kept]");
    assert_eq!(texts(&store, JobId::from_bits(8)).await, ["another log"]);
}

/// A small disk of a test's own.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn of(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (kind, options) = (Some("tmpfs"), format!("size={size}"));
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(kind, folder.path(), kind, flags, Some(&*options))
            .expect("a disk can be mounted (as root)");
        Self { folder }
    }

    fn free_bytes(&self) -> u64 {
        let disk = nix::sys::statvfs::statvfs(self.folder.path()).unwrap();
        disk.blocks_available() * disk.fragment_size()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.folder.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn empty_lines_count_and_can_be_read_back() {
    let database = Database::new();
    let store = open(&database.path, 8 * MIB);
    let batch: Vec<_> = (0..170_000).map(|_| line(0, Stream::Stdout, "")).collect();
    for number in 0..4 {
        append(&store, FIRST, Some(number * 170_000), &batch).await.unwrap();
    }

    let page = store.read(FIRST, 0, 10).await.unwrap();
    assert!(page.len() < 50_000, "{} lines at once", page.len());
    let all = read_all(&store, FIRST, 1_000).await;
    let (last, lines) = all.split_last().unwrap();
    assert!(last.data.starts_with("[log cut: more than 8 MiB"), "{last:?}");
    assert!(lines.iter().all(|line| line.data.is_empty()));
    assert!((340_000..680_000).contains(&lines.len()), "{}", lines.len());
    store.close().await;
}

#[tokio::test]
async fn the_damage_of_one_log_is_that_of_its_job_alone() {
    const CHUNKS: redb::TableDefinition<'static, (u128, u32, u64), &[u8]> =
        redb::TableDefinition::new("chunks");
    let database = Database::new();
    let store = database.open();
    append(&store, FIRST, Some(0), &lines(&["before"])).await.unwrap();
    store.close().await;
    let raw = redb::Database::open(&database.path).unwrap();
    let write = raw.begin_write().unwrap();
    let key = (JOB.bits(), 1, 0);
    write.open_table(CHUNKS).unwrap().insert(key, &b"not a chunk"[..]).unwrap();
    write.commit().unwrap();
    drop(raw);
    let store = database.open();
    let other = JobId::from_bits(8);

    let (damaged, whole) = (lines(&["after"]), lines(&["of another job"]));
    let stored = tokio::join!(
        append(&store, FIRST, Some(1), &damaged),
        append(&store, first_of(other), Some(0), &whole),
    );

    assert_eq!((stored.0.unwrap(), stored.1.unwrap()), (2, 1));
    assert_eq!(texts(&store, other).await, ["of another job"]);
    let after = store.read(FIRST, 1, 10).await.unwrap();
    assert_eq!(after[0].data, "after");
    assert!(store.read(FIRST, 0, 10).await.is_err());
    store.close().await;
}

#[tokio::test]
async fn a_disk_that_fills_up_cuts_logs_before_it_is_full_and_agents_go_on() {
    const RESERVE: u64 = 2 * MIB;
    let disk = Disk::of("8m");
    let path = disk.folder.path().join("logs.redb");
    let settings =
        LogSettings { job_bytes_max: u64::MAX, cache_bytes: 1 << 20, disk_free_min_bytes: RESERVE };
    let mut store = open_with(&path, settings);
    // Text that does not shrink, more than the disk holds.
    let texts_of = |number: u64| -> Vec<String> {
        let mut random = StdRng::seed_from_u64(number);
        let mut letters = || random.random_range(' '..='~');
        (0..4).map(|_| (0..60_000).map(|_| letters()).collect()).collect()
    };
    for number in 0..60 {
        if number == 50 {
            store.close().await;
            store = open_with(&path, settings);
        }
        let sent = texts_of(number);
        let sent: Vec<&str> = sent.iter().map(String::as_str).collect();
        let next = append(&store, FIRST, Some(number * 4), &lines(&sent)).await.unwrap();
        assert_eq!(next, (number + 1) * 4, "lines that are not kept are taken all the same");
    }

    let stored = texts(&store, JOB).await;

    let (last, kept) = stored.split_last().unwrap();
    assert_eq!(last, "[log cut: core's disk is nearly full; the rest is not kept]");
    let sent: Vec<String> = (0..).flat_map(texts_of).take(kept.len()).collect();
    assert!(!kept.is_empty() && kept == sent, "what is kept is what was sent");
    assert!(disk.free_bytes() > RESERVE / 2, "{} bytes are free", disk.free_bytes());

    // With room again, other logs are kept; the one that was cut has no hole.
    store.forget(&[JOB]).await.unwrap();
    let other = JobId::from_bits(8);
    let generous = LogSettings { disk_free_min_bytes: 0, ..settings };
    store.close().await;
    let store = open_with(&path, generous);
    append(&store, first_of(other), None, &lines(&["another log"])).await.unwrap();
    assert_eq!(texts(&store, other).await, ["another log"]);
}

#[tokio::test]
async fn followers_of_a_log_are_notified_of_readable_lines_only() {
    let database = Database::new();
    let store = open(&database.path, 100);
    let mut watcher = store.watch(FIRST);
    append(&store, FIRST, None, &lines(&["a"])).await.unwrap();
    watcher.more_than(0).await;

    let text = "x".repeat(101);
    for _ in 0..3 {
        append(&store, FIRST, None, &lines(&[&text, &text])).await.unwrap();
    }

    watcher.more_than(1).await;
    assert_eq!(texts(&store, JOB).await.len(), 2, "a line, and the word that the rest is cut");
    let more = tokio::time::timeout(Duration::from_millis(50), watcher.more_than(2)).await;
    assert!(more.is_err(), "there is nothing more to read");
}

#[tokio::test]
async fn all_attempts_of_a_job_are_forgotten_and_no_other_job() {
    let database = Database::new();
    let store = database.open();
    let other = JobId::from_bits(JOB.bits() + 1);
    let text = "x".repeat(9_000);
    for number in 1..=3 {
        for _ in 0..20 {
            append(&store, Attempt { job: JOB, number }, None, &lines(&[&text])).await.unwrap();
        }
    }
    append(&store, first_of(other), None, &lines(&["kept"])).await.unwrap();

    store.forget(&[JOB]).await.unwrap();

    store.close().await;
    let store = database.open();
    for number in 1..=3 {
        assert_eq!(read_all(&store, Attempt { job: JOB, number }, 100).await, []);
        assert_eq!(store.next_line(Attempt { job: JOB, number }).await.unwrap(), 0);
    }
    assert_eq!(texts(&store, other).await, ["kept"]);
}

#[tokio::test]
async fn lines_handed_over_before_a_log_is_forgotten_do_not_come_after() {
    let database = Database::new();
    let store = database.open();
    let batch = lines(&["late"]);
    let mut receipts = Vec::new();
    for _ in 0..50 {
        receipts.push(store.append(FIRST, None, &batch).await.unwrap());
    }

    store.forget(&[JOB]).await.unwrap();

    for receipt in &mut receipts {
        receipt.stored().await.unwrap();
    }
    assert_eq!(read_all(&store, FIRST, 100).await, []);
}

/// What agents and core may do to the store, over a few logs.
#[derive(Clone, Debug)]
enum Act {
    /// The next lines of a log, of which the agent repeats some that it sent before.
    Append {
        log: usize,
        again: Index,
        lines: Vec<(u64, bool, String)>,
    },
    /// The same without numbers.
    Say {
        log: usize,
        line: String,
    },
    /// Lines beyond those that the store knows.
    Skip {
        log: usize,
    },
    Read {
        log: usize,
        from: Index,
        page: usize,
    },
    Forget {
        job: usize,
    },
    Reopen,
}

const LOGS: [Attempt; 3] = [
    FIRST,
    Attempt { job: JOB, number: 2 },
    Attempt { job: JobId::from_bits(1 << 100), number: 1 },
];

fn act() -> impl Strategy<Value = Act> {
    let log = 0..LOGS.len();
    // Texts on both sides of what makes a chunk too large to grow.
    let text = prop_oneof![4 => "[a-zü\u{1b}\"]{0,12}", 1 => "[a-z]{3000,5000}"];
    let lines = prop::collection::vec((any::<u64>(), any::<bool>(), text), 0..6);
    prop_oneof![
        8 => (log.clone(), any::<Index>(), lines)
            .prop_map(|(log, again, lines)| Act::Append { log, again, lines }),
        4 => (log.clone(), ".{0,12}").prop_map(|(log, line)| Act::Say { log, line }),
        1 => log.clone().prop_map(|log| Act::Skip { log }),
        3 => (log, any::<Index>(), 1..5_usize)
            .prop_map(|(log, from, page)| Act::Read { log, from, page }),
        1 => (0..2_usize).prop_map(|job| Act::Forget { job }),
        1 => Just(Act::Reopen),
    ]
}

fn stream(is_stderr: bool) -> Stream {
    if is_stderr { Stream::Stderr } else { Stream::Stdout }
}

async fn check_act(store: &LogStore, logs: &mut [Vec<StoredLine>; 3], act: Act) {
    match act {
        Act::Append { log, again, lines } => {
            let (attempt, known) = (LOGS[log], &mut logs[log]);
            let first = again.index(known.len() + 1);
            let new = lines.into_iter().map(|(t, is_stderr, data)| StoredLine {
                t,
                stream: stream(is_stderr),
                data,
            });
            let sent: Vec<StoredLine> = known[first..].iter().cloned().chain(new).collect();
            let batch: Vec<LogLine<'_>> =
                sent.iter().map(|sent| line(sent.t, sent.stream, &sent.data)).collect();
            let next = append(store, attempt, Some(first as u64), &batch).await.unwrap();
            known.truncate(first);
            known.extend(sent);
            assert_eq!(next, known.len() as u64);
        }
        Act::Say { log, line: data } => {
            let (attempt, known) = (LOGS[log], &mut logs[log]);
            let batch = lines(&[&data]);
            let next = append(store, attempt, None, &batch).await.unwrap();
            known.push(StoredLine { t: 0, stream: Stream::Stdout, data });
            assert_eq!(next, known.len() as u64);
        }
        Act::Skip { log } => {
            let (attempt, known) = (LOGS[log], logs[log].len() as u64);
            let refused = append(store, attempt, Some(known + 1), &lines(&["?"])).await;
            let is_right =
                matches!(refused, Err(AppendError::Gap { expected }) if expected == known);
            assert!(is_right, "{refused:?}");
        }
        Act::Read { log, from, page } => {
            let (attempt, known) = (LOGS[log], &logs[log]);
            let from = from.index(known.len() + 1);
            let read = store.read(attempt, from as u64, page).await.unwrap();
            assert!(read.len() >= page.min(known.len() - from));
            assert_eq!(read, known[from..from + read.len()]);
        }
        Act::Forget { job } => {
            let job = LOGS[job * 2].job;
            store.forget(&[job]).await.unwrap();
            for (attempt, known) in LOGS.iter().zip(logs) {
                if attempt.job == job {
                    known.clear();
                }
            }
        }
        Act::Reopen => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_schedule_of_the_store_gives_the_lines_in_order_once(
        acts in prop::collection::vec(act(), 1..40),
    ) {
        let (runtime, database) = (runtime(), Database::new());
        let mut store = database.open();
        let mut logs: [Vec<StoredLine>; 3] = Default::default();
        for act in acts {
            if matches!(act, Act::Reopen) {
                runtime.block_on(store.close());
                store = database.open();
            }
            runtime.block_on(check_act(&store, &mut logs, act));
        }
        runtime.block_on(store.close());
        let store = database.open();
        for (attempt, known) in LOGS.into_iter().zip(&logs) {
            prop_assert_eq!(&runtime.block_on(read_all(&store, attempt, 7)), known);
        }
    }
}

// The whole way.

#[derive(Clone, Debug)]
enum Leg {
    /// The build writes.
    Write(Vec<(bool, String)>),
    /// The agent sends a batch.
    Send,
    /// So many of the messages that are on their way reach core, which stores them.
    Arrive(Index),
    /// So many of core's acknowledgements reach the agent.
    Acknowledge(Index),
    /// The connection breaks, and all that was on its way is lost; the agent dials again.
    Break,
    /// Core is started anew.
    RestartCore,
    /// The agent is started anew; it keeps the logs of jobs that have ended.
    RestartAgent,
}

fn leg() -> impl Strategy<Value = Leg> {
    let text = prop_oneof![20 => "[a-zü\u{1b}\"\\\\]{0,20}", 1 => "[a-z]{2000,70000}"];
    let lines = prop::collection::vec((any::<bool>(), text), 0..30);
    prop_oneof![
        4 => lines.prop_map(Leg::Write),
        5 => Just(Leg::Send),
        4 => any::<Index>().prop_map(Leg::Arrive),
        3 => any::<Index>().prop_map(Leg::Acknowledge),
        2 => Just(Leg::Break),
        1 => Just(Leg::RestartCore),
        1 => Just(Leg::RestartAgent),
    ]
}

/// An agent, a connection and a core.
struct Journey {
    runtime: Runtime,
    folder: tempfile::TempDir,
    spool: Spool,
    store: Option<LogStore>,
    to_core: Vec<String>,
    to_agent: Vec<u64>,
    has_ended: bool,
}

impl Journey {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::create(folder.path().join("spool"), wire(), Arc::default()).unwrap();
        let store = Some(open(&folder.path().join("logs.redb"), 64 * MIB));
        let (to_core, to_agent) = (Vec::new(), Vec::new());
        Self { runtime: runtime(), folder, spool, store, to_core, to_agent, has_ended: false }
    }

    fn store(&self) -> &LogStore {
        self.store.as_ref().unwrap()
    }

    fn go(&mut self, leg: Leg) {
        match leg {
            Leg::Write(lines) => {
                let lines = lines.iter().map(|(is_stderr, text)| (stream(*is_stderr), &**text));
                self.spool.append(lines).unwrap();
            }
            Leg::Send => {
                let batch = self.spool.next_batch().unwrap();
                self.to_core.extend(batch.map(|log| AgentMessage::Log(log.log(&wire())).to_json()));
            }
            Leg::Arrive(count) => {
                let count = count.index(self.to_core.len() + 1);
                self.arrive(count);
            }
            Leg::Acknowledge(count) => {
                let count = count.index(self.to_agent.len() + 1);
                self.to_agent.drain(..count).for_each(|lines| self.spool.acknowledge(lines));
            }
            Leg::Break => self.dial(),
            Leg::RestartCore => {
                self.runtime.block_on(self.store().close());
                self.store = Some(open(&self.folder.path().join("logs.redb"), 64 * MIB));
                self.dial();
            }
            Leg::RestartAgent if self.has_ended => {
                let spool = self.folder.path().join("spool");
                self.spool = Spool::recover(spool, wire(), Arc::default()).unwrap().unwrap();
                self.dial();
            }
            Leg::RestartAgent => {}
        }
    }

    fn arrive(&mut self, count: usize) {
        for message in self.to_core.drain(..count) {
            let Ok(AgentMessage::Log(log)) = AgentMessage::parse(&message) else {
                panic!("not a log: {message}")
            };
            let store = self.store.as_ref().unwrap();
            let stored = append(store, FIRST, log.first, &log.lines);
            self.to_agent.push(self.runtime.block_on(stored).unwrap());
        }
    }

    fn dial(&mut self) {
        self.to_core.clear();
        self.to_agent.clear();
        let next_line = self.runtime.block_on(self.store().next_line(FIRST)).unwrap();
        self.spool.resume(next_line).unwrap();
    }

    fn end(&mut self) {
        self.spool.finish(Status::new(wire(), StatusState::Completed)).unwrap();
        self.has_ended = true;
    }

    /// Nothing breaks any more.
    fn arrive_all(&mut self) {
        self.dial();
        while self.spool.waiting() > 0 {
            self.go(Leg::Send);
        }
        self.arrive(self.to_core.len());
        self.to_agent.drain(..).for_each(|lines| self.spool.acknowledge(lines));
    }
}

fn wire() -> WireId {
    JOB.to_string().parse().unwrap()
}

/// The line as it is kept.
fn kept(text: &str) -> String {
    stagely_protocol::cut_line(text).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_line_of_a_build_is_in_the_store_once_whatever_breaks_on_the_way(
        before in prop::collection::vec(leg(), 1..40),
        after in prop::collection::vec(leg(), 0..15),
    ) {
        let mut journey = Journey::new();
        let mut written = Vec::new();
        for leg in before {
            if let Leg::Write(lines) = &leg {
                written.extend(lines.iter().map(|(is_err, text)| (stream(*is_err), kept(text))));
            }
            journey.go(leg);
        }
        journey.end();
        for leg in after.into_iter().filter(|leg| !matches!(leg, Leg::Write(_))) {
            journey.go(leg);
        }
        journey.arrive_all();

        prop_assert!(journey.spool.status_due().is_some(), "the end is never reported");
        let stored = journey.runtime.block_on(read_all(journey.store(), FIRST, 100));
        let stored: Vec<(Stream, String)> =
            stored.into_iter().map(|line| (line.stream, line.data)).collect();
        prop_assert_eq!(stored, written);
    }
}
