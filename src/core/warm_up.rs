//! Starts warm-ups by the schedule of `[warm-up]`.

use std::fmt::Display;
use std::time::Duration;

use stagely_state::{Run, Timestamp, Trigger};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::clock::now;
use super::intake::{Intake, IntakeError, request};
use super::records::SharedRecords;
use crate::api::CreateWarmUp;
use crate::config::{ConfigError, Schedule, WarmUpConfig};

/// The time between two readings of the wall clock, which may jump during a sleep.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_mins(1);

/// The next time of a schedule, by a clock that may jump.
struct DueTime {
    schedule: Schedule,
    due: Option<Timestamp>,
}

impl DueTime {
    fn new(schedule: Schedule, now: Timestamp) -> Self {
        let due = schedule.next_after(now);
        Self { schedule, due }
    }

    /// Whether a time of the schedule has passed by `now`. Several passed times count once.
    fn is_due(&mut self, now: Timestamp) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now);
        // Also if nothing is due, because the clock may have been set back.
        self.due = self.schedule.next_after(now);
        is_due
    }

    /// The sleep before the next reading of the clock.
    fn wait(&self, now: Timestamp) -> Duration {
        self.due.map_or(CLOCK_CHECK_INTERVAL, |due| due.since(now).min(CLOCK_CHECK_INTERVAL))
    }
}

/// Starts scheduled warm-ups.
pub(super) struct WarmUp {
    schedule: Schedule,
    config: WarmUpConfig,
    records: SharedRecords,
    intake: Intake,
}

impl WarmUp {
    /// `None` without a schedule.
    ///
    /// # Errors
    /// A schedule that cannot be read.
    pub(super) fn new(
        config: &WarmUpConfig,
        records: &SharedRecords,
        intake: &Intake,
    ) -> Result<Option<Self>, ConfigError> {
        let Some(schedule) = config.schedule()? else { return Ok(None) };
        let (records, intake) = (records.clone(), intake.clone());
        Ok(Some(Self { schedule, config: config.clone(), records, intake }))
    }

    /// Starts warm-ups when they are due, until `stop` fires.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut due_time = DueTime::new(self.schedule.clone(), now());
        while stop.run_until_cancelled(sleep(due_time.wait(now()))).await.is_some() {
            if due_time.is_due(now()) {
                self.start_all().await;
            }
        }
    }

    /// Starts a warm-up of each project and branch without an open one.
    async fn start_all(&self) {
        let branches: Vec<Option<&str>> = if self.config.branches.is_empty() {
            vec![None]
        } else {
            self.config.branches.iter().map(|branch| Some(branch.as_str())).collect()
        };
        for project in &self.config.projects {
            for branch in &branches {
                self.start(project, *branch).await;
            }
        }
    }

    async fn start(&self, project: &str, branch: Option<&str>) {
        if self.is_under_way(project, branch) {
            info!(project, branch, "the last warm-up is still under way; none is started");
            return;
        }
        let name = project.to_owned();
        let create = CreateWarmUp { branch: branch.map(str::to_owned), clone_token: None };
        let make = move |records: &super::records::Records| {
            let made = request::warm_up(records, &name, create).map_err(|error| error.to_string());
            made?.ok_or_else(|| "there is no such project yet".to_owned())
        };
        let skipped = |why: &dyn Display| warn!(project, branch, %why, "a warm-up is skipped");
        match self.intake.take(make).await {
            Ok(run) => info!(project, branch, %run, "a warm-up is started"),
            Err(IntakeError::ShuttingDown(_)) => {}
            Err(why) => skipped(&why),
        }
    }

    fn is_under_way(&self, project: &str, branch: Option<&str>) -> bool {
        let records = self.records.read();
        let Some(project) = records.projects.values().find(|found| found.name == project) else {
            return false;
        };
        let is_same = |run: &Run| {
            run.trigger == Trigger::WarmUp
                && run.project == project.id
                && run.requested_ref.as_deref() == branch
                && !run.state.is_final()
        };
        records.runs.values().any(is_same)
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;

    fn at(text: &str) -> Timestamp {
        let time: DateTime<Utc> = text.parse().unwrap();
        Timestamp(u64::try_from(time.timestamp_millis()).unwrap())
    }

    fn due_time(expression: &str, now: &str) -> DueTime {
        DueTime::new(Schedule::parse(expression).unwrap(), at(now))
    }

    #[test]
    fn a_schedule_is_in_utc_and_has_five_fields() {
        let next = |expression: &str, now| Schedule::parse(expression).unwrap().next_after(at(now));
        let daily = next("30 4 * * *", "2026-11-24T04:30:00Z");
        assert_eq!(daily, Some(at("2026-11-25T04:30:00Z")), "after, not at");
        let monday = next("0 6 * * MON", "2026-11-24T00:00:00Z");
        assert_eq!(monday, Some(at("2026-11-30T06:00:00Z")));
        assert_eq!(next("0 0 30 2 *", "2026-11-24T00:00:00Z"), None);
        for wrong in ["", "* * *", "61 * * * *", "0 30 4 * * *", "@never"] {
            let error = Schedule::parse(wrong).unwrap_err();
            assert!(error.contains("30 4 * * *"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_moment_is_due_once_however_late_the_clock_is_read() {
        let mut due_time = due_time("30 4 * * *", "2026-11-24T04:00:00Z");
        assert_eq!(due_time.wait(at("2026-11-24T04:00:00Z")), CLOCK_CHECK_INTERVAL);
        assert!(!due_time.is_due(at("2026-11-24T04:29:59Z")));
        assert_eq!(due_time.wait(at("2026-11-24T04:29:59Z")), Duration::from_secs(1));
        assert!(due_time.is_due(at("2026-11-24T04:30:00Z")));
        assert!(!due_time.is_due(at("2026-11-24T04:30:00Z")));
        assert!(due_time.is_due(at("2026-11-29T12:00:00Z")), "the machine slept for days");
        assert!(!due_time.is_due(at("2026-11-30T04:29:00Z")));
        assert!(due_time.is_due(at("2026-11-30T04:30:00Z")));
    }

    #[test]
    fn a_clock_that_was_years_ahead_and_is_corrected_delays_nothing() {
        let mut due_time = due_time("30 4 * * *", "2031-01-01T00:00:00Z");
        assert!(!due_time.is_due(at("2026-11-24T04:00:00Z")));
        assert!(due_time.is_due(at("2026-11-24T04:30:00Z")));
    }
}
