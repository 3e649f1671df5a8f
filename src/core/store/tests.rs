//! What a store holds after it is opened again, and which stores are refused.

use std::collections::BTreeMap;

use stagely_state::ids::{EnvironmentId, JobId, MachineId, ProjectId, RunId};
use stagely_state::{
    Effect, EffectId, Ended, EndedRun, Environment, Missing, Project, Run, RunState, Snapshot,
    Timestamp,
};
use tempfile::TempDir;

use super::tables::{ENDED_RUNS, JOBS};
use super::*;
use crate::api::Role;
use crate::core::fixtures;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self) -> Result<(Store, StoreContents), StoreError> {
        Store::open(&self.0.path().join("core.redb"))
    }

    /// Changes the closed database behind the store's back.
    fn tamper(&self, change: impl FnOnce(&redb::WriteTransaction)) {
        let database = Database::open(self.0.path().join("core.redb")).unwrap();
        let write = database.begin_write().unwrap();
        change(&write);
        write.commit().unwrap();
    }
}

fn project(name: &str) -> Project {
    let id = ProjectId::from_bits(1);
    Project::new(id, name.to_owned(), "https://git.example/app".to_owned())
}

fn environment() -> Environment {
    let id = EnvironmentId::from_bits(u128::MAX);
    Environment::new(id, ProjectId::from_bits(1), "main".to_owned())
}

/// Writes something into every table that a batch can write to.
fn full_batch() -> Batch {
    let mut batch = Batch::default();
    batch.record(RecordTable::Projects, 1, Some(&project("app")));
    batch.record(RecordTable::Environments, u128::MAX, Some(&environment()));
    batch.effect(EffectId(3), Some(&Effect::Plan { run: RunId::from_bits(2) }));
    batch.run_secrets(RunId::from_bits(2), Some(vec![1, 2, 3]));
    let hashes = [TokenHash([1; 32]), TokenHash([2; 32])];
    batch.machine_tokens(MachineId::from_bits(4), Some(&hashes));
    batch
}

#[test]
fn committed_records_are_read_when_the_store_is_opened_again() {
    let folder = Folder::new();
    let (store, new) = folder.open().unwrap();
    assert_eq!(new.state, Snapshot::default());
    let token = ApiToken { name: "ci".to_owned(), role: Role::Write, created_at: Timestamp(5) };
    store.commit(&full_batch()).unwrap();
    store.add_api_token(TokenHash([9; 32]), &token).unwrap();
    drop(store);

    let (store, stored) = folder.open().unwrap();

    assert_eq!(stored.core_id, new.core_id, "machines are found by it");
    assert_eq!(stored.state.projects[&ProjectId::from_bits(1)], project("app"));
    assert_eq!(stored.state.environments[&environment().id], environment());
    let plan = Effect::Plan { run: RunId::from_bits(2) };
    assert_eq!(stored.state.outbox, BTreeMap::from([(EffectId(3), plan)]));
    assert_eq!(store.run_secrets(RunId::from_bits(2)).unwrap(), Some(vec![1, 2, 3]));
    let hashes = vec![TokenHash([1; 32]), TokenHash([2; 32])];
    assert_eq!(stored.machine_tokens, [(MachineId::from_bits(4), hashes)]);
    assert_eq!(stored.api_tokens, [(TokenHash([9; 32]), token)]);
}

#[test]
fn a_batch_changes_and_deletes_rows_and_leaves_the_others_alone() {
    let folder = Folder::new();
    let (store, _) = folder.open().unwrap();
    store.commit(&full_batch()).unwrap();
    let mut batch = Batch::default();
    batch.record(RecordTable::Projects, 1, Some(&project("renamed")));
    batch.record(RecordTable::Environments, u128::MAX, None::<&Environment>);
    batch.effect(EffectId(3), None);
    batch.run_secrets(RunId::from_bits(2), None);
    store.commit(&batch).unwrap();
    drop(store);

    let (store, stored) = folder.open().unwrap();

    assert_eq!(stored.state.projects[&ProjectId::from_bits(1)], project("renamed"));
    assert!(stored.state.environments.is_empty() && stored.state.outbox.is_empty());
    assert_eq!(store.run_secrets(RunId::from_bits(2)).unwrap(), None);
    assert_eq!(stored.machine_tokens.len(), 1);
}

#[test]
fn a_fingerprint_is_found_by_the_first_cache_that_has_one() {
    let folder = Folder::new();
    let (store, _) = folder.open().unwrap();
    let cache = |name: &str| format!("r/app/cache:{name}").parse::<ImageRef>().unwrap();
    let print = |text: &str| Fingerprint::try_from(text.to_owned()).unwrap();
    let mut batch = Batch::default();
    batch.fingerprint(&cache("app"), Some(&print("shared")));
    batch.fingerprint(&cache("app.pr-7"), Some(&print("own")));
    store.commit(&batch).unwrap();
    drop(store);

    let (store, _) = folder.open().unwrap();

    let first_of = |names: &[&str]| {
        let caches: Vec<ImageRef> = names.iter().map(|name| cache(name)).collect();
        store.fingerprint(&caches).unwrap()
    };
    assert_eq!(first_of(&["app.pr-7", "app"]), Some(print("own")));
    assert_eq!(first_of(&["app.pr-8", "app"]), Some(print("shared")));
    assert_eq!(first_of(&["app.pr-8"]), None);
    let mut batch = Batch::default();
    batch.fingerprint(&cache("app.pr-7"), None);
    store.commit(&batch).unwrap();
    assert_eq!(first_of(&["app.pr-7", "app"]), Some(print("shared")));
}

#[test]
fn a_database_that_is_open_is_in_use() {
    let folder = Folder::new();
    let (store, _) = folder.open().unwrap();

    assert!(matches!(folder.open(), Err(StoreError::InUse)));

    drop(store);
    folder.open().unwrap();
}

#[test]
fn the_last_layout_is_taken_over_and_a_further_start_finds_the_new_one() {
    let folder = Folder::new();
    let (store, _) = folder.open().unwrap();
    let run = ended(1, 1);
    let mut batch = Batch::default();
    batch.record(RecordTable::Runs, 1, Some(&run.run));
    store.commit(&batch).unwrap();
    drop(store);
    folder.tamper(|write| {
        write.open_table(META).unwrap().insert("layout", "2").unwrap();
        write.delete_table(ENDED_RUNS).unwrap();
    });

    let (store, stored) = folder.open().unwrap();

    // The first step of core moves it to the ended ones.
    assert_eq!(stored.state.runs.into_values().collect::<Vec<_>>(), [run.run]);
    drop(store);
    folder.tamper(|write| {
        let meta = write.open_table(META).unwrap();
        assert_eq!(meta.get("layout").unwrap().unwrap().value(), LAYOUT);
    });
}

#[test]
fn another_layout_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    drop(folder.open().unwrap());
    folder.tamper(|write| {
        write.open_table(META).unwrap().insert("layout", "0").unwrap();
    });

    for _ in 0..2 {
        let Err(StoreError::Layout { found }) = folder.open() else { panic!("it is taken") };
        assert_eq!(found, "0");
    }
}

#[test]
fn a_record_that_cannot_be_read_is_named_by_its_table() {
    let folder = Folder::new();
    drop(folder.open().unwrap());
    folder.tamper(|write| {
        write.open_table(JOBS).unwrap().insert(1, b"{}".as_slice()).unwrap();
    });

    let Err(StoreError::Record { table, .. }) = folder.open() else { panic!("it is read") };

    assert_eq!(table, "jobs");
}

/// A run of `project`, with one job and the project's number as environment.
fn ended(number: u128, project: u128) -> EndedRun {
    let project = ProjectId::from_bits(project);
    let environment =
        Environment::new(EnvironmentId::from_bits(project.bits()), project, "main".to_owned());
    let id = RunId::from_bits(number);
    let run = Run::new(id, &environment, String::new(), Timestamp(0));
    let job = fixtures::job(number + 1_000, number, "app", "linux/amd64");
    EndedRun { run: Run { state: RunState::Completed, ..run }, jobs: vec![job] }
}

#[test]
fn ended_records_are_counted_at_the_start_and_read_by_their_ids() {
    let folder = Folder::new();
    let (store, _) = folder.open().unwrap();
    let machine = fixtures::machine(7);
    let mut batch = Batch::default();
    let runs = vec![ended(1, 1), ended(2, 2), ended(3, 1), ended(4, 1)];
    batch.end(Ended { runs, machines: vec![machine.clone()] });
    store.commit(&batch).unwrap();
    // Events needed two of them. One stays in the state, and the other leaves it at once.
    let mut batch = Batch::default();
    batch.record(RecordTable::Runs, 3, Some(&ended(3, 1).run));
    batch.end(Ended { runs: vec![ended(4, 1)], machines: Vec::new() });
    batch.recall(Ended { runs: vec![ended(3, 1), ended(4, 1)], machines: Vec::new() });
    store.commit(&batch).unwrap();
    drop(store);

    let (store, stored) = folder.open().unwrap();

    let environment = EnvironmentId::from_bits;
    assert_eq!(stored.state.ended_runs, [(environment(1), 2), (environment(2), 1)].into());
    assert_eq!(stored.state.runs.len(), 1);
    let missing = Missing {
        runs: [RunId::from_bits(1), RunId::from_bits(9)].into(),
        jobs: [JobId::from_bits(1_002)].into(),
        machines: [machine.id, MachineId::from_bits(8)].into(),
    };
    let runs = vec![ended(1, 1), ended(2, 2)];
    assert_eq!(store.ended(&missing).unwrap(), Ended { runs, machines: vec![machine] });
}

#[test]
fn ended_runs_are_listed_from_the_newest_and_deleted_from_the_oldest() {
    let folder = Folder::new();
    let (store, _) = folder.open().unwrap();
    let mut batch = Batch::default();
    let runs = (1..=6).map(|number| ended(number, number % 2)).collect();
    batch.end(Ended { runs, machines: Vec::new() });
    store.commit(&batch).unwrap();
    let numbers = |runs: Result<Vec<EndedRun>, StoreError>| {
        runs.unwrap().iter().map(|ended| ended.run.id.bits()).collect::<Vec<_>>()
    };

    let run = RunId::from_bits;
    assert_eq!(numbers(store.newest_ended_runs(None, 2)), [6, 5]);
    assert_eq!(numbers(store.newest_ended_runs(Some(run(5)), 2)), [4, 3]);
    let odd = ProjectId::from_bits(1);
    assert_eq!(numbers(store.ended_runs_of(odd, run(5), 9)), [3, 1]);
    let later = Timestamp(1);
    assert_eq!(numbers(store.old_runs(later, 2, |run| run.project == odd)), [1, 3]);
    assert!(store.old_runs(Timestamp(0), 9, |_| true).unwrap().is_empty(), "none is so old");

    let mut batch = Batch::default();
    batch.recall(Ended { runs: vec![ended(6, 0)], machines: Vec::new() });
    store.commit(&batch).unwrap();
    assert_eq!(numbers(store.newest_ended_runs(None, 1)), [5]);
    let missing = Missing { jobs: [JobId::from_bits(1_006)].into(), ..Missing::default() };
    assert!(store.ended(&missing).unwrap().is_empty());
}
