//! `/cost` and `/budget`: what was spent, what is reserved, and what is allowed.

use serde::{Deserialize, Serialize};
use stagely_state::{BudgetUse, Cost, Fleet, Month, Spending, Usd};
use utoipa::{IntoParams, ToSchema};

use super::encoding::amount;

/// `GET /cost`: which month and which project.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct GetCost {
    /// The month in UTC, such as `2026-11`. Default: this month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub month: Option<Month>,
    /// Only this project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// A sum of costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CostView {
    /// In US dollars, rounded up to a millionth.
    #[serde(with = "amount")]
    #[schema(value_type = f64, example = 0.061)]
    pub usd: Usd,
    /// Whether a part of it is the cost of spot machines, whose prices are read every 5 minutes.
    pub approximate: bool,
}

impl CostView {
    /// `None` for no cost.
    pub fn of(cost: Cost) -> Option<Self> {
        let Cost { amount: usd, approximate } = cost;
        (!usd.is_zero()).then_some(Self { usd, approximate })
    }
}

/// What machines of each fleet have cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpendingView {
    /// All of it, in US dollars, rounded up to a millionth.
    #[serde(with = "amount")]
    #[schema(value_type = f64, example = 0.061)]
    pub usd: Usd,
    /// Whether a part of it is the cost of spot machines, whose prices are read every 5 minutes.
    pub approximate: bool,
    /// Builds and merges.
    #[serde(with = "amount")]
    #[schema(value_type = f64)]
    pub builders_usd: Usd,
    /// Previews, awake and while they are deployed.
    #[serde(with = "amount")]
    #[schema(value_type = f64)]
    pub previews_usd: Usd,
    /// Tests.
    #[serde(with = "amount")]
    #[schema(value_type = f64)]
    pub testers_usd: Usd,
}

impl From<Spending> for SpendingView {
    fn from(spending: Spending) -> Self {
        let total = spending.total();
        Self {
            usd: total.amount,
            approximate: total.approximate,
            builders_usd: spending.of(Fleet::Builder).amount,
            previews_usd: spending.of(Fleet::Preview).amount,
            testers_usd: spending.of(Fleet::Tester).amount,
        }
    }
}

impl SpendingView {
    /// `None` for no cost.
    pub fn of(spending: Spending) -> Option<Self> {
        (!spending.is_zero()).then(|| spending.into())
    }

    /// The cost of builders, previews and testers.
    pub fn spending(&self) -> Spending {
        let mut spending = Spending::default();
        for (fleet, amount) in [
            (Fleet::Builder, self.builders_usd),
            (Fleet::Preview, self.previews_usd),
            (Fleet::Tester, self.testers_usd),
        ] {
            let approximate = self.approximate && !amount.is_zero();
            spending.add(fleet, Cost { amount, approximate });
        }
        spending
    }
}

/// A budget, and what is used of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BudgetView {
    /// The limit, with what was allowed beyond `stagely.toml`.
    #[serde(with = "amount")]
    #[schema(value_type = f64, example = 50.0)]
    pub limit_usd: Usd,
    #[serde(with = "amount")]
    #[schema(value_type = f64)]
    /// What was spent.
    pub spent_usd: Usd,
    /// The most that running machines can still cost. A machine is launched only if it fits beside both.
    #[serde(with = "amount")]
    #[schema(value_type = f64)]
    pub reserved_usd: Usd,
}

impl From<BudgetUse> for BudgetView {
    fn from(used: BudgetUse) -> Self {
        let BudgetUse { limit: limit_usd, spent: spent_usd, reserved: reserved_usd } = used;
        Self { limit_usd, spent_usd, reserved_usd }
    }
}

/// What a month has cost.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MonthCostView {
    /// The month in UTC.
    #[schema(value_type = String, example = "2026-11")]
    pub month: Month,
    /// All projects, or the wanted one.
    pub spending: SpendingView,
    /// The budget of all projects, if there is one.
    pub budget: Option<BudgetView>,
    /// Each project that has cost something or has a budget.
    pub projects: Vec<ProjectCostView>,
    /// The open pull requests that have cost something, each in all its time, the most expensive first.
    pub pull_requests: Vec<PullRequestCostView>,
}

/// What a project has cost in the month.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProjectCostView {
    /// The project's name.
    pub project: String,
    pub spending: SpendingView,
    /// The project's budget of the month, if there is one.
    pub budget: Option<BudgetView>,
}

/// What a pull request has cost in all.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PullRequestCostView {
    /// The project's name.
    pub project: String,
    /// The pull request's number.
    pub pull_request: u64,
    pub spending: SpendingView,
    /// The pull request's budget, if there is one.
    pub budget: Option<BudgetView>,
}

/// `POST /budget`: allows more than the budget of `stagely.toml`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AllowBudget {
    /// The project's name.
    pub project: String,
    /// How much more, in US dollars.
    #[serde(with = "amount")]
    #[schema(value_type = f64, example = 5.0)]
    pub amount_usd: Usd,
    /// The number of the pull request that gets it, in all. Default: the project gets it, in this month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<u64>,
}
