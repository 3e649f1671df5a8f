//! The cron expression of `[warm-up]`.

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use stagely_state::Timestamp;

/// The times of warm-ups, in UTC.
#[derive(Clone, Debug)]
pub struct Schedule(Cron);

impl Schedule {
    /// Reads a cron expression of five fields: minute, hour, day of the month, month, day of the week.
    ///
    /// # Errors
    /// A message for people.
    pub fn parse(expression: &str) -> Result<Self, String> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).build();
        let cron = parser.parse(expression).map_err(|error| {
            format!(
                "{expression:?} is not a cron expression ({error}); write minute, hour, day of the month, \
                 month and day of the week: \"30 4 * * *\" is every day at 4:30 UTC"
            )
        })?;
        Ok(Self(cron))
    }

    /// Whether there is any such time. There is none on the 30th of February.
    pub(super) fn is_ever_due(&self) -> bool {
        self.next_after(Timestamp(0)).is_some()
    }

    /// The first time after `time`; `None` if there is none.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let time: DateTime<Utc> = DateTime::from_timestamp_millis(i64::try_from(time.0).ok()?)?;
        let next = self.0.find_next_occurrence(&time, false).ok()?;
        u64::try_from(next.timestamp_millis()).ok().map(Timestamp)
    }
}
