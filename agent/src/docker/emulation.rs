//! Sees to it that an engine runs programs of another arch, under QEMU.
//!
//! What an engine can run is asked of the engine: `buildx inspect` starts a program of each platform.
//! What it cannot run yet is registered in its kernel's `binfmt_misc`, from this machine's own
//! `qemu-user-static` where the engine is here and we are root, or by the image that Docker's
//! documentation names.
//!
//! Source: Linux, `Documentation/admin-guide/binfmt-misc.rst`; Docker, "Multi-platform builds".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error as EngineError;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, RemoveContainerOptionsBuilder,
    StartContainerOptions, WaitContainerOptionsBuilder,
};
use futures_util::TryStreamExt as _;
use nix::mount::{MsFlags, mount};
use stagely_protocol::MACHINE_VARIABLE;
use stagely_protocol::{Arch, Stream};
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::DockerCommand;
use super::engine::connect;
use crate::process::ProcessError;

/// Where the kernel shows its handlers and takes new ones.
pub(super) const BINFMT: &str = "/proc/sys/fs/binfmt_misc";

/// Registers QEMU's handlers with the kernel of the engine that runs it.
const BINFMT_IMAGE: &str = "tonistiigi/binfmt";

/// Pulling the image (30 MB) and running it may take this long.
const IMAGE_LIMIT: Duration = Duration::from_mins(2);

/// A container that has ended may take this long to be removed.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// The kernel holds the emulator open (F), since a container does not see its file; it gets the
/// program open (O), with the credentials of the file (C), so that `sudo` works.
const FLAGS: &str = "OCF";

/// An engine that does not run programs of an arch.
#[derive(Debug, Error)]
pub enum EmulationError {
    /// The command could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// What the engine runs could not be asked.
    #[error("cannot ask the Docker engine which platforms it runs: {0}")]
    Inspect(String),
    /// Somebody switched its handler off, and had a reason.
    #[error(
        "this {own} machine does not emulate {wanted}: its handler is switched off; as root, `echo 1 \
         > {}` switches it on",
        .handler.display()
    )]
    SwitchedOff {
        /// The machine's own arch.
        own: Arch,
        /// What was to run.
        wanted: Arch,
        /// The kernel's file for it.
        handler: PathBuf,
    },
    /// Nothing helped.
    #[error(
        "this {own} machine does not emulate {wanted}: `apt-get install qemu-user-static` on it, or \
         `docker run --privileged --rm {BINFMT_IMAGE} --install {wanted}` ({tried})"
    )]
    Impossible {
        /// The machine's own arch.
        own: Arch,
        /// What was to run.
        wanted: Arch,
        /// What was tried, and why it did not help.
        tried: String,
    },
}

/// Waits until the engine, which is of arch `own`, runs programs of arch `wanted`. `say` gets a line
/// for people when that takes something.
///
/// # Errors
/// [`EmulationError`]
pub async fn await_emulation(
    docker: &DockerCommand,
    own: Arch,
    wanted: Arch,
    say: impl Fn(&str),
    stop: &CancellationToken,
) -> Result<(), EmulationError> {
    if emulates(docker, wanted, stop).await? {
        return Ok(());
    }
    if let Some(handler) = switched_off(&System::default(), wanted).filter(|_| is_here(docker)) {
        return Err(EmulationError::SwitchedOff { own, wanted, handler });
    }
    say(&format!("This {own} machine does not emulate {wanted} yet: registering QEMU"));
    let mut tried = Vec::new();
    if is_here(docker) {
        let registered = spawn_blocking(move || register(&System::default(), wanted)).await;
        match registered.map_err(io::Error::other).flatten() {
            Ok(()) if emulates(docker, wanted, stop).await? => return Ok(()),
            Ok(()) => tried.push("registering qemu-user-static had no effect".to_owned()),
            Err(error) => tried.push(error.to_string()),
        }
    }
    let install = ["--install", wanted.as_str()];
    match run_privileged(docker, BINFMT_IMAGE, &install, IMAGE_LIMIT, stop).await {
        Ok(()) if emulates(docker, wanted, stop).await? => return Ok(()),
        Ok(()) => tried.push(format!("{BINFMT_IMAGE} had no effect")),
        Err(error) => tried.push(format!("{BINFMT_IMAGE}: {error}")),
    }
    Err(EmulationError::Impossible { own, wanted, tried: tried.join("; ") })
}

/// Whether the engine's socket is a file of this machine.
fn is_here(docker: &DockerCommand) -> bool {
    let variable = std::env::var("DOCKER_HOST").ok();
    docker.host.clone().or(variable).is_none_or(|host| host.starts_with("unix://"))
}

/// Whether the engine runs programs of `arch`, which it tries.
async fn emulates(
    docker: &DockerCommand,
    arch: Arch,
    stop: &CancellationToken,
) -> Result<bool, EmulationError> {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let inspect = docker.invocation().args(["buildx", "inspect", "default"]);
    let status = inspect
        .run(docker.grace, stop, |stream, bytes| match stream {
            Stream::Stdout => output.extend_from_slice(bytes),
            Stream::Stderr => errors.extend_from_slice(bytes),
        })
        .await?;
    let (output, errors) = (String::from_utf8_lossy(&output), String::from_utf8_lossy(&errors));
    match lists(&output, arch) {
        Some(lists) if status.success() => Ok(lists),
        _ => {
            // It shows an engine that does not answer among its output, as `Error: …`.
            let shown = output.lines().rfind(|line| line.trim_start().starts_with("Error:"));
            let last = errors.trim().lines().last().or(shown);
            let message = last.map_or("`docker buildx inspect` lists no platforms", str::trim);
            Err(EmulationError::Inspect(message.to_owned()))
        }
    }
}

/// Whether `buildx inspect` lists `arch`: `Platforms: linux/amd64*, linux/amd64/v2, linux/arm64`.
/// `None`: it lists nothing.
fn lists(inspected: &str, arch: Arch) -> Option<bool> {
    let platforms = inspected.lines().find_map(|line| line.trim().strip_prefix("Platforms:"))?;
    let wanted = format!("linux/{arch}");
    let mut platforms = platforms.split(',').map(str::trim);
    Some(platforms.any(|platform| platform.trim_end_matches('*') == wanted))
}

/// The name under which Debian's and Docker's packages register QEMU.
pub(super) const fn handler_name(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "qemu-x86_64",
        Arch::Arm64 => "qemu-aarch64",
    }
}

/// The name under which we register QEMU where the other one is taken.
pub(super) const fn own_handler_name(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "stagely-qemu-x86_64",
        Arch::Arm64 => "stagely-qemu-aarch64",
    }
}

/// What a program of `arch` begins with: its magic and mask, as `register` takes them.
const fn magic(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => concat!(
            r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00:",
            r"\xff\xff\xff\xff\xff\xfe\xfe\xfc\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
        ),
        Arch::Arm64 => concat!(
            r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:",
            r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
        ),
    }
}

/// Where QEMU and the kernel's handlers are.
struct System {
    binfmt: PathBuf,
    /// The descriptions that packages bring for systemd.
    descriptions: PathBuf,
    programs: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self {
            binfmt: BINFMT.into(),
            descriptions: "/usr/lib/binfmt.d".into(),
            programs: "/usr/bin".into(),
        }
    }
}

/// The handler of `arch` that somebody switched off (`echo 0`), if any.
fn switched_off(system: &System, arch: Arch) -> Option<PathBuf> {
    let handlers =
        [handler_name(arch), own_handler_name(arch)].map(|name| system.binfmt.join(name));
    handlers.into_iter().find(|handler| {
        fs::read_to_string(handler).is_ok_and(|entry| entry.lines().next() == Some("disabled"))
    })
}

/// Registers QEMU for `arch` with this machine's kernel, which only root may do.
fn register(system: &System, arch: Arch) -> io::Result<()> {
    let Some(mut handler) = handler(system, arch) else {
        return Err(io::Error::other("qemu-user-static is not installed"));
    };
    let register = system.binfmt.join("register");
    if !register.exists() {
        mount(
            Some("binfmt_misc"),
            &system.binfmt,
            Some("binfmt_misc"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|error| io::Error::other(format!("cannot mount binfmt_misc: {error}")))?;
    }
    // One that containers cannot use belongs to somebody else. The kernel asks the newest first.
    if system.binfmt.join(handler_name(arch)).exists() {
        handler = handler.replacen(handler_name(arch), own_handler_name(arch), 1);
    }
    fs::write(&register, handler)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot register QEMU: {error}")))
}

/// The line that registers QEMU for `arch`: the package's own, or one for the static program.
fn handler(system: &System, arch: Arch) -> Option<String> {
    let name = handler_name(arch);
    let described = fs::read_to_string(system.descriptions.join(format!("{name}.conf")));
    let described = described.ok().and_then(|text| usable(&text));
    described.or_else(|| {
        let program = system.programs.join(format!("{name}-static"));
        let line = || format!(":{name}:M::{}:{}:{FLAGS}", magic(arch), program.display());
        program.exists().then(line)
    })
}

/// The line of a description whose program is there and that containers can use.
fn usable(description: &str) -> Option<String> {
    let line = description.lines().find(|line| line.starts_with(':'))?;
    let mut fields = line.rsplit(':');
    let (flags, program) = (fields.next()?, fields.next()?);
    (flags.contains('F') && Path::new(program).exists()).then(|| line.to_owned())
}

/// An image that did not do what it was run for.
#[derive(Debug, Error)]
enum RunError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("exit code {0}")]
    Exit(i64),
    #[error("not done within {0:?}")]
    TimedOut(Duration),
    #[error("stopped")]
    Stopped,
}

/// Pulls `image` and runs it with the rights of the engine's machine. Each may take `limit`.
async fn run_privileged(
    command: &DockerCommand,
    image: &str,
    arguments: &[&str],
    limit: Duration,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let docker = connect(command.host.as_deref())?;
    let pull = CreateImageOptionsBuilder::new().from_image(image).tag("latest").build();
    let pull = docker.create_image(Some(pull), None, None).try_for_each(|_| async { Ok(()) });
    within(limit, stop, pull).await?;
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(arguments.iter().map(|argument| (*argument).to_owned()).collect()),
        labels: Some([(MACHINE_VARIABLE.to_owned(), command.machine.to_string())].into()),
        host_config: Some(HostConfig {
            privileged: Some(true),
            auto_remove: Some(true),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    // With a name it is removed even where the answer to its creation was not waited for.
    let container = format!("stagely-emulation-{:016x}", rand::random::<u64>());
    let options = CreateContainerOptionsBuilder::new().name(&container).build();
    let wait = WaitContainerOptionsBuilder::new().condition("removed").build();
    let run = Box::pin(async {
        docker.create_container(Some(options), body).await?;
        docker.start_container(&container, None::<StartContainerOptions>).await?;
        let ended = docker.wait_container(&container, Some(wait));
        match ended.try_for_each(|_| async { Ok(()) }).await {
            // It is gone already. What it did, the engine is asked next.
            Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            result => result,
        }
    });
    let ended = within(limit, stop, run).await;
    let remove = RemoveContainerOptionsBuilder::new().force(true).build();
    let _ = timeout(REMOVE_LIMIT, docker.remove_container(&container, Some(remove))).await;
    ended
}

async fn within(
    limit: Duration,
    stop: &CancellationToken,
    task: impl Future<Output = Result<(), EngineError>>,
) -> Result<(), RunError> {
    match stop.run_until_cancelled(timeout(limit, task)).await {
        None => Err(RunError::Stopped),
        Some(Err(_)) => Err(RunError::TimedOut(limit)),
        Some(Ok(Err(EngineError::DockerContainerWaitError { code, .. }))) => {
            Err(RunError::Exit(code))
        }
        Some(Ok(result)) => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(folder: &Path) -> System {
        let at = |name: &str| {
            fs::create_dir(folder.join(name)).unwrap();
            folder.join(name)
        };
        let system =
            System { binfmt: at("binfmt"), descriptions: at("binfmt.d"), programs: at("bin") };
        fs::write(system.binfmt.join("register"), "").unwrap();
        system
    }

    fn registered(system: &System) -> String {
        fs::read_to_string(system.binfmt.join("register")).unwrap()
    }

    #[test]
    fn the_packages_own_line_is_registered() {
        let folder = tempfile::tempdir().unwrap();
        let system = system(folder.path());
        let qemu = folder.path().join("aarch64-binfmt-P");
        let line = format!(r":qemu-aarch64:M::\x7fELF:\xff:{}:OPF", qemu.display());
        fs::write(system.descriptions.join("qemu-aarch64.conf"), format!("# QEMU\n{line}\n"))
            .unwrap();
        let error = register(&system, Arch::Arm64).unwrap_err();
        assert_eq!(error.to_string(), "qemu-user-static is not installed");
        fs::write(&qemu, "").unwrap();
        register(&system, Arch::Arm64).unwrap();
        assert_eq!(registered(&system), line);
    }

    #[test]
    fn without_a_usable_line_the_static_program_is_registered() {
        let folder = tempfile::tempdir().unwrap();
        let system = system(folder.path());
        let qemu = system.programs.join("qemu-x86_64-static");
        fs::write(&qemu, "").unwrap();
        // Containers do not see a program that the kernel does not hold open.
        let line = format!(r":qemu-x86_64:M::\x7fELF:\xff:{}:OC", qemu.display());
        fs::write(system.descriptions.join("qemu-x86_64.conf"), line).unwrap();
        register(&system, Arch::Amd64).unwrap();
        let line = registered(&system);
        assert!(line.starts_with(r":qemu-x86_64:M::\x7f\x45\x4c\x46\x02"), "{line}");
        assert!(line.ends_with(&format!(":{}:OCF", qemu.display())), "{line}");
        assert!(line.contains(r"\x02\x00\x3e\x00:\xff"), "{line}");
    }

    /// Set for the test that runs itself again, where it is root over handlers of its own.
    const IN_NAMESPACE: &str = "STAGELY_TEST_NAMESPACE";

    #[test]
    fn the_kernel_takes_the_lines() {
        let name = "docker::emulation::tests::the_kernel_takes_the_lines";
        if std::env::var_os(IN_NAMESPACE).is_none() {
            let unshared = |command: &str, arguments: &[&str]| {
                let mut unshare = std::process::Command::new("unshare");
                unshare.args(["--user", "--map-root-user", "--mount", command]).args(arguments);
                unshare.env(IN_NAMESPACE, "1").status().unwrap().success()
            };
            // Before Linux 6.7 all namespaces share one list, which a test must not touch.
            let mount = ["-t", "binfmt_misc", "none", "/mnt"];
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
            let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
            if numbers.next().zip(numbers.next()) < Some((6, 7)) {
                return println!("not tested: this kernel has one list of handlers for everybody");
            }
            assert!(unshared("mount", &mount), "a user namespace with a list of its own is needed");
            let program = std::env::current_exe().unwrap();
            assert!(unshared(program.to_str().unwrap(), &["--exact", name, "--nocapture"]));
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let system = system(folder.path());
        // Covered by the file system that is to be mounted.
        fs::remove_file(system.binfmt.join("register")).unwrap();
        for arch in Arch::ALL {
            let program = system.programs.join(format!("{}-static", handler_name(arch)));
            fs::copy("/bin/true", program).unwrap();
            for name in [handler_name(arch), own_handler_name(arch)] {
                register(&system, arch).unwrap();
                let entry = fs::read_to_string(system.binfmt.join(name)).unwrap();
                assert!(entry.starts_with("enabled\n") && entry.contains("flags: OCF"), "{entry}");
                assert!(entry.contains("magic 7f454c46020101"), "{entry}");
            }
        }
        nix::mount::umount(&system.binfmt).unwrap();
    }

    #[tokio::test]
    async fn an_image_that_cannot_be_pulled_is_said_so() {
        let stop = CancellationToken::new();
        let docker = DockerCommand {
            machine: "vm_test".parse().unwrap(),
            host: Some("unix:///nowhere/docker.sock".to_owned()),
            config: "/nowhere".into(),
            grace: Duration::from_secs(1),
            registry_patience: Duration::ZERO,
        };
        let limit = Duration::from_secs(5);
        let error = run_privileged(&docker, BINFMT_IMAGE, &[], limit, &stop).await.unwrap_err();
        assert!(matches!(error, RunError::Engine(_)), "{error}");
        // An engine that does not answer does not say that it emulates nothing.
        let error = emulates(&docker, Arch::Arm64, &stop).await.unwrap_err();
        assert!(matches!(error, EmulationError::Inspect(_)), "{error}");
    }

    #[test]
    fn a_handler_that_is_switched_off_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let system = system(folder.path());
        assert_eq!(switched_off(&system, Arch::Arm64), None);
        let handler = system.binfmt.join("qemu-aarch64");
        fs::write(&handler, "enabled\nflags: OCF\n").unwrap();
        assert_eq!(switched_off(&system, Arch::Arm64), None);
        fs::write(&handler, "disabled\nflags: OCF\n").unwrap();
        assert_eq!(switched_off(&system, Arch::Arm64), Some(handler));
        assert_eq!(switched_off(&system, Arch::Amd64), None);
    }

    #[test]
    fn the_engines_platforms_are_read() {
        let text = "Name: default\nDriver: docker\n\nNodes:\nStatus: running\n\
            Platforms:        linux/amd64*, linux/amd64/v2, linux/arm64/v8, linux/arm\n";
        assert_eq!(lists(text, Arch::Amd64), Some(true));
        assert_eq!(lists(text, Arch::Arm64), Some(false));
        assert_eq!(lists(&text.replace("/v8", ""), Arch::Arm64), Some(true));
        assert_eq!(lists("", Arch::Amd64), None);
    }
}
