//! The list of machines: complete, and without those of other cores.

use stagely::core::clock::new_id;
use stagely_provider::Provider as _;
use stagely_provider::digitalocean::DigitalOcean;
use stagely_state::Usd;
use stagely_state::ids::{JobId, MachineId};

use crate::fake::{Cloud, request};

async fn launched(provider: &DigitalOcean, count: usize) -> Vec<MachineId> {
    let mut machines = Vec::new();
    for _ in 0..count {
        let machine = new_id::<MachineId>();
        provider.launch(&request(machine)).await.unwrap();
        machines.push(machine);
    }
    machines.sort();
    machines
}

async fn listed(provider: &DigitalOcean) -> Vec<MachineId> {
    provider.list().await.unwrap().iter().map(|listed| listed.machine).collect()
}

#[tokio::test]
async fn the_list_has_the_machines_of_this_core_from_all_pages_and_no_others() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    let machines = launched(&provider, 8).await;
    let other = DigitalOcean::new(&cloud.config(""), "core2".into()).unwrap();
    let others = launched(&other, 1).await;
    {
        let mut world = cloud.world();
        // One droplet is off and still costs money. Another has core's tag and is no machine.
        world.droplets[3].status = "off";
        let mut own = world.droplets[0].clone();
        (own.id, own.name) = (1, "database".to_owned());
        own.tags = vec!["stagely:core:core1".to_owned()];
        world.droplets.push(own);
    }

    assert_eq!(listed(&provider).await, machines);
    assert_eq!(listed(&other).await, others);
    assert_eq!(cloud.world().droplets.len(), 10);
}

#[tokio::test]
async fn a_list_that_gets_shorter_while_it_is_read_is_read_again() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    let mut machines = launched(&provider, 7).await;
    // The first droplet of the second page moves to the first page, which was read before.
    let first = cloud.world().droplets[0].clone();
    cloud.world().goes_while_listed = Some(first.id);

    let found = listed(&provider).await;

    machines.retain(|machine| machine.to_string().replace('_', "-") != first.name);
    assert_eq!((found.len(), found), (6, machines));
}

#[tokio::test]
async fn only_the_tags_of_machines_that_ended_long_ago_are_removed() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    // Ids from a day ago.
    let day = u128::from(24 * 3_600 * 1_000_u32) << 80;
    let old = |bits: u128| bits - day;
    let gone = MachineId::from_bits(old(new_id::<MachineId>().bits()));
    let job = JobId::from_bits(old(new_id::<JobId>().bits()));
    let alive = MachineId::from_bits(old(new_id::<MachineId>().bits()));
    for machine in [gone, alive] {
        let mut request = request(machine);
        request.job = Some(job).filter(|_| machine == gone);
        provider.launch(&request).await.unwrap();
    }
    let new = launched(&provider, 1).await[0];
    cloud.world().tags.push("web".to_owned());
    for machine in [gone, new] {
        provider.terminate(machine).await.unwrap();
    }

    assert_eq!(listed(&provider).await, [alive]);

    let mut tags = cloud.world().tags.clone();
    tags.retain(|tag| !tag.starts_with("stagely:job:") || tag.contains(&job.to_string()));
    let machine = |machine| format!("stagely:machine:{machine}");
    let (alive_tag, new_tag) = (machine(alive), machine(new));
    let kept =
        ["stagely", "stagely:core:core1", "stagely:fleet:builder", &alive_tag, &new_tag, "web"];
    assert_eq!(tags, kept);
    // The next list does not search for tags again.
    assert_eq!(listed(&provider).await, [alive]);
    assert_eq!(cloud.seen("GET tags").len(), 3, "nine tags are three pages");
}

#[tokio::test]
async fn a_configured_price_goes_before_the_price_of_the_api() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("instance-types.\"c-4\" = { price = 0.1 }");
    let placement = provider.launch(&request(new_id::<MachineId>())).await.unwrap();
    assert_eq!(placement.price, Some(Usd(100_000)));
}
