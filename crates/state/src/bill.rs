//! The bill of one machine: what it has cost, what it may still cost, and who pays.
//!
//! Costs are counted in prices times milliseconds and rounded up once, so that a sum of parts is the cost of the whole.

use serde::{Deserialize, Serialize};

use super::prices::MINIMUM_TIME;
use super::{Cost, Machine, Month, Timestamp, Usd};
use crate::ids::{EnvironmentId, JobId, ProjectId};

/// A machine whose end nobody has confirmed is paid for until this long after its lease: its dead-man switch has powered
/// it off by then.
pub(super) const OVERRUN: std::time::Duration = std::time::Duration::from_mins(5);

/// The most price segments of a machine. Older ones are summed up.
const SEGMENTS_MAX: usize = 200;

/// A time at one price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceSegment {
    pub from: Timestamp,
    /// For an hour, with address and disk.
    pub price: Usd,
}

/// What a launched machine costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bill {
    pub project: ProjectId,
    pub environment: EnvironmentId,
    /// The job that pays. For a machine that serves a preview, the job that deployed it.
    pub job: JobId,
    /// The highest price of an hour, with address and disk. It is reserved for the time to come.
    pub price_max: Usd,
    /// The part of each price that is for address and disk.
    pub extras: Usd,
    /// Whether the cost may be higher or lower, as that of a spot machine.
    #[serde(default)]
    pub approximate: bool,
    /// Whether the price of the newest segment is known.
    #[serde(default)]
    pub is_priced: bool,
    /// The sum of the segments before the first one: prices times milliseconds.
    #[serde(default)]
    pub earlier: u64,
    /// From running to gone, the oldest first. Each ends where the next one begins. Empty until the machine runs.
    #[serde(default)]
    pub segments: Vec<PriceSegment>,
    /// The part of the cost that is in the accounts.
    pub settled: Usd,
    /// Until when the cost is settled.
    pub settled_until: Timestamp,
    /// When the machine was gone.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// A lease that is renewed by the hour ends here.
    #[serde(default)]
    pub lease_max: Option<Timestamp>,
}

impl Bill {
    /// The bill of a machine that is requested `at`.
    pub(super) const fn new(
        project: ProjectId,
        environment: EnvironmentId,
        job: JobId,
        (price_max, extras): (Usd, Usd),
        at: Timestamp,
    ) -> Self {
        Self {
            project,
            environment,
            job,
            price_max,
            extras,
            approximate: false,
            is_priced: false,
            earlier: 0,
            segments: Vec::new(),
            settled: Usd::ZERO,
            settled_until: at,
            ended_at: None,
            lease_max: None,
        }
    }

    /// The cost from running until `until`, at the prices of the segments.
    fn cost_until(&self, until: Timestamp) -> Usd {
        Usd::of_hours(self.price_millis(until))
    }

    fn price_millis(&self, until: Timestamp) -> u128 {
        let ends = self.segments.iter().skip(1).map(|next| next.from).chain([until]);
        let parts = self.segments.iter().zip(ends).map(|(segment, end)| {
            let time = end.min(until).since(segment.from);
            u128::from(segment.price.0) * time.as_millis()
        });
        u128::from(self.earlier) + parts.sum::<u128>()
    }

    /// The cost until `until` if the time that is not settled costs the highest price.
    fn highest_until(&self, until: Timestamp) -> Usd {
        let rest = u128::from(self.price_max.0) * until.since(self.settled_until).as_millis();
        Usd::of_hours(self.price_millis(self.settled_until) + rest)
    }

    /// The machine runs, at a price for the machine itself; `None`: it is not known, so it counts as the highest.
    pub(super) fn begin(&mut self, at: Timestamp, price: Option<Usd>, approximate: bool) {
        if self.ended_at.is_some() {
            return;
        }
        match (&mut self.segments[..], price) {
            ([], None) => {
                self.approximate = true;
                self.segments.push(PriceSegment { from: at, price: self.price_max });
            }
            ([], Some(price)) => {
                self.approximate = approximate;
                self.add_segment(at, price);
            }
            // Its agent connected before the provider answered.
            ([first], Some(price)) if !self.is_priced && self.settled.is_zero() => {
                let from = first.from;
                self.segments.clear();
                self.approximate = approximate;
                self.add_segment(from, price);
            }
            _ => {}
        }
    }

    fn add_segment(&mut self, from: Timestamp, price: Usd) {
        let price = price + self.extras;
        self.price_max = self.price_max.max(price);
        self.is_priced = true;
        if self.segments.len() >= SEGMENTS_MAX {
            self.earlier = u64::try_from(self.price_millis(from)).unwrap_or(u64::MAX);
            self.segments.clear();
        }
        self.segments.push(PriceSegment { from, price });
    }

    /// The price of the machine itself has changed. The caller has settled the cost until now.
    pub(super) fn change_price(&mut self, price: Usd) {
        let is_new = self.segments.last().is_some_and(|last| last.price != price + self.extras);
        if is_new && self.ended_at.is_none() {
            self.approximate = true;
            self.add_segment(self.settled_until, price);
        }
    }

    /// Settles the cost until `until`. Returns what has to go into the account of each month.
    pub(super) fn settle(&mut self, until: Timestamp) -> Vec<(Month, Cost)> {
        let mut parts = Vec::new();
        while self.settled_until < until {
            let month = Month::of(self.settled_until);
            let end = month.end().min(until);
            let cost = self.cost_until(end);
            let amount = cost.saturating_sub(self.settled);
            if !amount.is_zero() {
                parts.push((month, Cost { amount, approximate: self.approximate }));
            }
            (self.settled, self.settled_until) = (cost, end);
        }
        parts
    }
}

impl Machine {
    /// Until when it is paid for at the latest.
    pub(super) fn paid_until_max(&self) -> Timestamp {
        let lease = self.lease_until.unwrap_or(self.requested_at);
        lease.after(OVERRUN).max(self.requested_at.after(MINIMUM_TIME))
    }

    /// When its payment begins, if it is running at `now`.
    pub(super) fn paid_from(&self, now: Timestamp) -> Timestamp {
        let latest = self.paid_until_max().before(MINIMUM_TIME);
        now.max(self.requested_at).min(latest)
    }

    /// Until when it is paid for, if it has run until `now`, or is gone then.
    pub(super) fn paid_until(&self, now: Timestamp, is_gone: bool) -> Timestamp {
        let Some(bill) = &self.bill else { return now };
        let from = bill.segments.first().map_or(bill.settled_until, |first| first.from);
        let least = if is_gone && bill.earlier == 0 { from.after(MINIMUM_TIME) } else { from };
        now.min(self.paid_until_max()).max(least).max(bill.settled_until)
    }

    /// Its cost until `now`: what is in the accounts, and what is not yet. The least time counts from its beginning, because it is
    /// owed then. `None` if it has no bill.
    pub fn cost(&self, now: Timestamp) -> Option<Cost> {
        let bill = self.bill.as_ref()?;
        let amount = if bill.ended_at.is_some() {
            bill.settled
        } else {
            bill.cost_until(self.paid_until(now, true)).max(bill.settled)
        };
        Some(Cost { amount, approximate: bill.approximate })
    }

    /// The part of its cost until `now` that is not in the accounts yet, by month.
    pub fn unsettled(&self, now: Timestamp) -> Vec<(Month, Cost)> {
        match &self.bill {
            Some(bill) if bill.ended_at.is_none() => {
                bill.clone().settle(self.paid_until(now, true))
            }
            _ => Vec::new(),
        }
    }

    /// The most that it can still add to the accounts of `month`.
    pub fn reserved_in(&self, month: Month) -> Usd {
        let Some(bill) = self.bill.as_ref().filter(|bill| bill.ended_at.is_none()) else {
            return Usd::ZERO;
        };
        let (from, until) = (bill.settled_until, self.paid_until_max());
        if Month::of(from) == month {
            return bill.highest_until(until.min(month.end())).saturating_sub(bill.settled);
        }
        let overlap = until.min(month.end()).since(from.max(month.start()));
        bill.price_max.for_hours(overlap)
    }

    /// The most that it can still add to all accounts.
    pub fn reserved(&self) -> Usd {
        let Some(bill) = self.bill.as_ref().filter(|bill| bill.ended_at.is_none()) else {
            return Usd::ZERO;
        };
        bill.highest_until(self.paid_until_max()).saturating_sub(bill.settled)
    }

    /// The price of an hour at the moment, with address and disk.
    pub fn price(&self) -> Option<Usd> {
        self.bill.as_ref()?.segments.last().map(|segment| segment.price)
    }
}

#[cfg(test)]
mod tests;
