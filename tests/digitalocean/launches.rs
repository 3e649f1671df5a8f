//! Launches: each machine is started once, whatever the API answers.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use stagely::config::Config;
use stagely::core::clock::new_id;
use stagely_protocol::Arch;
use stagely_provider::digitalocean::DigitalOcean;
use stagely_provider::settings::MarketPolicy;
use stagely_provider::{
    AgentBinary, LaunchError, LaunchRequest, MachineSpec, Provider as _, Providers,
};
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::ids::MachineId;
use stagely_state::{Fleet, Market, ProviderName, Usd};

use crate::fake::{Cloud, Fault, request, spec};
use crate::world::VPC;

fn live(machine: MachineId) -> Listed {
    Listed { machine, state: ListedState::Live }
}

#[tokio::test]
async fn a_machine_is_launched_once_and_the_next_core_finds_and_ends_it() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider(&format!("vpc = \"{VPC}\""));
    let machine = new_id::<MachineId>();
    let request = request(machine);

    let placement = provider.launch(&request).await.unwrap();
    let next = cloud.provider("");
    assert_eq!(next.launch(&request).await.unwrap(), placement);

    assert_eq!((&*placement.instance_type, placement.zone.as_deref()), ("c-4", Some("fra1")));
    // The price of the API goes before that of the catalog.
    assert_eq!((placement.market, placement.price), (Market::OnDemand, Some(Usd(125_010))));
    let creations = cloud.seen("POST droplets");
    assert_eq!(creations.len(), 1);
    let sent = &creations[0].body;
    assert_eq!(sent["image"], 7003, "the newest golden snapshot");
    assert_eq!(sent["vpc_uuid"], VPC);
    assert_eq!((&sent["monitoring"], &sent["with_droplet_agent"]), (&json!(false), &json!(false)));
    let job = request.job.as_ref().unwrap();
    let (machine_tag, job_tag) =
        (format!("stagely:machine:{machine}"), format!("stagely:job:{job}"));
    let fleet_tag = "stagely:fleet:builder";
    let tags = ["stagely", "stagely:core:core1", &machine_tag, fleet_tag, &job_tag];
    {
        let world = cloud.world();
        assert_eq!(placement.provider_id, world.droplets[0].id.to_string());
        assert_eq!(world.droplets[0].tags, tags);
        assert_eq!(world.droplets[0].name, machine.to_string().replace('_', "-"));
        let user_data = world.droplets[0].user_data.strip_prefix("#cloud-config\n").unwrap();
        let user_data: Value = serde_json::from_str(user_data).unwrap();
        let file = &user_data["write_files"][0];
        assert_eq!(
            (&file["path"], &file["permissions"]),
            (&json!("/etc/stagely/agent.json"), &json!("0600"))
        );
        let agent: Value = serde_json::from_str(file["content"].as_str().unwrap()).unwrap();
        assert_eq!(agent["agent_id"], machine.to_string());
        assert_eq!(agent["token"], "the machine's token");
    }

    assert_eq!(next.list().await.unwrap(), [live(machine)]);
    next.terminate(machine).await.unwrap();
    assert_eq!(cloud.world().droplets.len(), 0);
    assert_eq!(next.list().await.unwrap(), []);
    next.terminate(machine).await.unwrap();
    next.terminate(new_id::<MachineId>()).await.unwrap();
}

#[tokio::test]
async fn a_machine_of_previews_has_their_tags_and_the_smallest_size_whose_disk_is_enough() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("previews.amd64.large = [\"c-4\", \"c-8\"]");
    let request_of = |disk_gib| LaunchRequest {
        preview: Some(new_id()),
        spec: MachineSpec { fleet: Fleet::Preview, disk_gib: Some(disk_gib), ..spec(Arch::Amd64) },
        ..request(new_id())
    };
    // The fake's sizes have disks of 80, 50 and 100 GiB. Those of larger machines come after those of the wanted one.
    for (disk_gib, size) in [(20, "s-2vcpu-4gb"), (80, "s-2vcpu-4gb"), (81, "c-8"), (100, "c-8")] {
        let request = request_of(disk_gib);
        let placement = provider.launch(&request).await.unwrap();
        assert_eq!(placement.instance_type, size, "{disk_gib} GiB");
        let tags = cloud.world().droplets.last().unwrap().tags.clone();
        let preview = format!("stagely:preview:{}", request.preview.unwrap());
        assert!(tags.contains(&"stagely:fleet:preview".to_owned()), "{tags:?}");
        assert!(tags.contains(&preview), "{tags:?}");
    }
    // The sizes are read once.
    assert_eq!(cloud.seen("GET sizes").len(), 2, "two pages");

    let provider =
        cloud.provider("previews.amd64.large = [\"c-8\"]\npreviews.amd64.xlarge = [\"c-8\"]");
    let before = cloud.seen("POST droplets").len();
    let error = provider.launch(&request_of(101)).await.unwrap_err();
    let LaunchError::Permanent(cause) = error else { panic!("{error:?}") };
    let text = cause.to_string();
    assert!(text.contains("preview.disk asks for 101 GiB"), "{text}");
    assert!(
        text.contains("100 GiB") && text.contains("digitalocean.previews.amd64.medium"),
        "{text}"
    );
    assert_eq!(cloud.seen("POST droplets").len(), before);
}

#[tokio::test]
async fn a_stock_image_is_named_by_its_slug_and_gets_the_address_of_the_agent() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("image-kind = \"stock\"\nimage-amd64 = \"debian-13-x64\"");
    let url = "https://core.example/v1/agent/binary/amd64";
    let binary = AgentBinary { url: url.parse().unwrap(), sha256: "ab".repeat(32) };
    let request = LaunchRequest { binary: Some(binary.clone()), ..request(new_id::<MachineId>()) };

    provider.launch(&request).await.unwrap();

    let world = cloud.world();
    assert_eq!(world.droplets[0].image, "debian-13-x64");
    let user_data = &world.droplets[0].user_data;
    assert!(user_data.contains(url) && user_data.contains(&binary.sha256), "{user_data}");
}

#[tokio::test]
async fn a_lost_response_leaves_one_droplet_whose_launch_succeeds() {
    for fault in [Fault::Lost, Fault::DoneBut(500), Fault::DoneBut(504)] {
        let cloud = Cloud::start().await;
        let provider = cloud.provider("");
        cloud.fails("POST droplets", 1, fault);
        let machine = new_id::<MachineId>();

        let placement = provider.launch(&request(machine)).await.unwrap();

        let world = cloud.world();
        assert_eq!(world.droplets.len(), 1);
        assert_eq!(placement.provider_id, world.droplets[0].id.to_string());
    }
}

#[tokio::test]
async fn an_unclear_response_is_an_unclear_error_and_a_retry_is_harmless() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    cloud.fails("POST droplets", 1, Fault::Status(503, "Service Unavailable", &[]));
    let request = request(new_id::<MachineId>());

    let error = provider.launch(&request).await.unwrap_err();
    assert!(matches!(error, LaunchError::Unclear(_)), "{error:?}");
    assert_eq!(cloud.world().droplets.len(), 0);

    provider.launch(&request).await.unwrap();
    assert_eq!(cloud.world().droplets.len(), 1);
}

#[tokio::test]
async fn of_two_droplets_of_one_machine_the_older_stays() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    let request = request(new_id::<MachineId>());
    // The droplet is created, the response is lost, and no list has it yet.
    cloud.world().newest_is_hidden = true;
    cloud.fails("POST droplets", 1, Fault::Lost);
    let error = provider.launch(&request).await.unwrap_err();
    assert!(matches!(error, LaunchError::Unclear(_)), "{error:?}");
    provider.launch(&request).await.unwrap();
    let ids: Vec<u64> = cloud.world().droplets.iter().map(|droplet| droplet.id).collect();
    assert_eq!(ids.len(), 2);
    cloud.world().newest_is_hidden = false;

    assert_eq!(provider.list().await.unwrap(), [live(request.machine)]);

    let left: Vec<u64> = cloud.world().droplets.iter().map(|droplet| droplet.id).collect();
    assert_eq!(left, ids[..1]);

    // The same where the machine is launched again before the list is read.
    let mut second = cloud.world().droplets[0].clone();
    second.id += 100;
    cloud.world().droplets.push(second);
    let placement = provider.launch(&request).await.unwrap();
    assert_eq!(placement.provider_id, ids[0].to_string());
    assert_eq!(cloud.world().droplets.len(), 1);

    // A termination deletes both.
    let mut second = cloud.world().droplets[0].clone();
    second.id += 100;
    cloud.world().droplets.push(second);
    provider.terminate(request.machine).await.unwrap();
    assert_eq!(cloud.world().droplets.len(), 0);
}

#[tokio::test]
async fn a_droplet_that_has_no_tags_yet_is_not_created_twice_and_is_ended() {
    let cloud = Cloud::start().await;
    cloud.world().tags_come_later = true;
    let provider = cloud.provider("");
    let request = request(new_id::<MachineId>());
    provider.launch(&request).await.unwrap();
    provider.launch(&request).await.unwrap();
    assert_eq!(cloud.world().droplets.len(), 1);

    provider.terminate(request.machine).await.unwrap();

    assert_eq!(cloud.world().droplets.len(), 0);
}

#[tokio::test]
async fn without_capacity_the_next_candidate_is_tried() {
    let cloud = Cloud::start().await;
    cloud.world().full = vec![("c-4", "fra1"), ("c-4", "ams3"), ("c-8", "fra1")];
    let provider = cloud.provider("builders.amd64.medium = [\"c-4\", \"c-8\"]");

    let placement = provider.launch(&request(new_id::<MachineId>())).await.unwrap();
    assert_eq!((&*placement.instance_type, placement.zone.as_deref()), ("c-8", Some("ams3")));

    cloud.world().full.push(("c-8", "ams3"));
    let error = provider.launch(&request(new_id::<MachineId>())).await.unwrap_err();
    let LaunchError::NoCapacity(cause) = error else { panic!("{error:?}") };
    let text = cause.to_string();
    assert!(text.contains("c-8 in ams3: Size is not available in this region"), "{text}");
}

#[tokio::test]
async fn at_the_droplet_limit_no_further_candidate_is_tried() {
    let cloud = Cloud::start().await;
    cloud.world().droplet_limit = 0;
    let provider = cloud.provider("");
    let error = provider.launch(&request(new_id::<MachineId>())).await.unwrap_err();
    let LaunchError::NoCapacity(cause) = error else { panic!("{error:?}") };
    let text = cause.to_string();
    assert!(text.contains("droplet limit") && text.contains("builders.max-concurrent"), "{text}");
    assert_eq!(cloud.seen("POST droplets").len(), 1);
}

#[tokio::test]
async fn a_wrong_setting_fails_at_once_and_the_error_names_it() {
    let cloud = Cloud::start().await;
    let cases = [
        ("builders.amd64.medium = [\"m-2vcpu-16gb\"]", "digitalocean.builders.amd64.medium"),
        ("image-amd64 = \"debian-1-x64\"", "digitalocean.image-amd64"),
        ("image-amd64 = \"77\"", "digitalocean.image-amd64"),
        ("vpc = \"00000000-dc84-11e8-981e-3cfdfeaae000\"", "digitalocean.vpc"),
    ];
    for (setting, named) in cases {
        let provider = cloud.provider(setting);
        let error = provider.launch(&request(new_id::<MachineId>())).await.unwrap_err();
        let LaunchError::Permanent(cause) = error else { panic!("{setting}: {error:?}") };
        let text = cause.to_string();
        assert!(text.contains(named), "{setting}: {text}");
    }
    let nowhere = cloud.settings("").replace("[\"fra1\", \"ams3\"]", "[\"atlantis\"]");
    let image = "image-amd64 = \"debian-13-x64\"\n";
    for (setting, named) in
        [(nowhere.clone(), "digitalocean.regions"), (nowhere + image, "regions")]
    {
        let provider =
            DigitalOcean::new(&toml::from_str(&setting).unwrap(), "core1".into()).unwrap();
        let error = provider.launch(&request(new_id::<MachineId>())).await.unwrap_err();
        let LaunchError::Permanent(cause) = error else { panic!("{setting}: {error:?}") };
        let text = cause.to_string();
        assert!(text.contains(named), "{setting}: {text}");
    }
    assert_eq!(cloud.world().droplets.len(), 0);

    cloud.world().images.clear();
    let provider = cloud.provider("");
    let error = provider.launch(&request(new_id::<MachineId>())).await.unwrap_err();
    let LaunchError::Permanent(cause) = error else { panic!("{error:?}") };
    let text = cause.to_string();
    assert!(text.contains("no golden snapshot") && text.contains("stagely-golden-amd64"), "{text}");
}

#[tokio::test]
async fn the_token_is_read_for_each_request_and_never_shown() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    let (good, bad) = (cloud.token(), "dop_v1_ba5eba11");
    let request = request(new_id::<MachineId>());

    std::fs::write(cloud.token_file(), bad).unwrap();
    let error = provider.launch(&request).await.unwrap_err();
    assert!(matches!(error, LaunchError::Permanent(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("digitalocean.token-file") && text.contains("401"), "{text}");
    let listing = provider.list().await.unwrap_err();
    assert!(listing.to_string().contains("digitalocean.token-file"), "{listing}");
    for shown in [format!("{error:?}"), format!("{listing:?}"), format!("{provider:?}")] {
        assert!(!shown.contains(bad), "{shown}");
    }
    std::fs::remove_file(cloud.token_file()).unwrap();
    let error = provider.launch(&request).await.unwrap_err().to_string();
    assert!(error.contains("digitalocean.token-file"), "{error}");

    std::fs::write(cloud.token_file(), good).unwrap();
    provider.launch(&request).await.unwrap();

    cloud.fails("GET droplets", 1, Fault::Status(403, "You are not authorized", &[]));
    let error = provider.list().await.unwrap_err().to_string();
    assert!(error.contains("droplet:create"), "{error}");
}

#[tokio::test]
async fn missing_settings_are_named_at_the_start() {
    let cloud = Cloud::start().await;
    let missing = cloud.settings("").replace(&cloud.token_file(), "/nonexistent/token");
    let no_region = cloud.settings("").replace("regions = [\"fra1\", \"ams3\"]", "");
    let stock = cloud.settings("image-kind = \"stock\"");
    let cases = [
        (missing, "digitalocean.token-file"),
        (no_region, "digitalocean.regions"),
        (stock, "digitalocean.image-amd64"),
    ];
    for (settings, named) in cases {
        let digitalocean = toml::from_str(&settings).unwrap();
        let config = Config { digitalocean, ..Config::default() };
        let names = BTreeSet::from([ProviderName::DigitalOcean]);
        let core_id = "core1".into();
        let made = Providers::new(
            &names,
            config.provider_tables(),
            &core_id,
            std::path::Path::new("/nonexistent"),
        );
        let error = format!("{:#}", made.await.unwrap_err());
        assert!(error.contains("provider digitalocean") && error.contains(named), "{error}");
    }
}

#[tokio::test]
async fn a_request_for_the_spot_market_is_bought_on_demand_and_tried_once() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    for market in [MarketPolicy::Spot, MarketPolicy::SpotFirst] {
        let spec = MachineSpec { market, max_price: Some(Usd(10)), ..spec(Arch::Amd64) };
        let request = LaunchRequest { spec, ..request(new_id()) };
        cloud.world().full.clear();
        let placement = provider.launch(&request).await.unwrap();
        assert_eq!((placement.market, placement.price), (Market::OnDemand, Some(Usd(125_010))));

        let before = cloud.seen("POST droplets").len();
        cloud.world().full = vec![("c-4", "fra1"), ("c-4", "ams3")];
        let error = provider.launch(&LaunchRequest { machine: new_id(), ..request }).await;
        assert!(matches!(error, Err(LaunchError::NoCapacity(_))), "{error:?}");
        let tried = cloud.seen("POST droplets").len() - before;
        assert_eq!(tried, 2, "one type in two regions");
    }
    let before = cloud.seen("POST droplets").len();
    let request = LaunchRequest { spec: spec(Arch::Arm64), ..request(new_id()) };
    let error = provider.launch(&request).await;
    assert!(matches!(error, Err(LaunchError::NoCapacity(_))), "{error:?}");
    assert_eq!(cloud.seen("POST droplets").len(), before);
}

#[tokio::test]
async fn at_most_ten_droplets_are_created_at_the_same_time() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    cloud.fails("POST droplets", 25, Fault::Slow(Duration::from_millis(200)));

    let requests: Vec<_> = (0..25).map(|_| request(new_id::<MachineId>())).collect();
    let launches = requests.iter().map(|request| provider.launch(request));
    for launched in futures_util::future::join_all(launches).await {
        launched.unwrap();
    }

    assert_eq!(cloud.creating_max(), 10);
    assert_eq!(provider.list().await.unwrap().len(), 25);
    // All launches share one request for the account's images.
    assert_eq!(cloud.seen("GET images").len(), 1);
}
