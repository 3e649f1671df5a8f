//! Launches an instance: tries one candidate after the other.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_sdk_ec2::operation::run_instances::builders::RunInstancesFluentBuilder;
use aws_sdk_ec2::types::{
    BlockDeviceMapping, EbsBlockDevice, HttpTokensState, IamInstanceProfileSpecification, Instance,
    InstanceInterruptionBehavior, InstanceLifecycleType, InstanceMarketOptionsRequest,
    InstanceMetadataEndpointState, InstanceMetadataOptionsRequest, InstanceType, MarketType,
    Placement as PlacementRequest, ResourceType, ShutdownBehavior, SpotInstanceType,
    SpotMarketOptions, Tag, TagSpecification, VolumeType,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};
use stagely_protocol::ErrorChain;
use stagely_protocol::agent_config::AgentConfig;
use stagely_state::ids::MachineId;
use stagely_state::{Market, Placement, Usd};
use thiserror::Error;
use tracing::info;

use super::error::{Ec2Error, Kind};
use super::images::{Image, ImageError};
use super::instances::{is_live, sort_by_age};
use super::{AwsProvider, CORE_TAG, FLEET_TAG, JOB_TAG, MACHINE_TAG, PREVIEW_TAG};
use crate::catalog::Candidate;
use crate::settings::MarketPolicy;
use crate::{LaunchError, LaunchRequest, user_data};

/// The searches for an instance that EC2 has launched and does not show yet, and the time between two of them.
const SEARCHES: u32 = 5;
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// The prefix tells subnets from zones in [`Candidate::zone`].
const SUBNET_PREFIX: &str = "subnet-";

/// Why no instance was launched, where EC2's last error does not say it.
#[derive(Debug, Error)]
enum LaunchProblem {
    #[error("tried {}", .0.join("; "))]
    NoCapacity(Vec<String>),
    #[error("EC2 had launched {0}, and it has ended")]
    Ended(MachineId),
    #[error("EC2 has launched {0} and does not show it yet")]
    NotShown(MachineId),
}

impl AwsProvider {
    pub(super) async fn launch_once(
        &self,
        request: &LaunchRequest,
    ) -> Result<Placement, LaunchError> {
        let machine = request.machine;
        let candidates = self.spot.cheapest_first(self.catalog.candidates(&request.spec));
        let found = self.find(machine).await.map_err(Ec2Error::into_search_error)?;
        if let Some(placement) = self.oldest_live(&candidates, found) {
            self.unclear().remove(&machine);
            return Ok(placement);
        }
        let image = self.images.of(request.spec.arch).await.map_err(|error| match error {
            ImageError::Ec2(error) => error.into_search_error(),
            ImageError::Missing(_) => LaunchError::Permanent(error.into()),
        })?;
        let user_data = self.user_data(request, &candidates)?;
        let (mut refused, mut may_pass) = (Vec::new(), false);
        for candidate in self.in_order(machine, candidates.clone()) {
            // Core may give up before EC2 answers.
            self.unclear().insert(machine, candidate.clone());
            let launched = self.run_instance(request, &candidate, &image, &user_data).await;
            if !matches!(&launched, Err(error) if error.kind == Kind::Unclear) {
                self.unclear().remove(&machine);
            }
            if let Err(error) = &launched {
                info!(%machine, ?candidate, error = %ErrorChain(error), "not launched");
            }
            match launched {
                Ok(instance) if is_live(&instance) => {
                    return Ok(self.placement(&instance, &candidate));
                }
                // The response to an earlier request with this token.
                Ok(instance) => return Err(ended(machine, &[instance])),
                Err(error) if error.kind == Kind::Capacity => {
                    may_pass |= !error.is_of_zone();
                    refused.push(format!("{} ({error})", label(&candidate)));
                }
                Err(error) if error.kind == Kind::TokenUsed => {
                    return self.find_launched(machine, &candidates).await;
                }
                Err(error) => return Err(self.launch_error(request, error).await),
            }
        }
        // A later launch may be on demand.
        may_pass |= request.spec.market == MarketPolicy::Spot && !request.spec.on_demand;
        let problem = if may_pass { LaunchError::NoCapacity } else { LaunchError::Permanent };
        Err(problem(LaunchProblem::NoCapacity(refused).into()))
    }

    /// The error after which no other candidate is tried.
    async fn launch_error(&self, request: &LaunchRequest, error: Ec2Error) -> LaunchError {
        if error.is_of_image() {
            // The image was removed since it was found. Nothing was started, and the next attempt asks for the
            // image again.
            self.images.forget(request.spec.arch).await;
            return LaunchError::Throttled { cause: error.into(), wait: None };
        }
        error.into_launch_error()
    }

    /// The candidates. The one that may have been started comes first.
    fn in_order(&self, machine: MachineId, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
        let unclear = self.unclear().get(&machine).cloned();
        let position = unclear.and_then(|unclear| candidates.iter().position(|c| *c == unclear));
        if let Some(position) = position {
            candidates[..=position].rotate_right(1);
        }
        candidates
    }

    /// Finds the instance of an earlier request with the same client token. The requests differ because each has a
    /// new token for the agent. An earlier core was killed before it got the response.
    async fn find_launched(
        &self,
        machine: MachineId,
        candidates: &[Candidate],
    ) -> Result<Placement, LaunchError> {
        for search in 0..SEARCHES {
            if search > 0 {
                tokio::time::sleep(SEARCH_INTERVAL).await;
            }
            let found = self.find(machine).await.map_err(Ec2Error::into_search_error)?;
            if let Some(placement) = self.oldest_live(candidates, found.clone()) {
                return Ok(placement);
            }
            if !found.is_empty() {
                return Err(ended(machine, &found));
            }
        }
        Err(LaunchError::Unclear(LaunchProblem::NotShown(machine).into()))
    }

    fn oldest_live(&self, candidates: &[Candidate], found: Vec<Instance>) -> Option<Placement> {
        let mut live: Vec<Instance> = found.into_iter().filter(is_live).collect();
        sort_by_age(&mut live);
        let instance = live.first()?;
        let name = instance.instance_type().map(InstanceType::as_str).unwrap_or_default();
        let market = match instance.instance_lifecycle() {
            Some(InstanceLifecycleType::Spot) => Market::Spot,
            _ => Market::OnDemand,
        };
        let is_same =
            |candidate: &&Candidate| candidate.instance_type == name && candidate.market == market;
        let known = candidates.iter().find(is_same).cloned();
        let price = self.catalog.instance_type(name).and_then(|known| known.price);
        let candidate = known.unwrap_or_else(|| Candidate {
            instance_type: name.to_owned(),
            zone: None,
            market,
            price,
            max_price: None,
        });
        Some(self.placement(instance, &candidate))
    }

    fn placement(&self, instance: &Instance, candidate: &Candidate) -> Placement {
        let zone = instance.placement().and_then(|placement| placement.availability_zone());
        let zone = zone.map(str::to_owned).or_else(|| candidate.zone.clone());
        let is_spot = candidate.market == Market::Spot;
        let spot_zone = zone.as_deref().filter(|_| is_spot);
        Placement {
            provider_id: instance.instance_id().unwrap_or_default().to_owned(),
            instance_type: candidate.instance_type.clone(),
            spot_price: spot_zone.and_then(|zone| self.spot.price(&candidate.instance_type, zone)),
            zone,
            market: candidate.market,
            // The highest price of a spot machine, which never costs more than one on demand.
            price: candidate.max_price.into_iter().chain(candidate.price).min(),
        }
    }

    fn user_data(
        &self,
        request: &LaunchRequest,
        candidates: &[Candidate],
    ) -> Result<String, LaunchError> {
        let watch_spot = candidates.iter().any(|candidate| candidate.market == Market::Spot);
        let agent = AgentConfig { watch_spot, ..request.agent.clone() };
        let request = LaunchRequest { agent, ..request.clone() };
        let user_data = user_data::compressed(&request, self.config.image_kind);
        Ok(BASE64.encode(user_data.map_err(|error| LaunchError::Permanent(error.into()))?))
    }

    async fn run_instance(
        &self,
        request: &LaunchRequest,
        candidate: &Candidate,
        image: &Image,
        user_data: &str,
    ) -> Result<Instance, Ec2Error> {
        let tags = self.tags(request);
        let request_builder = self
            .run_instances(candidate, image, request.spec.disk_gib, &tags)
            .client_token(client_token(request.machine, candidate))
            .user_data(user_data);
        // Core retries itself. The SDK would also retry after a lack of capacity, which has status 500.
        let once = aws_sdk_ec2::config::Builder::new().retry_config(RetryConfig::disabled());
        let response = request_builder.customize().config_override(once).send().await?;
        let instance = response.instances.and_then(|instances| instances.into_iter().next());
        instance.ok_or_else(|| Ec2Error::unclear("EC2 has answered without an instance"))
    }

    /// The request for an instance without the client token and the user data of a machine. `disk_gib`: the wanted
    /// size of its volume, if it is not the usual one.
    pub(super) fn run_instances(
        &self,
        candidate: &Candidate,
        image: &Image,
        disk_gib: Option<u32>,
        tags: &[Tag],
    ) -> RunInstancesFluentBuilder {
        let settings = &self.config;
        // EC2 refuses a volume that is smaller than the image.
        let volume_gib = disk_gib.unwrap_or(settings.volume_gib.get()).max(image.root_gib);
        let volume = EbsBlockDevice::builder()
            .volume_type(VolumeType::Gp3)
            .volume_size(i32::try_from(volume_gib).unwrap_or(i32::MAX))
            .delete_on_termination(true)
            .build();
        let root =
            BlockDeviceMapping::builder().device_name(&image.root_device).ebs(volume).build();
        let metadata = InstanceMetadataOptionsRequest::builder()
            .http_endpoint(InstanceMetadataEndpointState::Enabled)
            .http_tokens(HttpTokensState::Required)
            // One hop ends at the machine, so its containers cannot reach the service.
            .http_put_response_hop_limit(1)
            .build();
        let profile = settings.instance_profile.as_ref().map(|profile| {
            let named = IamInstanceProfileSpecification::builder();
            let is_arn = profile.starts_with("arn:");
            if is_arn { named.arn(profile) } else { named.name(profile) }.build()
        });
        let groups = Some(settings.security_groups.clone()).filter(|groups| !groups.is_empty());
        let tagged = |resource| {
            let tags = Some(tags.to_vec());
            TagSpecification::builder().resource_type(resource).set_tags(tags).build()
        };
        let request = self
            .client
            .run_instances()
            .min_count(1)
            .max_count(1)
            .image_id(&image.id)
            .instance_type(InstanceType::from(candidate.instance_type.as_str()))
            .block_device_mappings(root)
            .metadata_options(metadata)
            .set_iam_instance_profile(profile)
            .set_security_group_ids(groups)
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .tag_specifications(tagged(ResourceType::Instance))
            .tag_specifications(tagged(ResourceType::Volume));
        with_market(with_zone(request, candidate), candidate)
    }

    fn tags(&self, request: &LaunchRequest) -> Vec<Tag> {
        let name = format!("stagely {} {}", request.spec.fleet, request.machine);
        let mut tags = vec![
            tag(CORE_TAG, self.core_id.as_str()),
            tag(MACHINE_TAG, &request.machine.to_string()),
            tag(FLEET_TAG, &request.spec.fleet.to_string()),
            tag("Name", &name),
        ];
        tags.extend(request.job.map(|job| tag(JOB_TAG, &job.to_string())));
        tags.extend(request.preview.map(|preview| tag(PREVIEW_TAG, &preview.to_string())));
        tags
    }
}

fn with_zone(
    request: RunInstancesFluentBuilder,
    candidate: &Candidate,
) -> RunInstancesFluentBuilder {
    match &candidate.zone {
        Some(subnet) if subnet.starts_with(SUBNET_PREFIX) => request.subnet_id(subnet),
        Some(zone) => {
            request.placement(PlacementRequest::builder().availability_zone(zone).build())
        }
        None => request,
    }
}

fn with_market(
    request: RunInstancesFluentBuilder,
    candidate: &Candidate,
) -> RunInstancesFluentBuilder {
    if candidate.market == Market::OnDemand {
        return request;
    }
    let spot = SpotMarketOptions::builder()
        .spot_instance_type(SpotInstanceType::OneTime)
        .instance_interruption_behavior(InstanceInterruptionBehavior::Terminate)
        .set_max_price(candidate.max_price.map(dollars))
        .build();
    let market = InstanceMarketOptionsRequest::builder().market_type(MarketType::Spot);
    request.instance_market_options(market.spot_options(spot).build())
}

/// An amount in EC2's form: `0.05`.
fn dollars(amount: Usd) -> String {
    let text = format!("{}.{:06}", amount.0 / 1_000_000, amount.0 % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(super) fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build()
}

/// The token of a candidate of a machine. It is the same in each attempt, so that a repeated request starts no second
/// instance. EC2 allows 64 ASCII characters.
fn client_token(machine: MachineId, candidate: &Candidate) -> String {
    let Candidate { instance_type, zone, market, .. } = candidate;
    let zone = zone.as_deref().unwrap_or_default();
    let hash = Sha256::digest(format!("{instance_type}\n{zone}\n{market}"));
    let start: [u8; 16] = hash[..16].try_into().expect("a hash has 32 bytes");
    format!("{machine}-{:032x}", u128::from_be_bytes(start))
}

/// For people.
fn label(candidate: &Candidate) -> String {
    let zone = candidate.zone.as_deref().unwrap_or("any zone");
    format!("{} {} in {zone}", candidate.market, candidate.instance_type)
}

fn ended(machine: MachineId, instances: &[Instance]) -> LaunchError {
    let unknown = || LaunchError::NoCapacity(LaunchProblem::Ended(machine).into());
    super::ended::problem(instances).unwrap_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::machine_id;

    fn candidate(instance_type: &str, zone: Option<&str>, market: Market) -> Candidate {
        let (instance_type, zone) = (instance_type.to_owned(), zone.map(str::to_owned));
        Candidate { instance_type, zone, market, price: None, max_price: None }
    }

    #[test]
    fn each_candidate_has_its_own_short_client_token() {
        let machine = machine_id();
        let tokens = [
            candidate("c5.xlarge", None, Market::OnDemand),
            candidate("c5.xlarge", None, Market::Spot),
            candidate("c5.xlarge", Some("subnet-1"), Market::Spot),
            candidate("c6i.xlarge", Some("subnet-1"), Market::Spot),
        ]
        .map(|candidate| client_token(machine, &candidate));
        for (index, token) in tokens.iter().enumerate() {
            assert!(token.len() <= 64 && token.is_ascii(), "{token}");
            assert!(!tokens[..index].contains(token), "{tokens:?}");
        }
        let again = client_token(machine, &candidate("c5.xlarge", None, Market::OnDemand));
        assert_eq!(tokens[0], again);
    }

    #[test]
    fn amounts_have_the_form_that_ec2_reads() {
        assert_eq!(dollars(Usd(50_000)), "0.05");
        assert_eq!(dollars(Usd(1_000_000)), "1");
        assert_eq!(dollars(Usd(12_345_678)), "12.345678");
        assert_eq!(dollars(Usd(10_000_000)), "10");
    }
}
