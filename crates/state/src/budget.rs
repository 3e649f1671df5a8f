//! Budgets: before a machine is asked for, the most that it can cost is reserved. What is spent and reserved stays within
//! the limits, and a job that does not fit waits.

use std::collections::BTreeMap;

use super::bill::OVERRUN;
use super::{Machine, Month, State, Timestamp, Usd};
use crate::ids::{EnvironmentId, MachineId, ProjectId};

/// The limits of the configuration. What [`Event::BudgetAllowed`](super::Event::BudgetAllowed) allows is added to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Of a month (UTC), for all projects.
    pub month: Option<Usd>,
    /// Of a month, for each project.
    pub project: Option<Usd>,
    /// The same for some projects, by name.
    pub projects: BTreeMap<String, Usd>,
    /// Of each pull request, in all.
    pub pull_request: Option<Usd>,
}

impl Budget {
    pub(super) fn is_set(&self) -> bool {
        self.month.is_some()
            || self.project.is_some()
            || !self.projects.is_empty()
            || self.pull_request.is_some()
    }

    fn of_project(&self, name: &str) -> Option<Usd> {
        self.projects.get(name).copied().or(self.project)
    }
}

/// Whose budget it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BudgetScope {
    /// All projects, in a month.
    Month(Month),
    /// A project, in a month.
    Project(ProjectId, Month),
    /// The pull request of an environment, in all.
    PullRequest(EnvironmentId),
}

/// A limit, and what is used of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetUse {
    /// With all that was allowed beyond the configuration's limit.
    pub limit: Usd,
    pub spent: Usd,
    /// The most that running machines can still cost.
    pub reserved: Usd,
}

/// A budget that does not suffice for another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub scope: BudgetScope,
    pub used: BudgetUse,
    /// The project whose machine does not fit.
    pub project: ProjectId,
    /// The most that the machine can cost.
    pub needed: Usd,
}

impl Shortage {
    /// How much more has to be allowed.
    pub fn missing(&self) -> Usd {
        let BudgetUse { limit, spent, reserved } = self.used;
        (spent + reserved + self.needed).saturating_sub(limit)
    }
}

/// Time of a machine that is to be paid for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purchase {
    pub(super) project: ProjectId,
    pub(super) environment: EnvironmentId,
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
    /// The highest price of an hour.
    pub(super) price_max: Usd,
}

impl Purchase {
    /// The most that it can cost in each month.
    fn by_month(&self) -> impl Iterator<Item = (Month, Usd)> {
        let Self { from, until, price_max, .. } = *self;
        months(from, until).map(move |month| {
            let overlap = until.min(month.end()).since(from.max(month.start()));
            (month, price_max.for_hours(overlap))
        })
    }
}

/// The months in which a time lies, at least one.
fn months(from: Timestamp, until: Timestamp) -> impl Iterator<Item = Month> {
    let later = move |month: &Month| Some(month.next()).filter(|next| next.start() < until);
    std::iter::successors(Some(Month::of(from)), later)
}

/// What the machines of one moment have reserved.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    months: BTreeMap<Month, Usd>,
    projects: BTreeMap<(ProjectId, Month), Usd>,
    environments: BTreeMap<EnvironmentId, Usd>,
}

impl State {
    pub(super) fn reservations(&self) -> Reservations {
        let mut reserved = Reservations::default();
        if !self.limits.budget.is_set() {
            return reserved;
        }
        for machine in self.live_machines() {
            let Some(bill) = &machine.bill else { continue };
            for month in months(bill.settled_until, machine.paid_until_max()) {
                let amount = machine.reserved_in(month);
                *reserved.months.entry(month).or_default() += amount;
                *reserved.projects.entry((bill.project, month)).or_default() += amount;
            }
            *reserved.environments.entry(bill.environment).or_default() += machine.reserved();
        }
        reserved
    }

    /// The first budget that does not suffice for `purchase`; `None` if all do.
    pub(super) fn shortage(
        &self,
        purchase: &Purchase,
        reserved: &Reservations,
    ) -> Option<Shortage> {
        if !self.limits.budget.is_set() || purchase.price_max.is_zero() {
            return None;
        }
        let monthly = purchase.by_month().flat_map(|(month, needed)| {
            [BudgetScope::Project(purchase.project, month), BudgetScope::Month(month)]
                .map(|scope| (scope, needed))
        });
        let whole = purchase.price_max.for_hours(purchase.until.since(purchase.from));
        let of_pull_request = (BudgetScope::PullRequest(purchase.environment), whole);
        monthly.chain([of_pull_request]).find_map(|(scope, needed)| {
            let used = self.use_of(scope, reserved)?;
            let is_short = used.spent + used.reserved + needed > used.limit;
            is_short.then_some(Shortage { scope, used, project: purchase.project, needed })
        })
    }

    /// What is used of a budget; `None` if there is no limit. The cost of running machines counts as reserved until it is
    /// in the accounts.
    pub fn budget_use(&self, scope: BudgetScope) -> Option<BudgetUse> {
        self.use_of(scope, &self.reservations())
    }

    pub(super) fn use_of(
        &self,
        scope: BudgetScope,
        reservations: &Reservations,
    ) -> Option<BudgetUse> {
        let budget = &self.limits.budget;
        let (limit, allowed, spent, reserved) = match scope {
            BudgetScope::Month(month) => {
                let projects = self.projects.values();
                let spent = projects.clone().map(|project| project.spent_in(month)).sum();
                let allowed = projects.map(|project| project.allowed_in(month)).sum();
                (budget.month?, allowed, spent, reservations.months.get(&month))
            }
            BudgetScope::Project(id, month) => {
                let project = self.projects.get(&id)?;
                let limit = budget.of_project(&project.name)?;
                let reserved = reservations.projects.get(&(id, month));
                (limit, project.allowed_in(month), project.spent_in(month), reserved)
            }
            BudgetScope::PullRequest(id) => {
                let environment = self.environments.get(&id)?;
                environment.pull_request?;
                let spent = environment.spending.total().amount;
                let reserved = reservations.environments.get(&id);
                (budget.pull_request?, environment.allowance, spent, reserved)
            }
        };
        let reserved = reserved.copied().unwrap_or_default();
        Some(BudgetUse { limit: limit + allowed, spent, reserved })
    }

    /// Whether a longer lease of `machine` fits into the budgets.
    pub(super) fn lease_shortage(&self, machine: &Machine, lease: Timestamp) -> Option<Shortage> {
        let bill = machine.bill.as_ref()?;
        let (from, until) = (machine.paid_until_max(), lease.after(OVERRUN));
        if until <= from || !self.limits.budget.is_set() {
            return None;
        }
        let (project, environment, price_max) = (bill.project, bill.environment, bill.price_max);
        let purchase = Purchase { project, environment, from, until, price_max };
        self.shortage(&purchase, &self.reservations())
    }

    /// Whether the budget suffices for a lease of the machine that covers work until `end`.
    pub(super) fn may_extend_lease(&self, id: MachineId, end: Timestamp) -> bool {
        let lease = end.after(self.limits.job_grace);
        self.machines.get(&id).is_none_or(|machine| self.lease_shortage(machine, lease).is_none())
    }

    /// When a new month begins for jobs that wait for money.
    pub(super) fn next_budget(&self) -> Option<Timestamp> {
        let index = &self.index;
        let of_previews = !index.deployments.is_empty() || !index.tests.is_empty();
        let may_wait = !index.ready.is_empty() || of_previews;
        (self.limits.budget.is_set() && may_wait).then(|| Month::of(self.stepped_at).end())
    }
}
