//! Interruptions of machines.

use super::*;

/// As much as EC2 gives.
const NOTICE: Duration = Duration::from_mins(2);

impl Core {
    fn interrupt(&mut self, machine: MachineId, interruption: Interruption) -> Vec<Effect> {
        self.step(Event::MachineInterrupted { machine, interruption })
    }

    /// The cloud takes the machine back after `time`.
    fn take_back_in(&mut self, machine: MachineId, time: Duration) -> Vec<Effect> {
        self.interrupt(machine, Interruption::Certain { at: self.now.after(time) })
    }

    fn interruption(&self, machine: MachineId) -> Option<Interruption> {
        self.state.machines[&machine].interruption
    }

    fn lost(&self, job: JobId) -> Vec<FailureReason> {
        self.state.jobs[&job].lost_attempts.iter().map(|lost| lost.reason.clone()).collect()
    }

    /// A build at work whose like took `usual` in the same environment.
    fn running_as_before(&mut self, usual: Duration) -> (JobId, MachineId) {
        let run = self.request(1);
        let earlier = PlannedJob { name: "app".to_owned(), ..self.build(Arch::Amd64) };
        self.plan(run, std::slice::from_ref(&earlier));
        let machine = self.launched(earlier.id);
        self.connect(machine, &[]);
        self.start(machine, earlier.id, 1);
        self.now = self.now.after(usual);
        self.report(machine, earlier.id, 1, PUSHED);
        self.step(Event::MachineGone { machine, taken_back: false });

        let run = self.request(1);
        let job = PlannedJob { name: "app".to_owned(), ..self.build(Arch::Amd64) };
        self.plan(run, std::slice::from_ref(&job));
        let machine = self.launched(job.id);
        self.connect(machine, &[]);
        self.start(machine, job.id, 1);
        (job.id, machine)
    }

    /// A merge on the machine of its last build.
    fn merging(&mut self) -> (TwoPlatforms, MachineId) {
        let two = TwoPlatforms::begun(self);
        self.report(two.machines[0], two.builds[0], 1, PUSHED);
        self.report(two.machines[1], two.builds[1], 1, PUSHED);
        let machine = self.machine_of(two.merge);
        self.start(machine, two.merge, 1);
        (two, machine)
    }
}

#[test]
fn a_build_that_cannot_end_in_time_goes_to_another_machine_at_once() {
    let mut core = amd64(2);
    let (_, job, machine) = core.running();

    let effects = core.take_back_in(machine, NOTICE);

    let other = core.machine_of(job);
    assert_ne!(other, machine);
    assert_eq!(effects, [Effect::Terminate { machine }, Effect::Launch { machine: other }]);
    assert!(matches!(core.job_state(job), JobState::Provisioning { attempt: 2, .. }));
    assert_eq!(core.lost(job), [FailureReason::SpotInterruption]);
}

#[test]
fn a_build_that_usually_ends_in_time_goes_on() {
    let mut core = amd64(2);
    let (job, machine) = core.running_as_before(Duration::from_secs(80));

    assert_eq!(core.take_back_in(machine, Duration::from_secs(100)), [], "80 s and a quarter");
    core.now = core.now.after(Duration::from_secs(90));
    core.report(machine, job, 1, PUSHED);

    assert_eq!(core.job_state(job), &JobState::Completed { digest: None });
    assert_eq!(core.machine_state(machine), MachineState::Terminating);
}

#[test]
fn a_build_without_enough_margin_goes_to_another_machine() {
    let mut core = amd64(2);
    let (job, machine) = core.running_as_before(Duration::from_secs(80));

    let effects = core.take_back_in(machine, Duration::from_secs(99));

    assert_eq!(effects[0], Effect::Terminate { machine });
    assert_eq!(core.lost(job), [FailureReason::SpotInterruption]);
}

#[test]
fn a_build_that_overran_its_usual_time_goes_to_another_machine() {
    let mut core = amd64(2);
    let (job, machine) = core.running_as_before(Duration::from_secs(80));
    core.now = core.now.after(Duration::from_secs(101));

    core.take_back_in(machine, NOTICE);

    assert_eq!(core.lost(job), [FailureReason::SpotInterruption]);
}

#[test]
fn the_usual_time_is_that_of_the_same_environment() {
    let mut core = amd64(2);
    let (_, machine) = core.running_as_before(Duration::from_secs(1));
    core.step(Event::MachineGone { machine, taken_back: false });
    let run = core.request(2);
    let job = PlannedJob { name: "app".to_owned(), ..core.build(Arch::Amd64) };
    core.plan(run, std::slice::from_ref(&job));
    let machine = core.launched(job.id);
    core.connect(machine, &[]);
    core.start(machine, job.id, 1);

    core.take_back_in(machine, NOTICE);

    assert_eq!(core.lost(job.id), [FailureReason::SpotInterruption]);
}

#[test]
fn a_build_whose_deadline_is_before_the_interruption_goes_on() {
    let mut core = amd64(2);
    let (_, job, machine) = core.running();
    core.now = core.now.after(TIMEOUT);

    assert_eq!(core.take_back_in(machine, NOTICE), []);

    assert!(matches!(core.job_state(job), JobState::Running { .. }));
}

#[test]
fn a_build_that_does_not_end_before_the_interruption_is_lost() {
    let mut core = amd64(2);
    let (job, machine) = core.running_as_before(Duration::from_secs(80));
    core.take_back_in(machine, NOTICE);
    assert_eq!(core.state.next_deadline(), Some(core.now.after(Duration::from_secs(130))));

    assert_eq!(core.wait(Duration::from_secs(129)), []);
    let effects = core.wait(Duration::from_secs(1));

    assert_eq!(effects[0], Effect::Terminate { machine });
    assert_eq!(core.lost(job), [FailureReason::SpotInterruption]);
}

#[test]
fn a_build_that_ended_while_core_was_down_may_still_be_reported() {
    let mut core = amd64(2);
    let (job, machine) = core.running_as_before(Duration::from_secs(80));
    core.take_back_in(machine, NOTICE);
    core.now = core.now.after(Duration::from_mins(30));
    core.restart();
    assert_eq!(core.wait(Duration::from_secs(30)), []);

    core.connect(machine, &[(job, 1)]);
    core.report(machine, job, 1, PUSHED);

    assert_eq!(core.job_state(job), &JobState::Completed { digest: None });
}

#[test]
fn a_build_whose_agent_has_not_begun_goes_elsewhere() {
    let mut core = amd64(2);
    let (_, jobs) = core.run(1, 1);
    let machine = core.launched(jobs[0]);
    core.connect(machine, &[]);

    core.take_back_in(machine, TIMEOUT * 10);

    assert_ne!(core.machine_of(jobs[0]), machine);
}

#[test]
fn a_merge_that_has_begun_goes_on() {
    let mut core = both(3);
    let (two, machine) = core.merging();

    assert_eq!(core.take_back_in(machine, Duration::from_secs(30)), []);
    core.report(machine, two.merge, 1, PUSHED);

    assert_eq!(core.run_state(two.run), &RunState::Completed);
}

#[test]
fn a_merge_does_not_begin_on_a_machine_that_is_taken_back_at_once() {
    let mut core = both(3);
    let (two, machine) = core.merging();

    core.take_back_in(machine, Duration::from_secs(29));

    assert_ne!(core.machine_of(two.merge), machine);
    assert_eq!(core.lost(two.merge), [FailureReason::SpotInterruption]);
}

#[test]
fn a_notice_that_is_repeated_changes_nothing() {
    let mut core = both(3);
    let (_, machine) = core.merging();
    let at = core.now.after(Duration::from_secs(40));
    core.interrupt(machine, Interruption::Certain { at });
    core.now = core.now.after(Duration::from_secs(20));

    assert_eq!(core.interrupt(machine, Interruption::Certain { at }), []);
}

#[test]
fn a_likely_interruption_ends_nothing_and_keeps_the_merge_away() {
    let mut core = both(3);
    let two = TwoPlatforms::begun(&mut core);
    core.report(two.machines[0], two.builds[0], 1, PUSHED);

    assert_eq!(core.interrupt(two.machines[1], Interruption::Likely), []);
    assert!(matches!(core.job_state(two.builds[1]), JobState::Running { .. }));
    core.report(two.machines[1], two.builds[1], 1, PUSHED);

    assert!(!two.machines.contains(&core.machine_of(two.merge)));
    assert_eq!(core.machine_state(two.machines[1]), MachineState::Terminating);
}

#[test]
fn a_builder_that_still_exports_gets_no_merge_after_a_likely_notice() {
    let mut core = both(3);
    let two = TwoPlatforms::begun(&mut core);
    core.report_early(two.machines[0], two.builds[0], 1);
    core.interrupt(two.machines[0], Interruption::Likely);
    core.step(Event::MachineGone { machine: two.machines[1], taken_back: false });
    let again = core.launched(two.builds[1]);
    core.connect(again, &[]);
    core.disconnect(again);
    core.report(again, two.builds[1], 2, PUSHED);

    assert_ne!(core.state.jobs[&two.merge].took_over, Some(two.builds[0]));
    assert_eq!(core.exporting(two.machines[0]), Some(two.builds[0]), "it goes on");
}

#[test]
fn a_likely_interruption_after_a_certain_one_changes_nothing() {
    let mut core = amd64(2);
    let (_, machine) = core.running_as_before(Duration::from_secs(80));
    core.take_back_in(machine, NOTICE);
    let certain = core.interruption(machine);

    assert_eq!(core.interrupt(machine, Interruption::Likely), []);

    assert_eq!(core.interruption(machine), certain);
}

#[test]
fn a_notice_of_a_machine_that_is_ending_gone_or_unknown_changes_nothing() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.report(machine, job, 1, PUSHED);
    assert_eq!(core.take_back_in(machine, NOTICE), []);
    assert_eq!(core.machine_state(machine), MachineState::Terminating);
    assert_eq!(core.interruption(machine), None);

    core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(core.take_back_in(machine, NOTICE), []);
    assert_eq!(core.machine_state(machine), MachineState::Terminated);

    let unknown = MachineId::from_bits(core.id());
    assert_eq!(core.take_back_in(unknown, NOTICE), []);
    assert!(!core.state.machines.contains_key(&unknown));
}

#[test]
fn the_export_of_a_cache_ends_with_its_machine() {
    let mut core = amd64(1);
    let (run, job, machine) = core.running();
    core.report_early(machine, job, 1);

    assert_eq!(core.take_back_in(machine, NOTICE), []);
    assert_eq!(core.wait(Duration::from_secs(119)), []);
    assert_eq!(core.wait(Duration::from_secs(1)), [Effect::Terminate { machine }]);

    assert_eq!(core.run_state(run), &RunState::Completed);
}

#[test]
fn an_export_that_begins_after_the_notice_ends_with_its_machine_too() {
    let mut core = amd64(1);
    let (job, machine) = core.running_as_before(Duration::from_secs(80));
    core.take_back_in(machine, NOTICE);
    core.report_early(machine, job, 1);

    assert_eq!(core.wait(NOTICE), [Effect::Terminate { machine }]);
}

#[test]
fn an_interrupted_registered_machine_gets_no_job_until_its_next_hello() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_registered();

    let reason = StopReason::Interrupted;
    let cancel = Effect::Cancel { machine, attempt: attempt(job, 1), reason };
    assert_eq!(core.take_back_in(machine, NOTICE), [cancel]);
    assert_eq!(core.machine_state(machine), MachineState::Busy { attempt: attempt(job, 1) });
    assert_eq!(core.report(machine, job, 1, JobOutcome::Cancelled), []);
    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
    assert_eq!(
        core.state.queue()[0].reason,
        QueueReason::RegisteredMachine { arch: Some(Arch::Amd64) }
    );

    core.disconnect(machine);
    assert_eq!(core.connect(machine, &[]), [Effect::Assign { machine, attempt: attempt(job, 2) }]);
}

#[test]
fn an_idle_registered_machine_that_is_likely_interrupted_gets_no_job() {
    let mut core = without_provider();
    let machine = core.registered_machine(Arch::Amd64);
    core.connect(machine, &[]);
    core.interrupt(machine, Interruption::Likely);

    let (_, jobs) = core.run(1, 1);

    assert_eq!(core.job_state(jobs[0]), &JobState::Queued { attempt: 1 });
}

#[test]
fn a_notice_does_not_free_a_registered_machine_that_stops_a_cancelled_job() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_registered();
    core.cancel(run);

    core.take_back_in(machine, NOTICE);

    assert_eq!(core.machine_state(machine), MachineState::Busy { attempt: attempt(job, 1) });
}

#[test]
fn no_job_waits_for_an_interrupted_registered_machine() {
    let mut core = amd64(1);
    let machine = core.registered_machine(Arch::Arm64);
    core.connect(machine, &[]);
    core.interrupt(machine, Interruption::Likely);
    let run = core.request(1);
    let job = core.build(Arch::Arm64);

    core.plan(run, std::slice::from_ref(&job));

    assert!(core.state.jobs[&job.id].emulated);
}

#[test]
fn a_machine_that_is_taken_back_without_a_notice_is_lost_to_the_interruption() {
    let mut core = amd64(2);
    let (_, job, machine) = core.running();

    core.step(Event::MachineGone { machine, taken_back: true });

    assert_eq!(core.lost(job), [FailureReason::SpotInterruption]);
}

#[test]
fn every_loss_after_a_certain_notice_is_a_loss_to_the_interruption() {
    let after_notice = |lose: &dyn Fn(&mut Core, JobId, MachineId)| {
        let mut core = amd64(2);
        let (job, machine) = core.running_as_before(Duration::from_secs(80));
        core.take_back_in(machine, NOTICE);
        lose(&mut core, job, machine);
        core.lost(job)
    };
    let interrupted = [FailureReason::SpotInterruption];

    let gone = |core: &mut Core, _: JobId, machine: MachineId| {
        core.step(Event::MachineGone { machine, taken_back: false });
    };
    assert_eq!(after_notice(&gone), interrupted);
    let silent = |core: &mut Core, _: JobId, machine: MachineId| {
        core.disconnect(machine);
        core.wait(Duration::from_mins(2));
    };
    assert_eq!(after_notice(&silent), interrupted);
    let shut_down = |core: &mut Core, job: JobId, machine: MachineId| {
        core.report(machine, job, 1, JobOutcome::Cancelled);
    };
    assert_eq!(after_notice(&shut_down), interrupted);
    let restarted = |core: &mut Core, _: JobId, machine: MachineId| {
        core.connect(machine, &[]);
    };
    assert_eq!(after_notice(&restarted), interrupted);
}

#[test]
fn a_machine_that_vanishes_after_a_likely_notice_is_lost_as_any_other() {
    let mut core = amd64(2);
    let (_, job, machine) = core.running();
    core.interrupt(machine, Interruption::Likely);

    core.step(Event::MachineGone { machine, taken_back: false });

    assert_eq!(core.lost(job), [FailureReason::MachineLost]);
}

#[test]
fn a_build_ends_only_with_its_last_attempt_on_demand_and_the_end_says_whose_fault_it_was() {
    let mut core = amd64(2);
    let (run, jobs) = core.run(1, 1);
    let job = jobs[0];
    let mut on_demand = Vec::new();
    for attempt in 1..=3 {
        assert_eq!(core.run_state(run), &RunState::Building);
        let machine = core.launched(job);
        on_demand.push(core.state.machines[&machine].on_demand);
        core.connect(machine, &[]);
        core.start(machine, job, attempt);
        core.take_back_in(machine, NOTICE);
        core.step(Event::MachineGone { machine, taken_back: true });
    }

    assert_eq!(on_demand, [false, false, true]);
    assert_eq!(core.failure(job), &FailureReason::SpotInterruption);
    assert!(!core.failure(job).is_users());
    assert_eq!(core.lost(job), [FailureReason::SpotInterruption, FailureReason::SpotInterruption]);
    assert_eq!(core.run_state(run), &RunState::Failed { plan_error: None });
}
