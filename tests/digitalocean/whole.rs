//! Whole runs on droplets. The test runs the droplets: it starts a real agent with the user data of each, and ends it
//! with the droplet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stagely::api::{JobStatus, RunStatus};
use stagely::core::clock::new_id;
use stagely_test_core::{Core, job};
use stagely_test_support::processes::ChildProcess;
use stagely_test_support::program;
use stagely_test_support::wait::eventually;
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::STAGELY;
use crate::fake::Cloud;
use crate::world::Droplet;

/// Runs the droplets of one account. It ends with the value.
struct Hypervisor {
    _task: AbortOnDropHandle<()>,
}

/// A running droplet: its agent, and a folder in the place of its disk.
struct Guest {
    _agent: ChildProcess,
    _disk: TempDir,
}

impl Guest {
    /// Writes the files of the user data into the disk's folder, as cloud-init does, and starts the agent.
    fn boot(droplet: &Droplet) -> Self {
        let disk = tempfile::tempdir().unwrap();
        let text = droplet.user_data.strip_prefix("#cloud-config\n").unwrap();
        let user_data: Value = serde_json::from_str(text).unwrap();
        for file in user_data["write_files"].as_array().unwrap() {
            let text = |key: &str| file[key].as_str().unwrap();
            let path = disk.path().join(text("path").trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text("content")).unwrap();
            let mode = u32::from_str_radix(text("permissions"), 8).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let config = disk.path().join("etc/stagely/agent.json");
        stay_on_disk(&config, disk.path());
        let log = fs::File::create(disk.path().join("agent.log")).unwrap();
        let mut agent = program::command(STAGELY);
        agent
            .args(["agent", "--config"])
            .arg(&config)
            .env("HOME", disk.path())
            .env("TMPDIR", disk.path());
        Self { _agent: program::start(&mut agent, log), _disk: disk }
    }
}

/// Moves the agent's folders below the disk's folder, because all guests share the host's file system.
fn stay_on_disk(config: &Path, disk: &Path) {
    let mut agent: Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    for path in ["work_dir", "run_dir"] {
        if agent[path].is_string() {
            agent[path] = json!(disk.join(path));
        }
    }
    fs::write(config, agent.to_string()).unwrap();
}

impl Hypervisor {
    fn start(cloud: &Arc<Cloud>) -> Self {
        let cloud = Arc::clone(cloud);
        let task = tokio::spawn(async move {
            let mut guests: BTreeMap<u64, Guest> = BTreeMap::new();
            loop {
                let droplets = {
                    let mut world = cloud.world();
                    world.droplets.iter_mut().for_each(|droplet| droplet.status = "active");
                    world.droplets.clone()
                };
                let ids: BTreeSet<u64> = droplets.iter().map(|droplet| droplet.id).collect();
                guests.retain(|id, _| ids.contains(id));
                for droplet in droplets.iter().filter(|droplet| !droplet.user_data.is_empty()) {
                    guests.entry(droplet.id).or_insert_with(|| Guest::boot(droplet));
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        Self { _task: AbortOnDropHandle::new(task) }
    }
}

#[tokio::test]
async fn builds_run_on_droplets_arm64_under_emulation_and_no_droplet_is_left() {
    let cloud = Arc::new(Cloud::start().await);
    let hypervisor = Hypervisor::start(&cloud);
    let table = cloud.settings("");
    let settings = format!("[builders]\nprovider = \"digitalocean\"\n[digitalocean]\n{table}");
    let core = Core::start(STAGELY, "droplets", &settings).await;
    let dockerfile = format!("FROM busybox\nRUN : {}; uname -m\n", core.name);
    let manifest = "builds: { app: { context: ., platforms: [linux/amd64, linux/arm64] } }\n";

    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let (native, foreign) = (job(&run, "app_amd64"), job(&run, "app_arm64"));
    assert_eq!((native.status, native.emulated), (JobStatus::Completed, false), "{native:#?}");
    assert_eq!((foreign.status, foreign.emulated), (JobStatus::Completed, true), "{foreign:#?}");
    assert!(foreign.warnings.iter().any(|warning| warning.contains("emulated")), "{foreign:#?}");
    assert!(core.log(foreign).await.contains("aarch64"));
    let created = cloud.seen("POST droplets");
    assert!(created.iter().all(|request| request.body["size"] == "c-4"), "{created:#?}");
    eventually("no droplet is left", async || cloud.world().droplets.is_empty().then_some(()))
        .await;
    let token = cloud.token();
    let log = fs::read_to_string(core.path("core.log")).unwrap();
    assert!(!log.contains(&token), "{log}");
    core.finish().await;
    drop(hypervisor);
}

#[tokio::test]
async fn a_killed_core_finds_its_droplets_again_and_ends_unknown_ones() {
    let cloud = Arc::new(Cloud::start().await);
    let hypervisor = Hypervisor::start(&cloud);
    let table = cloud.settings("");
    let settings = format!("[builders]\nprovider = \"digitalocean\"\n[digitalocean]\n{table}");
    let mut core = Core::start(STAGELY, "found-again", &settings).await;
    let (run, breakpoint) = core.run_to_breakpoint().await;

    core.crash();
    // A droplet with this core's tag that the store does not know.
    let stranger = {
        let mut world = cloud.world();
        let mut droplet = world.droplets[0].clone();
        let name = new_id::<stagely_state::ids::MachineId>().to_string();
        (droplet.id, droplet.name) = (droplet.id + 100, name.replace('_', "-"));
        droplet.user_data.clear();
        droplet.tags.retain(|tag| !tag.starts_with("stagely:machine:"));
        droplet.tags.push(format!("stagely:machine:{name}"));
        world.tags.push(format!("stagely:machine:{name}"));
        world.droplets.push(droplet);
        world.droplets.last().unwrap().id
    };
    core.launch().await;
    eventually("the stranger is ended", async || {
        let world = cloud.world();
        (!world.droplets.iter().any(|droplet| droplet.id == stranger)).then_some(())
    })
    .await;
    assert_eq!(cloud.world().droplets.len(), 1);
    breakpoint.resume();
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert_eq!(job(&run, "app").attempt, 1, "{run:#?}");
    assert_eq!(cloud.seen("POST droplets").len(), 1);
    assert!(cloud.world().droplets.is_empty());
    core.finish().await;
    drop(hypervisor);
}
