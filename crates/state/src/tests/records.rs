//! Records.

use super::*;

#[test]
fn only_ended_records_are_forgotten_and_the_changes_name_them() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_registered();
    let forgotten =
        || Event::Forgotten { runs: vec![run], machines: vec![machine], deliveries: Vec::new() };
    core.step(forgotten());
    assert!(core.state.jobs.contains_key(&job) && core.state.machines.contains_key(&machine));
    core.report(machine, job, 1, PUSHED);
    core.step(Event::MachineUnregistered { machine });
    core.state.take_changes();

    core.step(forgotten());

    let changes = core.state.take_changes();
    assert_eq!(changes.runs, BTreeSet::from([run]));
    assert_eq!(changes.jobs, BTreeSet::from([job]));
    assert_eq!(changes.machines, BTreeSet::from([machine]));
    assert_eq!(changes.environments.len(), 1, "the environment of the last run changes as well");
    assert!(core.state.runs.is_empty() && core.state.jobs.is_empty());
    assert!(core.state.environments.is_empty());
    assert_eq!(core.state.projects.len(), 1, "a project reuses its name");
    assert_eq!(core.state.take_changes(), Changes::default());
}
