//! Budgets: what is reserved, who waits, and what goes on when money is there.

use super::costs::{BUILDER, EXTRAS, PREVIEW};
use super::*;

/// The most that the machine of a build can cost: a lease of an hour, and 5 minutes until it is gone for sure.
const BUILD_MAX: Usd = Usd(189_584);

/// A core with prices and this budget of each project.
fn with_budget(max_concurrent: u32, budget: Budget) -> Core {
    let mut core = amd64(max_concurrent).with_prices();
    core.state.limits.budget = budget;
    core
}

fn of_project(amount: Usd) -> Budget {
    Budget { project: Some(amount), ..Budget::default() }
}

impl Core {
    fn reason(&self, job: JobId) -> QueueReason {
        let queue = self.state.queue();
        let found = queue.into_iter().find(|queued| queued.job == job);
        found.unwrap_or_else(|| panic!("{job} is {:?}", self.job_state(job))).reason
    }

    fn shortage(&self, job: JobId) -> Shortage {
        match self.reason(job) {
            QueueReason::Budget(shortage) => shortage,
            other => panic!("{job} waits for {other:?}"),
        }
    }

    fn month(&self) -> Month {
        Month::of(self.now)
    }

    fn allow(&mut self, amount: u64, pull_request: Option<u128>) -> Vec<Effect> {
        let pull_request = pull_request.map(EnvironmentId::from_bits);
        let (project, amount) = (ProjectId::from_bits(1), Usd(amount));
        self.step(Event::BudgetAllowed { project, pull_request, amount })
    }
}

#[test]
fn the_highest_cost_is_reserved_before_a_machine_is_asked_for() {
    assert_eq!((BUILDER + EXTRAS).for_hours(Duration::from_mins(65)), BUILD_MAX);
    let mut core = with_budget(5, of_project(Usd(2 * BUILD_MAX.0)));
    let (_, jobs) = core.run(1, 3);

    let project = BudgetScope::Project(ProjectId::from_bits(1), core.month());
    let used = core.state.budget_use(project).unwrap();
    assert_eq!(used.reserved, BUILD_MAX + BUILD_MAX, "for two machines");
    assert_eq!(used.spent, Usd::ZERO);
    let shortage = core.shortage(jobs[2]);
    assert_eq!((shortage.scope, shortage.used), (project, used));
    assert_eq!((shortage.needed, shortage.missing()), (BUILD_MAX, BUILD_MAX));
    assert_eq!(shortage.missing().whole_dollars(), 1);
}

#[test]
fn a_job_waits_for_what_is_reserved_until_the_machine_that_reserved_it_is_gone() {
    let mut core = with_budget(5, of_project(Usd(BUILD_MAX.0 + 50_000)));
    let (_, jobs) = core.run(1, 2);
    let machine = core.machine_of(jobs[0]);
    core.launched_at(machine, BUILDER, Some(Usd(40_000)));
    core.connect(machine, &[]);
    core.start(machine, jobs[0], 1);
    core.wait(Duration::from_mins(10));
    core.shortage(jobs[1]);

    assert_eq!(core.report(machine, jobs[0], 1, PUSHED), [Effect::Terminate { machine }]);
    core.shortage(jobs[1]);
    core.gone(machine);

    let next = core.machine_of(jobs[1]);
    assert_ne!(next, machine, "it goes on with what is left");
}

#[test]
fn a_job_goes_on_when_somebody_allows_more_and_not_before() {
    let mut core = with_budget(5, of_project(Usd(100_000)));
    let (_, jobs) = core.run(1, 1);
    core.shortage(jobs[0]);
    core.wait(Duration::from_hours(20));
    core.shortage(jobs[0]);

    core.allow(50_000, None);
    assert_eq!(core.shortage(jobs[0]).used.limit, Usd(150_000));
    core.allow(50_000, None);

    core.machine_of(jobs[0]);
}

#[test]
fn a_new_month_has_its_own_budget() {
    let mut core = with_budget(5, of_project(Usd(BUILD_MAX.0)));
    let (_, jobs) = core.run(1, 2);
    let machine = core.machine_of(jobs[0]);
    core.launched_at(machine, BUILDER, None);
    core.connect(machine, &[]);
    core.report(machine, jobs[0], 1, PUSHED);
    core.gone(machine);
    core.shortage(jobs[1]);
    let next = core.month().end();
    assert_eq!(core.state.next_deadline(), Some(next), "nobody has to wake it");

    core.wait(next.since(core.now));

    core.machine_of(jobs[1]);
}

#[test]
fn money_for_a_life_over_the_end_of_a_month_is_of_both_months() {
    let mut core = with_budget(5, of_project(Usd(BUILD_MAX.0)));
    core.now = core.month().end().before(Duration::from_mins(10));
    let (_, jobs) = core.run(1, 1);
    core.machine_of(jobs[0]);
    let used = |month| {
        let scope = BudgetScope::Project(ProjectId::from_bits(1), month);
        core.state.budget_use(scope).unwrap().reserved
    };
    let (this, next) = (used(core.month()), used(core.month().next()));
    assert_eq!(this, (BUILDER + EXTRAS).for_hours(Duration::from_mins(10)));
    assert_eq!(next, (BUILDER + EXTRAS).for_hours(Duration::from_mins(55)));
}

#[test]
fn all_projects_share_the_budget_of_a_month_and_each_has_its_own() {
    let mut budget = Budget { month: Some(Usd(BUILD_MAX.0)), ..Budget::default() };
    let mut core = with_budget(5, budget.clone());
    let (_, first) = core.run(1, 1);
    let (_, second) = core.run(2, 1);
    core.machine_of(first[0]);
    assert_eq!(core.shortage(second[0]).scope, BudgetScope::Month(core.month()));
    assert_eq!(core.shortage(second[0]).project, ProjectId::from_bits(2));

    budget = Budget { projects: [(String::new(), Usd(1))].into(), ..Budget::default() };
    let mut core = with_budget(5, budget);
    let (_, jobs) = core.run(1, 1);
    assert_eq!(core.shortage(jobs[0]).used.limit, Usd(1), "the limit of its name");
}

#[test]
fn a_pull_request_has_a_budget_for_its_whole_life_and_a_branch_has_none() {
    let budget = Budget { pull_request: Some(Usd(100_000)), ..Budget::default() };
    let mut core = with_budget(5, budget);
    let (_, branch) = core.run(1, 1);
    core.machine_of(branch[0]);
    let environment = EnvironmentId::from_bits(1);
    let run = core.request(1);
    core.state.change_environment(environment, |found| found.pull_request = Some(7));
    let build = core.build(Arch::Amd64);
    core.plan(run, std::slice::from_ref(&build));
    assert_eq!(core.shortage(build.id).scope, BudgetScope::PullRequest(environment));
    core.allow(5_000_000, None);
    core.shortage(build.id);

    core.allow(5_000_000, Some(1));

    core.machine_of(build.id);
}

#[test]
fn machines_without_a_price_need_no_budget() {
    let mut core = with_budget(5, of_project(Usd(0)));
    core.state.limits.prices = Prices::default();
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    assert_eq!(core.state.machines[&machine].bill, None);
}

#[test]
fn core_warns_once_when_most_of_a_budget_is_used() {
    let mut core = with_budget(5, of_project(Usd(BUILD_MAX.0 * 5 / 4)));
    let run = core.request(1);
    let build = core.build(Arch::Amd64);
    let commit: CommitSha = "c".repeat(40).parse().unwrap();
    let plan = Ok(PlannedRun::new(commit, vec![build]));
    let warnings = core.outcome_of(Event::RunPlanned { run, plan }).warnings;
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert_eq!(warning.used.reserved, BUILD_MAX);
    assert_eq!((warning.project, warning.month), (ProjectId::from_bits(1), core.month()));

    assert_eq!(core.outcome_of(Event::Tick).warnings, []);
}

#[test]
fn a_preview_renews_its_lease_by_the_hour_and_sleeps_without_money() {
    // The build, the deployment, and about two hours of the preview.
    let mut core = with_budget(5, of_project(Usd(500_000)));
    let (_, _, machine) = core.live(1);
    let lease = |core: &Core| core.state.machines[&machine].lease_until.unwrap();
    let first = lease(&core);
    assert!(first.since(core.now) < Duration::from_mins(90), "{:?}", first.since(core.now));
    let preview = core.preview(1).id;
    let mut renewals = 0;
    let slept = loop {
        assert!(renewals < 50, "it never sleeps");
        // Somebody visits it all the time.
        core.step(Event::PreviewRequested { preview, at: core.now });
        let before = lease(&core);
        let effects = core.wait(Duration::from_mins(10));
        if effects.contains(&Effect::Sleep { machine, preview }) {
            break core.preview(1).state;
        }
        renewals += u32::from(lease(&core) > before);
    };
    assert!(renewals >= 1, "it was renewed");
    assert!(matches!(slept, PreviewState::Archiving { wakes: false, .. }), "{slept:?}");
    let project = BudgetScope::Project(ProjectId::from_bits(1), core.month());
    let used = core.state.budget_use(project).unwrap();
    assert!(used.spent + used.reserved <= used.limit, "{used:?}");
    assert!(PREVIEW < BUILDER);
}

#[test]
fn running_jobs_finish_although_the_budget_is_used_up() {
    let mut core = with_budget(5, of_project(Usd(BUILD_MAX.0)));
    let (run, job, machine) = core.running();
    core.wait(Duration::from_mins(25));
    core.report_early(machine, job, 1);
    assert_eq!(core.exporting(machine), Some(job), "its export is reserved, too");
    assert_eq!(*core.run_state(run), RunState::Completed);
}

#[test]
fn a_restart_changes_nothing_in_accounts_and_reservations() {
    let mut core = with_budget(5, of_project(Usd(2 * BUILD_MAX.0)));
    let (_, jobs) = core.run(1, 3);
    let machine = core.machine_of(jobs[0]);
    core.launched_at(machine, BUILDER, None);
    core.connect(machine, &[]);
    let project = BudgetScope::Project(ProjectId::from_bits(1), core.month());
    let before = core.state.budget_use(project);
    core.restart();
    assert_eq!(core.state.budget_use(project), before);
    core.shortage(jobs[2]);
}
