//! The accounts of jobs, environments and projects: when the cost of a machine goes into them, and what warns of it.

use std::time::Duration;

use stagely_protocol::Arch;

use super::bill::{Bill, OVERRUN};
use super::budget::{BudgetScope, Purchase, Reservations, Shortage};
use super::step::Step;
use super::{
    BudgetUse, BudgetWarning, Cost, Fleet, Job, JobKind, Machine, Market, Month, Placement,
    PriceSegment, Project, ProviderName, State, Timestamp, Usd,
};
use crate::ids::{EnvironmentId, JobId, MachineId, ProjectId};

/// With a budget, the lease of a machine that serves a preview is renewed after this time.
const LEASE_RENEWAL: Duration = Duration::from_hours(1);

/// A warning comes when so much of a budget is used, in percent.
const WARNING_PERCENT: u128 = 80;

impl State {
    /// The bill of a machine that is requested for `job`; `None` if it costs nothing, or its price is not known.
    pub(super) fn new_bill(&self, job: &Job, machine: &Machine) -> Option<Bill> {
        let prices = &self.limits.prices;
        let Machine { provider, fleet, arch, size, .. } = *machine;
        let price = prices.machine(provider, fleet, arch, size)?;
        let extras = prices.extras(provider, job.disk_gib());
        let run = self.runs.get(&job.run)?;
        let prices = (price + extras, extras);
        Some(Bill::new(run.project, run.environment, job.id, prices, machine.requested_at))
    }

    /// The first budget that does not suffice for a machine for `job`.
    pub(super) fn launch_shortage(
        &self,
        job: &Job,
        (fleet, provider): (Fleet, ProviderName),
        arch: Arch,
        reserved: &Reservations,
    ) -> Option<Shortage> {
        if !self.limits.budget.is_set() {
            return None;
        }
        let price = self.limits.prices.machine(provider, fleet, arch, job.size)?;
        let extras = self.limits.prices.extras(provider, job.disk_gib());
        let run = self.runs.get(&job.run)?;
        let from = self.stepped_at;
        let purchase = Purchase {
            project: run.project,
            environment: run.environment,
            from,
            until: self.lease_for(job, from).after(OVERRUN),
            price_max: price + extras,
        };
        self.shortage(&purchase, reserved)
    }

    /// Whether the lease of the machine ends early because a budget is used up.
    pub(super) fn has_short_lease(&self, id: MachineId) -> bool {
        self.machines.get(&id).is_some_and(|machine| {
            let lease_max = machine.bill.as_ref().and_then(|bill| bill.lease_max);
            lease_max.is_some_and(|lease_max| machine.lease_until < Some(lease_max))
        })
    }

    /// Whether a budget limits the cost of the machine.
    fn has_budget(&self, machine: &Machine) -> bool {
        self.limits.budget.is_set() && machine.bill.is_some()
    }
}

impl Job {
    fn disk_gib(&self) -> Option<u32> {
        match &self.kind {
            JobKind::Deploy { deployment, .. } => Some(deployment.disk_gib),
            JobKind::Build { .. } | JobKind::Merge { .. } | JobKind::Test { .. } => None,
        }
    }
}

impl Step<'_> {
    /// The machine runs. `placement` is the provider's answer, if it has come.
    pub(super) fn begin_bill(&mut self, id: MachineId, placement: Option<&Placement>) {
        let Some(machine) = self.state.machines.get(&id) else { return };
        let at = machine.paid_from(self.now);
        let spot = placement.is_some_and(|placement| placement.market == Market::Spot);
        // Their only prices are those of the configuration.
        let is_here = matches!(machine.provider, ProviderName::Local | ProviderName::Qemu);
        let configured =
            machine.bill.as_ref().map(|bill| bill.price_max.saturating_sub(bill.extras));
        let price = placement.and_then(|placement| {
            placement.spot_price.or(placement.price).or(configured.filter(|_| is_here))
        });
        if machine.bill.is_some() {
            self.state.change_machine(id, |machine| {
                if let Some(bill) = &mut machine.bill {
                    bill.begin(at, price, spot);
                }
            });
        }
    }

    /// The machine is gone: the rest of its cost goes into the accounts. A machine that comes back after that is ended at
    /// once, and its bill stays closed.
    pub(super) fn end_bill(&mut self, id: MachineId) {
        let Some(machine) = self.state.machines.get(&id) else { return };
        let Some(bill) = machine.bill.as_ref().filter(|bill| bill.ended_at.is_none()) else {
            return;
        };
        let runs = !bill.segments.is_empty();
        let end = machine.paid_until(self.now, true);
        let job = bill.job;
        if runs {
            self.settle(id, end);
        }
        self.state.change_machine(id, |machine| {
            if let Some(bill) = &mut machine.bill {
                bill.ended_at = Some(end);
            }
        });
        if runs {
            self.report_cost(job);
        }
    }

    /// Has the comment say what the job has cost.
    fn report_cost(&mut self, job: JobId) {
        let Some(job) = self.state.jobs.get(&job).filter(|job| !job.cost.is_zero()) else { return };
        let run = self.state.runs.get(&job.run);
        let Some((run, environment)) = run.map(|run| (run.id, run.environment)) else { return };
        let environment = self.state.environments.get(&environment);
        if let Some(environment) = environment.filter(|found| found.report.run == Some(run)) {
            self.state.request_report_of(environment.id);
        }
    }

    /// The price of a spot machine has changed.
    pub(super) fn change_price(&mut self, id: MachineId, price: Usd) {
        let Some(machine) = self.state.machines.get(&id) else { return };
        let runs = machine.bill.as_ref().is_some_and(|bill| {
            let is_new = |last: &PriceSegment| last.price != price + bill.extras;
            bill.ended_at.is_none() && bill.segments.last().is_some_and(is_new)
        });
        if runs {
            let until = machine.paid_until(self.now, false);
            self.settle(id, until);
            self.state.change_machine(id, |machine| {
                if let Some(bill) = &mut machine.bill {
                    bill.change_price(price);
                }
            });
        }
    }

    /// From now on `job` pays for the machine, which serves what the job has deployed.
    pub(super) fn change_payer(&mut self, id: MachineId, job: JobId) {
        let Some(machine) = self.state.machines.get(&id) else { return };
        if machine.bill.as_ref().is_none_or(|bill| bill.job == job) {
            return;
        }
        let until = machine.paid_until(self.now, false);
        self.settle(id, until);
        self.state.change_machine(id, |machine| {
            if let Some(bill) = &mut machine.bill {
                bill.job = job;
            }
        });
    }

    /// Enters the cost until `until` into the accounts.
    fn settle(&mut self, id: MachineId, until: Timestamp) {
        let mut parts = Vec::new();
        self.state.change_machine(id, |machine| {
            parts = machine.bill.as_mut().map(|bill| bill.settle(until)).unwrap_or_default();
        });
        let Some(machine) = self.state.machines.get(&id) else { return };
        let Some(bill) = &machine.bill else { return };
        let (fleet, project, environment, job) =
            (machine.fleet, bill.project, bill.environment, bill.job);
        for (month, cost) in parts {
            self.state.change_project(project, |project| {
                project.spending.entry(month).or_default().add(fleet, cost);
            });
            self.state.change_environment(environment, |environment| {
                environment.spending.add(fleet, cost);
            });
            self.state.add_cost(job, cost);
        }
    }

    /// The lease of a machine that serves a preview after a deployment. With a budget it is short, and renewed.
    pub(super) fn lease_preview(&mut self, id: MachineId) {
        let end = self.now.after(self.state.limits.previews.lease);
        let Some(machine) = self.state.machines.get(&id) else { return };
        if !self.state.has_budget(machine) {
            self.extend_lease(id, end);
            return;
        }
        self.state.change_machine(id, |machine| {
            if let Some(bill) = &mut machine.bill {
                bill.lease_max = Some(end);
            }
        });
        self.renew_lease(id);
    }

    /// Renews the lease of a machine that serves a preview. Returns false if the preview has to sleep: its budget is used
    /// up, the longest lease is over, or its lease is not a renewed one.
    pub(super) fn renew_lease(&mut self, id: MachineId) -> bool {
        let Some(machine) = self.state.machines.get(&id) else { return false };
        let lease_max = machine.bill.as_ref().and_then(|bill| bill.lease_max);
        let Some(lease_max) = lease_max else { return false };
        let before = machine.lease_until;
        let until = machine.paid_until(self.now, false);
        self.settle(id, until);
        let archive = self.state.limits.previews.archive;
        let end = self.now.after(LEASE_RENEWAL).after(archive).min(lease_max);
        let is_renewed = self.extend_lease(id, end);
        is_renewed && self.state.machines.get(&id).is_some_and(|now| now.lease_until > before)
    }

    /// Warns once a month of a budget that is nearly used up.
    pub(super) fn warn_of_budgets(&mut self) {
        if !self.state.limits.budget.is_set() {
            return;
        }
        let month = Month::of(self.now);
        let reserved = self.state.reservations();
        let is_open =
            |(id, warned): (ProjectId, Option<Month>)| (warned != Some(month)).then_some(id);
        let projects = self.state.projects.values().map(|found| (found.id, found.budget_warned));
        let open: Vec<ProjectId> = projects.filter_map(is_open).collect();
        for project in open {
            let own = self.state.use_of(BudgetScope::Project(project, month), &reserved);
            let all = self.state.use_of(BudgetScope::Month(month), &reserved);
            let has_spent = self
                .state
                .projects
                .get(&project)
                .is_some_and(|found| !found.spent_in(month).is_zero());
            let all = all.filter(|_| has_spent);
            let nearly = [own, all].into_iter().flatten().find(BudgetUse::is_nearly_used);
            if let Some(used) = nearly {
                self.state.change_project(project, |found| found.budget_warned = Some(month));
                self.outcome.warnings.push(BudgetWarning { project, month, used });
            }
        }
    }

    /// Somebody allows more than the configuration does.
    pub(super) fn allow_budget(
        &mut self,
        project: ProjectId,
        pull_request: Option<EnvironmentId>,
        amount: Usd,
    ) {
        let month = Month::of(self.now);
        match pull_request {
            Some(environment) => self.state.change_environment(environment, |environment| {
                environment.allowance += amount;
            }),
            None => self.state.change_project(project, |project| {
                *project.allowances.entry(month).or_default() += amount;
                // There is another limit to be warned of.
                project.budget_warned = None;
            }),
        }
    }
}

impl BudgetUse {
    fn is_nearly_used(&self) -> bool {
        let used = u128::from((self.spent + self.reserved).0);
        used * 100 >= u128::from(self.limit.0) * WARNING_PERCENT
    }
}

impl Project {
    /// What its machines have cost in a month, as far as it is in the accounts.
    pub fn spent_in(&self, month: Month) -> Usd {
        self.spending.get(&month).map_or(Usd::ZERO, |spending| spending.total().amount)
    }

    /// What was allowed in a month beyond the budget of the configuration.
    pub fn allowed_in(&self, month: Month) -> Usd {
        self.allowances.get(&month).copied().unwrap_or_default()
    }
}

impl Cost {
    /// The sum of what is in the account of a job or a pull request, and of what its machines have not settled.
    #[must_use]
    pub fn with<'a>(self, machines: impl Iterator<Item = &'a Machine>, now: Timestamp) -> Self {
        self + machines.flat_map(|machine| machine.unsettled(now)).map(|(_, cost)| cost).sum()
    }
}
