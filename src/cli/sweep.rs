//! `stagely sweep`: compares the providers' machines with core's records.

use std::process::ExitCode;

use clap::Args;

use super::connect::ServerArgs;
use super::output::print;
use super::table::table;
use crate::api::{ProviderSweepView, SweepAction, SweepView, SweptMachine};

/// Compares the providers' machines with core's records, and ends unknown machines
///
/// Core does the same every minute, and every second for local machines.
///
/// Exit codes: 0; or 1 if a provider could not be queried or an action failed.
#[derive(Args, Debug)]
pub struct SweepArgs {
    /// Show the actions without taking them
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely sweep`.
///
/// # Errors
/// Core cannot be reached or refuses; standard output cannot be written.
pub async fn sweep(arguments: SweepArgs) -> anyhow::Result<ExitCode> {
    let swept = arguments.server.running()?.sweep(arguments.dry_run).await?;
    print(arguments.json, &swept, text)?;
    Ok(if failures(&swept).is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(swept: &SweepView) -> String {
    if swept.providers.is_empty() {
        return "core uses no provider: it launches no machines".to_owned();
    }
    let providers = swept.providers.iter().map(|provider| match &provider.error {
        None => [
            provider.provider.to_string(),
            provider.listed.to_string(),
            provider.recorded.to_string(),
            provider.machines.len().to_string(),
        ],
        Some(_) => [provider.provider.to_string(), "?".to_owned(), "?".to_owned(), "?".to_owned()],
    });
    let mut parts = vec![table(["PROVIDER", "LISTED", "RECORDED", "DIFFERENT"], providers)];
    let machines = swept.providers.iter().flat_map(|provider| {
        let row = |machine: &SweptMachine| {
            let action = action(machine, swept.dry_run);
            let (id, name) = (machine.machine_id.to_string(), provider.provider.to_string());
            [id, name, action, machine.reason.clone()]
        };
        provider.machines.iter().map(row)
    });
    let machines: Vec<[String; 4]> = machines.collect();
    if !machines.is_empty() {
        let machines = table(["MACHINE", "PROVIDER", "ACTION", "REASON"], machines);
        parts.extend([String::new(), machines]);
    }
    parts.extend(failures(swept));
    parts.join("\n")
}

/// The failures, each on one line.
fn failures(swept: &SweepView) -> Vec<String> {
    let of_provider = |provider: &ProviderSweepView| {
        let error = provider.error.as_ref()?;
        Some(format!("{} could not be queried: {error}", provider.provider))
    };
    let of_machine = |machine: &SweptMachine| {
        let error = machine.error.as_ref()?;
        Some(format!("{}: the action failed: {error}", machine.machine_id))
    };
    let all = swept.providers.iter().flat_map(|provider| {
        of_provider(provider).into_iter().chain(provider.machines.iter().filter_map(of_machine))
    });
    all.collect()
}

/// The action for a machine, or its result.
fn action(machine: &SweptMachine, dry_run: bool) -> String {
    let text = match machine.action {
        SweepAction::None => "left alone",
        _ if machine.error.is_some() => "failed",
        SweepAction::End if dry_run => "would be ended",
        SweepAction::Forget if dry_run => "would be forgotten",
        SweepAction::CheckAgain if dry_run => "would be checked again",
        SweepAction::End if machine.done => "ended",
        SweepAction::Forget if machine.done => "forgotten",
        SweepAction::CheckAgain => "checked again",
        SweepAction::End | SweepAction::Forget => "left alone for now",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use stagely_state::ProviderName;
    use stagely_state::ids::MachineId;

    use super::*;

    fn provider(provider: ProviderName, machines: Vec<SweptMachine>) -> ProviderSweepView {
        ProviderSweepView { provider, error: None, listed: 3, recorded: 2, machines }
    }

    fn unknown() -> SweptMachine {
        SweptMachine {
            machine_id: MachineId::from_bits(1),
            action: SweepAction::End,
            reason: "it is there and has no record".to_owned(),
            done: false,
            error: None,
        }
    }

    #[test]
    fn a_dry_run_and_a_real_sweep_are_worded_differently() {
        let swept = |dry_run, machine| SweepView {
            dry_run,
            providers: vec![provider(ProviderName::Aws, vec![machine])],
        };
        let planned = swept(true, unknown());
        assert!(
            text(&planned).contains("aws       would be ended  it is there"),
            "{}",
            text(&planned)
        );
        assert!(failures(&planned).is_empty());
        let done = swept(false, SweptMachine { done: true, ..unknown() });
        assert!(text(&done).contains("aws       ended   it is there"), "{}", text(&done));
    }

    #[test]
    fn unreachable_providers_and_failed_actions_are_failures() {
        let mut absent = provider(ProviderName::DigitalOcean, Vec::new());
        absent.error = Some("no answer".to_owned());
        let swept = SweepView {
            dry_run: true,
            providers: vec![provider(ProviderName::Local, Vec::new()), absent],
        };
        let shown = text(&swept);
        assert_eq!(failures(&swept).len(), 1);
        assert!(shown.contains("digitalocean  ?"), "{shown}");
        assert!(shown.ends_with("\ndigitalocean could not be queried: no answer"), "{shown}");
        let failed = SweptMachine { error: Some("refused".to_owned()), ..unknown() };
        let swept = SweepView {
            dry_run: false,
            providers: vec![provider(ProviderName::Aws, vec![failed])],
        };
        assert_eq!(failures(&swept).len(), 1);
        assert!(text(&swept).contains("the action failed: refused"), "{}", text(&swept));
    }
}
