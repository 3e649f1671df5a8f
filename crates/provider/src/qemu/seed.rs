//! The seed of a guest: a disk with user data, where cloud-init of a guest that has no cloud looks for it.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use stagely_state::ids::MachineId;
use tokio::process::Command;

use super::programs;
use crate::LaunchError;
use crate::processes::private_file;

/// Programs that write an ISO image to their output, and what they are to be told first.
const MAKERS: [(&str, &[&str]); 2] = [("genisoimage", &[]), ("xorriso", &["-as", "mkisofs"])];

/// The name by which cloud-init knows a seed.
const LABEL: &str = "cidata";

/// A program that makes seeds.
#[derive(Debug)]
pub(super) struct Maker {
    program: PathBuf,
    first: &'static [&'static str],
}

impl Maker {
    /// One of `path`.
    ///
    /// # Errors
    /// None is there: what to install.
    pub(super) fn find(path: &OsStr) -> Result<Self, String> {
        let found =
            |(name, first)| programs::find(path, name).map(|program| Self { program, first });
        MAKERS.into_iter().find_map(found).ok_or_else(|| {
            "neither genisoimage nor xorriso is there: apt-get install genisoimage".to_owned()
        })
    }

    /// Writes the seed of `machine` with `user_data` into `folder`, which nobody else can read, for it holds a
    /// token. Returns its file.
    pub(super) async fn make(
        &self,
        folder: &Path,
        machine: MachineId,
        user_data: &str,
    ) -> Result<PathBuf, LaunchError> {
        let failed = |error: io::Error| LaunchError::NoCapacity(format!("no seed made: {error}"));
        let iso = folder.join("seed.iso");
        let files = [("user-data", user_data), ("meta-data", &meta_data(machine))]
            .map(|(name, text)| write(&folder.join(name), text));
        let [user_data, meta_data] = files;
        let (user_data, meta_data) = (user_data.map_err(failed)?, meta_data.map_err(failed)?);
        let process = Command::new(&self.program)
            .args(self.first)
            .args(["-quiet", "-volid", LABEL, "-joliet", "-rock"])
            .args([&user_data, &meta_data])
            .stdin(Stdio::null())
            .stdout(private_file(&iso, false).map_err(failed)?)
            .stderr(Stdio::piped())
            // `output` would take what is to be in the file.
            .spawn()
            .map_err(failed)?;
        let output = process.wait_with_output().await.map_err(failed)?;
        for file in [user_data, meta_data] {
            fs::remove_file(file).map_err(failed)?;
        }
        if output.status.success() {
            return Ok(iso);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.trim().lines().last().unwrap_or_default();
        let program = self.program.display();
        Err(LaunchError::NoCapacity(format!("{program}: {}: {last}", output.status)))
    }
}

fn meta_data(machine: MachineId) -> String {
    // A host's name has no `_`.
    let name = machine.to_string().replace('_', "-");
    format!("instance-id: {machine}\nlocal-hostname: {name}\n")
}

fn write(path: &Path, text: &str) -> io::Result<PathBuf> {
    private_file(path, false)?.write_all(text.as_bytes())?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::fixtures::machine_id;

    #[tokio::test]
    async fn a_seed_holds_the_user_data_and_nobody_else_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let maker = Maker::find(&std::env::var_os("PATH").unwrap()).unwrap();
        let machine = machine_id();

        let user_data = "#cloud-config\n{\"a\": 1}\n";
        let seed = maker.make(folder.path(), machine, user_data).await.unwrap();

        assert_eq!(fs::metadata(&seed).unwrap().permissions().mode() & 0o777, 0o600);
        let iso = fs::read(&seed).unwrap();
        let holds = |text: &[u8]| iso.windows(text.len()).any(|part| part == text);
        assert!(holds(b"CD001") && holds(LABEL.as_bytes()), "it is no ISO image");
        assert!(holds(user_data.as_bytes()));
        assert!(holds(format!("instance-id: {machine}\n").as_bytes()));
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "the files that it was made of are still there: {left:?}");
    }
}
