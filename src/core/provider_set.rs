//! The providers that core uses: those of the configuration, and those with live machines.

use std::collections::BTreeSet;

use anyhow::Context as _;
use stagely_provider::Providers;
use stagely_state::{Machine, MachineKind, ProviderName, Snapshot};
use tracing::info;

use super::store::StoreContents;
use crate::config::Config;

/// Creates the providers that the configuration names, and those that earlier machines still need.
///
/// # Errors
/// A provider's table is incomplete.
pub(super) async fn make(config: &Config, contents: &StoreContents) -> anyhow::Result<Providers> {
    let named = config.providers();
    let still_there = machines_still_there(&contents.state).map(|machine| machine.provider);
    let earlier: BTreeSet<ProviderName> =
        still_there.filter(|name| !named.contains(name)).collect();
    let (tables, data_dir) = (config.provider_tables(), &config.core.data_dir);
    let providers = Providers::new(&named, tables, &contents.core_id, data_dir).await?;
    let others = Providers::new(&earlier, tables, &contents.core_id, data_dir).await;
    // Without their provider, machines could be neither ended nor listed.
    let others = others.with_context(|| still_needed(&contents.state, &earlier))?;
    for (name, _) in providers.iter() {
        info!(provider = %name, "machines are launched by it");
    }
    for (name, _) in others.iter() {
        info!(provider = %name, "machines that it launched earlier are still there");
    }
    Ok(providers.and(others))
}

/// The advice for a provider that cannot be used although it has live machines.
fn still_needed(stored: &Snapshot, providers: &BTreeSet<ProviderName>) -> String {
    let names: Vec<&str> = providers.iter().map(|name| name.as_str()).collect();
    let left = machines_still_there(stored).filter(|machine| providers.contains(&machine.provider));
    let left: Vec<String> = left.map(|machine| machine.id.to_string()).collect();
    format!(
        "machines that {} launched are still there ({}): start core with what that provider needs, and take it \
         out when `stagely machines` shows none of them",
        names.join(" and "),
        left.join(", ")
    )
}

/// The launched machines that are not terminated.
fn machines_still_there(stored: &Snapshot) -> impl Iterator<Item = &Machine> {
    stored
        .machines
        .values()
        .filter(|machine| machine.kind == MachineKind::Launched && !machine.state.is_terminated())
}

#[cfg(test)]
mod tests {
    use stagely_protocol::Arch;
    use stagely_state::ids::MachineId;
    use stagely_state::{MachineState, Timestamp};

    use super::*;

    #[test]
    fn the_error_of_an_unusable_provider_names_the_machines_that_need_it() {
        let machine = |number, provider, state| {
            let id = MachineId::from_bits(number);
            let machine = Machine::new(id, MachineKind::Launched, Arch::Amd64, Timestamp(0));
            (id, Machine { provider, state, ..machine })
        };
        let machines = [
            machine(1, ProviderName::Aws, MachineState::Booting),
            machine(2, ProviderName::Aws, MachineState::Terminated),
            machine(3, ProviderName::Local, MachineState::Booting),
        ];
        let stored = Snapshot { machines: machines.into(), ..Snapshot::default() };

        let text = still_needed(&stored, &BTreeSet::from([ProviderName::Aws]));

        let left =
            format!("machines that aws launched are still there ({})", MachineId::from_bits(1));
        assert!(text.starts_with(&left), "{text}");
    }
}
