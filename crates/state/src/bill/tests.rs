use std::time::Duration;

use stagely_protocol::Arch;

use super::*;
use crate::MachineKind;
use crate::ids::MachineId;

const MINUTE: u64 = 60_000;

/// A machine that was requested at `at`, with a lease of an hour, for at most 36 cents an hour.
fn machine(at: Timestamp) -> Machine {
    let machine = Machine::new(MachineId::from_bits(1), MachineKind::Launched, Arch::Amd64, at);
    let (project, environment) = (ProjectId::from_bits(1), EnvironmentId::from_bits(1));
    let bill =
        Bill::new(project, environment, JobId::from_bits(1), (Usd(360_000), Usd(10_000)), at);
    Machine { bill: Some(bill), lease_until: Some(at.after(Duration::from_hours(1))), ..machine }
}

fn bill(machine: &mut Machine) -> &mut Bill {
    machine.bill.as_mut().unwrap()
}

fn total(parts: &[(Month, Cost)]) -> Usd {
    parts.iter().map(|(_, cost)| cost.amount).sum()
}

#[test]
fn a_machine_costs_the_sum_of_its_segments_rounded_up_once() {
    let mut machine = machine(Timestamp(0));
    bill(&mut machine).begin(Timestamp(1_000), Some(Usd(99_999)), true);
    bill(&mut machine).settle(Timestamp(61_001));
    bill(&mut machine).change_price(Usd(77_777));

    let cost = machine.cost(Timestamp(123_457)).unwrap();

    // (99,999 + 10,000) × 60,001 ms + (77,777 + 10,000) × 62,456 ms, for 3,600,000 ms an hour.
    let millis: u64 = 109_999 * 60_001 + 87_777 * 62_456;
    assert_eq!(cost, Cost { amount: Usd(millis.div_ceil(3_600_000)), approximate: true });
    let settled = bill(&mut machine).settled;
    let rest = total(&bill(&mut machine).settle(Timestamp(123_457)));
    assert_eq!(settled + rest, cost.amount, "parts add up to the whole");
}

#[test]
fn a_short_life_costs_a_minute() {
    let mut machine = machine(Timestamp(0));
    bill(&mut machine).begin(Timestamp(0), Some(Usd(350_000)), false);
    let end = machine.paid_until(Timestamp(5_000), true);
    assert_eq!(end, Timestamp(MINUTE));
    assert_eq!(total(&bill(&mut machine).settle(end)), Usd(6_000));
    assert_eq!(machine.paid_until(Timestamp(2 * MINUTE), true), Timestamp(2 * MINUTE));
}

#[test]
fn the_first_minute_is_shown_from_its_beginning() {
    let mut machine = machine(Timestamp(0));
    let none = Some(Cost::default());
    assert_eq!(machine.cost(Timestamp(5_000)), none, "it does not run yet");
    bill(&mut machine).begin(Timestamp(0), Some(Usd(350_000)), false);
    for now in [0, 5_000, MINUTE] {
        assert_eq!(machine.cost(Timestamp(now)).unwrap().amount, Usd(6_000));
        let unsettled = machine.unsettled(Timestamp(now));
        assert_eq!(total(&unsettled), Usd(6_000));
    }
    assert_eq!(machine.cost(Timestamp(2 * MINUTE)).unwrap().amount, Usd(12_000));
}

#[test]
fn a_machine_that_nobody_could_end_costs_until_its_dead_man_switch() {
    let mut machine = machine(Timestamp(0));
    bill(&mut machine).begin(Timestamp(0), None, false);
    let late = Timestamp(500 * MINUTE);
    assert_eq!(machine.paid_until(late, true), Timestamp(65 * MINUTE));
    let cost = Cost { amount: Usd(390_000), approximate: true };
    assert_eq!(machine.cost(late), Some(cost), "its price is not known, so it is the highest");
}

#[test]
fn the_price_of_a_late_answer_counts_from_the_beginning() {
    let mut machine = machine(Timestamp(0));
    bill(&mut machine).begin(Timestamp(0), None, false);
    bill(&mut machine).begin(Timestamp(MINUTE), Some(Usd(50_000)), false);
    let cost = Cost { amount: Usd(2_000), approximate: false };
    assert_eq!(machine.cost(Timestamp(2 * MINUTE)), Some(cost));
    let again = bill(&mut machine).clone();
    bill(&mut machine).begin(Timestamp(3 * MINUTE), Some(Usd(70_000)), true);
    assert_eq!(*bill(&mut machine), again, "a repeated answer changes nothing");
}

#[test]
fn each_month_gets_its_part() {
    let november: Month = "2026-11".parse().unwrap();
    let start = november.end().before(Duration::from_mins(10));
    let mut machine = machine(start);
    bill(&mut machine).begin(start, Some(Usd(350_000)), false);

    let parts = bill(&mut machine).settle(start.after(Duration::from_mins(30)));

    let cost = |amount| Cost { amount: Usd(amount), approximate: false };
    assert_eq!(parts, [(november, cost(60_000)), (november.next(), cost(120_000))]);
}

#[test]
fn what_is_reserved_never_grows_while_the_lease_stays() {
    let november: Month = "2026-11".parse().unwrap();
    let start = november.end().before(Duration::from_millis(1_234_567));
    let mut machine = machine(start);
    let months = [november, november.next()];
    let mut spent = [Usd::ZERO; 2];
    let mut before = months.map(|month| machine.reserved_in(month));
    let mut of_all = machine.reserved();
    assert!(before.iter().all(|reserved| !reserved.is_zero()));
    bill(&mut machine).begin(start.after(Duration::from_secs(7)), Some(Usd(33_333)), true);
    for step in 1..60_u64 {
        let at = start.after(Duration::from_millis(step * 65_537));
        let until = machine.paid_until(at, false);
        for (month, cost) in bill(&mut machine).settle(until) {
            spent[usize::from(month != november)] += cost.amount;
        }
        bill(&mut machine).change_price(Usd(20_000 + step * 5_000));
        let now = [0, 1].map(|index| spent[index] + machine.reserved_in(months[index]));
        assert!(now[0] <= before[0] && now[1] <= before[1], "{step}: {before:?} {now:?}");
        let all = bill(&mut machine).settled + machine.reserved();
        assert!(all <= of_all, "{step}");
        (before, of_all) = (now, all);
    }
    assert_eq!(spent[0] + spent[1], bill(&mut machine).settled);
}

#[test]
fn thousands_of_price_changes_are_summed_up_exactly() {
    let mut machine = machine(Timestamp(0));
    bill(&mut machine).begin(Timestamp(0), Some(Usd(1)), true);
    let mut millis = 0_u64;
    for step in 1..=2_000 {
        millis += (bill(&mut machine).segments.last().unwrap().price.0) * 1_001;
        bill(&mut machine).settle(Timestamp(step * 1_001));
        bill(&mut machine).change_price(Usd(step % 97));
    }
    assert_eq!(bill(&mut machine).settled, Usd(millis.div_ceil(3_600_000)));
    assert!(bill(&mut machine).segments.len() <= SEGMENTS_MAX);
}
