//! The instances that belong to a core: found by their tags, and ended.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{Instance, InstanceStateName};
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::ids::MachineId;
use tracing::warn;

use super::fault::{Fault, Kind};
use super::images::filter;
use super::{AwsProvider, CORE_TAG, MACHINE_TAG};
use crate::ProviderError;

/// The most that EC2 gives.
const PAGE_SIZE: i32 = 1000;

impl AwsProvider {
    /// All instances with the machine's tag, also those that are gone.
    pub(super) async fn find(&self, machine: MachineId) -> Result<Vec<Instance>, Fault> {
        self.described(Some(machine)).await
    }

    async fn described(&self, machine: Option<MachineId>) -> Result<Vec<Instance>, Fault> {
        let mut filters = vec![filter(&format!("tag:{CORE_TAG}"), self.core_id.as_str())];
        if let Some(machine) = machine {
            filters.push(filter(&format!("tag:{MACHINE_TAG}"), machine.to_string()));
        }
        let request = self.client.describe_instances().set_filters(Some(filters));
        let mut pages = request.into_paginator().page_size(PAGE_SIZE).send();
        let mut instances = Vec::new();
        while let Some(page) = pages.next().await {
            for reservation in page?.reservations.unwrap_or_default() {
                instances.extend(reservation.instances.unwrap_or_default());
            }
        }
        Ok(instances)
    }

    pub(super) async fn terminate_all(&self, machine: MachineId) -> Result<(), ProviderError> {
        for instance in self.find(machine).await?.iter().filter(|it| is_live(it)) {
            self.terminate_instance(instance).await?;
        }
        Ok(())
    }

    async fn terminate_instance(&self, instance: &Instance) -> Result<(), Fault> {
        let Some(id) = instance.instance_id() else { return Ok(()) };
        let ended = self.client.terminate_instances().instance_ids(id).send().await;
        match ended.map_err(Fault::from) {
            Err(fault) if fault.kind != Kind::NotFound => Err(fault),
            _ => Ok(()),
        }
    }

    pub(super) async fn list_machines(&self) -> Result<Vec<Listed>, ProviderError> {
        let mut machines: BTreeMap<MachineId, Vec<Instance>> = BTreeMap::new();
        for instance in self.described(None).await? {
            if let Some(machine) = machine_of(&instance) {
                machines.entry(machine).or_default().push(instance);
            } else {
                let id = instance.instance_id();
                warn!(
                    id,
                    "an instance has the tag {CORE_TAG} and no {MACHINE_TAG}; it is left alone"
                );
            }
        }
        let mut listed = Vec::new();
        for (machine, instances) in machines {
            let state = state_of(&instances);
            listed.push(Listed { machine, state });
            for surplus in surplus(instances) {
                let id = surplus.instance_id();
                warn!(%machine, id, "a second instance of one machine is ended");
                // The list is right all the same, and the next one shows it again.
                if let Err(fault) = self.terminate_instance(&surplus).await {
                    warn!(%machine, id, %fault, "it is not ended");
                }
            }
        }
        Ok(listed)
    }
}

fn machine_of(instance: &Instance) -> Option<MachineId> {
    let tag = instance.tags().iter().find(|tag| tag.key() == Some(MACHINE_TAG))?;
    tag.value()?.parse().ok()
}

/// Whether it costs money. What is stopped still has its volume, and can be started by people.
pub(super) fn is_live(instance: &Instance) -> bool {
    let state = instance.state().and_then(|state| state.name());
    !matches!(state, Some(InstanceStateName::ShuttingDown | InstanceStateName::Terminated))
}

fn state_of(instances: &[Instance]) -> ListedState {
    if instances.iter().any(is_live) {
        return ListedState::Live;
    }
    let reasons = instances.iter().filter_map(|instance| instance.state_reason()?.code());
    // `Server.SpotInstanceTermination` and `Server.SpotInstanceShutdown`.
    let taken_back = reasons.into_iter().any(|code| code.starts_with("Server.Spot"));
    ListedState::Gone { taken_back }
}

/// All live ones but the oldest: two launches of one machine, one of whose answers was lost.
fn surplus(instances: Vec<Instance>) -> Vec<Instance> {
    let mut live: Vec<Instance> = instances.into_iter().filter(is_live).collect();
    sort_by_age(&mut live);
    live.split_off(live.len().min(1))
}

/// The oldest first.
pub(super) fn sort_by_age(instances: &mut [Instance]) {
    let age = |it: &Instance| {
        (it.launch_time().map(|at| (at.secs(), at.subsec_nanos())), it.instance_id.clone())
    };
    instances.sort_by_key(age);
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{InstanceState, StateReason};

    use super::*;

    fn instance(state: InstanceStateName, reason: &str) -> Instance {
        Instance::builder()
            .state(InstanceState::builder().name(state).build())
            .state_reason(StateReason::builder().code(reason).build())
            .build()
    }

    #[test]
    fn what_costs_money_is_live() {
        use InstanceStateName::{Pending, Running, ShuttingDown, Stopped, Stopping, Terminated};
        for state in [Pending, Running, Stopping, Stopped] {
            assert_eq!(state_of(&[instance(state, "")]), ListedState::Live);
        }
        for state in [ShuttingDown, Terminated] {
            let gone = [instance(state, "Client.UserInitiatedShutdown")];
            assert_eq!(state_of(&gone), ListedState::Gone { taken_back: false });
        }
    }

    #[test]
    fn what_the_spot_market_has_taken_back_is_known_by_its_reason() {
        let gone = instance(InstanceStateName::Terminated, "Server.SpotInstanceTermination");
        assert_eq!(state_of(std::slice::from_ref(&gone)), ListedState::Gone { taken_back: true });
        let other = instance(InstanceStateName::Running, "");
        assert_eq!(state_of(&[gone, other]), ListedState::Live);
    }
}
