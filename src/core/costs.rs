//! What jobs, runs, pull requests and projects cost: their accounts, and what live machines have not entered there yet.

use std::fmt::Write as _;

use stagely_state::ids::{EnvironmentId, JobId, ProjectId, RunId};
use stagely_state::{
    BudgetScope, BudgetUse, Cost, Fleet, Job, Machine, Month, Shortage, Spending, Timestamp, Usd,
};

use super::records::Records;
use crate::config::BudgetConfig;

/// The moment for which costs are those in the accounts alone. They change with events, and not with the time.
pub(crate) const SETTLED: Timestamp = Timestamp(0);

impl Records {
    fn machines_of_job(&self, job: JobId) -> impl Iterator<Item = &Machine> {
        self.live_machines()
            .filter(move |machine| machine.bill.as_ref().is_some_and(|bill| bill.job == job))
    }

    /// What a job has cost until `now`.
    pub(crate) fn cost_of_job(&self, job: &Job, now: Timestamp) -> Cost {
        job.cost.with(self.machines_of_job(job.id), now)
    }

    /// What the jobs of a run have cost until `now`, by fleet.
    pub(crate) fn spending_of_run(&self, run: RunId, now: Timestamp) -> Spending {
        let mut spending = Spending::default();
        for job in self.jobs_of(run) {
            spending.add(job.kind.fleet(), self.cost_of_job(job, now));
        }
        spending
    }

    /// What an environment has cost until `now`, in all its time.
    pub(crate) fn spending_of_environment(&self, id: EnvironmentId, now: Timestamp) -> Spending {
        let found = self.environments.get(&id);
        let mut spending = found.map(|found| found.spending).unwrap_or_default();
        for machine in self.live_machines() {
            if machine.bill.as_ref().is_some_and(|bill| bill.environment == id) {
                let unsettled = machine.unsettled(now).into_iter().map(|(_, cost)| cost).sum();
                spending.add(machine.fleet, unsettled);
            }
        }
        spending
    }

    /// What a project has cost in a month until `now`.
    pub(crate) fn spending_of_project(
        &self,
        id: ProjectId,
        month: Month,
        now: Timestamp,
    ) -> Spending {
        let found = self.projects.get(&id).and_then(|project| project.spending.get(&month));
        let mut spending = found.copied().unwrap_or_default();
        for machine in self.live_machines() {
            if machine.bill.as_ref().is_some_and(|bill| bill.project == id) {
                let unsettled = machine.unsettled(now).into_iter();
                let of_month = unsettled.filter(|(of, _)| *of == month).map(|(_, cost)| cost).sum();
                spending.add(machine.fleet, of_month);
            }
        }
        spending
    }

    /// What is used of a budget at `now`; `None` if there is no limit.
    pub(crate) fn budget_use(
        &self,
        budget: &BudgetConfig,
        scope: BudgetScope,
        now: Timestamp,
    ) -> Option<BudgetUse> {
        let is_counted = |machine: &&Machine| {
            let bill = machine.bill.as_ref();
            bill.is_some_and(|bill| match scope {
                BudgetScope::Month(_) => true,
                BudgetScope::Project(project, _) => bill.project == project,
                BudgetScope::PullRequest(environment) => bill.environment == environment,
            })
        };
        let (limit, settled, month) = match scope {
            BudgetScope::Month(month) => {
                let projects = self.projects.values();
                let allowed: Usd = projects.clone().map(|project| project.allowed_in(month)).sum();
                let spent = projects.map(|project| project.spent_in(month)).sum();
                (budget.month? + allowed, spent, Some(month))
            }
            BudgetScope::Project(id, month) => {
                let project = self.projects.get(&id)?;
                let limit = budget.of_project(&project.name)? + project.allowed_in(month);
                (limit, project.spent_in(month), Some(month))
            }
            BudgetScope::PullRequest(id) => {
                let environment = self.environments.get(&id)?;
                environment.pull_request?;
                let limit = budget.pull_request? + environment.allowance;
                (limit, environment.spending.total().amount, None)
            }
        };
        let machines = || self.live_machines().filter(is_counted);
        let unsettled = machines().flat_map(|machine| machine.unsettled(now));
        let unsettled = unsettled.filter(|(of, _)| month.is_none_or(|month| month == *of));
        let unsettled: Usd = unsettled.map(|(_, cost)| cost.amount).sum();
        let reserved: Usd = match month {
            Some(month) => machines().map(|machine| machine.reserved_in(month)).sum(),
            None => machines().map(Machine::reserved).sum(),
        };
        let (spent, reserved) = (settled + unsettled, reserved.saturating_sub(unsettled));
        Some(BudgetUse { limit, spent, reserved })
    }

    /// Which budget does not suffice, and what helps, for people.
    pub(crate) fn shortage_text(&self, shortage: &Shortage) -> String {
        let project = self.projects.get(&shortage.project).map_or("", |project| &*project.name);
        let (budget, option) = match shortage.scope {
            BudgetScope::Month(month) => {
                (format!("{}'s budget of all projects", month.name()), String::new())
            }
            BudgetScope::Project(_, month) => {
                (format!("{}'s budget of {project}", month.name()), String::new())
            }
            BudgetScope::PullRequest(id) => {
                let number = self.environments.get(&id).and_then(|found| found.pull_request);
                let number = number.unwrap_or_default();
                let budget = format!("the budget of pull request {number} of {project}");
                (budget, format!(" --pull-request {number}"))
            }
        };
        let BudgetUse { limit, spent, reserved } = shortage.used;
        let mut text = if (spent + reserved).is_zero() {
            format!(
                "{budget} ({limit}) is less than the {} that a machine may cost",
                shortage.needed
            )
        } else if reserved.is_zero() {
            format!("{budget} is used up ({limit})")
        } else {
            format!("{budget} is used up ({limit}, {reserved} of it reserved for running machines)")
        };
        let dollars = shortage.missing().whole_dollars();
        let _ = write!(text, "; `stagely budget allow {project} {dollars}{option}`");
        text
    }
}

/// `Cost ≈ $0.061: build 0.013, preview 0.011, tests 0.037`; `None` if nothing was spent.
pub(crate) fn sentence(spending: &Spending) -> Option<String> {
    let total = spending.total();
    if total.is_zero() {
        return None;
    }
    let parts = [("build", Fleet::Builder), ("preview", Fleet::Preview), ("tests", Fleet::Tester)];
    let parts = parts.into_iter().filter_map(|(name, fleet)| {
        let cost = spending.of(fleet);
        (!cost.is_zero()).then(|| format!("{name} {}", cost.amount.number()))
    });
    Some(format!("Cost {total}: {}", parts.collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use stagely_protocol::{BuildArgs, Shard};
    use stagely_state::{Environment, JobKind, Project, Test, TestMachine, UsedImage};

    use super::*;
    use crate::core::fixtures;

    fn records() -> Records {
        let mut records = Records::default();
        let project = Project::new(ProjectId::from_bits(1), "app".to_owned(), String::new());
        let id = EnvironmentId::from_bits(1);
        let mut environment = Environment::new(id, project.id, "pr-7".to_owned());
        environment.pull_request = Some(7);
        records.projects.insert(project.id, project);
        records.environments.insert(id, environment);
        records
    }

    #[test]
    fn a_shortage_names_the_budget_its_amount_and_the_command_that_helps() {
        let month: Month = "2026-11".parse().unwrap();
        let project = ProjectId::from_bits(1);
        let full = BudgetUse { limit: Usd(50_000_000), spent: Usd(49_900_000), reserved: Usd(0) };
        let text = |scope, used, needed| {
            let shortage = Shortage { scope, used, project, needed: Usd(needed) };
            records().shortage_text(&shortage)
        };
        assert_eq!(
            text(BudgetScope::Project(project, month), full, 4_200_000),
            "November's budget of app is used up ($50.00); `stagely budget allow app 5`"
        );
        let reserved = BudgetUse { reserved: Usd(100_000), ..full };
        assert_eq!(
            text(BudgetScope::Month(month), reserved, 190_000),
            "November's budget of all projects is used up ($50.00, $0.100 of it reserved for running \
             machines); `stagely budget allow app 1`"
        );
        let empty = BudgetUse { limit: Usd(100_000), spent: Usd(0), reserved: Usd(0) };
        assert_eq!(
            text(BudgetScope::PullRequest(EnvironmentId::from_bits(1)), empty, 190_000),
            "the budget of pull request 7 of app ($0.100) is less than the $0.190 that a machine may \
             cost; `stagely budget allow app 1 --pull-request 7`"
        );
    }

    #[test]
    fn the_cost_of_a_run_is_told_by_what_its_jobs_do() {
        let test = Test {
            image: UsedImage::Image { image: "r/app/main:app".parse().unwrap() },
            command: Vec::new(),
            env: BuildArgs::default(),
            secrets: Vec::new(),
            shard: Shard::default(),
            retries: 0,
            junit: Vec::new(),
            artifacts: Vec::new(),
            comment_images: Vec::new(),
            on: TestMachine::Tester,
            preview_of: None,
        };
        let deployment = Box::new(fixtures::deployment());
        let kinds = [
            None,
            Some(JobKind::Deploy { arch: None, deployment }),
            Some(JobKind::Test { arch: None, test: Box::new(test) }),
        ];
        let mut records = records();
        for (number, kind) in (1..).zip(kinds) {
            let mut job = fixtures::job(number, 1, "app", "linux/amd64");
            job.kind = kind.unwrap_or(job.kind);
            job.cost.amount = Usd(u64::try_from(number).unwrap() * 10_000);
            records.run_jobs.entry(job.run).or_default().push(job.id);
            records.jobs.insert(job.id, job);
        }
        let spending = records.spending_of_run(RunId::from_bits(1), SETTLED);
        let expected = "Cost $0.060: build 0.010, preview 0.020, tests 0.030";
        assert_eq!(sentence(&spending).unwrap(), expected);
    }

    #[test]
    fn a_sentence_has_the_parts_that_cost_something() {
        let mut spending = Spending::default();
        assert_eq!(sentence(&spending), None);
        let cost = |amount, approximate| Cost { amount: Usd(amount), approximate };
        spending.add(Fleet::Builder, cost(13_000, false));
        assert_eq!(sentence(&spending).unwrap(), "Cost $0.013: build 0.013");
        spending.add(Fleet::Preview, cost(11_000, true));
        spending.add(Fleet::Tester, cost(37_000, false));
        let text = "Cost ≈ $0.061: build 0.013, preview 0.011, tests 0.037";
        assert_eq!(sentence(&spending).unwrap(), text);
    }
}
