//! Runs the instances that moto only records: each gets a real agent, started with the user data, which ends with the
//! instance.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_ec2::types::Instance;
use stagely_test_support::files::write_private;
use stagely_test_support::imds::Imds;
use stagely_test_support::processes::{ChildProcess, Process, processes_with};
use stagely_test_support::program;
use stagely_test_support::wait::eventually;
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;

use crate::STAGELY;
use crate::moto::{Cloud, agent_json, is_live};

/// The time between two comparisons with moto's instances.
const INTERVAL: Duration = Duration::from_millis(300);

/// The variable with the instance's id, in the environment of all its processes.
const INSTANCE_VARIABLE: &str = "TEST_INSTANCE";

struct Machine {
    agent: ChildProcess,
    metadata: Arc<Imds>,
    folder: PathBuf,
}

type Machines = Arc<Mutex<HashMap<String, Machine>>>;

/// Runs the instances of one account.
pub(crate) struct Hypervisor {
    machines: Machines,
    folder: TempDir,
    _task: AbortOnDropHandle<()>,
}

impl Hypervisor {
    pub(crate) fn start(cloud: &Arc<Cloud>) -> Self {
        let folder = tempfile::Builder::new().prefix("instances.").tempdir().unwrap();
        let machines = Machines::default();
        let (shared, path) = (Arc::clone(&machines), folder.path().to_owned());
        let cloud = Arc::clone(cloud);
        let task = tokio::spawn(async move {
            loop {
                update(&cloud, &shared, &path).await;
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Self { machines, folder, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits until all instances have ended, with what ran on them.
    pub(crate) async fn is_idle(&self) {
        eventually("all instances have ended", async || {
            self.machines.lock().unwrap().is_empty().then_some(())
        })
        .await;
    }

    /// The metadata service of an instance.
    pub(crate) fn metadata_of(&self, instance: &Instance) -> Arc<Imds> {
        let machines = self.machines.lock().unwrap();
        Arc::clone(&machines[instance.instance_id().unwrap()].metadata)
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        for (id, machine) in self.machines.lock().unwrap().drain() {
            end(&id, machine);
        }
        if std::thread::panicking() {
            for entry in fs::read_dir(self.folder.path()).unwrap().flatten() {
                let log = fs::read_to_string(entry.path()).unwrap_or_default();
                eprintln!("{}:\n{log}", entry.path().display());
            }
        }
    }
}

/// Boots new instances and ends those that are gone.
async fn update(cloud: &Cloud, machines: &Machines, folder: &Path) {
    for instance in cloud.instances().await {
        let id = instance.instance_id().unwrap().to_owned();
        let is_booted = machines.lock().unwrap().contains_key(&id);
        if is_live(&instance) && !is_booted {
            let machine = boot(cloud, &instance, folder).await;
            machines.lock().unwrap().insert(id, machine);
        } else if is_live(&instance) {
            let ended = machines.lock().unwrap().get_mut(&id).unwrap().agent.status();
            if ended.is_some() {
                // The agent has powered its machine off, which terminates the instance.
                cloud.end(&instance).await;
            }
        } else if let Some(machine) = machines.lock().unwrap().remove(&id) {
            end(&id, machine);
        }
    }
}

async fn boot(cloud: &Cloud, instance: &Instance, folder: &Path) -> Machine {
    let id = instance.instance_id().unwrap();
    let metadata = Arc::new(Imds::start().await);
    let log = fs::File::create(folder.join(format!("{id}.log"))).unwrap();
    let folder = folder.join(id);
    fs::create_dir(&folder).unwrap();
    let mut config = agent_json(&cloud.user_data(instance).await);
    config["work_dir"] = folder.join("work").to_str().unwrap().into();
    let path = folder.join("agent.json");
    write_private(&path, &config.to_string());
    let mut agent = program::command(STAGELY);
    agent
        .args(["agent", "--config"])
        .arg(&path)
        .env(INSTANCE_VARIABLE, id)
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url.as_str())
        .env("HOME", &folder);
    Machine { agent: program::start(&mut agent, log), metadata, folder }
}

fn end(id: &str, mut machine: Machine) {
    machine.agent.kill();
    processes_with(id).iter().for_each(Process::kill);
    // The engine of an instance ends with it, and here all share one.
    let mut clean_up = program::command(STAGELY);
    clean_up.args(["agent", "clean-up", "--config"]).arg(machine.folder.join("agent.json"));
    assert!(clean_up.status().unwrap().success());
    let _ = fs::remove_dir_all(&machine.folder);
}
