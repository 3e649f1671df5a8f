//! Reads records as stagely 0.1 stored them under layout 2, one of each shape.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use stagely_state::{Effect, Environment, Job, Machine, MissingCapacity, Project, Run, Timestamp};

const RECORDS: &str = include_str!("stored_records/layout-2.jsonl");

/// The records of one table, as they were stored.
fn stored(table: &str) -> Vec<Value> {
    let lines = RECORDS.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let rows = lines.filter(|line| line["table"] == table);
    rows.map(|mut line| line["record"].take()).collect()
}

/// Reads each record and returns it; checks that it is stored again as it was, but for fields that `removes`
/// takes away.
fn read<T>(table: &str, removes: impl Fn(&mut Map<String, Value>)) -> Vec<T>
where
    T: DeserializeOwned + Serialize,
{
    let rows = stored(table);
    assert!(!rows.is_empty(), "{table}");
    let read = rows.into_iter().map(|row| {
        let record: T = serde_json::from_value(row.clone()).unwrap_or_else(|error| {
            panic!("{table}: {error}: {row}");
        });
        let mut again = serde_json::to_value(&record).unwrap();
        let mut before = row;
        for record in [&mut before, &mut again] {
            let fields = record.as_object_mut().unwrap();
            removes(fields);
            fields.retain(|_, value| !value.is_null());
        }
        assert_eq!(again, before, "{table}");
        record
    });
    read.collect()
}

/// How many of `values` there are, by the name of the variant.
fn variants<T: std::fmt::Debug>(values: impl IntoIterator<Item = T>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for value in values {
        let text = format!("{value:?}");
        let name = text.split([' ', '(', '{']).next().unwrap_or_default().to_owned();
        *counts.entry(name).or_default() += 1;
    }
    counts
}

fn counts(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// Removes the fields that are read only while a run is pending.
fn without_past_planning(run: &mut Map<String, Value>) {
    if run["state"]["status"] != "pending" {
        run.remove("planning_since");
        run.remove("plan_after");
    }
}

#[test]
fn runs_are_read_with_the_phase_of_their_planning() {
    let runs = read::<Run>("runs", without_past_planning);

    let expected = [
        ("AwaitingApproval", 1),
        ("Building", 2),
        ("Cancelled", 17),
        ("Completed", 2),
        ("Deferred", 2),
        ("Failed", 4),
        ("Pending", 2),
        ("Planning", 2),
    ];
    assert_eq!(variants(runs.iter().map(|run| &run.state)), counts(&expected));
}

#[test]
fn projects_are_read() {
    read::<Project>("projects", |_| {});
}

#[test]
fn environments_are_read() {
    let environments = read::<Environment>("environments", |_| {});

    let states = environments.iter().map(|environment| environment.state);
    assert_eq!(variants(states.clone()), counts(&[("Closed", 6), ("Open", 5)]));
    assert_eq!(states.clone().filter(|state| state.is_closed_by_github()).count(), 2);
    assert_eq!(states.filter(|state| state.has_outdated_cleanup()).count(), 3);
}

#[test]
fn jobs_are_read_and_postponed_ones_are_recognized() {
    let jobs = read::<Job>("jobs", |_| {});

    let expected = [
        ("Cancelled", 2),
        ("Completed", 2),
        ("Failed", 2),
        ("Postponed", 1),
        ("Provisioning", 2),
        ("Queued", 2),
        ("Running", 2),
    ];
    assert_eq!(variants(jobs.iter().map(|job| &job.state)), counts(&expected));
}

#[test]
fn a_gap_in_capacity_is_read_as_it_is_stored() {
    let mut job = read::<Job>("jobs", |_| {}).remove(0);
    assert_eq!(job.missing_capacity, None);
    let message = "no spot machine".to_owned();
    job.missing_capacity = Some(MissingCapacity { since: Timestamp(7), launches: 2, message });

    let stored = serde_json::to_string(&job).unwrap();

    assert_eq!(serde_json::from_str::<Job>(&stored).unwrap(), job);
}

#[test]
fn machines_are_read_and_stopping_exports_are_recognized() {
    let machines = read::<Machine>("machines", |_| {});

    let exports = machines.iter().filter_map(|machine| machine.exporting);
    let states = exports.map(|export| export.state);
    assert_eq!(variants(states), counts(&[("Running", 2), ("Stopping", 1)]));
}

#[test]
fn the_outbox_is_read() {
    read::<Effect>("outbox", |_| {});
}
