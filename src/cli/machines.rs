//! `stagely machines` and `stagely queue`: what there is, what waits, and machines of one's own.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use stagely_agent::protocol::Arch;

use super::connect::ServerArgs;
use super::records::{local_time, print};
use super::table::table;
use crate::api::{AddMachine, MachineView, QueueView};
use crate::ids::MachineId;

/// Lists the machines that are there, and registers machines of one's own
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
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Subcommand, Debug)]
enum MachinesCommand {
    /// Registers a machine that is there already, and prints the agent.json for it: the agent gets
    /// jobs one at a time, and is never terminated
    Add {
        /// Its processor: amd64 or arm64
        #[arg(long, value_name = "ARCH")]
        arch: Arch,
        /// A name for people. Default: its id
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Takes a registered machine back. Its job, if it has one, goes elsewhere
    Remove {
        /// The machine, vm_…
        #[arg(value_name = "MACHINE")]
        id: MachineId,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// Lists the jobs that wait, in the order in which they will be served
#[derive(Args, Debug)]
pub struct QueueArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely machines`.
///
/// # Errors
/// A core that cannot be asked, or refuses; standard output that cannot be written.
pub async fn machines(arguments: MachinesArgs) -> anyhow::Result<ExitCode> {
    match arguments.command {
        None => {
            let machines = arguments.list.server.running()?.machines().await?;
            print(arguments.list.json, &machines, |machines| machines_table(machines))
        }
        Some(MachinesCommand::Add { arch, name, server }) => {
            let added = server.running()?.add_machine(&AddMachine { arch, name }).await?;
            eprintln!(
                "{} is registered. Save this as /etc/stagely/agent.json there, with mode 0600, and \
                 run `stagely agent`. It holds the machine's token, which is shown only now.",
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

fn machines_table(machines: &[MachineView]) -> String {
    if machines.is_empty() {
        return "no machines".to_owned();
    }
    let rows = machines.iter().map(|machine| {
        let contact = if machine.connected { "connected" } else { "" };
        [
            machine.id.to_string(),
            machine.name.clone(),
            kind(machine),
            machine.arch.to_string(),
            machine.status.as_str().to_owned(),
            contact.to_owned(),
            machine.job_id.map(|job| job.to_string()).unwrap_or_default(),
            local_time(machine.requested_at),
        ]
    });
    table(["MACHINE", "NAME", "KIND", "ARCH", "STATUS", "AGENT", "JOB", "SINCE"], rows)
}

fn kind(machine: &MachineView) -> String {
    match machine.kind {
        crate::core::state::MachineKind::Launched => machine.size.to_string(),
        crate::core::state::MachineKind::Static => "registered".to_owned(),
    }
}

/// Runs `stagely queue`.
///
/// # Errors
/// As [`machines`].
pub async fn queue(arguments: QueueArgs) -> anyhow::Result<ExitCode> {
    let queue = arguments.server.running()?.queue().await?;
    print(arguments.json, &queue, queue_table)
}

fn queue_table(queue: &QueueView) -> String {
    let QueueView { live_machines, max_concurrent, jobs } = queue;
    let builders = format!("{live_machines} of {max_concurrent} builders are in use");
    if jobs.is_empty() {
        return format!("no jobs wait; {builders}");
    }
    let rows = jobs.iter().map(|job| {
        [
            job.position.to_string(),
            job.job_id.to_string(),
            job.name.clone(),
            job.project.clone(),
            job.reason.clone(),
        ]
    });
    format!("{}\n{builders}", table(["", "JOB", "NAME", "PROJECT", "WAITS FOR"], rows))
}
