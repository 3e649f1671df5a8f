//! Plays seeded schedules with crashes, lost, late and repeated messages, failed launches, vanishing machines and
//! changes at GitHub, and checks the design's invariants after every step.
//!
//! `STAGELY_SIM_SCHEDULES` sets the number of schedules. `STAGELY_SIM_SEED` plays one of them again and prints its
//! events.

mod agents;
mod cloud;
mod fairness;
mod github;
mod invariants;
mod money;
mod plans;
mod registry;
mod rng;
mod transitions;
mod world;

use std::collections::BTreeSet;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use stagely_state::{Approval, CancelReason, JobFailure, JobState, Run, RunState, Snapshot};

use world::{Counts, action_names, play};

const SCHEDULES: u64 = 2_000;

fn setting(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn every_invariant_holds_in_every_schedule() {
    if let Some(seed) = setting("STAGELY_SIM_SEED") {
        println!("{:#?}", play(seed, true).1);
        return;
    }
    let schedules = setting("STAGELY_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let next = AtomicU64::new(0);
    let all = Mutex::new(Counts::new());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut counts = Counts::new();
                while let seed = next.fetch_add(1, Ordering::Relaxed)
                    && seed < schedules
                {
                    add(&mut counts, &play_or_explain(seed, &next));
                }
                add(&mut all.lock().expect("no thread panics while holding it"), &counts);
            });
        }
    });
    let all = all.into_inner().expect("no thread panics while holding it");
    println!("{schedules} schedules: {all:#?}");
}

fn add(all: &mut Counts, counts: &Counts) {
    for (what, count) in counts {
        *all.entry(what).or_default() += count;
    }
}

/// Plays one schedule. If it fails, stops the others and prints how to play it again.
fn play_or_explain(seed: u64, next: &AtomicU64) -> Counts {
    let outcome = catch_unwind(AssertUnwindSafe(|| play(seed, false).1));
    outcome.unwrap_or_else(|_| {
        next.store(u64::MAX / 2, Ordering::Relaxed);
        panic!(
            "schedule {seed} broke an invariant; see it with\n    STAGELY_SIM_SEED={seed} cargo test \
             -p stagely-state --test simulation every_invariant -- --nocapture"
        );
    })
}

#[test]
fn a_seed_means_the_same_schedule_every_time() {
    for seed in 0..20 {
        assert_eq!(play(seed, false), play(seed, false));
    }
}

/// The faults that must happen in the schedules, since the invariants prove nothing about others.
const FAULTS: [&str; 51] = [
    "a job waits for money",
    "a budget is allowed",
    "a spot price changes",
    "a build goes on after a notice",
    "a deployment is cancelled",
    "a failed preview ends",
    "a preview moves",
    "a preview sleeps for another one",
    "a preview takes over another machine",
    "an archive fails and the preview serves on",
    "an archive fails that is not needed",
    "an update ends in vain",
    "a certain interruption",
    "a launch finds no capacity",
    "a launch finds no capacity for too long",
    "a launch is repeated",
    "a launch cannot be prepared",
    "a launch is refused for good",
    "an unclear launch has failed",
    "an unclear launch has succeeded",
    "a lease runs out",
    "a likely interruption",
    "a machine is launched twice",
    "a machine vanishes",
    "a new machine cannot be found to be ended",
    "a notice ends work",
    "a notice finds no work",
    "a notice is lost",
    "a provider ends a machine at launch",
    "a provider is described",
    "a launch request of a crashed core arrives late",
    "a test fails",
    "a test is cancelled",
    "a test is reused",
    "a test loses its preview",
    "a test passes",
    "a sweep",
    "a sweep ends an unknown machine",
    "a sweep finds a machine gone",
    "a sweep finds a machine recorded as terminated",
    "a sweep finds a machine missing",
    "a termination fails",
    "an interrupted machine is taken back",
    "an interrupted registered machine comes back",
    "core crashes between a launch and its answer",
    "core crashes between a termination and its answer",
    "core crashes with ended runs out of memory",
    "lost images are built again",
    "files need a reset",
    "the answer to a launch is lost",
    "the answer to a termination is lost",
];

#[test]
fn the_schedules_reach_every_kind_of_end() {
    let mut counts = Counts::new();
    let mut reached = BTreeSet::new();
    for seed in 0..1_200 {
        let (disk, of_schedule) = play(seed, false);
        add(&mut counts, &of_schedule);
        reached.extend(ends(&disk));
    }
    let missed: Vec<&str> = FAULTS
        .into_iter()
        .chain(action_names())
        .filter(|fault| !counts.contains_key(fault))
        .collect();
    assert!(missed.is_empty(), "never happened: {missed:?}; happened: {counts:#?}");
    let wanted = [
        "run Completed",
        "run Failed",
        "run unplanned",
        "run Cancelled: Requested",
        "run Cancelled: EnvironmentClosed",
        "run Cancelled: Superseded",
        "run AwaitingApproval, approval Awaited",
        "run Completed, approval Given",
        "fork cancelled before anybody agreed",
        "environment closed by GitHub",
        "environment opened again",
        "project removed",
        "command `/stagely approve`: approved",
        "command `/stagely cancel`: cancelled",
        "command `/stagely rebuild`: started",
        "command refused",
        "command `/stagely preview`: started",
        "preview command: ended",
        "preview command: it is deployed again with fresh data",
        "preview command: it is deployed when the commit is approved",
        "preview command: it is deployed when its images are there",
        "preview command: it wakes",
        "job Completed at attempt 1",
        "job Completed at attempt 2",
        "job Completed at attempt 3",
        "job Cancelled",
        "lost to BootTimeout",
        "lost to DiskFull",
        "lost to MachineLost",
        "lost to SpotInterruption",
        "job reused",
        "job taken over",
        "job Failed: DependencyFailed",
        "job Failed: Emulation",
        "job Failed: MachineLost",
        "job Failed: NoCapacity",
        "job Failed: Provider",
        "job Failed: SpotInterruption",
        "job Failed: Timeout",
        "job Failed: User",
    ];
    let missed: Vec<&str> = wanted.into_iter().filter(|end| !reached.contains(*end)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}; reached: {reached:?}");
}

fn ends(disk: &Snapshot) -> Vec<String> {
    let runs = disk.runs.values().map(|run| match &run.state {
        RunState::Failed { plan_error: Some(_) } => "run unplanned".to_owned(),
        RunState::Cancelled { reason } => format!("run Cancelled: {reason:?}"),
        end => format!("run {}", name(end)),
    });
    let jobs = disk.jobs.values().map(|job| match &job.state {
        JobState::Completed { .. } => format!("job Completed at attempt {}", job.attempt),
        JobState::Failed(JobFailure { reason, .. }) => format!("job Failed: {}", name(reason)),
        end => format!("job {}", name(end)),
    });
    let reused = disk.jobs.values().filter(|job| job.reused_from.is_some());
    let reused = reused.map(|_| "job reused".to_owned());
    let taken_over = disk.jobs.values().filter(|job| job.took_over.is_some());
    let taken_over = taken_over.map(|_| "job taken over".to_owned());
    let lost = disk.jobs.values().flat_map(|job| &job.lost_attempts);
    let jobs = jobs.chain(reused).chain(taken_over).chain(github_ends(disk));
    runs.chain(jobs).chain(lost.map(|lost| format!("lost to {}", name(&lost.reason)))).collect()
}

/// The ends of pull requests, forks and commands.
fn github_ends(disk: &Snapshot) -> Vec<String> {
    let forks = disk.runs.values().filter(|run| run.approval != Approval::NotNeeded);
    let forks = forks.map(|run| match run.state {
        RunState::Cancelled { .. } if run.approval == Approval::Awaited => {
            "fork cancelled before anybody agreed".to_owned()
        }
        _ => format!("run {}, approval {}", name(&run.state), name(&run.approval)),
    });
    let environments = disk.environments.values();
    let closed = environments.clone().filter(|environment| environment.state.is_closed_by_github());
    let closed = closed.map(|_| "environment closed by GitHub".to_owned());
    let is_closed =
        |run: &Run| run.state == RunState::Cancelled { reason: CancelReason::EnvironmentClosed };
    let was_closed = |id| disk.runs.values().any(|run| run.environment == id && is_closed(run));
    let opened = environments
        .clone()
        .filter(|environment| !environment.state.is_closed() && was_closed(environment.id));
    let opened = opened.map(|_| "environment opened again".to_owned());
    let removed = disk.projects.values().filter(|project| project.github.is_none());
    let removed = removed.filter(|project| github::LINKED.contains(&project.id.bits()));
    let removed = removed.map(|_| "project removed".to_owned());
    let notes =
        environments.filter_map(|environment| environment.report.note.as_deref()).map(|note| {
            let command = note.split(" by ").next().unwrap_or_default();
            let is = |text: &str| note.contains(text);
            match note {
                _ if is("not followed") => "command refused".to_owned(),
                _ if is("rebuild") && is("was started") => {
                    "command `/stagely rebuild`: started".to_owned()
                }
                _ if is("preview` by") && is("was started") => {
                    "command `/stagely preview`: started".to_owned()
                }
                _ if is("/stagely preview") => {
                    let what = note.rsplit(": ").next().unwrap_or_default();
                    format!("preview command: {what}")
                }
                _ if is("approved") => "command `/stagely approve`: approved".to_owned(),
                _ if is("cancelled") => "command `/stagely cancel`: cancelled".to_owned(),
                _ => format!("command {command}"),
            }
        });
    forks.chain(closed).chain(opened).chain(removed).chain(notes).collect()
}

/// The name of the variant.
fn name(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}
