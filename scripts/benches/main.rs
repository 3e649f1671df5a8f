//! Compares Stagely with the same work done without it. `scripts/bench` runs this program.
//!
//! Everything is real: the release binary, sockets, redb files, Git, Docker and a registry. Only `queue`
//! and `cost` simulate their machines.

mod agent;
mod build;
mod cache;
mod clone;
mod core;
mod cost;
mod export;
mod git;
mod github;
mod history;
mod idle;
mod load;
mod logs;
mod preview;
mod queue;
mod repair;
mod report;
mod sim;
mod text;
mod webhooks;

use anyhow::bail;

/// The release binary that is measured.
const STAGELY: &str = env!("CARGO_BIN_EXE_stagely");

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Cargo adds the flag --bench.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["agent"] => agent::measure().await,
        ["build"] => build::measure().await,
        ["cache"] => cache::measure().await,
        ["clone"] => clone::measure().await,
        ["cost"] => cost::measure(),
        ["core"] => idle::measure().await,
        ["export"] => export::measure().await,
        ["history"] => history::measure().await,
        ["logs"] => logs::measure().await,
        ["preview"] => preview::measure().await,
        ["queue"] => queue::measure(),
        ["webhooks"] => webhooks::measure().await,
        // Roles of the processes that the benchmarks start.
        [repair::FILL_ROLE, path] => repair::fill(path.as_ref()).await,
        [repair::FILL_PLAIN_ROLE, path] => repair::fill_plain(path.as_ref()),
        [preview::CORE_ROLE, folder] => preview::core(folder.as_ref()).await,
        [idle::BARE_SERVER_ROLE] => idle::bare_server().await,
        [webhooks::BARE_HOOK_ROLE, folder] => webhooks::bare_server(folder.as_ref()).await,
        // `cargo bench` without a name, or Cargo's test of this target.
        [] => {
            println!("scripts/bench runs this");
            Ok(())
        }
        _ => bail!("unknown benchmark {arguments:?}"),
    }
}
