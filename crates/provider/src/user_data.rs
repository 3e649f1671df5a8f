//! What a machine is told at its first boot: cloud-config, for cloud-init.
//!
//! A golden image gets files and nothing that takes time: the agent's unit waits for the first of them. A
//! stock image gets all that a golden image has, too, and a script that installs the rest.

use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use stagely_protocol::agent_config::DEFAULT_PATH;

use super::{AgentBinary, LaunchError, LaunchRequest};
use crate::settings::ImageKind;

/// The most that EC2 takes, before base64.
const BYTES_MAX: usize = 16 * 1024;

/// Where the agent says when it last heard of core, for the dead-man switch.
const RUN_DIR: &str = "/run/stagely";

/// What the dead-man switch goes by where the agent has said nothing yet.
const LIMITS: &str = "/etc/stagely/limits";

/// Makes a stock image what a golden image is.
const SETUP: &str = "/usr/local/lib/stagely/stagely-setup";

/// The engine's configuration.
const ENGINE: &str = "/etc/docker/daemon.json";

/// That of a golden image.
const ENGINE_BAKED: &str = include_str!("../../../packer/files/daemon.json");

/// What a golden image has, besides [`ENGINE_BAKED`], packages and the agent's program: path, permissions
/// and content.
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

/// The cloud-config of `request`, as text.
pub(super) fn cloud_config(request: &LaunchRequest, kind: ImageKind) -> String {
    let mut files = vec![agent_file(request), limits_file(request)];
    let mut config = json!({});
    match kind {
        ImageKind::Golden => {
            // It has the rest.
            files.extend(request.insecure_registry.as_deref().map(|it| engine_file(Some(it))));
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

/// The same, compressed.
///
/// # Errors
/// [`LaunchError::Permanent`] if that is more than EC2 takes.
pub(super) fn user_data(request: &LaunchRequest, kind: ImageKind) -> Result<Vec<u8>, LaunchError> {
    let packed = pack(&cloud_config(request, kind)).expect("writing to memory does not fail");
    if packed.len() > BYTES_MAX {
        let bytes = packed.len();
        let problem = format!("the user data has {bytes} bytes, and {BYTES_MAX} are allowed");
        return Err(LaunchError::Permanent(problem));
    }
    Ok(packed)
}

fn pack(text: &str) -> io::Result<Vec<u8>> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::best());
    packer.write_all(text.as_bytes())?;
    packer.finish()
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
    let mut engine: Value = serde_json::from_str(ENGINE_BAKED).expect("a file of ours is JSON");
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
    use stagely_state::{Fleet, MachineSize};

    use super::*;
    use crate::fixtures::{agent_config, machine_id};

    fn request() -> LaunchRequest {
        let machine = machine_id();
        let agent = agent_config(machine, "it's a \"secret\"\n");
        LaunchRequest {
            machine,
            job: None,
            fleet: Fleet::Builder,
            arch: Arch::Amd64,
            size: MachineSize::Medium,
            candidates: Vec::new(),
            agent: AgentConfig { give_up_after: Duration::from_mins(10), ..agent },
            lease: Duration::from_mins(65),
            insecure_registry: None,
            binary: Some(AgentBinary {
                url: "https://core.example/v1/agent/binary/amd64".parse().unwrap(),
                sha256: "0123456789abcdef".repeat(4),
            }),
        }
    }

    /// What cloud-init would read.
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
    fn an_insecure_registry_is_added_to_what_the_engine_is_told_anyway() {
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
    fn a_stock_image_gets_what_a_golden_image_has_and_the_checksum_of_the_agents_program() {
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
    fn the_dead_man_switch_is_armed_before_anything_else_that_can_fail() {
        let setup = include_str!("stock-setup");
        let main = setup.split("\nmain() {\n").nth(1).unwrap();
        let lines: Vec<_> = main.lines().map(str::trim).filter(|it| !it.starts_with('#')).collect();
        let arms = ["daemon-reload", "enable stagely-deadman.timer", "start stagely-deadman.timer"];
        assert_eq!(lines[..3], arms.map(|it| format!("systemctl {it}")));
    }

    #[test]
    fn user_data_is_the_same_compressed_and_no_longer_than_ec2_takes() {
        for kind in [ImageKind::Golden, ImageKind::Stock] {
            let mut request = request();
            let packed = user_data(&request, kind).unwrap();
            println!(
                "{kind:?}: {} bytes, {} packed",
                cloud_config(&request, kind).len(),
                packed.len()
            );
            let mut text = String::new();
            GzDecoder::new(&*packed).read_to_string(&mut text).unwrap();
            assert_eq!(text, cloud_config(&request, kind));
            // Nothing to compress.
            let mut long = String::new();
            for number in 0..40_000_u32 {
                write!(long, "{:x}", number.wrapping_mul(2_654_435_761)).unwrap();
            }
            request.agent.token = long.into();
            let error = user_data(&request, kind).unwrap_err();
            assert!(
                matches!(&error, LaunchError::Permanent(it) if it.contains("16384")),
                "{error}"
            );
        }
    }

    #[test]
    fn scripts_are_what_sh_understands() {
        for (script, text) in
            [("stock-setup", include_str!("stock-setup")), ("deadman", BAKED[1].2)]
        {
            let mut sh = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            sh.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            assert!(sh.wait().unwrap().success(), "{script}");
        }
    }

    #[test]
    fn cloud_init_accepts_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("user-data");
        let request = LaunchRequest { insecure_registry: Some("r:5000".to_owned()), ..request() };
        let check = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let mut check = Command::new("cloud-init");
            check.args(["schema", "--config-file"]).arg(&path);
            let output =
                check.output().expect("the Debian package cloud-init is installed (scripts/setup)");
            let said =
                String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            (output.status.success() && said.contains("Valid"), said.into_owned())
        };
        for kind in [ImageKind::Golden, ImageKind::Stock] {
            let (is_valid, said) = check(&cloud_config(&request, kind));
            assert!(is_valid, "{kind:?}: {said}");
        }
        // It looks closely enough to see what is not.
        let (is_valid, said) = check("#cloud-config\n{\"write_files\": [{\"content\": 1}]}\n");
        assert!(!is_valid, "{said}");
    }
}
