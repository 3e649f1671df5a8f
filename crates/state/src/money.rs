//! Amounts of money, and sums of them.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Fleet;

const MILLIONTHS: u64 = 1_000_000;

/// An amount of money, in millionths of a US dollar.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Usd(pub u64);

impl Usd {
    pub const ZERO: Self = Self(0);

    /// The cost of `duration` at this price for an hour, rounded up.
    #[must_use]
    pub fn for_hours(self, duration: Duration) -> Self {
        Self::of_hours(u128::from(self.0) * duration.as_millis())
    }

    /// The cost of `price_millis`, a sum of prices for an hour each times its milliseconds, rounded up.
    pub(super) fn of_hours(price_millis: u128) -> Self {
        let cost = price_millis.div_ceil(Duration::from_hours(1).as_millis());
        Self(u64::try_from(cost).unwrap_or(u64::MAX))
    }

    /// This amount without `other`; zero if `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The next whole number of dollars, at least one.
    #[must_use]
    pub fn whole_dollars(self) -> u64 {
        self.0.div_ceil(MILLIONTHS).max(1)
    }

    pub const fn is_zero(&self) -> bool {
        self.0 == 0
    }

    /// The amount without the sign: `0.061`, `12.35`. Three decimals below a dollar, because a build costs less than a
    /// cent; an amount that is not zero is never shown as zero.
    pub fn number(self) -> String {
        let (unit, decimals) = if self.0 < MILLIONTHS - 500 { (1_000, 3) } else { (10_000, 2) };
        let rounded = self.0.saturating_add(unit / 2) / unit;
        let rounded = if self.0 > 0 { rounded.max(1) } else { 0 };
        let whole = 10_u64.pow(decimals);
        let width = decimals as usize;
        format!("{}.{:0width$}", rounded / whole, rounded % whole)
    }
}

impl fmt::Display for Usd {
    /// As [`number`](Self::number), with the sign: `$0.061`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}", self.number())
    }
}

impl Add for Usd {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Usd {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

/// A sum of costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cost {
    pub amount: Usd,
    /// Whether a part of it is of a spot machine, whose price is known every 5 minutes, or of a machine whose price is
    /// not known exactly.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approximate: bool,
}

impl Cost {
    pub const ZERO: Self = Self { amount: Usd::ZERO, approximate: false };

    pub const fn is_zero(&self) -> bool {
        self.amount.is_zero()
    }

    /// `≈ ` if the sum is approximate.
    pub const fn sign(&self) -> &'static str {
        if self.approximate { "≈ " } else { "" }
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.sign(), self.amount)
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let approximate = self.approximate || other.approximate;
        Self { amount: self.amount + other.amount, approximate }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::ZERO, Add::add)
    }
}

/// What machines of each fleet have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Spending {
    #[serde(skip_serializing_if = "Cost::is_zero")]
    pub builders: Cost,
    #[serde(skip_serializing_if = "Cost::is_zero")]
    pub previews: Cost,
    #[serde(skip_serializing_if = "Cost::is_zero")]
    pub testers: Cost,
}

impl Spending {
    pub fn add(&mut self, fleet: Fleet, cost: Cost) {
        *match fleet {
            Fleet::Builder => &mut self.builders,
            Fleet::Preview => &mut self.previews,
            Fleet::Tester => &mut self.testers,
        } += cost;
    }

    pub const fn of(&self, fleet: Fleet) -> Cost {
        match fleet {
            Fleet::Builder => self.builders,
            Fleet::Preview => self.previews,
            Fleet::Tester => self.testers,
        }
    }

    pub fn total(&self) -> Cost {
        self.builders + self.previews + self.testers
    }

    pub fn is_zero(&self) -> bool {
        self.total().is_zero()
    }
}

impl AddAssign for Spending {
    fn add_assign(&mut self, other: Self) {
        for fleet in Fleet::ALL {
            self.add(fleet, other.of(fleet));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_rounded_up_and_shows_parts_of_a_cent() {
        let price = Usd(170_000);
        assert_eq!(price.for_hours(Duration::from_mins(10)), Usd(28_334));
        assert_eq!(price.for_hours(Duration::from_mins(10)).to_string(), "$0.028");
        assert_eq!(price.to_string(), "$0.170");
        assert_eq!(Usd(0).to_string(), "$0.000");
        assert_eq!(Usd(1).to_string(), "$0.001", "no cost looks like none");
        assert_eq!(Usd(12_345_678).to_string(), "$12.35");
        assert_eq!(Usd(999_499).to_string(), "$0.999");
        assert_eq!(Usd(999_500).to_string(), "$1.00");
        assert_eq!(Usd(u64::MAX).for_hours(Duration::from_hours(9_999_999)), Usd(u64::MAX));
    }

    #[test]
    fn a_sum_with_an_approximate_part_is_approximate() {
        let exact = Cost { amount: Usd(10_000), approximate: false };
        let spot = Cost { amount: Usd(3_000), approximate: true };
        let mut spending = Spending::default();
        spending.add(Fleet::Builder, exact);
        assert_eq!(spending.total().to_string(), "$0.010");
        spending.add(Fleet::Preview, spot);
        assert_eq!(spending.total().to_string(), "≈ $0.013");
        assert_eq!((spending.of(Fleet::Builder), spending.of(Fleet::Tester)), (exact, Cost::ZERO));
    }

    #[test]
    fn the_whole_dollars_of_an_amount_are_never_too_few() {
        let whole = [0, 1, 1_000_000, 1_000_001].map(|amount| Usd(amount).whole_dollars());
        assert_eq!(whole, [1, 1, 1, 2]);
    }
}
