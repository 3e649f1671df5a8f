//! Months of the calendar, in UTC.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Timestamp;

const DAY_MILLIS: u64 = 24 * 60 * 60 * 1000;

const NAMES: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A month in UTC, written `2026-11`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Month {
    year: u32,
    /// From 1.
    month: u32,
}

/// The text is no month.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidMonth(String);

impl fmt::Display for InvalidMonth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no month; write it like 2026-11", self.0)
    }
}

impl std::error::Error for InvalidMonth {}

impl Month {
    /// The month of a moment.
    pub fn of(at: Timestamp) -> Self {
        // Days in years that begin in March, so that the leap day is the last one. Source: Howard Hinnant,
        // "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
        let days = at.0 / DAY_MILLIS + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let (month, is_next_year) =
            if from_march < 10 { (from_march + 3, 0) } else { (from_march - 9, 1) };
        let year = year_of_era + era * 400 + is_next_year;
        Self {
            year: u32::try_from(year).unwrap_or(u32::MAX),
            month: u32::try_from(month).expect("a month is at most 12"),
        }
    }

    /// Its first moment. `days_from_civil` of the same source.
    pub fn start(self) -> Timestamp {
        let (year, month) = (u64::from(self.year), u64::from(self.month));
        let (year, from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let (era, year_of_era) = (year / 400, year % 400);
        let day_of_year = (153 * from_march + 2) / 5;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = (era * 146_097 + day_of_era).saturating_sub(719_468);
        Timestamp(days.saturating_mul(DAY_MILLIS))
    }

    /// The first moment after it.
    pub fn end(self) -> Timestamp {
        self.next().start()
    }

    #[must_use]
    pub const fn next(self) -> Self {
        if self.month == 12 {
            Self { year: self.year.saturating_add(1), month: 1 }
        } else {
            Self { year: self.year, month: self.month + 1 }
        }
    }

    /// Its English name.
    pub fn name(self) -> &'static str {
        NAMES[self.month as usize - 1]
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl FromStr for Month {
    type Err = InvalidMonth;

    fn from_str(text: &str) -> Result<Self, InvalidMonth> {
        let invalid = || InvalidMonth(text.chars().take(20).collect());
        let (year, month) = text.split_once('-').ok_or_else(invalid)?;
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if year.len() != 4 || month.len() != 2 || !is_number(year) || !is_number(month) {
            return Err(invalid());
        }
        let month = Self {
            year: year.parse().map_err(|_| invalid())?,
            month: month.parse().map_err(|_| invalid())?,
        };
        let is_known = (1..=12).contains(&month.month) && month.year >= 1970;
        if is_known { Ok(month) } else { Err(invalid()) }
    }
}

impl TryFrom<String> for Month {
    type Error = InvalidMonth;

    fn try_from(text: String) -> Result<Self, InvalidMonth> {
        text.parse()
    }
}

impl From<Month> for String {
    fn from(month: Month) -> Self {
        month.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds of known moments, by `date -u -d … +%s`.
    #[test]
    fn the_month_of_a_moment_is_that_of_the_calendar() {
        for (seconds, month) in [
            (0, "1970-01"),
            (951_782_399, "2000-02"),
            (951_868_799, "2000-02"),
            (951_868_800, "2000-03"),
            (1_709_164_800, "2024-02"),
            (1_709_251_200, "2024-03"),
            (1_796_083_199, "2026-11"),
            (1_796_083_200, "2026-12"),
            (1_798_761_599, "2026-12"),
            (1_798_761_600, "2027-01"),
        ] {
            let of = Month::of(Timestamp(seconds * 1000));
            assert_eq!(of.to_string(), month, "{seconds}");
            assert!(of.start().0 <= seconds * 1000 && seconds * 1000 < of.end().0, "{seconds}");
        }
    }

    #[test]
    fn months_follow_each_other_without_a_gap() {
        let mut month = Month::of(Timestamp(0));
        for _ in 0..2_400 {
            assert_eq!(Month::of(month.start()), month);
            assert_eq!(Month::of(Timestamp(month.end().0 - 1)), month);
            assert_eq!(month.to_string().parse(), Ok(month));
            month = month.next();
        }
        assert_eq!(month.to_string(), "2170-01");
    }

    #[test]
    fn text_that_is_no_month_is_refused() {
        for text in ["", "2026", "2026-13", "2026-00", "26-11", "2026-1", "+026-11", "1969-12"] {
            assert!(text.parse::<Month>().is_err(), "{text}");
        }
        assert_eq!("2026-11".parse::<Month>().unwrap().name(), "November");
    }
}
