//! The user data of machines: cloud-config, which cloud-init applies at the first boot.
//!
//! A golden image gets a few files, for the first of which the agent's unit waits, and nothing that takes time. A stock
//! image also gets the files of a golden image, and a script that installs the rest.

use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use stagely_protocol::agent_config::DEFAULT_PATH;
use thiserror::Error;

use crate::settings::ImageKind;
use crate::{AgentBinary, LaunchRequest};

/// EC2's limit for user data, before base64.
const EC2_BYTES_MAX: usize = 16 * 1024;

/// The folder in which the agent writes the time of the last contact with core, for the dead-man switch.
const RUN_DIR: &str = "/run/stagely";

/// The variables of `agents.environment`, for the units of the agent and of Docker.
const ENVIRONMENT: &str = "/etc/stagely/environment";

/// The limits of the dead-man switch as long as the agent has written nothing.
const LIMITS: &str = "/etc/stagely/limits";

/// The script that installs on a stock image what a golden image holds.
const SETUP: &str = "/usr/local/lib/stagely/stagely-setup";

/// The configuration of the Docker engine.
const ENGINE: &str = "/etc/docker/daemon.json";

/// The configuration of the Docker engine in golden images.
const ENGINE_BAKED: &str = include_str!("../../../packer/files/daemon.json");

/// The other files of golden images, besides packages and the agent's program: path, permissions and content.
const BAKED: [(&str, &str, &str); 5] = [
    (
        "/etc/systemd/system/docker.service.d/stagely.conf",
        "0644",
        include_str!("../../../packer/files/docker.conf"),
    ),
    (
        "/usr/local/lib/stagely/stagely-deadman",
        "0755",
        include_str!("../../../packer/files/stagely-deadman"),
    ),
    (
        "/etc/systemd/system/stagely-deadman.service",
        "0644",
        include_str!("../../../packer/files/stagely-deadman.service"),
    ),
    (
        "/etc/systemd/system/stagely-deadman.timer",
        "0644",
        include_str!("../../../packer/files/stagely-deadman.timer"),
    ),
    (
        "/etc/systemd/system/stagely-agent.service",
        "0644",
        include_str!("../../../packer/files/stagely-agent.service"),
    ),
];

/// User data that is larger than the provider allows.
#[derive(Debug, Error)]
#[error("the user data has {bytes} bytes, and {max} are allowed")]
pub(crate) struct UserDataTooLarge {
    bytes: usize,
    max: usize,
}

pub(crate) fn cloud_config(request: &LaunchRequest, kind: ImageKind) -> String {
    let mut files = vec![agent_file(request), limits_file(request)];
    let environment = &request.environment;
    files.extend((!environment.is_empty()).then(|| file(ENVIRONMENT, "0600", &environment.file())));
    let mut config = json!({});
    let certificates = request.authorities.certificates();
    if !certificates.is_empty() {
        config["ca_certs"] = json!({ "trusted": certificates });
    }
    match kind {
        ImageKind::Golden => {
            let registry = request.insecure_registry.as_deref();
            files.extend(registry.map(|registry| engine_file(Some(registry))));
        }
        ImageKind::Stock => {
            let binary = request.binary.as_ref();
            let AgentBinary { url, sha256 } =
                binary.expect("core names the program of stock images");
            files.push(engine_file(request.insecure_registry.as_deref()));
            files
                .extend(BAKED.map(|(path, permissions, content)| file(path, permissions, content)));
            files.push(file(SETUP, "0755", include_str!("stock-setup")));
            config["ssh_pwauth"] = json!(false);
            config["runcmd"] = json!([[SETUP, url, sha256]]);
        }
    }
    config["write_files"] = files.into();
    // JSON is YAML.
    format!("#cloud-config\n{config}\n")
}

/// The cloud-config of `request` for EC2: compressed, and within its limit.
pub(crate) fn compressed(
    request: &LaunchRequest,
    kind: ImageKind,
) -> Result<Vec<u8>, UserDataTooLarge> {
    let compressed =
        compress(&cloud_config(request, kind)).expect("writing to memory does not fail");
    let (bytes, max) = (compressed.len(), EC2_BYTES_MAX);
    if bytes > max { Err(UserDataTooLarge { bytes, max }) } else { Ok(compressed) }
}

fn compress(text: &str) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()
}

fn file(path: &str, permissions: &str, content: &str) -> Value {
    json!({ "path": path, "permissions": permissions, "content": content })
}

fn agent_file(request: &LaunchRequest) -> Value {
    let mut agent = request.agent.clone();
    agent.run_dir = Some(RUN_DIR.into());
    let agent = serde_json::to_string(&agent).expect("strings and numbers are JSON");
    file(DEFAULT_PATH, "0600", &agent)
}

fn limits_file(request: &LaunchRequest) -> Value {
    let silence = request.agent.give_up_after.as_secs();
    let lease = request.lease.as_secs();
    file(LIMITS, "0644", &format!("SILENCE_SECONDS={silence}\nLEASE_SECONDS={lease}\n"))
}

fn engine_file(insecure_registry: Option<&str>) -> Value {
    let mut engine: Value =
        serde_json::from_str(ENGINE_BAKED).expect("the file in packer/ is JSON");
    if let Some(registry) = insecure_registry {
        engine["insecure-registries"] = json!([registry]);
    }
    file(ENGINE, "0644", &format!("{engine:#}\n"))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::io::Read as _;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use flate2::read::GzDecoder;
    use stagely_protocol::Arch;
    use stagely_protocol::agent_config::AgentConfig;
    use stagely_state::MachineSize;

    use super::*;
    use crate::CertificateAuthorities;
    use crate::fixtures::{self, machine_id, spec};

    fn request() -> LaunchRequest {
        let spec = spec(Arch::Amd64, MachineSize::Medium);
        let request = fixtures::request(machine_id(), spec, "it's a \"secret\"\n");
        LaunchRequest {
            agent: AgentConfig { give_up_after: Duration::from_mins(10), ..request.agent },
            lease: Duration::from_mins(65),
            binary: Some(AgentBinary {
                url: "https://core.example/v1/agent/binary/amd64".parse().unwrap(),
                sha256: "0123456789abcdef".repeat(4),
            }),
            ..request
        }
    }

    fn read(text: &str) -> Value {
        let yaml = text.strip_prefix("#cloud-config\n").unwrap();
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn files(config: &Value) -> Vec<(&str, &str, &str)> {
        let files = config["write_files"].as_array().unwrap().iter();
        files
            .map(|file| {
                let field = |key: &str| file[key].as_str().unwrap();
                (field("path"), field("permissions"), field("content"))
            })
            .collect()
    }

    fn content<'a>(config: &'a Value, path: &str) -> Option<&'a str> {
        files(config).into_iter().find(|file| file.0 == path).map(|file| file.2)
    }

    #[test]
    fn a_golden_image_gets_its_agents_configuration_and_its_limits() {
        let request = request();
        let config = read(&cloud_config(&request, ImageKind::Golden));
        assert_eq!(config.as_object().unwrap().len(), 1);
        let paths: Vec<_> = files(&config).iter().map(|file| (file.0, file.1)).collect();
        assert_eq!(paths, [("/etc/stagely/agent.json", "0600"), ("/etc/stagely/limits", "0644")]);
        let agent = content(&config, "/etc/stagely/agent.json").unwrap();
        let agent: AgentConfig = serde_json::from_str(agent).unwrap();
        assert_eq!(agent.run_dir.unwrap().to_str(), Some("/run/stagely"));
        assert_eq!(agent.agent_id, request.agent.agent_id);
        let token = secrecy::ExposeSecret::expose_secret(&agent.token).to_owned();
        assert_eq!(token, "it's a \"secret\"\n");
        let limits = content(&config, "/etc/stagely/limits").unwrap();
        assert_eq!(limits, "SILENCE_SECONDS=600\nLEASE_SECONDS=3900\n");
    }

    #[test]
    fn an_insecure_registry_is_added_to_the_usual_configuration_of_the_engine() {
        let request =
            LaunchRequest { insecure_registry: Some("10.0.2.2:5000".to_owned()), ..request() };
        let baked: Value = serde_json::from_str(ENGINE_BAKED).unwrap();
        for kind in [ImageKind::Golden, ImageKind::Stock] {
            let config = read(&cloud_config(&request, kind));
            let engine = content(&config, "/etc/docker/daemon.json").unwrap();
            let engine: Value = serde_json::from_str(engine).unwrap();
            assert_eq!(engine["insecure-registries"], json!(["10.0.2.2:5000"]));
            for (key, value) in baked.as_object().unwrap() {
                assert_eq!(&engine[key], value);
            }
        }
    }

    #[test]
    fn machines_get_proxies_and_certificate_authorities_for_the_agent_and_for_docker() {
        let text = r#"{"HTTPS_PROXY": "http://me:pass-1147@proxy:3128", "SSL_CERT_FILE": "/a"}"#;
        let request = LaunchRequest {
            environment: serde_json::from_str(text).unwrap(),
            authorities: CertificateAuthorities::parse(fixtures::CERTIFICATE).unwrap(),
            ..request()
        };
        assert!(!format!("{request:?}").contains("pass-1147"), "{request:?}");
        for kind in [ImageKind::Golden, ImageKind::Stock] {
            let config = read(&cloud_config(&request, kind));
            assert_eq!(config["ca_certs"], json!({ "trusted": [fixtures::CERTIFICATE] }));
            let file = *files(&config).iter().find(|file| file.0 == ENVIRONMENT).unwrap();
            let expected = "HTTPS_PROXY='http://me:pass-1147@proxy:3128'\nSSL_CERT_FILE='/a'\n\
                            https_proxy='http://me:pass-1147@proxy:3128'\n";
            let sorted = |text: &str| {
                let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
                lines.sort_unstable();
                lines
            };
            assert_eq!((file.1, sorted(file.2)), ("0600", sorted(expected)));
        }
        // Both units read the file, and so does the script; golden images apply the certificates.
        for unit in [BAKED[0].2, BAKED[4].2] {
            assert!(unit.contains(&format!("\nEnvironmentFile=-{ENVIRONMENT}\n")), "{unit}");
        }
        assert!(include_str!("stock-setup").contains(&format!("file={ENVIRONMENT}\n")));
        let golden = include_str!("../../../packer/files/image/cloud-init.cfg");
        assert!(golden.contains(" write_files, ca_certs,"), "{golden}");
    }

    #[test]
    fn a_stock_image_gets_the_files_of_a_golden_image_and_the_checksum_of_the_agents_program() {
        let request = request();
        let config = read(&cloud_config(&request, ImageKind::Stock));
        let binary = request.binary.unwrap();
        assert_eq!(config["runcmd"], json!([[SETUP, binary.url, binary.sha256]]));
        let engine = content(&config, "/etc/docker/daemon.json").unwrap();
        assert!(engine.contains("containerd-snapshotter") && !engine.contains("insecure"));
        for (path, permissions, text) in BAKED {
            assert!(files(&config).contains(&(path, permissions, text)), "{path}");
        }
        // The script names the units, and the units the scripts.
        let setup = content(&config, SETUP).unwrap();
        assert!(files(&config).contains(&(SETUP, "0755", setup)));
        for unit in ["stagely-deadman.timer", "stagely-agent.service"] {
            for verb in ["enable", "start"] {
                assert!(setup.contains(&format!("    systemctl {verb} {unit}\n")), "{unit}");
            }
        }
        assert!(BAKED[2].2.contains("ExecStart=/usr/local/lib/stagely/stagely-deadman\n"));
        assert!(BAKED[4].2.contains("ExecStart=/usr/local/bin/stagely agent\n"));
    }

    #[test]
    fn the_dead_man_switch_is_armed_before_other_commands_that_can_fail() {
        let setup = include_str!("stock-setup");
        let main = setup.split("\nmain() {\n").nth(1).unwrap();
        let lines: Vec<_> =
            main.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
        let arms = ["daemon-reload", "enable stagely-deadman.timer", "start stagely-deadman.timer"];
        assert_eq!(lines[..3], arms.map(|command| format!("systemctl {command}")));
    }

    #[test]
    fn compressed_user_data_has_the_same_content_within_the_limit_of_ec2() {
        for kind in [ImageKind::Golden, ImageKind::Stock] {
            let mut request = request();
            let data = compressed(&request, kind).unwrap();
            println!(
                "{kind:?}: {} bytes, {} compressed",
                cloud_config(&request, kind).len(),
                data.len()
            );
            let mut text = String::new();
            GzDecoder::new(&*data).read_to_string(&mut text).unwrap();
            assert_eq!(text, cloud_config(&request, kind));
            // Text that cannot be compressed.
            let mut long = String::new();
            for number in 0..40_000_u32 {
                write!(long, "{:x}", number.wrapping_mul(2_654_435_761)).unwrap();
            }
            request.agent.token = long.into();
            let error = compressed(&request, kind).unwrap_err();
            assert!(error.to_string().contains("16384"), "{error}");
        }
    }

    #[test]
    fn sh_parses_the_scripts() {
        for (script, text) in
            [("stock-setup", include_str!("stock-setup")), ("deadman", BAKED[1].2)]
        {
            let mut sh = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            sh.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            assert!(sh.wait().unwrap().success(), "{script}");
        }
    }

    #[test]
    fn cloud_init_accepts_the_user_data() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("user-data");
        let request = LaunchRequest {
            insecure_registry: Some("r:5000".to_owned()),
            environment: serde_json::from_str(r#"{"HTTP_PROXY": "http://proxy:3128"}"#).unwrap(),
            authorities: CertificateAuthorities::parse(fixtures::CERTIFICATE).unwrap(),
            ..request()
        };
        let check = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let mut check = Command::new("cloud-init");
            check.args(["schema", "--config-file"]).arg(&path);
            let output =
                check.output().expect("the Debian package cloud-init is installed (scripts/setup)");
            let printed =
                String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            (output.status.success() && printed.contains("Valid"), printed.into_owned())
        };
        for kind in [ImageKind::Golden, ImageKind::Stock] {
            let (is_valid, printed) = check(&cloud_config(&request, kind));
            assert!(is_valid, "{kind:?}: {printed}");
        }
        // The check finds a mistake.
        let (is_valid, printed) = check("#cloud-config\n{\"write_files\": [{\"content\": 1}]}\n");
        assert!(!is_valid, "{printed}");
    }
}
