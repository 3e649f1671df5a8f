//! Which reports store the fingerprint of a cache.

use stagely_protocol::ImageRef;

use super::*;

fn cache() -> ImageRef {
    "registry/app/cache:app".parse().unwrap()
}

/// A build that writes a cache and runs on a registered machine.
fn caching(core: &mut Core) -> (RunId, JobId, MachineId) {
    let machine = core.registered_machine(Arch::Amd64);
    core.connect(machine, &[]);
    let run = core.request(1);
    let mut build = core.build(Arch::Amd64);
    let JobKind::Build { cache_to, .. } = &mut build.kind else { panic!("{build:?}") };
    *cache_to = Some(cache());
    let mut plan = PlannedRun::new("c".repeat(40).parse().unwrap(), vec![build.clone()]);
    plan.own_cache_refs = BTreeSet::from([cache()]);
    core.step(Event::RunPlanned { run, plan: Ok(plan) });
    core.start(machine, build.id, 1);
    (run, build.id, machine)
}

fn changes(
    core: &mut Core,
    machine: MachineId,
    job: JobId,
    attempt: u32,
    report: JobReport,
) -> Vec<FingerprintChange> {
    core.outcome_of(Event::JobReported { machine, attempt: self::attempt(job, attempt), report })
        .fingerprints
}

fn stored() -> Vec<FingerprintChange> {
    vec![FingerprintChange::Store(cache())]
}

#[test]
fn the_completion_of_a_build_stores_the_fingerprint_of_its_cache_once() {
    let mut core = without_provider();
    let (_, job, machine) = caching(&mut core);

    assert_eq!(changes(&mut core, machine, job, 1, JobReport::new(PUSHED)), stored());

    assert_eq!(changes(&mut core, machine, job, 1, JobReport::new(PUSHED)), [], "repeated");
}

#[test]
fn a_failed_attempt_and_a_late_report_of_it_store_no_fingerprint() {
    let mut core = without_provider();
    let (_, job, machine) = caching(&mut core);
    let lost = JobReport::new(failed(FailureReason::DiskFull));
    assert_eq!(changes(&mut core, machine, job, 1, lost), []);

    assert_eq!(changes(&mut core, machine, job, 1, JobReport::new(PUSHED)), [], "attempt 2 runs");

    assert_eq!(changes(&mut core, machine, job, 2, JobReport::new(PUSHED)), stored());
}

#[test]
fn another_machine_stores_no_fingerprint() {
    let mut core = without_provider();
    let (_, job, _) = caching(&mut core);
    let other = core.registered_machine(Arch::Amd64);

    assert_eq!(changes(&mut core, other, job, 1, JobReport::new(PUSHED)), []);
}

#[test]
fn the_fingerprint_of_an_exported_cache_is_stored_at_the_end_of_the_export() {
    let mut core = without_provider();
    let (_, job, machine) = caching(&mut core);
    let first = JobReport { exporting_cache: true, ..JobReport::new(PUSHED) };
    assert_eq!(changes(&mut core, machine, job, 1, first), []);

    assert_eq!(changes(&mut core, machine, job, 1, JobReport::new(PUSHED)), stored());
}

#[test]
fn a_cancelled_build_that_completes_later_stores_no_fingerprint() {
    let mut core = without_provider();
    let (run, job, machine) = caching(&mut core);
    core.cancel(run);

    assert_eq!(changes(&mut core, machine, job, 1, JobReport::new(PUSHED)), []);
}

#[test]
fn a_deleted_cache_loses_its_fingerprint() {
    let mut core = without_provider();
    let environment = EnvironmentId::from_bits(1);
    let refs = BTreeSet::from([cache()]);

    let outcome = core.outcome_of(Event::CleanedUp { environment, refs });

    assert_eq!(outcome.fingerprints, [FingerprintChange::Delete(cache())]);
}

/// Core was killed after the registry had deleted the cache and before the records said so. The next core finds the
/// environment open and deletes nothing.
#[test]
fn an_environment_that_opens_during_its_deletion_loses_all_its_fingerprints() {
    let mut core = without_provider();
    let (run, job, machine) = caching(&mut core);
    let environment = core.state.runs[&run].environment;
    changes(&mut core, machine, job, 1, JobReport::new(PUSHED));
    let closed = core.step(Event::EnvironmentClosed { environment });
    assert_eq!(closed, [Effect::CleanUp { environment }]);
    core.request(1);

    let outcome = core.outcome_of(Event::CleanedUp { environment, refs: BTreeSet::new() });

    assert_eq!(outcome.fingerprints, [FingerprintChange::Delete(cache())]);
}
