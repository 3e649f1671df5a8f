//! `stagely machines`: lists machines with their costs, and registers machines.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use stagely_protocol::Arch;
use stagely_state::ids::MachineId;
use stagely_state::{Fleet, Interruption, MachineKind, Usd};

use super::connect::ServerArgs;
use super::output::{local_time, print, short_time};
use super::table::{Column, fitted, terminal_width};
use crate::api::{AddMachine, ListMachines, MachineStatus, MachineView};

/// The time after its lease at which an existing machine causes a warning. Ending a machine takes time.
const OVERDUE_SECONDS: i64 = 300;

/// Lists machines with their leases and costs, and registers machines
///
/// A terminal shows as many columns as fit; --json prints all. A cost marked ≈ is that of a spot machine, whose price is
/// read every 5 minutes.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MachinesArgs {
    #[command(subcommand)]
    command: Option<MachinesCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Args, Debug)]
struct ListArgs {
    /// Include terminated machines, as long as core stores them
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Subcommand, Debug)]
enum MachinesCommand {
    /// Registers an existing machine and prints its agent.json
    ///
    /// Its agent runs one job or one preview at a time, and core never terminates the machine.
    Add {
        /// The machine's processor: amd64 or arm64
        #[arg(long, value_name = "ARCH")]
        arch: Arch,
        /// A name for people. Default: the machine's id
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// What the machine works for: builds, one preview at a time, or tests
        #[arg(long, value_enum, value_name = "FLEET", default_value = "builder")]
        fleet: FleetName,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Removes a registered machine. Its job or its preview moves to another machine
    Remove {
        /// The machine, vm_…
        #[arg(value_name = "MACHINE")]
        id: MachineId,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// The fleets of registered machines.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FleetName {
    Builder,
    Preview,
    Tester,
}

impl From<FleetName> for Fleet {
    fn from(name: FleetName) -> Self {
        match name {
            FleetName::Builder => Self::Builder,
            FleetName::Preview => Self::Preview,
            FleetName::Tester => Self::Tester,
        }
    }
}

/// Runs `stagely machines`.
///
/// # Errors
/// Core cannot be reached or refuses; standard output cannot be written.
pub async fn machines(arguments: MachinesArgs) -> anyhow::Result<ExitCode> {
    match arguments.command {
        None => {
            let ListArgs { all, json, server } = arguments.list;
            let mut machines = Vec::new();
            for client in server.all_running()? {
                machines.extend(client.machines(&ListMachines { all }).await?);
            }
            print(json, &machines, |machines| machines_text(machines, terminal_width()))
        }
        Some(MachinesCommand::Add { arch, name, fleet, server }) => {
            let machine = AddMachine { arch, name, fleet: fleet.into() };
            let added = server.running()?.add_machine(&machine).await?;
            eprintln!(
                "{} is registered. Save this as /etc/stagely/agent.json on that machine, with mode \
                 0600, and run `stagely agent` there. It contains the machine's token, which is \
                 shown only once.",
                added.id
            );
            print(true, &added.agent_json, |_| String::new())
        }
        Some(MachinesCommand::Remove { id, server }) => {
            server.running()?.remove_machine(id).await?;
            writeln!(stdout(), "{id} is removed")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The table, notes on single machines, and the total cost.
fn machines_text(machines: &[MachineView], width: Option<usize>) -> String {
    if machines.is_empty() {
        return "no machines".to_owned();
    }
    let notes = machines.iter().filter_map(note).map(|note| format!("\n{note}"));
    let total = total(machines).map(|total| format!("\n{total}"));
    fitted(columns(machines), width) + &notes.chain(total).collect::<String>()
}

fn columns(machines: &[MachineView]) -> Vec<Column> {
    let column = |header, rank, cell: &dyn Fn(&MachineView) -> String| Column {
        header,
        rank,
        cells: machines.iter().map(cell).collect(),
    };
    let text = |text: Option<&dyn ToString>| text.map(ToString::to_string).unwrap_or_default();
    let has_others = machines.iter().any(|machine| machine.fleet != Fleet::Builder);
    vec![
        column("MACHINE", None, &|machine| machine.id.to_string()),
        column("NAME", Some(4), &|machine| machine.name.clone()),
        column("PROVIDER", Some(8), &|machine| {
            text(machine.provider.as_ref().map(|name| name as _))
        }),
        column("TYPE", Some(1), &machine_type),
        column("MARKET", Some(5), &|machine| {
            text(machine.market.as_ref().map(|market| market as _))
        }),
        column("ARCH", Some(7), &|machine| machine.arch.to_string()),
        column("STATUS", None, &|machine| machine.status.as_str().to_owned()),
        // Most owners have builders alone.
        column("FLEET", Some(3), &|machine| {
            if has_others { machine.fleet.to_string() } else { String::new() }
        }),
        column("AGENT", Some(6), &|machine| {
            if machine.connected { "connected" } else { "" }.to_owned()
        }),
        column("AGE", Some(1), &|machine| short_time(machine.age_seconds)),
        column("LEASE", Some(2), &lease),
        column("COST", None, &cost),
        column("ZONE", Some(9), &|machine| machine.zone.clone().unwrap_or_default()),
        column("JOB", Some(10), &|machine| text(machine.job_id.as_ref().map(|job| job as _))),
        column("PREVIEW", Some(11), &|machine| {
            text(machine.preview_id.as_ref().map(|preview| preview as _))
        }),
        column("SINCE", Some(12), &|machine| local_time(machine.requested_at)),
    ]
}

/// The provider's name for the machine's type, or the machine's size before the provider has answered.
fn machine_type(machine: &MachineView) -> String {
    match (machine.kind, &machine.instance_type) {
        (MachineKind::Registered, _) => "registered".to_owned(),
        (MachineKind::Launched, Some(instance_type)) => instance_type.clone(),
        (MachineKind::Launched, None) => machine.size.to_string(),
    }
}

/// The rest of the lease.
fn lease(machine: &MachineView) -> String {
    match machine.lease_left_seconds {
        None if machine.status == MachineStatus::Terminated => String::new(),
        None => "-".to_owned(),
        Some(left @ 0..) => short_time(left.unsigned_abs()),
        Some(left) => format!("over {}", short_time(left.unsigned_abs())),
    }
}

fn cost(machine: &MachineView) -> String {
    let sign = if machine.cost_is_approximate { "≈" } else { "" };
    machine.cost_usd.map_or_else(|| "-".to_owned(), |cost| format!("{sign}{cost}"))
}

/// A note on a machine that needs attention.
fn note(machine: &MachineView) -> Option<String> {
    let id = machine.id;
    if machine.status == MachineStatus::Terminated {
        return None;
    }
    if let Some(over) = machine.lease_left_seconds.filter(|left| *left < -OVERDUE_SECONDS) {
        return Some(format!(
            "warning: {id} still exists {} after the end of its lease: its provider has not ended it yet; see \
             core's log",
            short_time(over.unsigned_abs())
        ));
    }
    match machine.interruption? {
        Interruption::Likely => Some(format!("{id} may soon be interrupted by the cloud")),
        Interruption::Certain { at } => {
            Some(format!("{id} will be interrupted by the cloud at {}", local_time(at)))
        }
    }
}

/// The total cost; `None` if no price is known.
fn total(machines: &[MachineView]) -> Option<String> {
    let known: Vec<&MachineView> =
        machines.iter().filter(|machine| machine.cost_usd.is_some()).collect();
    let costs =
        known.iter().filter_map(|machine| machine.cost_usd).map(|Usd(millionths)| millionths);
    let sum = Usd(costs.reduce(u64::saturating_add)?);
    let is_approximate = known.iter().any(|machine| machine.cost_is_approximate);
    let sign = if is_approximate { "≈ " } else { "" };
    let others = match machines.len() - known.len() {
        0 => String::new(),
        others => format!(", {others} without a price"),
    };
    let count = match machines.len() {
        1 => "1 machine".to_owned(),
        count => format!("{count} machines"),
    };
    Some(format!("{count}, {sign}{sum} in all{others}"))
}

#[cfg(test)]
mod tests {
    use stagely_state::{MachineSize, Market, ProviderName, Timestamp};

    use super::*;

    /// A machine for 0.34 dollars an hour that is ten minutes old and has 50 minutes of its lease left.
    fn view(number: u128) -> MachineView {
        MachineView {
            id: MachineId::from_bits(number),
            kind: MachineKind::Launched,
            name: String::new(),
            arch: Arch::Amd64,
            size: MachineSize::Large,
            fleet: Fleet::Builder,
            provider: Some(ProviderName::Aws),
            provider_id: Some("i-0123456789abcdef0".to_owned()),
            instance_type: Some("c5.2xlarge".to_owned()),
            zone: Some("us-east-1a".to_owned()),
            market: Some(Market::OnDemand),
            on_demand: false,
            price_per_hour_usd: Some(Usd(340_000)),
            cost_usd: Some(Usd(56_667)),
            cost_is_approximate: false,
            status: MachineStatus::Busy,
            interruption: None,
            connected: true,
            job_id: Some(stagely_state::ids::JobId::from_bits(1)),
            exporting_cache_of: None,
            preview_id: None,
            requested_at: Timestamp(0),
            lease_until: Some(Timestamp(3_600_000)),
            lease_left_seconds: Some(3_000),
            age_seconds: 600,
            terminated_at: None,
            system_info: None,
        }
    }

    fn registered() -> MachineView {
        MachineView {
            kind: MachineKind::Registered,
            name: "desk".to_owned(),
            provider: None,
            instance_type: None,
            zone: None,
            market: None,
            price_per_hour_usd: None,
            cost_usd: None,
            cost_is_approximate: false,
            status: MachineStatus::Ready,
            job_id: None,
            lease_until: None,
            lease_left_seconds: None,
            age_seconds: 1_000_000,
            ..view(3)
        }
    }

    fn all() -> Vec<MachineView> {
        let spot = MachineView {
            market: Some(Market::Spot),
            cost_is_approximate: true,
            status: MachineStatus::Terminating,
            connected: false,
            ..view(2)
        };
        vec![view(1), spot, registered()]
    }

    #[test]
    fn machine_status_and_cost_are_shown_at_every_width_and_other_columns_if_they_fit() {
        for (width, has) in [
            (Some(80), &["TYPE", "AGE", "LEASE"][..]),
            (Some(100), &["TYPE", "NAME", "MARKET", "AGE", "LEASE"]),
            (Some(140), &["PROVIDER", "ARCH", "AGENT", "MARKET", "ZONE"]),
            (None, &["ZONE", "JOB", "SINCE"]),
        ] {
            let text = machines_text(&all(), width);
            let mut lines = text.lines();
            let header = lines.next().unwrap();
            for column in ["MACHINE", "STATUS", "COST"].iter().chain(has) {
                assert!(header.contains(column), "{column} at {width:?}\n{text}");
            }
            let fits = |line: &str| width.is_none_or(|width| line.chars().count() <= width);
            assert!(fits(header) && lines.all(fits), "{width:?}\n{text}");
        }
    }

    #[test]
    fn a_spot_cost_is_approximate_and_a_missing_price_is_a_dash() {
        let text = machines_text(&all(), None);
        assert!(text.contains("  ≈$0.057") && text.contains("  $0.057"), "{text}");
        assert!(text.ends_with("\n3 machines, ≈ $0.113 in all, 1 without a price"), "{text}");
        let text = machines_text(&[registered()], None);
        assert!(text.contains("  -") && !text.contains("in all"), "{text}");
    }

    #[test]
    fn fleets_and_previews_are_shown_once_there_are_several() {
        assert!(!machines_text(&all(), None).contains("FLEET"));
        let preview_id = Some(stagely_state::ids::PreviewId::from_bits(1));
        let serving = MachineView { fleet: Fleet::Preview, preview_id, ..view(4) };
        let text = machines_text(&[view(1), serving], None);
        assert!(text.contains("  builder  ") && text.contains("  preview  "), "{text}");
        assert!(text.contains("PREVIEW") && text.contains("prev_0000000000"), "{text}");
    }

    #[test]
    fn machines_that_need_attention_are_listed_below_the_table() {
        let late = MachineView { lease_left_seconds: Some(-720), ..view(1) };
        let at = Timestamp(1_000);
        let interrupted =
            MachineView { interruption: Some(Interruption::Certain { at }), ..view(2) };
        let text = machines_text(&[late, interrupted], None);
        assert!(text.contains("over 12m"), "{text}");
        assert!(text.contains("still exists 12m after the end of its lease"), "{text}");
        assert!(text.contains("will be interrupted by the cloud at "), "{text}");
        let ending = MachineView { lease_left_seconds: Some(-30), ..view(1) };
        assert!(!machines_text(&[ending], None).contains("warning"));
    }
}
