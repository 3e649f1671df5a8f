//! The `[warm-up]` table.

use serde::Deserialize;
use stagely_state::BranchName;

use super::error::ConfigError;
use super::schedule::Schedule;

/// The `[warm-up]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WarmUpConfig {
    /// The times of warm-ups: a cron expression, in UTC. Default: none.
    pub schedule: Option<String>,
    /// The names of the projects. Unknown projects are skipped. Default: none.
    pub projects: Vec<String>,
    /// The branches. Default: the default branch of each project.
    pub branches: Vec<String>,
}

impl WarmUpConfig {
    /// The schedule of warm-ups; `None` if none is set.
    ///
    /// # Errors
    /// [`ConfigError::Value`], naming the setting.
    pub fn schedule(&self) -> Result<Option<Schedule>, ConfigError> {
        let key = "warm-up.schedule";
        let Some(expression) = &self.schedule else { return Ok(None) };
        let schedule =
            Schedule::parse(expression).map_err(|problem| ConfigError::Value { key, problem })?;
        if !schedule.is_ever_due() {
            let problem = format!("{expression:?} is never due");
            return Err(ConfigError::Value { key, problem });
        }
        Ok(Some(schedule))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.schedule()?.is_some() && self.projects.is_empty() {
            return Err(ConfigError::Value {
                key: "warm-up.projects",
                problem: "is empty although warm-up.schedule is set; name at least one project"
                    .to_owned(),
            });
        }
        for branch in &self.branches {
            branch.parse::<BranchName>().map_err(|error| ConfigError::Value {
                key: "warm-up.branches",
                problem: error.problem,
            })?;
        }
        Ok(())
    }
}
