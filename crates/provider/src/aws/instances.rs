//! The instances of a core: found by their tags, listed and ended.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{Instance, InstanceStateName};
use stagely_protocol::ErrorChain;
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::ids::MachineId;
use tracing::warn;

use super::error::{Ec2Error, Kind};
use super::images::filter;
use super::{AwsProvider, CORE_TAG, MACHINE_TAG};
use crate::ProviderError;

/// EC2's limit.
const PAGE_SIZE: i32 = 1000;

impl AwsProvider {
    /// All instances with the machine's tag, including those that have ended.
    pub(super) async fn find(&self, machine: MachineId) -> Result<Vec<Instance>, Ec2Error> {
        self.instances(Some(machine)).await
    }

    async fn instances(&self, machine: Option<MachineId>) -> Result<Vec<Instance>, Ec2Error> {
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
        for instance in self.find(machine).await?.iter().filter(|instance| is_live(instance)) {
            self.terminate_instance(instance).await?;
        }
        Ok(())
    }

    async fn terminate_instance(&self, instance: &Instance) -> Result<(), Ec2Error> {
        let Some(id) = instance.instance_id() else { return Ok(()) };
        let ended = self.client.terminate_instances().instance_ids(id).send().await;
        match ended.map_err(Ec2Error::from) {
            Err(error) if error.kind != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn list_machines(&self) -> Result<Vec<Listed>, ProviderError> {
        let mut machines: BTreeMap<MachineId, Vec<Instance>> = BTreeMap::new();
        for instance in self.instances(None).await? {
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
                // The next list contains it again.
                if let Err(error) = self.terminate_instance(&surplus).await {
                    warn!(%machine, id, error = %ErrorChain(&error), "cannot terminate the second instance");
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

/// Whether it costs money. A stopped instance still has its volume, and people can start it.
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

/// All live instances but the oldest. They result from launches of one machine whose responses were lost.
fn surplus(instances: Vec<Instance>) -> Vec<Instance> {
    let mut live: Vec<Instance> = instances.into_iter().filter(is_live).collect();
    sort_by_age(&mut live);
    live.split_off(live.len().min(1))
}

/// Sorts the oldest instance to the front.
pub(super) fn sort_by_age(instances: &mut [Instance]) {
    instances.sort_by_key(|instance| {
        let launched_at = instance.launch_time().map(|at| (at.secs(), at.subsec_nanos()));
        (launched_at, instance.instance_id.clone())
    });
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
    fn instances_that_cost_money_are_live() {
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
    fn an_instance_that_the_spot_market_took_back_has_its_reason() {
        let gone = instance(InstanceStateName::Terminated, "Server.SpotInstanceTermination");
        assert_eq!(state_of(std::slice::from_ref(&gone)), ListedState::Gone { taken_back: true });
        let other = instance(InstanceStateName::Running, "");
        assert_eq!(state_of(&[gone, other]), ListedState::Live);
    }
}
