//! What an instance does that moto only tells of: it boots, reads its user data, and starts its agent, a real
//! one; and all of it is gone when the instance is.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_ec2::types::Instance;
use stagely_test_support::imds::Imds;
use stagely_test_support::processes::{Process, processes_with};
use stagely_test_support::program;
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;

use crate::STAGELY;
use crate::moto::{Cloud, agent_json, is_live};

const INTERVAL: Duration = Duration::from_millis(300);

/// In the environment of everything that runs on an instance: which one.
const INSTANCE_VARIABLE: &str = "TEST_INSTANCE";

struct Machine {
    agent: Child,
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
                look(&cloud, &shared, &path).await;
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Self { machines, folder, _task: AbortOnDropHandle::new(task) }
    }

    /// The metadata service of an instance.
    pub(crate) fn metadata_of(&self, instance: &Instance) -> Arc<Imds> {
        let machines = self.machines.lock().unwrap();
        Arc::clone(&machines[instance.instance_id().unwrap()].metadata)
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        for (id, mut machine) in self.machines.lock().unwrap().drain() {
            end(&id, &mut machine);
        }
        if std::thread::panicking() {
            for entry in fs::read_dir(self.folder.path()).unwrap().flatten() {
                let log = fs::read_to_string(entry.path()).unwrap_or_default();
                eprintln!("{}:\n{log}", entry.path().display());
            }
        }
    }
}

async fn look(cloud: &Cloud, machines: &Machines, folder: &Path) {
    for instance in cloud.instances().await {
        let id = instance.instance_id().unwrap().to_owned();
        let is_there = machines.lock().unwrap().contains_key(&id);
        if is_live(&instance) && !is_there {
            let machine = boot(cloud, &instance, folder).await;
            machines.lock().unwrap().insert(id, machine);
        } else if is_live(&instance) {
            let ended = machines.lock().unwrap().get_mut(&id).unwrap().agent.try_wait().unwrap();
            if ended.is_some() {
                // The machine has powered off, which counts as its end.
                cloud.end(&instance).await;
            }
        } else if let Some(mut machine) = machines.lock().unwrap().remove(&id) {
            end(&id, &mut machine);
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
    fs::write(&path, config.to_string()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let agent = program::command(STAGELY)
        .args(["agent", "--config"])
        .arg(&path)
        .env(INSTANCE_VARIABLE, id)
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url.as_str())
        .env("HOME", &folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Machine { agent, metadata, folder }
}

fn end(id: &str, machine: &mut Machine) {
    let _ = machine.agent.kill();
    let _ = machine.agent.wait();
    processes_with(id).iter().for_each(Process::kill);
    let _ = fs::remove_dir_all(&machine.folder);
}
