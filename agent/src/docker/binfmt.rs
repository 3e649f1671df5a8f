//! The kernel's `binfmt_misc` handlers, by which it runs programs of another arch under QEMU.
//!
//! Source: Linux, `Documentation/admin-guide/binfmt-misc.rst`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use stagely_protocol::Arch;

/// Where the kernel shows its handlers and accepts new ones.
const BINFMT_FOLDER: &str = "/proc/sys/fs/binfmt_misc";

/// The kernel holds the emulator open (F), because a container does not see its file. The emulator gets the
/// program open (O), with the credentials of the program's file (C), so that `sudo` works.
const FLAGS: &str = "OCF";

/// The platforms that this machine runs by emulation, from the kernel's own list.
pub fn emulated_platforms() -> Vec<String> {
    let own = Arch::of_this_program();
    let is_registered = |arch: Arch| {
        [handler_name(arch), own_handler_name(arch)].iter().any(|name| {
            let entry = fs::read_to_string(Path::new(BINFMT_FOLDER).join(name));
            entry.is_ok_and(|entry| is_usable_by_containers(&entry))
        })
    };
    let foreign = Arch::ALL.into_iter().filter(|arch| *arch != own && is_registered(*arch));
    foreign.map(|arch| format!("linux/{arch}")).collect()
}

/// A container does not see the emulator's file, so the kernel must hold it open (flag `F`).
fn is_usable_by_containers(entry: &str) -> bool {
    let has_flag =
        |line: &str| line.strip_prefix("flags:").is_some_and(|flags| flags.contains('F'));
    entry.lines().next() == Some("enabled") && entry.lines().any(has_flag)
}

/// The name under which Debian's and Docker's packages register QEMU.
const fn handler_name(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "qemu-x86_64",
        Arch::Arm64 => "qemu-aarch64",
    }
}

/// The name under which Stagely registers QEMU where the usual name is taken.
const fn own_handler_name(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "stagely-qemu-x86_64",
        Arch::Arm64 => "stagely-qemu-aarch64",
    }
}

/// The magic and the mask of programs of `arch`, in the form that `register` takes.
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

/// The folders in which QEMU and the kernel's handlers are.
pub(super) struct BinfmtFolders {
    binfmt: PathBuf,
    /// The descriptions that packages install for systemd.
    descriptions: PathBuf,
    programs: PathBuf,
}

impl Default for BinfmtFolders {
    fn default() -> Self {
        Self {
            binfmt: BINFMT_FOLDER.into(),
            descriptions: "/usr/lib/binfmt.d".into(),
            programs: "/usr/bin".into(),
        }
    }
}

/// The handler of `arch` that an administrator disabled (`echo 0`), if any.
pub(super) fn disabled_handler(folders: &BinfmtFolders, arch: Arch) -> Option<PathBuf> {
    let handlers =
        [handler_name(arch), own_handler_name(arch)].map(|name| folders.binfmt.join(name));
    handlers.into_iter().find(|handler| {
        fs::read_to_string(handler).is_ok_and(|entry| entry.lines().next() == Some("disabled"))
    })
}

/// Registers QEMU for `arch` with this machine's kernel, which only root may do.
pub(super) fn register(folders: &BinfmtFolders, arch: Arch) -> io::Result<()> {
    let Some(mut handler) = handler_line(folders, arch) else {
        return Err(io::Error::other("qemu-user-static is not installed"));
    };
    let register = folders.binfmt.join("register");
    if !register.exists() {
        mount(
            Some("binfmt_misc"),
            &folders.binfmt,
            Some("binfmt_misc"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|error| io::Error::other(format!("cannot mount binfmt_misc: {error}")))?;
    }
    // The existing handler is not usable by containers and not Stagely's. The kernel tries the newest first.
    if folders.binfmt.join(handler_name(arch)).exists() {
        handler = handler.replacen(handler_name(arch), own_handler_name(arch), 1);
    }
    fs::write(&register, handler)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot register QEMU: {error}")))
}

/// The line that registers QEMU for `arch`: the one of the package, or one for the static program.
fn handler_line(folders: &BinfmtFolders, arch: Arch) -> Option<String> {
    let name = handler_name(arch);
    let described = fs::read_to_string(folders.descriptions.join(format!("{name}.conf")));
    let described = described.ok().and_then(|text| usable_line(&text));
    described.or_else(|| {
        let program = folders.programs.join(format!("{name}-static"));
        let line = || format!(":{name}:M::{}:{}:{FLAGS}", magic(arch), program.display());
        program.exists().then(line)
    })
}

/// The registering line of a package's description, if its program exists and containers can use it.
fn usable_line(description: &str) -> Option<String> {
    let line = description.lines().find(|line| line.starts_with(':'))?;
    let mut fields = line.rsplit(':');
    let (flags, program) = (fields.next()?, fields.next()?);
    (flags.contains('F') && Path::new(program).exists()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders_in(folder: &Path) -> BinfmtFolders {
        let at = |name: &str| {
            fs::create_dir(folder.join(name)).unwrap();
            folder.join(name)
        };
        let folders = BinfmtFolders {
            binfmt: at("binfmt"),
            descriptions: at("binfmt.d"),
            programs: at("bin"),
        };
        fs::write(folders.binfmt.join("register"), "").unwrap();
        folders
    }

    fn registered(folders: &BinfmtFolders) -> String {
        fs::read_to_string(folders.binfmt.join("register")).unwrap()
    }

    #[test]
    fn the_line_of_the_package_is_registered() {
        let folder = tempfile::tempdir().unwrap();
        let folders = folders_in(folder.path());
        let qemu = folder.path().join("aarch64-binfmt-P");
        let line = format!(r":qemu-aarch64:M::\x7fELF:\xff:{}:OPF", qemu.display());
        fs::write(folders.descriptions.join("qemu-aarch64.conf"), format!("# QEMU\n{line}\n"))
            .unwrap();
        let error = register(&folders, Arch::Arm64).unwrap_err();
        assert_eq!(error.to_string(), "qemu-user-static is not installed");
        fs::write(&qemu, "").unwrap();
        register(&folders, Arch::Arm64).unwrap();
        assert_eq!(registered(&folders), line);
    }

    #[test]
    fn without_a_usable_line_the_static_program_is_registered() {
        let folder = tempfile::tempdir().unwrap();
        let folders = folders_in(folder.path());
        let qemu = folders.programs.join("qemu-x86_64-static");
        fs::write(&qemu, "").unwrap();
        // Without the flag F, containers do not see the program.
        let line = format!(r":qemu-x86_64:M::\x7fELF:\xff:{}:OC", qemu.display());
        fs::write(folders.descriptions.join("qemu-x86_64.conf"), line).unwrap();
        register(&folders, Arch::Amd64).unwrap();
        let line = registered(&folders);
        assert!(line.starts_with(r":qemu-x86_64:M::\x7f\x45\x4c\x46\x02"), "{line}");
        assert!(line.ends_with(&format!(":{}:OCF", qemu.display())), "{line}");
        assert!(line.contains(r"\x02\x00\x3e\x00:\xff"), "{line}");
    }

    /// Set while the test runs itself again in a user namespace, where it is root and has its own handlers.
    const IN_NAMESPACE: &str = "STAGELY_TEST_NAMESPACE";

    #[test]
    fn the_kernel_accepts_the_registered_lines() {
        let name = "docker::binfmt::tests::the_kernel_accepts_the_registered_lines";
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
        let folders = folders_in(folder.path());
        // The file system that is mounted here covers this file.
        fs::remove_file(folders.binfmt.join("register")).unwrap();
        for arch in Arch::ALL {
            let program = folders.programs.join(format!("{}-static", handler_name(arch)));
            fs::copy("/bin/true", program).unwrap();
            for name in [handler_name(arch), own_handler_name(arch)] {
                register(&folders, arch).unwrap();
                let entry = fs::read_to_string(folders.binfmt.join(name)).unwrap();
                assert!(entry.starts_with("enabled\n") && entry.contains("flags: OCF"), "{entry}");
                assert!(entry.contains("magic 7f454c46020101"), "{entry}");
            }
        }
        nix::mount::umount(&folders.binfmt).unwrap();
    }

    #[test]
    fn a_disabled_handler_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let folders = folders_in(folder.path());
        assert_eq!(disabled_handler(&folders, Arch::Arm64), None);
        let handler = folders.binfmt.join("qemu-aarch64");
        fs::write(&handler, "enabled\nflags: OCF\n").unwrap();
        assert_eq!(disabled_handler(&folders, Arch::Arm64), None);
        fs::write(&handler, "disabled\nflags: OCF\n").unwrap();
        assert_eq!(disabled_handler(&folders, Arch::Arm64), Some(handler));
        assert_eq!(disabled_handler(&folders, Arch::Amd64), None);
    }

    #[test]
    fn an_emulator_counts_only_if_containers_can_use_it() {
        let entry = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n";
        assert!(is_usable_by_containers(entry));
        assert!(!is_usable_by_containers(&entry.replace("OCF", "OC")));
        assert!(!is_usable_by_containers(&entry.replace("enabled", "disabled")));
    }
}
