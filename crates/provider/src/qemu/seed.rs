//! The seed of a guest: a disk with user data. Without a cloud, cloud-init reads its user data from there.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use stagely_state::ids::MachineId;
use tokio::process::Command;

use super::error::GuestError;
use super::programs;
use crate::processes::private_file;

/// Programs that write an ISO image to their output, with their first arguments.
const PROGRAMS: [(&str, &[&str]); 2] = [("genisoimage", &[]), ("xorriso", &["-as", "mkisofs"])];

/// The volume name that cloud-init expects.
const LABEL: &str = "cidata";

/// A program that writes seeds.
#[derive(Debug)]
pub(super) struct SeedProgram {
    program: PathBuf,
    arguments: &'static [&'static str],
}

impl SeedProgram {
    /// The first of the programs that is in `path`.
    pub(super) fn find(path: &OsStr) -> Result<Self, GuestError> {
        let found = |(name, arguments)| {
            programs::find(path, name).map(|program| Self { program, arguments })
        };
        PROGRAMS.into_iter().find_map(found).ok_or(GuestError::NoSeedProgram)
    }

    /// Writes the seed of `machine` with `user_data` into `folder`. Only this user can read it, because it holds a
    /// token. Returns its file.
    pub(super) async fn write(
        &self,
        folder: &Path,
        machine: MachineId,
        user_data: &str,
    ) -> Result<PathBuf, GuestError> {
        let failed = GuestError::Seed;
        let iso = folder.join("seed.iso");
        let files = [("user-data", user_data), ("meta-data", &meta_data(machine))]
            .map(|(name, text)| write(&folder.join(name), text));
        let [user_data, meta_data] = files;
        let (user_data, meta_data) = (user_data.map_err(failed)?, meta_data.map_err(failed)?);
        let process = Command::new(&self.program)
            .args(self.arguments)
            .args(["-quiet", "-volid", LABEL, "-joliet", "-rock"])
            .args([&user_data, &meta_data])
            .stdin(Stdio::null())
            .stdout(private_file(&iso).map_err(failed)?)
            .stderr(Stdio::piped())
            // `output` would redirect standard output away from the file.
            .spawn()
            .map_err(failed)?;
        let output = process.wait_with_output().await.map_err(failed)?;
        for file in [user_data, meta_data] {
            fs::remove_file(file).map_err(failed)?;
        }
        if output.status.success() {
            return Ok(iso);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last_line = stderr.trim().lines().last().unwrap_or_default().to_owned();
        let (program, status) = (self.program.clone(), output.status);
        Err(GuestError::Program { program, status, last_line })
    }
}

fn meta_data(machine: MachineId) -> String {
    // Host names have no `_`.
    let name = machine.to_string().replace('_', "-");
    format!("instance-id: {machine}\nlocal-hostname: {name}\n")
}

fn write(path: &Path, text: &str) -> io::Result<PathBuf> {
    private_file(path)?.write_all(text.as_bytes())?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::fixtures::machine_id;

    #[tokio::test]
    async fn a_seed_holds_the_user_data_and_only_its_owner_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let program = SeedProgram::find(&std::env::var_os("PATH").unwrap()).unwrap();
        let machine = machine_id();

        let user_data = "#cloud-config\n{\"a\": 1}\n";
        let seed = program.write(folder.path(), machine, user_data).await.unwrap();

        assert_eq!(fs::metadata(&seed).unwrap().permissions().mode() & 0o777, 0o600);
        let iso = fs::read(&seed).unwrap();
        let holds = |text: &[u8]| iso.windows(text.len()).any(|part| part == text);
        assert!(holds(b"CD001") && holds(LABEL.as_bytes()), "this is no ISO image");
        assert!(holds(user_data.as_bytes()));
        assert!(holds(format!("instance-id: {machine}\n").as_bytes()));
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "the source files are still there: {left:?}");
    }
}
