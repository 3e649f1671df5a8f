//! The subtle transitions, one at a time. `tests/simulation` mixes them all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stagely_agent::protocol::{Arch, BuildArgs, Emulation, FailureReason, Platform, SystemInfo};

use super::*;
use crate::ids::{EnvironmentId, JobId, MachineId, ProjectId, RunId};

const TIMEOUT: Duration = Duration::from_mins(30);

/// A core, its clock, and a source of ids that ascend.
struct Core {
    state: State,
    now: Timestamp,
    last_id: u128,
    /// The newest of all agents.
    session: u64,
}

impl Core {
    fn new(max_concurrent: u32, launchable: &[Arch]) -> Self {
        let limits = Limits {
            max_concurrent,
            max_attempts: 3,
            boot: Duration::from_mins(5),
            reconnect_grace: Duration::from_mins(2),
            job_grace: Duration::from_mins(1),
            lease: Duration::from_hours(1),
            cache_export: Duration::from_secs(600),
            planned_at_once: 2,
            planning: Duration::from_mins(10),
            launchable: launchable.iter().copied().collect(),
        };
        Self { state: State::new(limits), now: Timestamp(1_000_000), last_id: 0, session: 0 }
    }

    fn id(&mut self) -> u128 {
        self.last_id += 1;
        self.last_id
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let last_id = &mut self.last_id;
        let mut new_machine = || {
            *last_id += 1;
            MachineId::from_bits(*last_id)
        };
        self.state.step(event, self.now, &mut new_machine)
    }

    fn restart(&mut self) -> Vec<Effect> {
        let state = &self.state;
        let stored = Snapshot {
            projects: state.projects.clone(),
            environments: state.environments.clone(),
            runs: state.runs.clone(),
            jobs: state.jobs.clone(),
            machines: state.machines.clone(),
            outbox: state.outbox.clone(),
        };
        self.state = State::load(state.limits.clone(), stored);
        self.step(Event::CoreStarted)
    }

    /// Lets the time pass, and the alarm ring that is due then.
    fn wait(&mut self, time: Duration) -> Vec<Effect> {
        self.now = self.now.after(time);
        self.step(Event::Tick)
    }

    fn request(&mut self, project: u128) -> RunId {
        let id = RunId::from_bits(self.id());
        let (project, environment) =
            (ProjectId::from_bits(project), EnvironmentId::from_bits(project));
        let environment = Environment::new(environment, project, String::new());
        let run = Run::new(id, &environment, String::new(), self.now);
        let project = Project { id: project, name: String::new(), repository: String::new() };
        self.step(Event::RunRequested { run: Box::new(run), project, environment });
        id
    }

    fn build(&mut self, arch: Arch) -> PlannedJob {
        let image = "registry/app:1".parse().unwrap();
        let kind = JobKind::Build {
            platform: Platform(arch),
            context: ".".to_owned(),
            dockerfile: "Dockerfile".to_owned(),
            target: None,
            build_args: BuildArgs::default(),
            image,
            cache_from: Vec::new(),
            cache_to: None,
            push: true,
            uses: BTreeMap::new(),
            emulation: Emulation::Allow,
        };
        self.job(kind, Vec::new())
    }

    fn merge(&mut self, needs: &[&PlannedJob]) -> PlannedJob {
        let image = "registry/app:1".parse().unwrap();
        let kind = JobKind::Merge { platforms: Arch::ALL.map(Platform).to_vec(), image };
        self.job(kind, needs.iter().map(|job| job.id).collect())
    }

    fn job(&mut self, kind: JobKind, needs: Vec<JobId>) -> PlannedJob {
        let id = JobId::from_bits(self.id());
        PlannedJob {
            id,
            name: id.to_string(),
            build: "app".to_owned(),
            variant: "app".to_owned(),
            tag: None,
            kind,
            size: MachineSize::Medium,
            needs,
            timeout: TIMEOUT,
        }
    }

    fn plan(&mut self, run: RunId, jobs: &[PlannedJob]) -> Vec<Effect> {
        let commit = "c".repeat(40).parse().unwrap();
        let plan = PlannedRun::new(commit, jobs.to_vec());
        self.step(Event::RunPlanned { run, plan: Ok(plan) })
    }

    /// A planned run of `count` builds.
    fn run(&mut self, project: u128, count: usize) -> (RunId, Vec<JobId>) {
        let run = self.request(project);
        let jobs: Vec<PlannedJob> = (0..count).map(|_| self.build(Arch::Amd64)).collect();
        self.plan(run, &jobs);
        (run, jobs.iter().map(|job| job.id).collect())
    }

    fn static_machine(&mut self, arch: Arch) -> MachineId {
        let machine = MachineId::from_bits(self.id());
        self.step(Event::StaticMachineAdded { machine, name: "rack 1".to_owned(), arch });
        machine
    }

    fn launched(&mut self, job: JobId) -> MachineId {
        let machine = self.machine_of(job);
        self.step(Event::MachineLaunched { machine });
        machine
    }

    fn connect(&mut self, machine: MachineId, holds: &[(JobId, u32)]) -> Vec<Effect> {
        let system_info = SystemInfo {
            hostname: "builder".to_owned(),
            architecture: Arch::Amd64,
            docker_version: String::new(),
            emulated: Vec::new(),
        };
        let holds = holds.iter().map(|(job, number)| Attempt { job: *job, number: *number });
        let holds = holds.collect();
        self.session += 1;
        let session = self.session;
        self.step(Event::AgentConnected { machine, session, system_info, holds })
    }

    fn disconnect(&mut self, machine: MachineId) -> Vec<Effect> {
        self.step(Event::AgentDisconnected { machine, session: self.session })
    }

    fn start(&mut self, machine: MachineId, job: JobId, attempt: u32) -> Vec<Effect> {
        self.step(Event::JobStarted { machine, job, attempt })
    }

    fn report(
        &mut self,
        machine: MachineId,
        job: JobId,
        attempt: u32,
        outcome: JobOutcome,
    ) -> Vec<Effect> {
        let report = JobReport::new(outcome);
        self.step(Event::JobReported { machine, job, attempt, report })
    }

    fn cancel(&mut self, run: RunId) -> Vec<Effect> {
        self.step(Event::CancelRequested { run, reason: CancelReason::Requested })
    }

    /// A job at work on a machine that was launched for it.
    fn running(&mut self) -> (RunId, JobId, MachineId) {
        let (run, jobs) = self.run(1, 1);
        let machine = self.launched(jobs[0]);
        self.connect(machine, &[]);
        self.start(machine, jobs[0], 1);
        (run, jobs[0], machine)
    }

    /// A job at work on a registered machine.
    fn running_on_static(&mut self) -> (RunId, JobId, MachineId) {
        let machine = self.static_machine(Arch::Amd64);
        self.connect(machine, &[]);
        let (run, jobs) = self.run(1, 1);
        self.start(machine, jobs[0], 1);
        (run, jobs[0], machine)
    }

    fn job_state(&self, job: JobId) -> &JobState {
        &self.state.jobs[&job].state
    }

    fn machine_of(&self, job: JobId) -> MachineId {
        self.job_state(job).machine().unwrap()
    }

    fn machine_state(&self, machine: MachineId) -> MachineState {
        self.state.machines[&machine].state
    }

    fn run_state(&self, run: RunId) -> &RunState {
        &self.state.runs[&run].state
    }

    fn failure(&self, job: JobId) -> &FailureReason {
        match self.job_state(job) {
            JobState::Failed { reason, .. } => reason,
            other => panic!("{job} has not failed: {other:?}"),
        }
    }
}

fn amd64(max_concurrent: u32) -> Core {
    Core::new(max_concurrent, &[Arch::Amd64])
}

fn without_provider() -> Core {
    Core::new(0, &[])
}

const PUSHED: JobOutcome = JobOutcome::Completed { digest: None };

fn failed(reason: FailureReason) -> JobOutcome {
    JobOutcome::Failed { message: reason.to_string(), reason, exit_code: Some(1) }
}

fn users_fault() -> JobOutcome {
    failed(FailureReason::User { step: String::new(), exit_code: 1 })
}

// Who is served next.

/// Serves one job after the other on one registered machine and returns them in that order.
fn serve_all(core: &mut Core) -> Vec<JobId> {
    let machine = core.static_machine(Arch::Amd64);
    let mut effects = core.connect(machine, &[]);
    let mut served = Vec::new();
    while let [Effect::Assign { job, attempt, .. }] = effects[..] {
        served.push(job);
        effects = core.report(machine, job, attempt, PUSHED);
    }
    served
}

#[test]
fn projects_are_served_in_turns_and_jobs_of_one_project_in_order() {
    let mut core = without_provider();
    let (_, a) = core.run(1, 3);
    let (_, b) = core.run(2, 2);
    let (_, c) = core.run(3, 1);

    let promised: Vec<JobId> = core.state.queue().iter().map(|queued| queued.job).collect();
    let served = serve_all(&mut core);

    assert_eq!(served, [a[0], b[0], c[0], a[1], b[1], a[2]]);
    assert_eq!(promised, served);
}

#[test]
fn a_project_that_was_just_served_lets_the_others_go_first() {
    let mut core = amd64(1);
    let (_, a) = core.run(1, 2);
    let (_, b) = core.run(2, 1);
    let machine = core.launched(a[0]);
    core.connect(machine, &[]);
    core.report(machine, a[0], 1, PUSHED);

    core.step(Event::MachineGone { machine });

    assert!(matches!(core.job_state(b[0]), JobState::Provisioning { .. }));
    assert!(matches!(core.job_state(a[1]), JobState::Queued { .. }));
}

#[test]
fn a_project_is_not_passed_by_because_machines_differ() {
    let mut core = amd64(1);
    let arm64 = core.static_machine(Arch::Arm64);
    core.connect(arm64, &[]);
    let (_, first) = core.run(1, 2);
    let run = core.request(3);
    let build = core.build(Arch::Arm64);
    let (_, second) = core.run(2, 1);
    core.plan(run, std::slice::from_ref(&build));
    assert_eq!(core.machine_of(build.id), arm64, "project 3 was served last, after project 1");
    let machine = core.launched(first[0]);
    core.connect(machine, &[]);
    core.report(machine, first[0], 1, PUSHED);

    core.step(Event::MachineGone { machine });

    assert!(matches!(core.job_state(second[0]), JobState::Provisioning { .. }));
    assert_eq!(core.job_state(first[1]), &JobState::Queued { attempt: 1 });
}

#[test]
fn a_job_that_is_tried_again_keeps_its_place() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 2);
    let machine = core.launched(jobs[0]);

    core.step(Event::MachineGone { machine });

    assert!(matches!(core.job_state(jobs[0]), JobState::Provisioning { attempt: 2, .. }));
    let [lost] = &core.state.jobs[&jobs[0]].lost_attempts[..] else { panic!("one was lost") };
    assert_eq!((lost.attempt, &lost.reason), (1, &FailureReason::MachineLost));
    assert_eq!(lost.message, "the provider ended the machine");
    assert_eq!(core.job_state(jobs[1]), &JobState::Queued { attempt: 1 });
}

#[test]
fn the_queue_says_what_each_job_waits_for() {
    let mut core = amd64(1);
    core.run(1, 1);
    let run = core.request(1);
    let arm64 = core.static_machine(Arch::Arm64);
    core.connect(arm64, &[]);
    let (first, second) = (core.build(Arch::Arm64), core.build(Arch::Arm64));
    let (amd64, merge) = (core.build(Arch::Amd64), core.merge(&[&first, &second]));
    let jobs = [merge.id, amd64.id, second.id];
    core.plan(run, &[merge, first.clone(), second.clone(), amd64]);

    let queue = core.state.queue();

    let reason = |id: JobId| &queue.iter().find(|queued| queued.job == id).unwrap().reason;
    assert_eq!(reason(jobs[0]), &QueueReason::Jobs(vec![first.id, second.id]));
    assert_eq!(reason(jobs[1]), &QueueReason::Builder { max_concurrent: 1 });
    assert_eq!(reason(jobs[2]), &QueueReason::StaticMachine { arch: Some(Arch::Arm64) });
    assert_eq!(queue.last().unwrap().job, jobs[0], "who waits for others is served last");
}

#[test]
fn a_registered_machine_is_used_before_another_is_launched() {
    let mut core = amd64(5);
    let machine = core.static_machine(Arch::Amd64);
    core.connect(machine, &[]);

    let (_, jobs) = core.run(1, 2);

    assert_eq!(core.machine_of(jobs[0]), machine);
    assert_eq!(core.state.machines[&core.machine_of(jobs[1])].kind, MachineKind::Launched);
}

#[test]
fn an_arch_that_nobody_has_is_emulated() {
    let mut core = amd64(5);
    let run = core.request(1);
    let build = core.build(Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));

    assert_eq!(core.state.machines[&core.machine_of(build.id)].arch, Arch::Amd64);
}

#[test]
fn an_arch_that_a_connected_machine_has_is_waited_for() {
    let mut core = amd64(5);
    let machine = core.static_machine(Arch::Arm64);
    core.connect(machine, &[]);
    let run = core.request(1);
    let (first, second) = (core.build(Arch::Arm64), core.build(Arch::Arm64));
    core.plan(run, &[first.clone(), second.clone()]);
    assert_eq!(core.job_state(second.id), &JobState::Queued { attempt: 1 });

    core.report(machine, first.id, 1, PUSHED);

    assert_eq!(core.machine_of(second.id), machine);
}

// Runs.

#[test]
fn a_merge_waits_for_all_its_builds_and_completes_the_run() {
    let mut core = Core::new(5, &Arch::ALL);
    let run = core.request(1);
    let (one, other) = (core.build(Arch::Amd64), core.build(Arch::Arm64));
    let merge = core.merge(&[&one, &other]);
    core.plan(run, &[one.clone(), other.clone(), merge.clone()]);
    for id in [one.id, other.id] {
        assert_eq!(core.job_state(merge.id), &JobState::Queued { attempt: 1 });
        let machine = core.launched(id);
        core.connect(machine, &[]);
        core.report(machine, id, 1, PUSHED);
    }

    let machine = core.launched(merge.id);
    core.connect(machine, &[]);
    core.report(machine, merge.id, 1, PUSHED);

    assert_eq!(core.run_state(run), &RunState::Completed);
}

#[test]
fn a_failed_build_fails_what_needs_it_unstarted_and_leaves_the_others_alone() {
    let mut core = Core::new(5, &Arch::ALL);
    let run = core.request(1);
    let (one, other) = (core.build(Arch::Amd64), core.build(Arch::Arm64));
    let merge = core.merge(&[&one, &other]);
    core.plan(run, &[one.clone(), other.clone(), merge.clone()]);
    let (first, second) = (core.launched(one.id), core.launched(other.id));
    core.connect(first, &[]);
    core.connect(second, &[]);

    core.report(first, one.id, 1, users_fault());
    assert_eq!(core.failure(merge.id), &FailureReason::DependencyFailed { job: one.name });
    assert_eq!(core.run_state(run), &RunState::Building);

    core.report(second, other.id, 1, PUSHED);
    assert_eq!(core.run_state(run), &RunState::Failed { plan_error: None });
}

#[test]
fn a_run_that_is_planned_twice_keeps_its_first_jobs() {
    let mut core = amd64(1);
    let (run, jobs) = core.run(1, 1);
    let again = core.build(Arch::Amd64);

    assert_eq!(core.plan(run, &[again]), []);

    assert_eq!(core.state.jobs.keys().copied().collect::<Vec<_>>(), jobs);
}

#[test]
fn a_run_that_is_cancelled_while_it_is_planned_ends_at_once_and_gets_no_jobs() {
    let mut core = amd64(1);
    let run = core.request(1);
    core.cancel(run);
    let build = core.build(Arch::Amd64);
    core.plan(run, &[build]);

    assert_eq!(core.run_state(run), &RunState::Cancelled { reason: CancelReason::Requested });
    assert!(core.state.jobs.is_empty() && core.state.outbox.is_empty());
}

#[test]
fn a_run_whose_planning_takes_too_long_fails_and_says_why() {
    let mut core = amd64(1);
    let run = core.request(1);
    core.wait(Duration::from_mins(10));

    let RunState::Failed { plan_error: Some(why) } = core.run_state(run) else {
        panic!("it goes on");
    };
    assert_eq!(why.reason, FailureReason::Timeout { limit_seconds: 600 });
    assert!(why.message.contains("600s"), "{}", why.message);
    assert!(core.state.outbox.is_empty());
}

#[test]
fn a_run_that_waits_for_its_planning_is_not_late_and_other_projects_go_first() {
    let mut core = amd64(1);
    let (first, second, third) = (core.request(1), core.request(1), core.request(1));
    let other = core.request(2);
    let planned = |core: &Core| -> Vec<Effect> { core.state.outbox.values().cloned().collect() };
    assert_eq!(planned(&core), [Effect::Plan { run: first }, Effect::Plan { run: second }]);

    assert_eq!(core.wait(Duration::from_mins(10)).len(), 2);
    assert_eq!(planned(&core), [Effect::Plan { run: third }, Effect::Plan { run: other }]);
    assert_eq!(core.run_state(third), &RunState::Pending);

    let more = [core.request(1), core.request(1), core.request(2)];
    assert_eq!(core.cancel(third), [Effect::Plan { run: more[0] }], "project 2 is planned already");
    assert_eq!(core.cancel(other), [Effect::Plan { run: more[2] }], "it goes before project 1");
}

#[test]
fn a_cancelled_run_ends_at_once_and_its_machines_with_it() {
    let mut core = amd64(1);
    let (run, jobs) = core.run(1, 2);
    let machine = core.launched(jobs[0]);

    assert_eq!(core.cancel(run), [Effect::Terminate { machine }]);

    assert!(jobs.iter().all(|job| core.job_state(*job) == &JobState::Cancelled));
    assert_eq!(core.run_state(run), &RunState::Cancelled { reason: CancelReason::Requested });
}

// Attempts.

#[test]
fn an_agent_that_returns_with_its_job_goes_on_with_it() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.disconnect(machine);
    core.wait(Duration::from_secs(119));

    assert_eq!(core.connect(machine, &[(job, 1)]), []);

    assert!(matches!(core.job_state(job), JobState::Running { attempt: 1, .. }));
}

#[test]
fn an_agent_that_dials_anew_is_not_cut_off_by_the_end_of_its_older_session() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    let older = core.session;
    core.connect(machine, &[(job, 1)]);

    core.step(Event::AgentDisconnected { machine, session: older });

    assert!(core.state.machines[&machine].connected);
    core.disconnect(machine);
    assert!(!core.state.machines[&machine].connected);
}

#[test]
fn an_agent_that_stays_away_too_long_loses_its_job_and_its_machine() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.disconnect(machine);

    assert_eq!(core.wait(Duration::from_mins(2)), [Effect::Terminate { machine }]);

    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
}

#[test]
fn an_agent_that_returns_without_the_job_it_had_begun_has_lost_it() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.disconnect(machine);

    assert_eq!(core.connect(machine, &[]), [Effect::Terminate { machine }]);

    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
}

#[test]
fn an_agent_that_missed_its_job_gets_it_again() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let machine = core.launched(jobs[0]);
    let assign = Effect::Assign { machine, job: jobs[0], attempt: 1 };
    let assigned = core.connect(machine, &[]);
    assert_eq!(assigned, [assign]);
    core.disconnect(machine);

    assert_eq!(core.connect(machine, &[]), assigned);
}

#[test]
fn an_agent_may_connect_before_the_provider_has_answered() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    core.connect(machine, &[]);

    assert_eq!(core.step(Event::MachineLaunched { machine }), []);

    assert_eq!(core.machine_state(machine), MachineState::Busy { job: jobs[0], attempt: 1 });
    assert!(core.state.outbox.is_empty());
}

#[test]
fn an_agent_that_only_reports_the_end_is_understood() {
    let mut core = amd64(1);
    let (run, jobs) = core.run(1, 1);
    let machine = core.launched(jobs[0]);
    core.connect(machine, &[]);

    core.report(machine, jobs[0], 1, PUSHED);

    assert_eq!(core.run_state(run), &RunState::Completed);
}

#[test]
fn a_late_report_of_an_older_attempt_on_the_same_machine_changes_nothing() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_static();
    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    assert!(matches!(core.job_state(job), JobState::Provisioning { attempt: 2, .. }));

    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    core.start(machine, job, 1);
    assert!(matches!(core.job_state(job), JobState::Provisioning { attempt: 2, .. }));

    core.report(machine, job, 2, PUSHED);
    assert_eq!(core.run_state(run), &RunState::Completed);
}

#[test]
fn a_transient_failure_is_tried_again_until_the_attempts_are_used_up() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_static();
    for attempt in 1..=3 {
        core.report(machine, job, attempt, failed(FailureReason::DiskFull));
    }

    assert_eq!(core.failure(job), &FailureReason::DiskFull);
    let lost = [1, 2].map(|attempt| {
        let reason = FailureReason::DiskFull;
        LostAttempt { attempt, message: reason.to_string(), reason }
    });
    assert_eq!(core.state.jobs[&job].lost_attempts, lost);
}

#[test]
fn the_users_own_failure_is_not_tried_again() {
    let mut core = amd64(1);
    let (run, job, machine) = core.running();

    assert_eq!(core.report(machine, job, 1, users_fault()), [Effect::Terminate { machine }]);

    assert_eq!(core.run_state(run), &RunState::Failed { plan_error: None });
}

#[test]
fn an_agent_that_is_shut_down_has_not_cancelled_the_run() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();

    core.report(machine, job, 1, JobOutcome::Cancelled);

    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
}

// Machines.

#[test]
fn a_machine_whose_job_went_while_it_was_launched_ends_as_soon_as_the_provider_answers() {
    let mut core = amd64(1);
    let (run, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    assert_eq!(core.cancel(run), [], "terminating it now would race with the launch");

    let effects = core.step(Event::MachineLaunched { machine });

    assert_eq!(effects, [Effect::Terminate { machine }]);
}

#[test]
fn a_launch_without_capacity_is_tried_again_with_another_machine() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    let refusal = LaunchRefusal::NoCapacity("none in eu-central-1".to_owned());
    core.step(Event::LaunchRefused { machine, refusal });

    assert_eq!(core.machine_state(machine), MachineState::Terminated);
    assert!(matches!(core.job_state(jobs[0]), JobState::Provisioning { attempt: 2, .. }));
}

#[test]
fn a_launch_that_will_always_be_refused_fails_the_job_at_once() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    let refusal = LaunchRefusal::Permanent("the key may not start machines".to_owned());
    core.step(Event::LaunchRefused { machine, refusal });

    assert_eq!(core.failure(jobs[0]), &FailureReason::Provider);
}

#[test]
fn a_machine_that_may_have_been_started_is_terminated() {
    let mut core = amd64(2);
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    let refusal = LaunchRefusal::Unclear("no answer".to_owned());

    let effects = core.step(Event::LaunchRefused { machine, refusal });

    assert!(effects.contains(&Effect::Terminate { machine }));
}

#[test]
fn a_machine_that_is_found_after_it_was_written_off_is_terminated() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.report(machine, job, 1, PUSHED);
    core.step(Event::MachineGone { machine });

    let effects = core.step(Event::MachineLaunched { machine });

    assert_eq!(effects, [Effect::Terminate { machine }]);
}

#[test]
fn a_machine_that_does_not_boot_is_terminated_and_its_job_tried_again() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let machine = core.launched(jobs[0]);

    assert_eq!(core.wait(Duration::from_mins(5)), [Effect::Terminate { machine }]);

    assert_eq!(core.state.jobs[&jobs[0]].lost_attempts[0].reason, FailureReason::BootTimeout);
}

#[test]
fn a_machine_that_is_still_terminating_takes_up_its_slot() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 2);
    let machine = core.launched(jobs[0]);
    core.connect(machine, &[]);
    core.report(machine, jobs[0], 1, PUSHED);
    assert_eq!(core.job_state(jobs[1]), &JobState::Queued { attempt: 1 });

    core.step(Event::MachineGone { machine });

    assert!(matches!(core.job_state(jobs[1]), JobState::Provisioning { .. }));
}

#[test]
fn a_lease_never_ends_before_the_job_must() {
    let mut core = amd64(1);
    core.state.limits.lease = Duration::ZERO;
    let (_, job, machine) = core.running();

    let JobState::Running { deadline, .. } = *core.job_state(job) else { panic!("it runs") };
    assert!(core.state.machines[&machine].lease_until.unwrap() > deadline);
    assert_eq!(core.wait(Duration::from_mins(29)), []);
}

#[test]
fn a_job_that_its_agent_does_not_end_is_ended_by_core() {
    let mut core = amd64(1);
    let (run, job, machine) = core.running();

    assert_eq!(core.wait(Duration::from_mins(31)), [Effect::Terminate { machine }]);

    assert_eq!(core.failure(job), &FailureReason::Timeout { limit_seconds: 30 * 60 });
    assert_eq!(core.run_state(run), &RunState::Failed { plan_error: None });
}

#[test]
fn nobody_times_out_because_core_was_away() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.now = core.now.after(Duration::from_hours(5));
    core.restart();
    assert_eq!(core.wait(Duration::from_secs(170)), []);
    core.connect(machine, &[(job, 1)]);

    core.report(machine, job, 1, PUSHED);

    assert_eq!(core.job_state(job), &JobState::Completed { digest: None });
}

#[test]
fn what_begins_after_a_restart_has_no_more_time_than_usual() {
    let mut core = amd64(1);
    core.restart();
    core.now = core.now.after(Duration::from_secs(1));
    let (_, job, machine) = core.running();
    core.disconnect(machine);

    assert_eq!(core.wait(Duration::from_mins(2)), [Effect::Terminate { machine }]);

    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
}

#[test]
fn a_restart_does_not_ask_for_anything_twice() {
    let mut core = amd64(1);
    core.run(1, 2);
    let outbox = core.state.outbox.clone();

    assert_eq!(core.restart(), []);

    assert_eq!(*core.state.outbox, outbox);
}

#[test]
fn an_agent_of_a_machine_that_is_not_ours_is_sent_away() {
    let mut core = amd64(1);
    let machine = MachineId::from_bits(core.id());

    assert_eq!(core.connect(machine, &[]), [Effect::Disconnect { machine }]);
}

// Registered machines.

#[test]
fn a_registered_machine_stays_busy_until_its_agent_has_stopped_a_cancelled_job() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_static();
    let (_, next) = core.run(1, 1);
    assert_eq!(
        core.cancel(run),
        [Effect::Cancel { machine, job, attempt: 1, reason: StopReason::RunCancelled }]
    );
    assert_eq!(core.machine_state(machine), MachineState::Busy { job, attempt: 1 });

    core.report(machine, job, 1, JobOutcome::Cancelled);

    assert_eq!(core.machine_of(next[0]), machine);
    assert_eq!(core.job_state(job), &JobState::Cancelled);
}

#[test]
fn a_registered_machine_that_does_not_stop_is_disconnected() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_static();
    core.cancel(run);
    assert_eq!(core.wait(Duration::from_mins(1)), [Effect::Disconnect { machine }]);

    let cancel = Effect::Cancel { machine, job, attempt: 1, reason: StopReason::RunCancelled };
    assert_eq!(core.connect(machine, &[(job, 1)]), [cancel], "it still has the job");
    core.disconnect(machine);
    core.connect(machine, &[]);

    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn a_registered_machine_whose_job_takes_too_long_is_told_why_it_must_stop() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_static();

    let effects = core.wait(Duration::from_mins(31));

    let reason = StopReason::Overrun;
    assert_eq!(effects, [Effect::Cancel { machine, job, attempt: 1, reason }]);
}

#[test]
fn a_registered_machine_gets_nothing_new_before_it_has_stopped_what_it_lost() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_static();
    core.disconnect(machine);
    core.wait(Duration::from_mins(2));
    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });

    let effects = core.connect(machine, &[(job, 1)]);
    assert_eq!(
        effects,
        [Effect::Cancel { machine, job, attempt: 1, reason: StopReason::NotWanted }]
    );
    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });

    let effects = core.report(machine, job, 1, JobOutcome::Cancelled);
    assert_eq!(effects, [Effect::Assign { machine, job, attempt: 2 }]);
}

#[test]
fn a_repeated_report_of_an_older_attempt_does_not_free_a_machine_that_is_still_stopping() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_static();
    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    core.start(machine, job, 2);
    core.cancel(run);

    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    assert_eq!(core.machine_state(machine), MachineState::Busy { job, attempt: 2 });

    core.report(machine, job, 2, JobOutcome::Cancelled);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn a_registered_machine_is_free_when_its_agent_has_stopped_all_that_it_held() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_static();
    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    core.start(machine, job, 2);
    core.disconnect(machine);
    core.cancel(run);
    core.connect(machine, &[(job, 1), (job, 2)]);

    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    assert_eq!(core.machine_state(machine), MachineState::Busy { job, attempt: 2 });

    core.report(machine, job, 2, JobOutcome::Cancelled);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn an_agent_that_returns_to_a_machine_that_is_ending_is_told_to_stop() {
    let mut core = amd64(1);
    let (run, job, machine) = core.running();
    core.disconnect(machine);
    assert_eq!(core.cancel(run), [Effect::Terminate { machine }]);

    let effects = core.connect(machine, &[(job, 1)]);

    assert_eq!(
        effects,
        [Effect::Cancel { machine, job, attempt: 1, reason: StopReason::RunCancelled }]
    );
    assert_eq!(core.machine_state(machine), MachineState::Terminating);
}

#[test]
fn an_agent_that_never_begins_loses_the_job() {
    let mut core = without_provider();
    let machine = core.static_machine(Arch::Amd64);
    core.connect(machine, &[]);
    let (_, jobs) = core.run(1, 1);

    assert_eq!(core.wait(Duration::from_mins(31)), [Effect::Disconnect { machine }]);

    assert_eq!(core.job_state(jobs[0]), &JobState::Queued { attempt: 2 });
}

#[test]
fn a_registered_machine_that_is_taken_back_leaves_its_job_to_others() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_static();

    let effects = core.step(Event::StaticMachineRemoved { machine });

    assert_eq!(effects, [Effect::Disconnect { machine }]);
    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
    assert_eq!(core.connect(machine, &[(job, 1)]), [Effect::Disconnect { machine }]);
}

// Records.

#[test]
fn only_what_has_ended_is_forgotten_and_the_changes_name_it() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_static();
    let forgotten = || Event::Forgotten { runs: vec![run], machines: vec![machine] };
    core.step(forgotten());
    assert!(core.state.jobs.contains_key(&job) && core.state.machines.contains_key(&machine));
    core.report(machine, job, 1, PUSHED);
    core.step(Event::StaticMachineRemoved { machine });
    core.state.take_changes();

    core.step(forgotten());

    let changes = core.state.take_changes();
    assert_eq!(changes.runs, BTreeSet::from([run]));
    assert_eq!(changes.jobs, BTreeSet::from([job]));
    assert_eq!(changes.machines, BTreeSet::from([machine]));
    assert_eq!(changes.environments.len(), 1, "that of its last run goes with it");
    assert!(core.state.runs.is_empty() && core.state.jobs.is_empty());
    assert!(core.state.environments.is_empty());
    assert_eq!(core.state.projects.len(), 1, "a project keeps its name");
    assert_eq!(core.state.take_changes(), Changes::default());
}
