//! `stagely cost`: what a month has cost, and the budgets.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use stagely_state::{Cost, Month, Usd};

use super::connect::ServerArgs;
use super::output::print;
use super::table::table;
use crate::api::{BudgetView, GetCost, MonthCostView, SpendingView};

/// Shows what machines have cost in a month, and the budgets
///
/// A sum marked ≈ contains the cost of spot machines, whose prices are read every 5 minutes. What is reserved is the most
/// that running machines can still cost.
#[derive(Args, Debug)]
pub struct CostArgs {
    /// Only this project
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
    /// The month in UTC, such as 2026-11. Default: this month
    #[arg(long, value_name = "MONTH")]
    month: Option<Month>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely cost`.
///
/// # Errors
/// Core cannot be reached, or has no such project; standard output cannot be written.
pub async fn cost(arguments: CostArgs) -> anyhow::Result<ExitCode> {
    let CostArgs { project, month, json, server } = arguments;
    let cost = server.running()?.cost(&GetCost { month, project }).await?;
    print(json, &cost, cost_text)
}

fn cost_text(cost: &MonthCostView) -> String {
    let MonthCostView { month, spending, budget, projects, pull_requests } = cost;
    let mut text = format!("{month}: {}{}", total(spending), budget_text(budget.as_ref()));
    if !projects.is_empty() {
        let rows = projects.iter().map(|view| {
            let (name, budget) = (view.project.clone(), view.budget.as_ref());
            row(name, String::new(), &view.spending, budget)
        });
        let header = ["PROJECT", "", "BUILDS", "PREVIEWS", "TESTS", "TOTAL", "BUDGET"];
        let _ = write!(text, "\n\n{}", table(header, rows));
    }
    if !pull_requests.is_empty() {
        let rows = pull_requests.iter().map(|view| {
            let number = format!("#{}", view.pull_request);
            row(view.project.clone(), number, &view.spending, view.budget.as_ref())
        });
        let header = ["PULL REQUEST", "", "BUILDS", "PREVIEWS", "TESTS", "TOTAL", "BUDGET"];
        let _ = write!(text, "\n\n{}", table(header, rows));
    }
    text
}

fn row(
    name: String,
    number: String,
    spending: &SpendingView,
    budget: Option<&BudgetView>,
) -> [String; 7] {
    let amount = |amount: Usd| if amount.is_zero() { "-".to_owned() } else { amount.to_string() };
    let budget = budget_text(budget);
    [
        name,
        number,
        amount(spending.builders_usd),
        amount(spending.previews_usd),
        amount(spending.testers_usd),
        total(spending),
        budget.trim_start_matches(' ').to_owned(),
    ]
}

fn total(spending: &SpendingView) -> String {
    let SpendingView { usd: amount, approximate, .. } = *spending;
    Cost { amount, approximate }.to_string()
}

/// ` of $50.00, and $0.380 reserved`
fn budget_text(budget: Option<&BudgetView>) -> String {
    let Some(budget) = budget else { return String::new() };
    let reserved = if budget.reserved_usd.is_zero() {
        String::new()
    } else {
        format!(", and {} reserved", budget.reserved_usd)
    };
    format!(" of {}{reserved}", budget.limit_usd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ProjectCostView, PullRequestCostView};

    #[test]
    fn a_month_is_shown_with_its_projects_pull_requests_and_budgets() {
        let spending = SpendingView {
            usd: Usd(61_000),
            approximate: true,
            builders_usd: Usd(13_000),
            previews_usd: Usd(48_000),
            testers_usd: Usd(0),
        };
        let budget = BudgetView {
            limit_usd: Usd(50_000_000),
            spent_usd: Usd(61_000),
            reserved_usd: Usd(380_000),
        };
        let project = ProjectCostView { project: "app".to_owned(), spending, budget: Some(budget) };
        let pull_request = PullRequestCostView {
            project: "app".to_owned(),
            pull_request: 7,
            spending,
            budget: None,
        };
        let view = MonthCostView {
            month: "2026-11".parse().unwrap(),
            spending,
            budget: None,
            projects: vec![project],
            pull_requests: vec![pull_request],
        };

        let text = cost_text(&view);

        let words: Vec<&str> = text.split_whitespace().collect();
        let words = words.join(" ");
        assert!(words.starts_with("2026-11: ≈ $0.061 PROJECT"), "{text}");
        let project = "app $0.013 $0.048 - ≈ $0.061 of $50.00, and $0.380 reserved";
        assert!(words.contains(project), "{text}");
        assert!(words.ends_with("app #7 $0.013 $0.048 - ≈ $0.061"), "{text}");
    }
}
