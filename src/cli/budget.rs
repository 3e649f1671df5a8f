//! `stagely budget`: allows more than the budget of the configuration.

use std::io::{Write as _, stdout};
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, Subcommand};
use stagely_state::Usd;

use super::connect::ServerArgs;
use crate::api::{AllowBudget, BudgetView};

/// Allows projects and pull requests more than their budgets
#[derive(Args, Debug)]
pub struct BudgetArgs {
    #[command(subcommand)]
    command: BudgetCommand,
}

#[derive(Subcommand, Debug)]
enum BudgetCommand {
    /// Allows a project more than its budget, so that jobs that wait for money go on
    ///
    /// The amount is added to the budget of this month (UTC), and to that of all projects. `stagely queue` says what a
    /// waiting job needs.
    Allow {
        /// The project's name
        #[arg(value_name = "PROJECT")]
        project: String,
        /// The amount in US dollars, such as 5 or 0.50
        #[arg(value_name = "AMOUNT")]
        amount: Dollars,
        /// Add it to the budget of this month. This is the default
        #[arg(long, conflicts_with = "pull_request")]
        month: bool,
        /// Add it to the budget of this pull request instead, which is for all its time
        #[arg(long, value_name = "NUMBER")]
        pull_request: Option<u64>,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// An amount in US dollars, as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dollars(Usd);

impl FromStr for Dollars {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = "must be an amount of US dollars, such as 5 or 0.50";
        let text = text.strip_prefix('$').unwrap_or(text);
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |text: &str| {
            !text.is_empty() && text.len() <= 7 && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !is_number(whole) || !is_number(fraction) || fraction.len() > 6 {
            return Err(invalid);
        }
        let whole: u64 = whole.parse().map_err(|_| invalid)?;
        let millionths: u64 = format!("{fraction:0<6}").parse().map_err(|_| invalid)?;
        let amount = Usd(whole * 1_000_000 + millionths);
        if amount.is_zero() { Err("must be more than 0") } else { Ok(Self(amount)) }
    }
}

/// Runs `stagely budget`.
///
/// # Errors
/// Core cannot be reached or refuses; standard output cannot be written.
pub async fn budget(arguments: BudgetArgs) -> anyhow::Result<ExitCode> {
    let BudgetCommand::Allow { project, amount, month: _, pull_request, server } =
        arguments.command;
    let allow = AllowBudget { project: project.clone(), amount_usd: amount.0, pull_request };
    let BudgetView { limit_usd, spent_usd, reserved_usd } =
        server.running()?.allow_budget(&allow).await?;
    let whose = match pull_request {
        Some(number) => format!("Pull request {number} of {project}"),
        None => project,
    };
    writeln!(
        stdout(),
        "{whose} may spend {limit_usd}: {spent_usd} is spent, {reserved_usd} is reserved"
    )?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<Dollars>().map(|Dollars(amount)| amount.0);
        let amounts = ["5", "$5", "0.5", "0.50", "12.000001"].map(read);
        assert_eq!(amounts, [5_000_000, 5_000_000, 500_000, 500_000, 12_000_001].map(Ok));
        for text in ["", "0", "-5", "5,0", "five", "5.", ".5", "99999999", "0.0000001", "1e3"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
