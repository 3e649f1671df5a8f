//! The cron expression of `[warm-up]`.

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use stagely_state::Timestamp;

/// When warm-ups are due, in UTC.
#[derive(Clone, Debug)]
pub struct Schedule(Cron);

impl Schedule {
    /// Reads a cron expression of five fields: minute, hour, day of the month, month, day of the week.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(expression: &str) -> Result<Self, String> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).build();
        let cron = parser.parse(expression).map_err(|error| {
            format!(
                "{expression:?} is no cron expression ({error}); write minute, hour, day of the month, \
                 month and day of the week: \"30 4 * * *\" is every day at 4:30 UTC"
            )
        })?;
        Ok(Self(cron))
    }

    /// The first moment after `time`; `None` if there is none: the 30th of February.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let time: DateTime<Utc> = DateTime::from_timestamp_millis(i64::try_from(time.0).ok()?)?;
        let next = self.0.find_next_occurrence(&time, false).ok()?;
        u64::try_from(next.timestamp_millis()).ok().map(Timestamp)
    }
}
