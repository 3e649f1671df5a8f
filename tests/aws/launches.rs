//! The requests for instances, and the instances that result.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_ec2::types::{HttpTokensState, Instance, InstanceLifecycleType, VolumeType};
use stagely::config::Config;
use stagely::core::clock::new_id;
use stagely_protocol::Arch;
use stagely_protocol::agent_config::AgentConfig;
use stagely_provider::aws::AwsSettings;
use stagely_provider::aws::{AwsProvider, CORE_TAG};
use stagely_provider::settings::MarketPolicy;
use stagely_provider::{
    AgentEnvironment, CertificateAuthorities, LaunchError, LaunchRequest, MachineSpec,
    Provider as _,
};
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::ids::{JobId, MachineId, PreviewId};
use stagely_state::{Fleet, MachineSize, Market, Usd};

use crate::moto::{
    AMD64, ARM64, Cloud, FOREIGN_AMD64, ROOT_DEVICE, agent_json, wait_for_next_second,
};
use crate::proxy::Fate;

pub(crate) const CORE: &str = "core-of-the-test";

const JOB: JobId = JobId::from_bits(1);

/// A provider whose `[aws]` table is `settings`.
pub(crate) fn provider(cloud: &Cloud, settings: &str) -> AwsProvider {
    let config: AwsSettings = toml::from_str(settings).unwrap();
    AwsProvider::new(cloud.client.clone(), &config, CORE.into()).unwrap()
}

/// A medium builder.
pub(crate) fn spec(arch: Arch, market: MarketPolicy) -> MachineSpec {
    MachineSpec {
        fleet: Fleet::Builder,
        arch,
        size: MachineSize::Medium,
        market,
        on_demand: false,
        max_price: (market != MarketPolicy::OnDemand).then_some(Usd(50_000)),
        disk_gib: None,
    }
}

pub(crate) fn request(spec: MachineSpec) -> LaunchRequest {
    let machine = new_id::<MachineId>();
    LaunchRequest {
        machine,
        job: Some(JOB),
        preview: None,
        spec,
        agent: Config::default().agent_config(machine, "a-secret-token".into()),
        environment: AgentEnvironment::default(),
        authorities: CertificateAuthorities::default(),
        lease: Duration::from_hours(1),
        insecure_registry: None,
        binary: None,
    }
}

pub(crate) fn amd64() -> LaunchRequest {
    request(spec(Arch::Amd64, MarketPolicy::OnDemand))
}

pub(crate) const LIVE: ListedState = ListedState::Live;
const ENDED: ListedState = ListedState::Gone { taken_back: false };

fn tags(tags: &[aws_sdk_ec2::types::Tag]) -> BTreeMap<&str, &str> {
    tags.iter().map(|tag| (tag.key().unwrap(), tag.value().unwrap())).collect()
}

async fn only(cloud: &Cloud) -> Instance {
    let mut live = cloud.live().await;
    assert_eq!(live.len(), 1, "{live:#?}");
    live.remove(0)
}

#[tokio::test]
async fn a_machine_and_its_volume_have_the_configured_properties_and_tags() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, "volume-gib = 77");
    let request = amd64();

    let placement = provider.launch(&request).await.unwrap();

    let instance = only(&cloud).await;
    assert_eq!(instance.instance_id(), Some(&*placement.provider_id));
    assert_eq!(placement.instance_type, "c5.xlarge");
    assert_eq!(placement.zone.as_deref(), Some("us-east-1a"));
    assert_eq!((placement.market, placement.price), (Market::OnDemand, Some(Usd(170_000))));
    assert_eq!(instance.instance_type().unwrap().as_str(), "c5.xlarge");
    assert_eq!(instance.image_id(), Some(AMD64));
    let metadata = instance.metadata_options().unwrap();
    assert_eq!(metadata.http_tokens(), Some(&HttpTokensState::Required));
    assert_eq!(metadata.http_put_response_hop_limit(), Some(1));

    let machine = request.machine.to_string();
    let (name, job) = (format!("stagely builder {machine}"), JOB.to_string());
    let wanted = BTreeMap::from([
        ("stagely:core", CORE),
        ("stagely:machine", &machine),
        ("stagely:job", &job),
        ("stagely:fleet", "builder"),
        ("Name", &name),
    ]);
    assert_eq!(tags(instance.tags()), wanted);
    let id = instance.instance_id();
    let volumes = cloud.volumes().await;
    let is_attached = |volume: &&aws_sdk_ec2::types::Volume| {
        volume.attachments().iter().any(|attachment| attachment.instance_id() == id)
    };
    let volume = volumes.iter().find(is_attached).unwrap();
    assert_eq!(tags(volume.tags()), wanted);
    assert_eq!((volume.size(), volume.volume_type()), (Some(77), Some(&VolumeType::Gp3)));
    let device = &instance.block_device_mappings()[0];
    assert_eq!(device.device_name(), Some(ROOT_DEVICE));
    assert_eq!(device.ebs().unwrap().delete_on_termination(), Some(true));

    let sent = &cloud.proxy.seen("RunInstances")[0];
    assert_eq!(sent["InstanceInitiatedShutdownBehavior"], "terminate");
    assert_eq!((&*sent["MinCount"], &*sent["MaxCount"]), ("1", "1"));
    assert!(!sent.keys().any(|name| name.starts_with("InstanceMarketOptions")), "{sent:#?}");
    assert!(!sent.keys().any(|name| name.starts_with("IamInstanceProfile")), "{sent:#?}");
}

#[tokio::test]
async fn a_machine_of_previews_has_the_tags_the_market_and_the_volume_of_its_preview() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, "volume-gib = 77");
    let preview = PreviewId::from_bits(2);
    let spec = MachineSpec {
        fleet: Fleet::Preview,
        disk_gib: Some(30),
        ..spec(Arch::Amd64, MarketPolicy::SpotFirst)
    };
    let request = LaunchRequest { preview: Some(preview), ..request(spec) };
    // The spot market has nothing left.
    cloud.proxy.next(1, "RunInstances", Fate::Refused("InsufficientInstanceCapacity", 500));

    let placement = provider.launch(&request).await.unwrap();

    assert_eq!((&*placement.instance_type, placement.market), ("t3.medium", Market::OnDemand));
    let sent = cloud.proxy.seen("RunInstances");
    assert_eq!(sent[0]["InstanceMarketOptions.MarketType"], "spot");
    assert_eq!(sent[1].get("InstanceMarketOptions.MarketType"), None);
    let instance = only(&cloud).await;
    let (name, machine) = (format!("stagely preview {}", request.machine), request.machine);
    let (machine, job, preview) = (machine.to_string(), JOB.to_string(), preview.to_string());
    let wanted = BTreeMap::from([
        ("stagely:core", CORE),
        ("stagely:machine", &machine),
        ("stagely:fleet", "preview"),
        ("stagely:job", &job),
        ("stagely:preview", &preview),
        ("Name", &name),
    ]);
    assert_eq!(tags(instance.tags()), wanted);
    let volumes = cloud.volumes().await;
    let is_attached = |volume: &&aws_sdk_ec2::types::Volume| {
        let mut attachments = volume.attachments().iter();
        attachments.any(|attachment| attachment.instance_id() == instance.instance_id())
    };
    let volume = volumes.iter().find(is_attached).unwrap();
    assert_eq!((tags(volume.tags()), volume.size()), (wanted, Some(30)));
    // The agent watches for notices: another machine of the preview may be on the spot market.
    assert_eq!(agent_json(&cloud.user_data(&instance).await)["watch_spot"], true);
}

#[tokio::test]
async fn user_data_holds_the_agents_configuration() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, "");
    let request = amd64();
    provider.launch(&request).await.unwrap();

    let user_data = cloud.user_data(&only(&cloud).await).await;

    let agent = agent_json(&user_data);
    let expected = AgentConfig { run_dir: Some("/run/stagely".into()), ..request.agent };
    assert_eq!(agent, serde_json::to_value(&expected).unwrap());
    assert_eq!(agent["token"], "a-secret-token");
}

#[tokio::test]
async fn a_spot_machine_is_requested_once_and_terminates_on_interruption() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, "");
    let request = request(spec(Arch::Arm64, MarketPolicy::Spot));

    let placement = provider.launch(&request).await.unwrap();

    assert_eq!((placement.market, placement.price), (Market::Spot, Some(Usd(50_000))));
    let instance = only(&cloud).await;
    assert_eq!(instance.instance_lifecycle(), Some(&InstanceLifecycleType::Spot));
    assert_eq!(instance.image_id(), Some(ARM64));
    let sent = &cloud.proxy.seen("RunInstances")[0];
    let option = |name: &str| sent[&format!("InstanceMarketOptions.{name}")].as_str();
    assert_eq!(option("MarketType"), "spot");
    assert_eq!(option("SpotOptions.SpotInstanceType"), "one-time");
    assert_eq!(option("SpotOptions.InstanceInterruptionBehavior"), "terminate");
    assert_eq!(option("SpotOptions.MaxPrice"), "0.05");
    let agent = agent_json(&cloud.user_data(&instance).await);
    assert_eq!(agent["watch_spot"], true);
}

#[tokio::test]
async fn subnets_groups_and_a_profile_are_those_of_the_configuration() {
    let cloud = Cloud::start().await;
    let subnets = cloud.client.describe_subnets().send().await.unwrap().subnets.unwrap();
    let subnet =
        subnets.iter().find(|subnet| subnet.availability_zone() == Some("us-east-1c")).unwrap();
    let groups = cloud.client.describe_security_groups().send().await.unwrap();
    let groups = groups.security_groups.unwrap();
    let group = groups.iter().find(|group| group.vpc_id() == subnet.vpc_id()).unwrap();
    let settings = format!(
        "subnets = [{:?}]\nsecurity-groups = [{:?}]",
        subnet.subnet_id().unwrap(),
        group.group_id().unwrap()
    );
    let provider = provider(&cloud, &settings);

    let placement = provider.launch(&amd64()).await.unwrap();

    assert_eq!(placement.zone.as_deref(), Some("us-east-1c"));
    let instance = only(&cloud).await;
    assert_eq!(instance.subnet_id(), subnet.subnet_id());
    let sent = &cloud.proxy.seen("RunInstances")[0];
    assert_eq!(sent["SecurityGroupId.1"], group.group_id().unwrap());

    let provider = self::provider(&cloud, r#"zones = ["us-east-1b"]"#);
    let placement = provider.launch(&amd64()).await.unwrap();
    assert_eq!(placement.zone.as_deref(), Some("us-east-1b"));
}

#[tokio::test]
async fn a_list_has_the_machines_of_this_core_from_all_pages() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, "");
    let mut machines = Vec::new();
    for _ in 0..7 {
        let request = amd64();
        provider.launch(&request).await.unwrap();
        machines.push(request.machine);
    }
    let config = AwsSettings::default();
    let other = AwsProvider::new(cloud.client.clone(), &config, "another".into()).unwrap();
    other.launch(&amd64()).await.unwrap();
    cloud.proxy.set_page_size(3);
    provider.terminate(machines[4]).await.unwrap();
    let before = cloud.proxy.seen("DescribeInstances").len();

    let listed = provider.list().await.unwrap();

    assert_eq!(cloud.proxy.seen("DescribeInstances").len() - before, 3, "pages");
    let state = |index| if index == 4 { ENDED } else { LIVE };
    let wanted = machines.iter().enumerate();
    let mut wanted: Vec<Listed> =
        wanted.map(|(index, machine)| Listed { machine: *machine, state: state(index) }).collect();
    wanted.sort_by_key(|listed| listed.machine);
    assert_eq!(listed, wanted);
}

#[tokio::test]
async fn a_machine_is_terminated_and_terminating_one_that_is_gone_succeeds() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, "");
    let request = amd64();
    provider.launch(&request).await.unwrap();

    provider.terminate(request.machine).await.unwrap();
    assert_eq!(cloud.live().await, []);
    provider.terminate(request.machine).await.unwrap();
    provider.terminate(new_id::<MachineId>()).await.unwrap();
}

#[tokio::test]
async fn the_newest_golden_image_of_this_account_and_arch_is_booted() {
    let cloud = Cloud::without_golden_images().await;
    let newer = cloud.newer_image(AMD64).await;
    for (image, version) in [(&*newer, "2"), (AMD64, "1"), (FOREIGN_AMD64, "3"), (ARM64, "4")] {
        cloud.make_golden(image, version).await;
    }
    // This image is newer still, and not golden.
    cloud.newer_image(AMD64).await;
    let provider = provider(&cloud, "");
    provider.launch(&amd64()).await.unwrap();
    assert_eq!(only(&cloud).await.image_id(), Some(&*newer));
}

#[tokio::test]
async fn without_a_golden_image_the_error_says_how_to_make_one() {
    let cloud = Cloud::without_golden_images().await;
    cloud.make_golden(ARM64, "1").await;
    cloud.make_golden(FOREIGN_AMD64, "1").await;
    let provider = provider(&cloud, "");
    let Err(LaunchError::Permanent(cause)) = provider.launch(&amd64()).await else {
        panic!("the machine was launched");
    };
    let problem = cause.to_string();
    assert!(problem.contains("no golden image for amd64"), "{problem}");
    assert!(problem.contains("packer/"), "{problem}");
    assert_eq!(cloud.live().await, []);
}

#[tokio::test]
async fn a_named_image_is_booted_and_must_have_the_arch() {
    let cloud = Cloud::without_golden_images().await;
    let named = provider(&cloud, &format!("image-amd64 = {AMD64:?}"));
    named.launch(&amd64()).await.unwrap();
    assert_eq!(only(&cloud).await.image_id(), Some(AMD64));

    let wrong = provider(&cloud, &format!("image-amd64 = {ARM64:?}"));
    let error = wrong.launch(&amd64()).await.unwrap_err().to_string();
    assert!(error.contains("is arm64, and image-amd64"), "{error}");
    let gone = provider(&cloud, "image-amd64 = \"ami-0123456789abcdef0\"");
    let error = gone.launch(&amd64()).await.unwrap_err();
    assert!(matches!(&error, LaunchError::Permanent(_)), "{error:?}");
    assert!(error.to_string().contains("image-amd64"), "{error}");
}

#[tokio::test]
async fn after_the_removal_of_a_golden_image_another_is_booted() {
    let cloud = Cloud::start().await;
    let newer = cloud.newer_image(AMD64).await;
    cloud.make_golden(&newer, "2").await;
    let provider = provider(&cloud, "");
    provider.launch(&amd64()).await.unwrap();
    assert_eq!(only(&cloud).await.image_id(), Some(&*newer));
    cloud.client.deregister_image().image_id(&newer).send().await.unwrap();
    // moto would still launch it.
    cloud.proxy.next(1, "RunInstances", Fate::Refused("InvalidAMIID.NotFound", 400));

    let request = amd64();
    let error = provider.launch(&request).await.unwrap_err();
    assert!(matches!(error, LaunchError::Throttled { .. }), "{error:?}");
    provider.launch(&request).await.unwrap();

    let images: Vec<_> =
        cloud.live().await.into_iter().filter_map(|instance| instance.image_id).collect();
    assert!(images.contains(&AMD64.to_owned()), "{images:?}");
}

#[tokio::test]
async fn two_instances_of_one_machine_become_one() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, "");
    let request = amd64();
    let first = provider.launch(&request).await.unwrap();
    // Launch times have whole seconds, and the first instance must be older.
    wait_for_next_second().await;
    let spec = aws_sdk_ec2::types::TagSpecification::builder()
        .resource_type(aws_sdk_ec2::types::ResourceType::Instance)
        .tags(aws_sdk_ec2::types::Tag::builder().key(CORE_TAG).value(CORE).build())
        .tags(
            aws_sdk_ec2::types::Tag::builder()
                .key("stagely:machine")
                .value(request.machine.to_string())
                .build(),
        )
        .build();
    let second = cloud.client.run_instances().image_id(AMD64).min_count(1).max_count(1);
    let type_ = aws_sdk_ec2::types::InstanceType::C5Xlarge;
    second.instance_type(type_).tag_specifications(spec).send().await.unwrap();
    assert_eq!(cloud.live().await.len(), 2);

    let listed = provider.list().await.unwrap();

    assert_eq!(listed, [Listed { machine: request.machine, state: LIVE }]);
    assert_eq!(only(&cloud).await.instance_id(), Some(&*first.provider_id));
    assert_eq!(provider.list().await.unwrap(), listed);
}

#[tokio::test]
async fn offers_have_prices_and_problems() {
    let cloud = Cloud::without_golden_images().await;
    cloud.make_golden(AMD64, "2").await;
    let settings = r#"
        builders.amd64.large = ["c5.2xlarge", "c99.2xlarge"]
        [instance-types]
        "c99.2xlarge" = { arch = "amd64", price = 0.3 }
        "t4g.small" = { arch = "amd64" }
    "#;
    let settings = format!("{settings}\n[builders.amd64]\nsmall = [\"t4g.small\"]")
        .replace("builders.amd64.large", "testers.amd64.large");
    let offers = provider(&cloud, &settings).describe().await.unwrap();

    let offer = |fleet, arch, name: &str| {
        let mut found = offers.iter().filter(|offer| offer.fleet == fleet && offer.arch == arch);
        found.find(|offer| offer.instance_type == name).unwrap()
    };
    let usual = offer(Fleet::Builder, Arch::Amd64, "c5.xlarge");
    assert_eq!((usual.price, usual.spot, &usual.problem), (Some(Usd(170_000)), true, &None));
    let unknown =
        offer(Fleet::Tester, Arch::Amd64, "c99.2xlarge").problem.as_ref().unwrap().to_string();
    assert!(unknown.contains("this region has no c99.2xlarge"), "{unknown}");
    let wrong =
        offer(Fleet::Builder, Arch::Amd64, "t4g.small").problem.as_ref().unwrap().to_string();
    assert!(wrong.contains("t4g.small is arm64, not x86_64"), "{wrong}");
    let arm64 = offers.iter().filter(|offer| offer.arch == Arch::Arm64);
    for offer in arm64 {
        let problem = offer.problem.as_ref().unwrap().to_string();
        assert!(problem.contains("no golden image for arm64"), "{problem}");
    }
}
