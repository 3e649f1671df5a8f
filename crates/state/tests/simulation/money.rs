//! Prices, budgets and what was spent: spot prices that change, people who allow more, and the invariants of money.

use std::collections::BTreeMap;
use std::time::Duration;

use stagely_protocol::Arch;
use stagely_state::ids::{JobId, MachineId, ProjectId};
use stagely_state::{
    Bill, Budget, BudgetScope, BudgetWarning, Extras, Fleet, Machine, MachineSize, Month, Prices,
    ProviderName, QueueReason, Shortage, Spending, State, Timestamp, Usd,
};

use crate::world::World;

/// One in so many schedules has budgets.
const BUDGET_SCHEDULES: u64 = 3;

/// The price of an hour on demand.
const PRICE: Usd = Usd(360_000);

const HOUR_MILLIS: u128 = 3_600_000;

/// A machine is paid for until this long after its lease at the latest.
const OVERRUN: Duration = Duration::from_mins(5);

pub(crate) fn prices() -> Prices {
    let mut prices = Prices::default();
    for provider in ProviderName::ALL {
        for fleet in Fleet::ALL {
            for (arch, size) in Arch::ALL
                .into_iter()
                .flat_map(|arch| MachineSize::ALL.into_iter().map(move |size| (arch, size)))
            {
                prices.machines.insert((provider, fleet, arch, size), PRICE);
            }
        }
    }
    let extras = Extras { address: Usd(5_000), disk_gib_month: Usd(80_000), disk_gib: 50 };
    prices.extras.insert(ProviderName::Aws, extras);
    prices
}

/// Budgets for a few machines. Without draws, so that schedules without budgets stay the same.
pub(crate) fn budget(seed: u64) -> Budget {
    if !seed.is_multiple_of(BUDGET_SCHEDULES) {
        return Budget::default();
    }
    let few = Usd(300_000 + seed % 7 * 400_000);
    let is = |number| (seed / BUDGET_SCHEDULES) & number != 0;
    Budget {
        month: is(1).then_some(few + few),
        project: (is(2) || !is(1)).then_some(few),
        projects: BTreeMap::new(),
        pull_request: is(4).then_some(few),
    }
}

/// The first moment. Some schedules begin shortly before the end of a month.
pub(crate) fn beginning(seed: u64) -> Timestamp {
    let middle = Timestamp(1_700_000_000_000);
    if seed.is_multiple_of(2 * BUDGET_SCHEDULES) {
        return Month::of(middle).end().before(Duration::from_hours(4));
    }
    middle
}

/// A price of the spot market, which is at most the price on demand.
pub(crate) fn spot_price(machine: MachineId, now: Timestamp) -> Usd {
    let draw = machine.bits() ^ u128::from(now.0 / 60_000);
    let part = u64::try_from(draw % 100).expect("small");
    Usd(PRICE.0 * (part + 1) / 100)
}

pub(crate) fn has_budget(core: &State) -> bool {
    core.limits.budget != Budget::default()
}

/// Spent and reserved money never exceeds a budget, and the accounts hold what the machines have cost.
pub(crate) fn check(world: &mut World) {
    let core = &world.core;
    for machine in core.machines.values() {
        if let Some(bill) = &machine.bill {
            check_bill(machine, bill);
        }
    }
    check_accounts(world);
    if !has_budget(core) {
        return;
    }
    for scope in scopes(core, world.now) {
        if let Some(used) = core.budget_use(scope) {
            assert!(used.spent + used.reserved <= used.limit, "{scope:?} is exceeded: {used:?}");
            assert_eq!(used.reserved, reserved(core, scope), "{scope:?}");
        }
    }
    let waits = core.queue().iter().any(|queued| is_short(&queued.reason));
    if waits {
        world.count("a job waits for money");
    }
}

/// Whether the job waits for money.
pub(crate) fn is_short_of_money(core: &State, job: JobId) -> bool {
    has_budget(core)
        && core.queue().iter().any(|queued| queued.job == job && is_short(&queued.reason))
}

fn is_short(reason: &QueueReason) -> bool {
    let QueueReason::Budget(shortage) = reason else { return false };
    let Shortage { used, needed, .. } = shortage;
    assert!(used.spent + used.reserved + *needed > used.limit, "{shortage:?} is none");
    true
}

fn scopes(core: &State, now: Timestamp) -> Vec<BudgetScope> {
    let this = Month::of(now);
    let months = [this, this.next(), Month::of(now.before(Duration::from_hours(24 * 28)))];
    let mut scopes: Vec<BudgetScope> = months.map(BudgetScope::Month).to_vec();
    for project in core.projects.keys() {
        scopes.extend(months.map(|month| BudgetScope::Project(*project, month)));
    }
    scopes.extend(core.environments.keys().map(|id| BudgetScope::PullRequest(*id)));
    scopes
}

/// What running machines can still cost, by their records.
fn reserved(core: &State, scope: BudgetScope) -> Usd {
    let machines = core.machines.values().filter(|machine| !machine.state.is_terminated());
    let amounts = machines.filter_map(|machine| {
        let bill = machine.bill.as_ref().filter(|bill| bill.ended_at.is_none())?;
        let until = machine.lease_until.expect("it was launched").after(OVERRUN);
        let until = until.max(machine.requested_at.after(Duration::from_mins(1)));
        let from = bill.settled_until;
        let (begin, end) = match scope {
            BudgetScope::Month(month) => (month.start(), month.end()),
            BudgetScope::Project(project, month) if bill.project == project => {
                (month.start(), month.end())
            }
            BudgetScope::PullRequest(environment) if bill.environment == environment => {
                (Timestamp(0), Timestamp(u64::MAX))
            }
            _ => return None,
        };
        let time = until.min(end).since(from.max(begin)).as_millis();
        let rest = u128::from(bill.price_max.0) * time;
        let is_now = begin <= from && from < end;
        let past = if is_now { cost_millis(bill, from) } else { 0 };
        let settled = if is_now { u128::from(bill.settled.0) } else { 0 };
        Some(
            u64::try_from((past + rest).div_ceil(HOUR_MILLIS).saturating_sub(settled))
                .expect("small"),
        )
    });
    Usd(amounts.sum())
}

/// Prices times milliseconds, from running until `until`.
fn cost_millis(bill: &Bill, until: Timestamp) -> u128 {
    let mut sum = u128::from(bill.earlier);
    for (index, segment) in bill.segments.iter().enumerate() {
        let end = bill.segments.get(index + 1).map_or(until, |next| next.from.min(until));
        sum += u128::from(segment.price.0) * end.since(segment.from).as_millis();
    }
    sum
}

/// The settled cost is that of its segments, no price is above the highest, and no time is counted twice.
fn check_bill(machine: &Machine, bill: &Bill) {
    let id = machine.id;
    let expected = cost_millis(bill, bill.settled_until).div_ceil(HOUR_MILLIS);
    assert_eq!(u128::from(bill.settled.0), expected, "{id}: {bill:?}");
    assert!(bill.segments.iter().all(|segment| segment.price <= bill.price_max), "{id}: {bill:?}");
    assert!(bill.segments.is_sorted_by_key(|segment| segment.from), "{id}: {bill:?}");
    if machine.state.is_terminated() {
        assert!(bill.ended_at.is_some(), "{id} is gone and costs on");
    }
}

/// What machines have settled is in the accounts of projects, and of environments and jobs as long as these exist.
fn check_accounts(world: &World) {
    let core = &world.core;
    let mut by_project: BTreeMap<ProjectId, u64> = BTreeMap::new();
    for bill in core.machines.values().filter_map(|machine| machine.bill.as_ref()) {
        *by_project.entry(bill.project).or_default() += bill.settled.0;
    }
    let has_forgotten = world.counts.contains_key("records are forgotten");
    for project in core.projects.values() {
        let spent = project.spending.values().map(|month| month.total().amount.0).sum::<u64>();
        let settled = by_project.get(&project.id).copied().unwrap_or_default();
        assert!(spent >= settled, "{} has lost costs", project.id);
        assert!(has_forgotten || spent == settled, "{} has costs of no machine", project.id);
        let environments = core.environments.values();
        let own = environments.filter(|environment| environment.project == project.id);
        let of_own = own.map(|environment| environment.spending);
        let sum = of_own.fold(Spending::default(), |mut sum, spending| {
            sum += spending;
            sum
        });
        assert!(sum.total().amount.0 <= spent, "{} has spent less than its parts", project.id);
        assert!(has_forgotten || sum.total().amount.0 == spent, "{}", project.id);
    }
    let of_jobs = core.jobs.values().map(|job| job.cost.amount.0).sum::<u64>();
    let of_projects = by_project.values().sum::<u64>();
    assert!(has_forgotten || of_jobs == of_projects, "{of_jobs} in jobs, {of_projects} in all");
}

pub(crate) fn check_warnings(world: &World, warnings: &[BudgetWarning]) {
    for BudgetWarning { project, month, used } in warnings {
        assert_eq!(world.core.projects[project].budget_warned, Some(*month));
        assert!((used.spent + used.reserved).0 * 5 >= used.limit.0 * 4, "{used:?} is far from it");
    }
}
