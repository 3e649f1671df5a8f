//! moto, a server of EC2's API. All tests share one process, and each has an account of its own.

use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_ec2::types::{Instance, InstanceStateName, Tag, Volume};
use jiff::Timestamp;
use serde_json::json;
use stagely_provider::aws::Http;
use stagely_test_support::ports::free_port;
use stagely_test_support::wait::eventually;
use tempfile::TempDir;

use crate::proxy::Proxy;

/// Images of every account. They are golden after a test has tagged them.
pub(crate) const AMD64: &str = "ami-0000000000000a001";
pub(crate) const ARM64: &str = "ami-0000000000000b001";
/// An image of another account.
pub(crate) const FOREIGN_AMD64: &str = "ami-0000000000000c001";
/// The device name of these images' root volume.
pub(crate) const ROOT_DEVICE: &str = "/dev/xvda";

pub(crate) const REGION: &str = "us-east-1";

struct Moto {
    url: String,
    _shell: Child,
    _folder: TempDir,
}

static MOTO: OnceLock<Moto> = OnceLock::new();

/// The account of the next test.
static ACCOUNT: AtomicU32 = AtomicU32::new(1);

impl Moto {
    fn start() -> Self {
        let program = std::env::var("STAGELY_MOTO")
            .expect("STAGELY_MOTO must name moto_server: scripts/setup installs it");
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images.json");
        fs::write(&images, images_json()).unwrap();
        let log = fs::File::create(folder.path().join("moto.log")).unwrap();
        let port = free_port();
        // The shell reads until this process ends, for whatever reason, and then ends moto.
        let script = r#""$0" -H 127.0.0.1 -p "$1" & read -r _; kill $!"#;
        let shell = Command::new("sh")
            .args(["-c", script, &program, &port.to_string()])
            .env("MOTO_AMIS_PATH", &images)
            .env("MOTO_ENABLE_AMI_VALIDATION", "true")
            .env("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "true")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
        Self { url: format!("http://127.0.0.1:{port}"), _shell: shell, _folder: folder }
    }
}

/// Without creation times: moto loads the images for each account, and fails to read a time twice.
fn images_json() -> String {
    let image = |id: &str, architecture: &str, owner: Option<&str>| {
        json!({
            "ami_id": id, "name": id, "owner_id": owner, "architecture": architecture,
            "root_device_name": ROOT_DEVICE, "root_device_type": "ebs",
            "virtualization_type": "hvm", "hypervisor": "xen", "public": true,
        })
    };
    json!([
        image(AMD64, "x86_64", None),
        image(ARM64, "arm64", None),
        image(FOREIGN_AMD64, "x86_64", Some("999999999999")),
    ])
    .to_string()
}

/// An account of EC2 behind a proxy of its own.
pub(crate) struct Cloud {
    pub(crate) proxy: Proxy,
    /// For providers: through the proxy.
    pub(crate) client: Client,
    /// For tests and the hypervisor: without faults.
    direct: Client,
    _behaved: Proxy,
}

impl Cloud {
    /// An account with a golden image of each arch.
    pub(crate) async fn start() -> Self {
        let cloud = Self::without_golden_images().await;
        cloud.make_golden(AMD64, "1").await;
        cloud.make_golden(ARM64, "1").await;
        cloud
    }

    pub(crate) async fn without_golden_images() -> Self {
        let moto = MOTO.get_or_init(Moto::start);
        let http = reqwest::Client::new();
        eventually("moto answers", async || {
            http.get(format!("{}/moto-api/", moto.url)).send().await.ok()
        })
        .await;
        let account = format!("{:012}", ACCOUNT.fetch_add(1, Ordering::Relaxed));
        let proxy = Proxy::start(moto.url.clone(), account.clone()).await;
        let behaved = Proxy::start(moto.url.clone(), account).await;
        let (client, direct) = (client(&proxy.url), client(&behaved.url));
        Self { proxy, client, direct, _behaved: behaved }
    }

    pub(crate) async fn make_golden(&self, image: &str, version: &str) {
        let tag = Tag::builder().key("stagely:golden-image").value(version).build();
        self.direct.create_tags().resources(image).tags(tag).send().await.unwrap();
    }

    /// A newer copy of an image.
    pub(crate) async fn newer_image(&self, of: &str) -> String {
        // Creation times have whole seconds.
        wait_for_next_second().await;
        let copy = self.direct.copy_image().source_image_id(of).source_region(REGION).name("newer");
        copy.send().await.unwrap().image_id.unwrap()
    }

    /// All instances, including those that have ended, even while lists are behind.
    pub(crate) async fn instances(&self) -> Vec<Instance> {
        let response = self.direct.describe_instances().max_results(1000).send().await.unwrap();
        let reservations = response.reservations.unwrap_or_default().into_iter();
        reservations.flat_map(|reservation| reservation.instances.unwrap_or_default()).collect()
    }

    pub(crate) async fn live(&self) -> Vec<Instance> {
        let mut instances = self.instances().await;
        instances.retain(is_live);
        instances
    }

    pub(crate) async fn volumes(&self) -> Vec<Volume> {
        self.direct.describe_volumes().send().await.unwrap().volumes.unwrap_or_default()
    }

    /// The instance's user data, decompressed.
    pub(crate) async fn user_data(&self, instance: &Instance) -> String {
        use aws_sdk_ec2::types::InstanceAttributeName::UserData;
        let id = instance.instance_id().unwrap();
        let request = self.direct.describe_instance_attribute().instance_id(id).attribute(UserData);
        let value = request.send().await.unwrap().user_data.unwrap().value.unwrap();
        decompressed(&value)
    }

    /// Terminates an instance as people do in AWS's console.
    pub(crate) async fn end(&self, instance: &Instance) {
        let id = instance.instance_id().unwrap();
        self.direct.terminate_instances().instance_ids(id).send().await.unwrap();
    }
}

/// Waits until the clock shows the next second, to which moto rounds.
pub(crate) async fn wait_for_next_second() {
    let millis = Timestamp::now().as_millisecond().rem_euclid(1_000);
    tokio::time::sleep(Duration::from_millis((1_010 - millis).unsigned_abs())).await;
}

pub(crate) fn is_live(instance: &Instance) -> bool {
    let state = instance.state().and_then(|state| state.name());
    state != Some(&InstanceStateName::Terminated)
}

fn client(url: &str) -> Client {
    let config = aws_sdk_ec2::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
        .http_client(Http::default())
        .endpoint_url(url)
        .build();
    Client::from_conf(config)
}

/// Decodes user data: base64 of gzip.
pub(crate) fn decompressed(base64: &str) -> String {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
    let mut decoder = flate2::write::GzDecoder::new(Vec::new());
    decoder.write_all(&bytes).unwrap();
    String::from_utf8(decoder.finish().unwrap()).unwrap()
}

/// The `agent.json` in user data.
pub(crate) fn agent_json(user_data: &str) -> serde_json::Value {
    let config = user_data.strip_prefix("#cloud-config\n").expect("user data is cloud-config");
    let config: serde_json::Value = serde_saphyr::from_str(config).unwrap();
    let files = config["write_files"].as_array().unwrap();
    let file = files.iter().find(|file| file["path"] == "/etc/stagely/agent.json").unwrap();
    assert_eq!(file["permissions"], "0600");
    serde_json::from_str(file["content"].as_str().unwrap()).unwrap()
}
