//! `stagely sweep`: what the providers have against what core has on record.

use std::process::ExitCode;

use clap::Args;

use super::connect::ServerArgs;
use super::records::print;
use super::table::table;
use crate::api::{ProviderSweepView, SweepAction, SweepView, SweptMachine};

/// Ends machines that core does not know, and finds those that are gone
///
/// Compares what the providers have with what core has on record. Core does so itself every minute, and with
/// local machines every second.
///
/// Exit codes: 0, or 1 when a provider could not be asked or a machine could not be seen to.
#[derive(Args, Debug)]
pub struct SweepArgs {
    /// Say what would be done, and do nothing
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
/// A core that cannot be asked, or refuses; standard output that cannot be written.
pub async fn sweep(arguments: SweepArgs) -> anyhow::Result<ExitCode> {
    let swept = arguments.server.running()?.sweep(arguments.dry_run).await?;
    print(arguments.json, &swept, text)?;
    Ok(if failures(&swept).is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(swept: &SweepView) -> String {
    if swept.providers.is_empty() {
        return "core uses no provider: machines are registered, and nobody launches any"
            .to_owned();
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
            let what = what(machine, swept.dry_run);
            let (id, name) = (machine.machine_id.to_string(), provider.provider.to_string());
            [id, name, what, machine.reason.clone()]
        };
        provider.machines.iter().map(row)
    });
    let machines: Vec<[String; 4]> = machines.collect();
    if !machines.is_empty() {
        let machines = table(["MACHINE", "PROVIDER", "WHAT", "WHY"], machines);
        parts.extend([String::new(), machines]);
    }
    parts.extend(failures(swept));
    parts.join("\n")
}

/// What went wrong, a line each.
fn failures(swept: &SweepView) -> Vec<String> {
    let of_provider = |provider: &ProviderSweepView| {
        let error = provider.error.as_ref()?;
        Some(format!("{} could not be asked: {error}", provider.provider))
    };
    let of_machine = |machine: &SweptMachine| {
        let error = machine.error.as_ref()?;
        Some(format!("{} could not be seen to: {error}", machine.machine_id))
    };
    let all = swept.providers.iter().flat_map(|provider| {
        of_provider(provider).into_iter().chain(provider.machines.iter().filter_map(of_machine))
    });
    all.collect()
}

/// What was, or would be, done about a machine.
fn what(machine: &SweptMachine, dry_run: bool) -> String {
    let text = match machine.action {
        SweepAction::None => "left alone",
        _ if machine.error.is_some() => "failed",
        SweepAction::End if dry_run => "would be ended",
        SweepAction::Forget if dry_run => "would be forgotten",
        SweepAction::LookAgain if dry_run => "would be looked for again",
        SweepAction::End if machine.done => "ended",
        SweepAction::Forget if machine.done => "forgotten",
        SweepAction::LookAgain => "looked for again",
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
    fn what_would_be_done_and_what_was_done_are_told_apart() {
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
        assert!(text(&done).contains("aws       ended  it is there"), "{}", text(&done));
    }

    #[test]
    fn a_provider_that_could_not_be_asked_and_a_machine_that_was_not_ended_are_failures() {
        let mut absent = provider(ProviderName::DigitalOcean, Vec::new());
        absent.error = Some("no answer".to_owned());
        let swept = SweepView {
            dry_run: true,
            providers: vec![provider(ProviderName::Local, Vec::new()), absent],
        };
        let shown = text(&swept);
        assert_eq!(failures(&swept).len(), 1);
        assert!(shown.contains("digitalocean  ?"), "{shown}");
        assert!(shown.ends_with("\ndigitalocean could not be asked: no answer"), "{shown}");
        let failed = SweptMachine { error: Some("refused".to_owned()), ..unknown() };
        let swept = SweepView {
            dry_run: false,
            providers: vec![provider(ProviderName::Aws, vec![failed])],
        };
        assert_eq!(failures(&swept).len(), 1);
        assert!(text(&swept).contains("could not be seen to: refused"), "{}", text(&swept));
    }
}
