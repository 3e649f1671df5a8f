//! moto: a server of EC2's API that others wrote. All tests share one process; each has an account of its own
//! there.

use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_ec2::types::{Instance, InstanceStateName, Tag, Volume};
use serde_json::json;
use stagely_provider::aws::Http;
use stagely_test_support::ports::free_port;
use stagely_test_support::wait::eventually;
use tempfile::TempDir;

use crate::proxy::Proxy;

/// Images that every account has. None is golden until a test tags it.
pub(crate) const AMD64: &str = "ami-0000000000000a001";
pub(crate) const ARM64: &str = "ami-0000000000000b001";
/// One of another account.
pub(crate) const FOREIGN_AMD64: &str = "ami-0000000000000c001";
/// What these images call their root volume.
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
        // It ends with this process, however that ends: then the shell reads no more.
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

/// Without times: moto, which loads them for each account, can read a time but once.
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
    /// For tests and what stands for the hardware: past all faults.
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

    /// A newer image, made of another.
    pub(crate) async fn newer_image(&self, of: &str) -> String {
        // Times have seconds.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let copy = self.direct.copy_image().source_image_id(of).source_region(REGION).name("newer");
        copy.send().await.unwrap().image_id.unwrap()
    }

    /// All instances, also those that are gone, however far behind lists are.
    pub(crate) async fn instances(&self) -> Vec<Instance> {
        let answer = self.direct.describe_instances().max_results(1000).send().await.unwrap();
        let reservations = answer.reservations.unwrap_or_default().into_iter();
        reservations.flat_map(|it| it.instances.unwrap_or_default()).collect()
    }

    pub(crate) async fn live(&self) -> Vec<Instance> {
        let mut instances = self.instances().await;
        instances.retain(is_live);
        instances
    }

    pub(crate) async fn volumes(&self) -> Vec<Volume> {
        self.direct.describe_volumes().send().await.unwrap().volumes.unwrap_or_default()
    }

    /// The instance's user data, unpacked.
    pub(crate) async fn user_data(&self, instance: &Instance) -> String {
        use aws_sdk_ec2::types::InstanceAttributeName::UserData;
        let id = instance.instance_id().unwrap();
        let request = self.direct.describe_instance_attribute().instance_id(id).attribute(UserData);
        let value = request.send().await.unwrap().user_data.unwrap().value.unwrap();
        unpacked(&value)
    }

    /// Ends an instance as its owner does in AWS's console.
    pub(crate) async fn end(&self, instance: &Instance) {
        let id = instance.instance_id().unwrap();
        self.direct.terminate_instances().instance_ids(id).send().await.unwrap();
    }
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

/// User data as EC2 gives it: base64, and below it gzip.
pub(crate) fn unpacked(base64: &str) -> String {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
    let mut unpacker = flate2::write::GzDecoder::new(Vec::new());
    unpacker.write_all(&bytes).unwrap();
    String::from_utf8(unpacker.finish().unwrap()).unwrap()
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
