//! Asks for an instance, candidate after candidate.

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
use stagely_protocol::agent_config::AgentConfig;
use stagely_state::ids::MachineId;
use stagely_state::{Market, Placement, Usd};
use tracing::info;

use super::fault::{Fault, Kind};
use super::images::{Image, NoImage};
use super::instances::{is_live, sort_by_age};
use super::{AwsProvider, CORE_TAG, JOB_TAG, MACHINE_TAG};
use crate::user_data::user_data;
use crate::{Candidate, LaunchError, LaunchRequest};

/// How often an instance is looked for that EC2 says is there, and how long to wait between two looks.
const LOOKS: u32 = 5;
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Its prefix says which of the two `zone` is.
const SUBNET_PREFIX: &str = "subnet-";

impl AwsProvider {
    pub(super) async fn launch_once(
        &self,
        request: &LaunchRequest,
    ) -> Result<Placement, LaunchError> {
        let there = self.find(request.machine).await.map_err(|fault| not_seen(&fault))?;
        if let Some(placement) = self.oldest_live(request, there) {
            self.unclear().remove(&request.machine);
            return Ok(placement);
        }
        let image = self.images.of(request.arch).await.map_err(|error| match error {
            NoImage::Fault(fault) => not_seen(&fault),
            NoImage::Missing(problem) => LaunchError::Permanent(problem),
        })?;
        let user_data = self.user_data(request)?;
        let mut refused = Vec::new();
        for candidate in self.in_order(request) {
            // Whoever asks may give up before there is an answer.
            self.unclear().insert(request.machine, candidate.clone());
            let launched = self.run_instance(request, &candidate, &image, &user_data).await;
            if !matches!(&launched, Err(fault) if fault.kind == Kind::Unclear) {
                self.unclear().remove(&request.machine);
            }
            if let Err(fault) = &launched {
                info!(machine = %request.machine, ?candidate, %fault, "not launched");
            }
            match launched {
                Ok(instance) if is_live(&instance) => return Ok(placed(&instance, &candidate)),
                // The answer to an earlier request with this token.
                Ok(_) => return Err(ended(request.machine)),
                Err(fault) if fault.kind == Kind::Capacity => {
                    refused.push(format!("{} ({fault})", shown(&candidate)));
                }
                Err(fault) if fault.kind == Kind::TokenUsed => {
                    return self.launched_earlier(request).await;
                }
                Err(fault) => return Err(self.failed(request, fault).await),
            }
        }
        let tried = refused.join("; ");
        Err(LaunchError::NoCapacity(format!("tried {tried}")))
    }

    /// A failure that no other candidate is tried after.
    async fn failed(&self, request: &LaunchRequest, fault: Fault) -> LaunchError {
        if fault.is_of_image() {
            // Somebody has removed it since it was found. Nothing was started, and the next try looks again.
            self.images.forget(request.arch).await;
            return LaunchError::Throttled { message: fault.to_string(), wait: None };
        }
        fault.into_launch_error()
    }

    /// The candidates, and before them the one that may have been started.
    fn in_order(&self, request: &LaunchRequest) -> Vec<Candidate> {
        let mut candidates = request.candidates.clone();
        let unclear = self.unclear().get(&request.machine).cloned();
        if let Some(position) = unclear.and_then(|it| candidates.iter().position(|c| *c == it)) {
            candidates[..=position].rotate_right(1);
        }
        candidates
    }

    /// EC2 knows the token, and has another request for it: of a core that was killed before it heard the
    /// answer, for one, since each request has an agent's token of its own.
    async fn launched_earlier(&self, request: &LaunchRequest) -> Result<Placement, LaunchError> {
        let machine = request.machine;
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            let found = self.find(machine).await.map_err(|fault| not_seen(&fault))?;
            let is_known = !found.is_empty();
            if let Some(placement) = self.oldest_live(request, found) {
                return Ok(placement);
            }
            if is_known {
                return Err(ended(machine));
            }
        }
        Err(LaunchError::Unclear(format!("EC2 has launched {machine} and does not show it yet")))
    }

    fn oldest_live(&self, request: &LaunchRequest, found: Vec<Instance>) -> Option<Placement> {
        let mut live: Vec<Instance> = found.into_iter().filter(is_live).collect();
        sort_by_age(&mut live);
        let instance = live.first()?;
        let name = instance.instance_type().map(InstanceType::as_str).unwrap_or_default();
        let market = match instance.instance_lifecycle() {
            Some(InstanceLifecycleType::Spot) => Market::Spot,
            _ => Market::OnDemand,
        };
        let mut known = request.candidates.iter();
        let known = known.find(|it| it.instance_type == name && it.market == market).cloned();
        let price = self.catalog.instance_type(name).and_then(|known| known.price);
        let candidate = known.unwrap_or_else(|| Candidate {
            instance_type: name.to_owned(),
            zone: None,
            market,
            price,
            max_price: None,
        });
        Some(placed(instance, &candidate))
    }

    fn user_data(&self, request: &LaunchRequest) -> Result<String, LaunchError> {
        let is_spot = |candidate: &Candidate| candidate.market == Market::Spot;
        let watch_spot = request.candidates.iter().any(is_spot);
        let agent = AgentConfig { watch_spot, ..request.agent.clone() };
        let request = LaunchRequest { agent, ..request.clone() };
        Ok(BASE64.encode(user_data(&request, self.config.image_kind)?))
    }

    async fn run_instance(
        &self,
        request: &LaunchRequest,
        candidate: &Candidate,
        image: &Image,
        user_data: &str,
    ) -> Result<Instance, Fault> {
        let tags = self.tags(request);
        let sent = self
            .run_instances(candidate, image, &tags)
            .client_token(client_token(request.machine, candidate))
            .user_data(user_data);
        // Core repeats it itself: here a lack of capacity, which has status 500, would be asked for again.
        let once = aws_sdk_ec2::config::Builder::new().retry_config(RetryConfig::disabled());
        let answer = sent.customize().config_override(once).send().await?;
        let instance = answer.instances.and_then(|instances| instances.into_iter().next());
        instance.ok_or_else(|| Fault::unclear("EC2 has answered without an instance"))
    }

    /// The request for an instance, but for what is one machine's own.
    pub(super) fn run_instances(
        &self,
        candidate: &Candidate,
        image: &Image,
        tags: &[Tag],
    ) -> RunInstancesFluentBuilder {
        let settings = &self.config;
        let volume = EbsBlockDevice::builder()
            .volume_type(VolumeType::Gp3)
            .volume_size(i32::try_from(settings.volume_gib.get()).unwrap_or(i32::MAX))
            .delete_on_termination(true)
            .build();
        let root =
            BlockDeviceMapping::builder().device_name(&image.root_device).ebs(volume).build();
        let metadata = InstanceMetadataOptionsRequest::builder()
            .http_endpoint(InstanceMetadataEndpointState::Enabled)
            .http_tokens(HttpTokensState::Required)
            // One hop ends at the machine: its containers cannot ask.
            .http_put_response_hop_limit(1)
            .build();
        let profile = settings.instance_profile.as_ref().map(|profile| {
            let named = IamInstanceProfileSpecification::builder();
            let is_arn = profile.starts_with("arn:");
            if is_arn { named.arn(profile) } else { named.name(profile) }.build()
        });
        let groups = Some(settings.security_groups.clone()).filter(|groups| !groups.is_empty());
        let on = |resource| {
            let tags = Some(tags.to_vec());
            TagSpecification::builder().resource_type(resource).set_tags(tags).build()
        };
        let sent = self
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
            .tag_specifications(on(ResourceType::Instance))
            .tag_specifications(on(ResourceType::Volume));
        bought(put(sent, candidate), candidate)
    }

    fn tags(&self, request: &LaunchRequest) -> Vec<Tag> {
        let name = format!("stagely {} {}", request.fleet, request.machine);
        let mut tags = vec![
            tag(CORE_TAG, self.core_id.as_str()),
            tag(MACHINE_TAG, &request.machine.to_string()),
            tag("Name", &name),
        ];
        tags.extend(request.job.map(|job| tag(JOB_TAG, &job.to_string())));
        tags
    }
}

fn put(sent: RunInstancesFluentBuilder, candidate: &Candidate) -> RunInstancesFluentBuilder {
    match &candidate.zone {
        Some(subnet) if subnet.starts_with(SUBNET_PREFIX) => sent.subnet_id(subnet),
        Some(zone) => sent.placement(PlacementRequest::builder().availability_zone(zone).build()),
        None => sent,
    }
}

fn bought(sent: RunInstancesFluentBuilder, candidate: &Candidate) -> RunInstancesFluentBuilder {
    if candidate.market == Market::OnDemand {
        return sent;
    }
    let spot = SpotMarketOptions::builder()
        .spot_instance_type(SpotInstanceType::OneTime)
        .instance_interruption_behavior(InstanceInterruptionBehavior::Terminate)
        .set_max_price(candidate.max_price.map(dollars))
        .build();
    let market = InstanceMarketOptionsRequest::builder().market_type(MarketType::Spot);
    sent.instance_market_options(market.spot_options(spot).build())
}

/// As EC2 reads it: `0.05`.
fn dollars(amount: Usd) -> String {
    let text = format!("{}.{:06}", amount.0 / 1_000_000, amount.0 % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(super) fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build()
}

/// One for each candidate of a machine, and always the same: a repeated request starts nothing twice. EC2 takes
/// 64 ASCII characters.
fn client_token(machine: MachineId, candidate: &Candidate) -> String {
    let Candidate { instance_type, zone, market, .. } = candidate;
    let zone = zone.as_deref().unwrap_or_default();
    let hash = Sha256::digest(format!("{instance_type}\n{zone}\n{market}"));
    let start: [u8; 16] = hash[..16].try_into().expect("a hash has 32 bytes");
    format!("{machine}-{:032x}", u128::from_be_bytes(start))
}

fn placed(instance: &Instance, candidate: &Candidate) -> Placement {
    let zone = instance.placement().and_then(|it| it.availability_zone()).map(str::to_owned);
    Placement {
        provider_id: instance.instance_id().unwrap_or_default().to_owned(),
        instance_type: candidate.instance_type.clone(),
        zone: zone.or_else(|| candidate.zone.clone()),
        market: candidate.market,
        // What a spot machine costs at most: never more than one on demand.
        price: candidate.max_price.into_iter().chain(candidate.price).min(),
    }
}

fn shown(candidate: &Candidate) -> String {
    let zone = candidate.zone.as_deref().unwrap_or("any zone");
    format!("{} {} in {zone}", candidate.market, candidate.instance_type)
}

fn ended(machine: MachineId) -> LaunchError {
    LaunchError::NoCapacity(format!("EC2 had launched {machine}, and it has ended"))
}

/// For a failed look at what is there: an earlier request may have started something.
fn not_seen(fault: &Fault) -> LaunchError {
    match fault.kind {
        Kind::Permanent | Kind::NotFound => LaunchError::Permanent(fault.to_string()),
        Kind::Throttled => LaunchError::Throttled { message: fault.to_string(), wait: None },
        Kind::Capacity | Kind::TokenUsed | Kind::Unclear => LaunchError::Unclear(fault.to_string()),
    }
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
    fn a_client_token_is_the_candidates_own_and_short_enough() {
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
    fn an_amount_is_written_as_ec2_reads_it() {
        assert_eq!(dollars(Usd(50_000)), "0.05");
        assert_eq!(dollars(Usd(1_000_000)), "1");
        assert_eq!(dollars(Usd(12_345_678)), "12.345678");
        assert_eq!(dollars(Usd(10_000_000)), "10");
    }
}
