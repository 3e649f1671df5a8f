//! The `[logs]` and `[retention]` tables.

use std::time::Duration;

use serde::Deserialize;

/// The `[logs]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LogsConfig {
    /// The most log text stored for one attempt of a job, in mebibytes. Further lines are counted and
    /// dropped. Default: 256.
    pub job_max_mib: u64,
    /// The memory for cached pages of the log database, in mebibytes. Default: 32.
    pub cache_mib: u64,
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self { job_max_mib: 256, cache_mib: 32 }
    }
}

/// The `[retention]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RetentionConfig {
    /// How long ended runs are stored, with their jobs and logs. Default: 90days.
    #[serde(with = "humantime_serde")]
    pub runs: Duration,
    /// How long the records of terminated machines are stored. Default: 90days.
    #[serde(with = "humantime_serde")]
    pub machines: Duration,
    /// How long the artifacts of tests are stored. Default: 30days.
    #[serde(with = "humantime_serde")]
    pub artifacts: Duration,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        let ninety_days = Duration::from_hours(90 * 24);
        let artifacts = Duration::from_hours(30 * 24);
        Self { runs: ninety_days, machines: ninety_days, artifacts }
    }
}
