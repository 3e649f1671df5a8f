//! The `[budget]` table.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use stagely_provider::settings::{dollars, some_dollars};
use stagely_state::{Budget, Usd};

use super::ConfigError;

/// The most projects with a budget of their own.
const PROJECTS_MAX: usize = 1_000;

/// The `[budget]` table, in US dollars. Months are in UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BudgetConfig {
    /// The most that all projects together may cost in a month. Default: no limit.
    #[serde(deserialize_with = "some_dollars")]
    pub month: Option<Usd>,
    /// The most that each project may cost in a month. Default: no limit.
    #[serde(deserialize_with = "some_dollars")]
    pub project: Option<Usd>,
    /// The most that some projects may cost in a month, by name, instead of `project`.
    #[serde(deserialize_with = "amounts")]
    pub projects: BTreeMap<String, Usd>,
    /// The most that each pull request may cost in all. Default: no limit.
    #[serde(deserialize_with = "some_dollars")]
    pub pull_request: Option<Usd>,
}

impl BudgetConfig {
    /// The limit of a project in a month.
    pub(crate) fn of_project(&self, name: &str) -> Option<Usd> {
        self.projects.get(name).copied().or(self.project)
    }

    pub(super) fn limits(&self) -> Budget {
        Budget {
            month: self.month,
            project: self.project,
            projects: self.projects.clone(),
            pull_request: self.pull_request,
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.projects.len() > PROJECTS_MAX {
            let problem = format!("names more than {PROJECTS_MAX} projects");
            return Err(ConfigError::Value { key: "budget.projects", problem });
        }
        Ok(())
    }
}

/// An amount as [`dollars`] reads it.
#[derive(Deserialize)]
struct Amount(#[serde(deserialize_with = "dollars")] Usd);

fn amounts<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Usd>, D::Error> {
    let amounts = BTreeMap::<String, Amount>::deserialize(from)?;
    Ok(amounts.into_iter().map(|(name, Amount(amount))| (name, amount)).collect())
}
