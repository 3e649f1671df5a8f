//! What jobs, environments and projects have cost.

use super::previews::DEPLOYED;
use super::*;

/// The highest prices of an hour.
pub(super) const BUILDER: Usd = Usd(170_000);
pub(super) const PREVIEW: Usd = Usd(41_600);
/// Of address and disk.
pub(super) const EXTRAS: Usd = Usd(5_000);

/// Prices of all machines.
pub(super) fn prices() -> Prices {
    let mut prices = Prices::default();
    for arch in Arch::ALL {
        for size in MachineSize::ALL {
            for (fleet, price) in [(Fleet::Builder, BUILDER), (Fleet::Preview, PREVIEW)] {
                prices.machines.insert((ProviderName::Local, fleet, arch, size), price);
            }
        }
    }
    let extras = Extras { address: EXTRAS, ..Extras::default() };
    prices.extras.insert(ProviderName::Local, extras);
    prices
}

impl Core {
    pub(super) fn with_prices(mut self) -> Self {
        self.state.limits.prices = prices();
        // A month with 30 days, far from its ends.
        self.now = "2026-11".parse::<Month>().unwrap().start().after(Duration::from_hours(240));
        self
    }

    /// The provider has launched the machine at these prices.
    pub(super) fn launched_at(&mut self, machine: MachineId, price: Usd, spot: Option<Usd>) {
        let market = if spot.is_some() { Market::Spot } else { Market::OnDemand };
        let placement = Placement {
            provider_id: "i-1".to_owned(),
            instance_type: "c5.xlarge".to_owned(),
            zone: None,
            market,
            price: Some(price),
            spot_price: spot,
        };
        self.step(Event::MachineLaunched { machine, placement: Some(placement) });
    }

    pub(super) fn gone(&mut self, machine: MachineId) -> Vec<Effect> {
        self.step(Event::MachineGone { machine, taken_back: false })
    }

    fn spent(&self, project: u128) -> Cost {
        let project = &self.state.projects[&ProjectId::from_bits(project)];
        project.spending.values().map(Spending::total).sum()
    }
}

/// What seconds at a price for an hour cost, in millionths of a dollar: with fractions, and without the code under test.
fn by_hand(rows: &[(u64, u64)]) -> u64 {
    let sum: u64 = rows.iter().map(|(price, millis)| price * millis).sum();
    sum / 3_600_000 + u64::from(!sum.is_multiple_of(3_600_000))
}

#[test]
fn costs_are_those_of_a_table_of_machines_with_their_seconds() {
    // Each machine: price on demand, spot price, seconds from running to its job's end, and from there to gone.
    let table: [(u64, Option<u64>, u64, u64); 6] = [
        (170_000, None, 600, 42),
        (170_000, Some(68_000), 613, 7),
        (136_000, None, 3, 2),
        (340_000, Some(113_333), 1_799, 301),
        (85_001, None, 59, 1),
        (85_001, None, 61, 0),
    ];
    let mut core = amd64(1).with_prices();
    let mut expected = 0;
    for (price, spot, work, rest) in table {
        let (run, jobs) = core.run(1, 1);
        let machine = core.machine_of(jobs[0]);
        core.wait(Duration::from_secs(20));
        core.launched_at(machine, Usd(price), spot.map(Usd));
        core.connect(machine, &[]);
        core.start(machine, jobs[0], 1);
        core.wait(Duration::from_secs(work));
        core.report(machine, jobs[0], 1, PUSHED);
        core.wait(Duration::from_secs(rest));
        core.gone(machine);

        let hour = spot.unwrap_or(price) + EXTRAS.0;
        let cost = by_hand(&[(hour, (work + rest).max(60) * 1_000)]);
        let account = core.state.jobs[&jobs[0]].cost;
        assert_eq!(account, Cost { amount: Usd(cost), approximate: spot.is_some() }, "{run}");
        expected += cost;
    }
    assert_eq!(core.spent(1), Cost { amount: Usd(expected), approximate: true });
    let environment = &core.state.environments[&EnvironmentId::from_bits(1)];
    assert_eq!(environment.spending.builders.amount, Usd(expected));
    assert_eq!(environment.spending.previews, Cost::ZERO);
}

#[test]
fn a_changed_spot_price_begins_a_new_segment() {
    let mut core = amd64(1).with_prices();
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    core.launched_at(machine, BUILDER, Some(Usd(60_000)));
    core.connect(machine, &[]);
    core.start(machine, jobs[0], 1);
    for price in [60_000, 61_000, 50_000] {
        core.wait(Duration::from_mins(5));
        core.step(Event::SpotPriceChanged { machine, price: Usd(price) });
    }
    core.wait(Duration::from_secs(11));
    core.report(machine, jobs[0], 1, PUSHED);
    core.gone(machine);

    let minutes = |count: u64| count * 60_000;
    let rows = [(65_000, minutes(10)), (66_000, minutes(5)), (55_000, 11_000)];
    assert_eq!(core.state.jobs[&jobs[0]].cost.amount, Usd(by_hand(&rows)));
}

#[test]
fn a_late_end_and_a_returned_machine_cost_nothing_more() {
    let mut core = amd64(1).with_prices();
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    core.launched_at(machine, BUILDER, None);
    core.connect(machine, &[]);
    core.wait(Duration::from_mins(2));
    core.report(machine, jobs[0], 1, PUSHED);
    core.gone(machine);
    let cost = core.spent(1);

    core.wait(Duration::from_mins(10));
    core.gone(machine);
    core.step(Event::MachineLaunched { machine, placement: None });
    core.wait(Duration::from_mins(10));
    core.gone(machine);

    assert_eq!(core.spent(1), cost);
}

#[test]
fn a_launch_that_gave_no_machine_costs_nothing_and_an_unclear_one_the_highest_price() {
    let mut core = amd64(1).with_prices();
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    let failure = LaunchFailure::NoCapacity("none".to_owned());
    core.step(Event::LaunchFailed { machine, failure });
    assert_eq!(core.spent(1), Cost::ZERO);

    core.wait(Duration::from_secs(30));
    let machine = core.machine_of(jobs[0]);
    let failure = LaunchFailure::Unclear("no answer".to_owned());
    core.step(Event::LaunchFailed { machine, failure });
    core.wait(Duration::from_mins(3));
    core.gone(machine);
    let amount = Usd(by_hand(&[(BUILDER.0 + EXTRAS.0, 180_000)]));
    assert_eq!(core.spent(1), Cost { amount, approximate: true });
}

#[test]
fn a_preview_costs_its_environment_and_the_job_that_it_shows() {
    let mut core = amd64(1).with_prices();
    let (_, run, machine) = core.live(1);
    let deploy = core.state.jobs_of(run).find(|job| job.kind.is_deploy()).unwrap().id;
    core.wait(Duration::from_mins(10));
    let (_, update) = core.built_as(1, |_| {});
    core.start(machine, update, 1);
    core.report(machine, update, 1, DEPLOYED);
    core.wait(Duration::from_mins(3));
    let preview = core.preview(1).id;
    core.step(Event::PreviewEndRequested { preview });
    core.gone(machine);

    let first = core.state.jobs[&deploy].cost.amount;
    let second = core.state.jobs[&update].cost.amount;
    assert!(!first.is_zero() && !second.is_zero());
    let environment = &core.state.environments[&EnvironmentId::from_bits(1)];
    assert_eq!(environment.spending.previews.amount, first + second);
    let bill = core.state.machines[&machine].bill.clone().unwrap();
    let millis = bill.ended_at.unwrap().since(bill.segments[0].from).as_millis();
    let whole = by_hand(&[(bill.segments[0].price.0, u64::try_from(millis).unwrap())]);
    assert_eq!(first + second, Usd(whole));
}

#[test]
fn the_comment_is_written_again_with_the_cost_of_a_machine_that_is_gone() {
    let mut core = amd64(1).with_prices();
    let (run, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    core.launched_at(machine, BUILDER, None);
    core.connect(machine, &[]);
    core.report(machine, jobs[0], 1, PUSHED);
    let environment = EnvironmentId::from_bits(1);
    let repository = "acme/app".parse().unwrap();
    let link = GithubLink { repository, forks: ForkPolicy::default(), is_configured: false };
    core.state.change_project(ProjectId::from_bits(1), |project| project.github = Some(link));
    core.state.change_environment(environment, |found| found.report.run = Some(run));

    assert!(core.gone(machine).contains(&Effect::Report { environment }));
}
