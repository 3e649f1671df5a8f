//! Core's two databases after `kill -9` during writes.
//!
//! The writer is this test program, which starts itself as a child with a folder in `STAGELY_TEST_WRITER`. The child
//! prints how much is stored, and is killed while it writes.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use stagely::core::logs::{LogSettings, LogStore};
use stagely::core::store::{Batch, RecordTable, Store, StoreError};
use stagely_protocol::{LogLine, Stream};
use stagely_state::ids::{EnvironmentId, JobId, ProjectId, RunId};
use stagely_state::{Attempt, Effect, EffectId, Environment, Project};

const FOLDER_VARIABLE: &str = "STAGELY_TEST_WRITER";
const SETTINGS: LogSettings =
    LogSettings { job_bytes_max: 1 << 30, cache_bytes: 1 << 20, disk_free_min_bytes: 0 };
const FIRST: Attempt = Attempt { job: JobId::from_bits(7), number: 1 };
const BATCH_LINES: u64 = 10;

/// A child process that writes until it is killed.
struct Writer(Child);

impl Writer {
    /// Starts `test` of this program in `folder`.
    fn start(test: &str, folder: &Path) -> Self {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(FOLDER_VARIABLE, folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits until `count` is stored, kills the child, and returns the last count that it printed.
    fn kill_after(mut self, count: u64) -> u64 {
        let mut output = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let stored =
            |line: &str| line.strip_prefix("stored ").and_then(|number| number.parse().ok());
        let mut printed: u64 = 0;
        while printed < count {
            let line = output.next().expect("the writer goes on until it is killed").unwrap();
            printed = stored(&line).unwrap_or(printed);
        }
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        // Counts that were printed before the kill are stored, too. A truncated line is ignored.
        output.map_while(Result::ok).filter_map(|line| stored(&line)).last().unwrap_or(printed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It is gone already unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder to write in, if this is the child.
fn writers_folder() -> Option<PathBuf> {
    env::var_os(FOLDER_VARIABLE).map(PathBuf::from)
}

fn print_stored(count: u64) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "stored {count}").unwrap();
    output.flush().unwrap();
}

fn log_line(number: u64) -> String {
    format!("line {number} {}", "x".repeat(usize::try_from(number % 100).unwrap()))
}

#[tokio::test]
async fn killed_logs_hold_every_acknowledged_line_once_and_go_on() {
    if let Some(folder) = writers_folder() {
        return write_logs(&folder).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 1..=4 {
        let test = "killed_logs_hold_every_acknowledged_line_once_and_go_on";
        let printed = Writer::start(test, folder.path()).kill_after(round * 300);
        acknowledged = acknowledged.max(printed);

        let store = LogStore::open(&folder.path().join("logs.redb"), SETTINGS).unwrap();
        let next = store.next_line(FIRST).await.unwrap();
        let (_, stored) = store.read(FIRST, 0, usize::MAX).await.unwrap();

        assert!(next >= acknowledged, "{acknowledged} were acknowledged, {next} are there");
        let expected: Vec<String> = (0..next).map(log_line).collect();
        let stored: Vec<String> = stored.into_iter().map(|line| line.data).collect();
        assert!(stored == expected, "round {round}: the lines are not those that were written");
        // The next child opens the file.
        store.close().await;
    }
}

/// Appends batches after what is there, two at a time.
async fn write_logs(folder: &Path) {
    let store = LogStore::open(&folder.join("logs.redb"), SETTINGS).unwrap();
    let mut next = store.next_line(FIRST).await.unwrap();
    loop {
        let mut receipts = Vec::new();
        for _ in 0..2 {
            let texts: Vec<String> = (next..next + BATCH_LINES).map(log_line).collect();
            let lines: Vec<LogLine<'_>> = texts
                .iter()
                .map(|text| LogLine { t: 1, stream: Stream::Stdout, data: text.into() })
                .collect();
            receipts.push(store.append(FIRST, Some(next), &lines).await.unwrap());
            next += BATCH_LINES;
        }
        for receipt in &mut receipts {
            print_stored(receipt.stored().await.unwrap());
        }
    }
}

#[test]
fn a_killed_store_holds_whole_batches_and_all_that_were_committed() {
    if let Some(folder) = writers_folder() {
        return write_records(&folder);
    }
    let folder = tempfile::tempdir().unwrap();
    for round in 1..=4 {
        let test = "a_killed_store_holds_whole_batches_and_all_that_were_committed";
        let committed = Writer::start(test, folder.path()).kill_after(round * 20);

        let (_, stored) = Store::open(&folder.path().join("core.redb")).unwrap();

        let project = &stored.state.projects[&ProjectId::from_bits(1)];
        let count: u64 = project.name.parse().unwrap();
        assert!(count >= committed, "{committed} were committed, {count} are there");
        let environments = &stored.state.environments;
        let expected: Vec<String> = (1..=count).map(|number| number.to_string()).collect();
        let names: Vec<&String> =
            environments.values().map(|environment| &environment.name).collect();
        assert!(names.into_iter().eq(&expected), "a batch is there in part");
        let outbox: Vec<(EffectId, Effect)> = stored.state.outbox.into_iter().collect();
        assert_eq!(outbox, [(EffectId(count), effect(count))]);
    }
}

fn effect(count: u64) -> Effect {
    Effect::Plan { run: RunId::from_bits(count.into()) }
}

/// Commits batches without end. The project's name counts them, each batch adds an environment, and the outbox holds
/// only the effect of the last batch.
fn write_records(folder: &Path) {
    let (store, stored) = Store::open(&folder.join("core.redb")).unwrap();
    let mut count = stored.state.environments.len() as u64;
    let id = ProjectId::from_bits(1);
    loop {
        count += 1;
        let project = Project::new(id, count.to_string(), "x".repeat(5_000));
        let environment =
            Environment::new(EnvironmentId::from_bits(count.into()), id, count.to_string());
        let mut batch = Batch::default();
        batch.record(RecordTable::Projects, id.bits(), Some(&project));
        batch.record(RecordTable::Environments, environment.id.bits(), Some(&environment));
        batch.effect(EffectId(count), Some(&effect(count)));
        batch.effect(EffectId(count - 1), None);
        store.commit(&batch).unwrap();
        print_stored(count);
    }
}

#[test]
fn a_database_that_another_process_has_is_in_use_until_that_is_killed() {
    if let Some(folder) = writers_folder() {
        return write_records(&folder);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("core.redb");
    let test = "a_database_that_another_process_has_is_in_use_until_that_is_killed";
    let mut writer = Writer::start(test, folder.path());
    let output = writer.0.stdout.take().unwrap();
    let mut lines = BufReader::new(output).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("stored ")));

    assert!(matches!(Store::open(&path), Err(StoreError::InUse)));

    drop(writer);
    let (_, stored) = Store::open(&path).unwrap();
    assert!(!stored.state.environments.is_empty());
}
