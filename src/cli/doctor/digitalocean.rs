//! `stagely doctor digitalocean`: checks the token, and which machines it can launch.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use stagely_protocol::{Arch, ErrorChain};
use stagely_provider::digitalocean::{Account, DigitalOcean};
use stagely_provider::{Offer, Provider as _};
use stagely_state::{Fleet, MachineSize, Usd};

use super::super::output::print;
use super::super::settings::SettingsArgs;
use super::super::table::table;
use super::{Finding, all_shown, exit_code};

/// The id of core in tags. This command creates no droplets.
const CORE_ID: &str = "doctor";

/// Checks the account, its token, images and sizes
///
/// Launches nothing.
#[derive(Args, Debug)]
pub(super) struct DigitalOceanArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Serialize)]
struct DigitalOceanChecks {
    findings: Vec<Finding>,
    sizes: Vec<SizeRow>,
}

#[derive(Serialize)]
struct SizeRow {
    fleet: Fleet,
    arch: Arch,
    size: MachineSize,
    instance_type: String,
    /// US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    price_hourly: Option<f64>,
    /// Why the size cannot be launched.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip)]
    price: Option<Usd>,
}

impl From<Offer> for SizeRow {
    fn from(offer: Offer) -> Self {
        let Offer { fleet, arch, size, instance_type, price, problem, .. } = offer;
        #[expect(clippy::cast_precision_loss, reason = "prices are small")]
        let price_hourly = price.map(|price| price.0 as f64 / 1e6);
        let problem = problem.map(|problem| problem.to_string());
        Self { fleet, arch, size, instance_type, price_hourly, problem, price }
    }
}

/// Runs the command. The exit code is 1 if machines cannot be launched.
///
/// # Errors
/// The configuration cannot be read; standard output cannot be written.
pub(super) async fn doctor(arguments: DigitalOceanArgs) -> anyhow::Result<ExitCode> {
    let config = arguments.settings.read()?;
    let report = match DigitalOcean::new(&config.digitalocean, CORE_ID.into()) {
        Ok(provider) => check(&provider).await,
        Err(error) => {
            let fix = "see the [digitalocean] table of stagely.toml";
            let finding = Finding::error("settings", format!("{error:#}"), fix);
            DigitalOceanChecks { findings: vec![finding], sizes: Vec::new() }
        }
    };
    print(arguments.json, &report, text)?;
    Ok(exit_code(&report.findings))
}

async fn check(provider: &DigitalOcean) -> DigitalOceanChecks {
    let mut findings = vec![match provider.account().await {
        Ok(account) => account_finding(&account),
        Err(error) => {
            let finding = Finding::error(
                "account",
                ErrorChain(&error).to_string(),
                "give core a valid token",
            );
            return DigitalOceanChecks { findings: vec![finding], sizes: Vec::new() };
        }
    }];
    match provider.region_images().await {
        Ok(images) => findings.extend(images.into_iter().map(|found| {
            let image_of = format!("{} in {}", found.arch, found.region);
            match (found.image, found.problem) {
                (Some(image), _) => Finding::ok("image", format!("{image_of}: {image}")),
                (None, problem) => {
                    let fix = "build a golden snapshot with packer/, or name an image";
                    Finding::warning(
                        "image",
                        format!("{image_of}: {}", problem.unwrap_or_default()),
                        fix,
                    )
                }
            }
        })),
        Err(error) => findings.push(failed("image", &ErrorChain(&error).to_string())),
    }
    let offers = match provider.describe().await {
        Ok(offers) => offers,
        Err(error) => {
            findings.push(failed("sizes", &ErrorChain(&error).to_string()));
            Vec::new()
        }
    };
    let can = offers.iter().filter(|offer| offer.problem.is_none()).count();
    if can > 0 {
        let detail = format!("{can} of {} can be launched", offers.len());
        findings.push(Finding::ok("sizes", detail));
    } else if !offers.is_empty() {
        let fix = "fix the problems in the table";
        findings.push(Finding::error("sizes", "none can be launched", fix));
    }
    DigitalOceanChecks { findings, sizes: offers.into_iter().map(SizeRow::from).collect() }
}

fn account_finding(account: &Account) -> Finding {
    let limit = format!("{} droplets at once", account.droplet_limit);
    let message = format!("{}: {} ({limit})", account.status, account.status_message);
    match account.status.as_str() {
        "active" => Finding::ok("account", format!("active, {limit}")),
        "warning" => Finding::warning("account", message, "see DigitalOcean's control panel"),
        _ => Finding::error("account", message, "see DigitalOcean's control panel"),
    }
}

fn failed(check: &'static str, error: &str) -> Finding {
    Finding::error(check, error, "try again, and give the token the missing scopes")
}

fn text(report: &DigitalOceanChecks) -> String {
    let mut text = all_shown(&report.findings);
    if !report.sizes.is_empty() {
        let row = |row: &SizeRow| {
            let SizeRow { fleet, arch, size, instance_type, problem, price, .. } = row;
            let price = price.map(|price| price.to_string()).unwrap_or_default();
            let state = problem.clone().unwrap_or_else(|| "ok".to_owned());
            [
                fleet.to_string(),
                arch.to_string(),
                size.to_string(),
                instance_type.clone(),
                price,
                state,
            ]
        };
        let header = ["FLEET", "ARCH", "SIZE", "TYPE", "PRICE/HOUR", "STATE"];
        text = format!("{text}\n\n{}", table(header, report.sizes.iter().map(row)));
    }
    text
}
