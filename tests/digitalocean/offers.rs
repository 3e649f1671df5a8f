//! The offers of the provider, and `stagely doctor digitalocean`.

use std::collections::BTreeMap;

use stagely::core::clock::new_id;
use stagely_protocol::Arch;
use stagely_provider::{Offer, Provider as _};
use stagely_state::{Fleet, MachineSize, Usd};
use stagely_test_support::program;

use crate::STAGELY;
use crate::fake::{Cloud, request};

fn offer(offers: &[Offer], fleet: Fleet, arch: Arch, size: MachineSize) -> &Offer {
    let matches = |offer: &&Offer| (offer.fleet, offer.arch, offer.size) == (fleet, arch, size);
    offers.iter().find(matches).unwrap()
}

fn builder(offers: &[Offer], size: MachineSize) -> &Offer {
    offer(offers, Fleet::Builder, Arch::Amd64, size)
}

fn problem(offer: &Offer) -> String {
    offer.problem.as_ref().map(ToString::to_string).unwrap_or_default()
}

#[tokio::test]
async fn the_api_tells_which_sizes_can_be_launched_and_their_prices() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    {
        let mut world = cloud.world();
        world.sizes[3].available = false;
        world.sizes[1].regions = vec!["nyc3"];
    }

    let offers = provider.describe().await.unwrap();

    let medium = builder(&offers, MachineSize::Medium);
    assert_eq!((&*medium.instance_type, &medium.problem), ("c-4", &None));
    assert_eq!((medium.price, medium.spot), (Some(Usd(125_010)), false));
    let small = builder(&offers, MachineSize::Small);
    assert_eq!(problem(small), "s-2vcpu-4gb is not in fra1, but in: nyc3");
    let large = builder(&offers, MachineSize::Large);
    assert!(problem(large).contains("no c-8 for new droplets"), "{large:?}");
    let xlarge = builder(&offers, MachineSize::Xlarge);
    assert_eq!(problem(xlarge), "DigitalOcean has no size c-16");
    assert!(offers.iter().all(|offer| offer.arch == Arch::Amd64), "{offers:?}");
}

#[tokio::test]
async fn a_size_without_an_image_is_no_offer() {
    let cloud = Cloud::start().await;
    let stock = "image-kind = \"stock\"\nimage-amd64 = \"debian-13-x64\"";
    let no_slug = "image-kind = \"stock\"\nimage-amd64 = \"debian-12-x64\"";
    let medium = async |settings: &str| {
        let offers = cloud.provider(settings).describe().await.unwrap();
        problem(builder(&offers, MachineSize::Medium))
    };
    assert_eq!(medium(stock).await, "");
    assert!(medium(no_slug).await.contains("no image debian-12-x64"));
    cloud.world().images.iter_mut().for_each(|image| image.min_disk_size = 60);
    assert!(medium("").await.contains("needs a disk of 60 GB, and it has 50"));
    cloud.world().images.retain(|image| !image.name.starts_with("stagely-golden"));
    assert!(medium("").await.contains("no golden snapshot"));
}

#[tokio::test]
async fn arm64_is_offered_with_a_named_size_and_an_image() {
    let cloud = Cloud::start().await;
    let named = "builders.arm64.medium = [\"a-4\"]\ninstance-types.\"a-4\" = { arch = \"arm64\" }";
    let provider = cloud.provider(named);
    let offered = async || {
        let offers = provider.describe().await.unwrap();
        let arm64 = offers.iter().filter(|offer| offer.arch == Arch::Arm64);
        arm64.map(|offer| (offer.size, problem(offer))).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(offered().await[&MachineSize::Medium], "DigitalOcean has no size a-4");

    let mut size = cloud.world().sizes[2].clone();
    size.slug = "a-4";
    cloud.world().sizes.push(size);
    assert!(offered().await[&MachineSize::Medium].contains("stagely-golden-arm64"));

    let mut image = cloud.world().images[0].clone();
    (image.id, image.name) = (7100, "stagely-golden-arm64-1".to_owned());
    cloud.world().images.push(image);
    assert_eq!(offered().await, BTreeMap::from([(MachineSize::Medium, String::new())]));

    let mut request = request(new_id());
    request.spec.arch = Arch::Arm64;
    provider.launch(&request).await.unwrap();
    assert_eq!(cloud.world().droplets[0].image, 7100);
}

#[tokio::test]
async fn the_account_and_its_images_are_shown() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    let account = provider.account().await.unwrap();
    assert_eq!((account.droplet_limit, &*account.status), (100, "active"));
    let images = provider.region_images().await.unwrap();
    let shown: Vec<_> =
        images.iter().map(|image| (&*image.region, image.image.as_deref())).collect();
    let newest = Some("stagely-golden-amd64-3");
    assert_eq!(shown, [("fra1", newest), ("ams3", newest)]);
}

/// The output of `stagely doctor digitalocean`, and whether it found no error.
async fn doctor(settings: &str, more: &'static [&'static str]) -> (String, bool) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stagely.toml");
    std::fs::write(&file, format!("[digitalocean]\n{settings}")).unwrap();
    let run = move || {
        let mut command = program::command(STAGELY);
        command.args(["doctor", "digitalocean", "--config"]).arg(&file).args(more);
        let output =
            command.env_remove("DIGITALOCEAN_TOKEN").env("NO_COLOR", "1").output().unwrap();
        drop(folder);
        output
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

#[tokio::test]
async fn the_doctor_shows_offers_and_what_is_missing() {
    let cloud = Cloud::start().await;
    let (text, is_well) = doctor(&cloud.settings(""), &[]).await;
    assert!(is_well, "{text}");
    for part in [
        "active, 100 droplets at once",
        "amd64 in fra1: stagely-golden-amd64-3",
        "$0.125",
        "DigitalOcean has no size c-16",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let (text, _) = doctor(&cloud.settings(""), &["--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sizes = report["sizes"].as_array().unwrap();
    let medium = sizes.iter().find(|size| size["fleet"] == "builder" && size["size"] == "medium");
    assert_eq!(medium.unwrap()["price_hourly"], 0.125_01, "{text}");

    cloud.world().images.clear();
    let (text, is_well) = doctor(&cloud.settings(""), &[]).await;
    assert!(!is_well && text.contains("none can be launched"), "{text}");
    let (text, is_well) = doctor("regions = [\"fra1\"]", &[]).await;
    assert!(!is_well && text.contains("set digitalocean.token-file"), "{text}");
    std::fs::write(cloud.token_file(), "dop_v1_ba5eba11").unwrap();
    let (text, is_well) = doctor(&cloud.settings(""), &[]).await;
    assert!(
        !is_well && text.contains("wrong or has expired") && !text.contains("ba5eba11"),
        "{text}"
    );
}
