//! `stagely doctor aws`: checks whether machines can be launched on Amazon EC2, and prints the IAM policy.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use stagely_protocol::{Arch, ErrorChain};
use stagely_provider::aws::{self, AwsProvider, ImageView, Permission, PermissionState};
use stagely_provider::settings::MarketPolicy;
use stagely_provider::{Offer, OfferProblem, Provider as _};
use stagely_state::{Fleet, ProviderName};

use super::super::output::print;
use super::super::settings::SettingsArgs;
use super::super::table::table;
use super::{Finding, all_shown, exit_code};

/// The age at which a golden image should be built again for its security fixes.
const IMAGE_AGE_MAX_DAYS: u64 = 90;

const NO_ANSWER_FIX: &str = "configure credentials (AWS_PROFILE, `profile` in [aws], or a role for core's machine), \
                             and check region, `endpoint` and the network";

/// Checks credentials, permissions, images and instance types of Amazon EC2
///
/// Launches nothing.
#[derive(Args, Debug)]
pub(super) struct AwsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the IAM policy with the least permissions that core needs, and check nothing
    #[arg(long)]
    policy: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Serialize)]
struct AwsChecks {
    findings: Vec<Finding>,
    offers: Vec<OfferRow>,
    /// The needed policy, if a permission is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Value>,
}

/// A row of the table of instance types.
#[derive(Debug, Serialize)]
struct OfferRow {
    fleet: String,
    arch: Arch,
    size: String,
    instance_type: String,
    /// The on-demand price of an hour.
    price: Option<String>,
    spot: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl From<Offer> for OfferRow {
    fn from(offer: Offer) -> Self {
        let Offer { fleet, arch, size, instance_type, price, spot, problem, .. } = offer;
        let price = price.map(|price| price.to_string());
        let (fleet, size) = (fleet.to_string(), size.to_string());
        let problem = problem.map(|problem| match problem {
            // A finding has the details, once for each arch.
            OfferProblem::NoImage(_) => "no image".to_owned(),
            OfferProblem::NotSold(_) | OfferProblem::Host(_) => problem.to_string(),
        });
        Self { fleet, arch, size, instance_type, price, spot, problem }
    }
}

/// Runs the command. The exit code is 1 if a check found an error.
pub(super) async fn doctor(arguments: AwsArgs) -> anyhow::Result<ExitCode> {
    let settings = arguments.settings.read()?;
    let buys_spot = |fleet: Fleet| {
        let bought = settings.fleet(fleet);
        let is_here =
            Arch::ALL.iter().any(|arch| bought.provider_of(*arch) == Some(ProviderName::Aws));
        is_here && bought.market != MarketPolicy::OnDemand
    };
    let spot = Fleet::ALL.into_iter().any(buys_spot);
    let config = settings.aws;
    let (client, shared) = aws::connect(&config).await?;
    let region = shared.region().map(|region| region.as_ref().to_owned()).unwrap_or_default();
    let policy = aws::policy::policy(&region, config.instance_profile.as_deref());
    if arguments.policy {
        return print(true, &policy, |_| String::new());
    }
    let provider = AwsProvider::new(client, &config, "doctor".into())?;
    let mut findings = vec![Finding::ok("region", region)];
    if let Err(error) = provider.answers().await {
        findings.push(Finding::error("ec2", error, NO_ANSWER_FIX));
        return report(arguments.json, &AwsChecks { findings, offers: Vec::new(), policy: None });
    }
    findings.push(caller(aws::caller(&shared).await));
    let permissions = provider.permissions(spot).await;
    let is_missing =
        |permission: &Permission| matches!(permission.state, PermissionState::Missing(_));
    let policy = permissions.iter().any(is_missing).then_some(policy);
    findings.extend(permissions.into_iter().map(permission));
    for arch in Arch::ALL {
        findings.push(image(arch, provider.image(arch).await));
    }
    findings.extend(provider.network().await.into_iter().map(|(what, found)| match found {
        Ok(detail) => Finding::ok(what, detail),
        Err(error) => {
            Finding::error(what, error, "correct `subnets` and `security-groups` in [aws]")
        }
    }));
    let offers: Vec<OfferRow> = match provider.describe().await {
        Ok(offers) => offers.into_iter().map(OfferRow::from).collect(),
        Err(error) => {
            findings.push(Finding::error(
                "offers",
                ErrorChain(&error).to_string(),
                "fix the problems above",
            ));
            Vec::new()
        }
    };
    findings.extend(offers_finding(&offers));
    report(arguments.json, &AwsChecks { findings, offers, policy })
}

fn report(json: bool, report: &AwsChecks) -> anyhow::Result<ExitCode> {
    print(json, report, shown)?;
    Ok(exit_code(&report.findings))
}

fn caller(caller: Result<String, String>) -> Finding {
    let check = "credentials";
    // Core only needs EC2.
    caller.map_or_else(
        |error| Finding::warning(check, error, "STS cannot name their owner, but EC2 accepts them"),
        |arn| Finding::ok(check, arn),
    )
}

fn permission(permission: Permission) -> Finding {
    let check = "permission";
    let action = permission.action;
    match permission.state {
        PermissionState::Allowed => Finding::ok(check, action),
        PermissionState::Missing(message) => Finding::error(
            check,
            format!("{action} is missing: {message}"),
            "allow it; `stagely doctor aws --policy` prints a suitable policy",
        ),
        PermissionState::Unknown(why) => Finding::warning(
            check,
            format!("{action} cannot be checked: {why}"),
            "fix the problem and try again",
        ),
    }
}

fn image(arch: Arch, found: Result<ImageView, String>) -> Finding {
    let check = "image";
    let ImageView { id, version, created } = match found {
        Ok(found) => found,
        Err(problem) => {
            let fix = format!("without an image, {arch} is emulated or not built");
            return Finding::warning(check, problem, fix);
        }
    };
    let version = version.map(|version| format!(", golden image {version}")).unwrap_or_default();
    let Some(days) = days_since(&created) else {
        return Finding::ok(check, format!("{arch}: {id}{version}"));
    };
    let detail = format!("{arch}: {id}{version}, {days} days old");
    if days > IMAGE_AGE_MAX_DAYS {
        let fix = "build it again with packer/ to get security fixes";
        return Finding::warning(check, detail, fix);
    }
    Finding::ok(check, detail)
}

fn days_since(time: &str) -> Option<u64> {
    let at: jiff::Timestamp = time.parse().ok()?;
    let seconds = jiff::Timestamp::now().as_second() - at.as_second();
    u64::try_from(seconds / 86_400).ok()
}

/// An error if nothing can be launched, a warning if some instance types cannot.
fn offers_finding(offers: &[OfferRow]) -> Option<Finding> {
    let check = "offers";
    let good = offers.iter().filter(|offer| offer.problem.is_none()).count();
    match (good, offers.len()) {
        (_, 0) => None,
        (0, _) => {
            let problem = offers.iter().find_map(|offer| offer.problem.clone()).unwrap_or_default();
            let detail = format!("none of {} can be launched: {problem}", offers.len());
            Some(Finding::error(check, detail, "fix the problems above"))
        }
        (good, all) if good < all => Some(Finding::warning(
            check,
            format!("{good} of {all} can be launched"),
            "the table says why the others cannot",
        )),
        (good, _) => Some(Finding::ok(check, format!("all {good} can be launched"))),
    }
}

fn shown(report: &AwsChecks) -> String {
    let mut parts = vec![all_shown(&report.findings)];
    if !report.offers.is_empty() {
        let rows = report.offers.iter().map(|offer| {
            [
                offer.fleet.clone(),
                offer.arch.to_string(),
                offer.size.clone(),
                offer.instance_type.clone(),
                offer.price.clone().unwrap_or_else(|| "-".to_owned()),
                if offer.spot { "yes" } else { "no" }.to_owned(),
                offer.problem.clone().unwrap_or_default(),
            ]
        });
        let header = ["FLEET", "ARCH", "SIZE", "TYPE", "PRICE/HOUR", "SPOT", "PROBLEM"];
        parts.push(table(header, rows));
    }
    if let Some(policy) = &report.policy {
        parts.push(format!("A policy with the needed permissions:\n{policy:#}"));
    }
    parts.join("\n\n")
}
