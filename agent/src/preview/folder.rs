//! The files of a preview on this machine: one folder for each deployment that may still be needed, and which one serves.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stagely_protocol::{Endpoint, Preview, WireId};

use super::masked_values::MaskedValues;

/// The name of the folder of the deployment that serves.
const CURRENT: &str = "current";

/// Exists while a deployment changes containers that serve.
const UPDATING: &str = "updating";

/// Exists from the creation of fresh volumes until they are seeded.
const UNSEEDED: &str = "unseeded";

/// The PREVIEW of an archived preview.
const ARCHIVED: &str = "archived.json";

/// The times of the log lines that core has stored, by container.
const LOG_POSITIONS: &str = "log.json";

const RECORD: &str = "deployment.json";

const CHECKOUT: &str = "src";
const MODEL: &str = "compose.json";
const VARIABLES: &str = "variables.env";
const MASKED: &str = "masked.json";
const SECRETS: &str = "secrets";

/// What may hold the values of secrets.
const SECRET_ENTRIES: [&str; 4] = [SECRETS, MASKED, MODEL, VARIABLES];

/// What a deployment runs, besides its compose model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deployment {
    pub(crate) generation: u64,
    pub(crate) endpoints: Vec<Endpoint>,
    /// The services that start with the preview.
    pub(crate) services: Vec<String>,
    /// Holds variables that the compose model may still need.
    pub(crate) variables: Option<PathBuf>,
    /// The references of the images that the run built.
    pub(crate) images: Vec<String>,
}

/// A preview's folder.
#[derive(Clone, Debug)]
pub(crate) struct PreviewFolder(PathBuf);

/// The folder of one deployment. Only its owner can read it: it holds the values of secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeploymentFolder(PathBuf);

impl PreviewFolder {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The folder of the deployment of `job`, which may have been tried before.
    pub(crate) fn deployment(&self, job: &WireId) -> DeploymentFolder {
        DeploymentFolder(self.0.join(job.as_str()))
    }

    /// The deployment that serves.
    pub(crate) fn current(&self) -> Option<(DeploymentFolder, Deployment)> {
        let name = fs::read_to_string(self.0.join(CURRENT)).ok()?;
        let folder = DeploymentFolder(self.0.join(name));
        let record = folder.read_record()?;
        Some((folder, record))
    }

    /// Makes `deployment` the one that serves.
    pub(crate) fn set_current(&self, deployment: &DeploymentFolder) -> io::Result<()> {
        let name = deployment.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.replace(CURRENT, name.as_bytes())
    }

    /// The deployments beside `next` and the one that serves.
    pub(crate) fn outdated(&self, next: &DeploymentFolder) -> io::Result<Vec<DeploymentFolder>> {
        let current = self.current().map(|(folder, _)| folder.0);
        let others = self.deployments()?.into_iter();
        let others = others.filter(|folder| folder != next && Some(&folder.0) != current.as_ref());
        Ok(others.collect())
    }

    /// No deployment serves any more.
    pub(crate) fn forget_current(&self) -> io::Result<()> {
        set_marker(&self.0.join(CURRENT), false)
    }

    fn deployments(&self) -> io::Result<Vec<DeploymentFolder>> {
        let mut folders = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(DeploymentFolder(entry.path()));
            }
        }
        Ok(folders)
    }

    pub(crate) fn is_updating(&self) -> bool {
        self.0.join(UPDATING).exists()
    }

    pub(crate) fn set_updating(&self, is_updating: bool) -> io::Result<()> {
        set_marker(&self.0.join(UPDATING), is_updating)
    }

    pub(crate) fn is_unseeded(&self) -> bool {
        self.0.join(UNSEEDED).exists()
    }

    pub(crate) fn set_unseeded(&self, is_unseeded: bool) -> io::Result<()> {
        set_marker(&self.0.join(UNSEEDED), is_unseeded)
    }

    pub(crate) fn archived(&self) -> Option<Preview> {
        read_json(&self.0.join(ARCHIVED))
    }

    /// Writes the report of the archive. From then on the preview is archived, whatever else is still there.
    pub(crate) fn set_archived(&self, report: &Preview) -> io::Result<()> {
        self.replace(ARCHIVED, &serde_json::to_vec(report)?)
    }

    /// Removes all files but the report of the archive. Goes on after errors, and returns the first one.
    pub(crate) fn remove_archived(&self) -> io::Result<()> {
        let mut removed = Ok(());
        for name in [CURRENT, UPDATING, UNSEEDED, LOG_POSITIONS] {
            removed = removed.and(set_marker(&self.0.join(name), false));
        }
        removed.and(self.remove_deployments())
    }

    fn remove_deployments(&self) -> io::Result<()> {
        let deployments = match self.deployments() {
            Ok(deployments) => deployments,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut removed = Ok(());
        for folder in deployments {
            removed = removed.and(folder.remove());
        }
        removed
    }

    pub(crate) fn forget_archive(&self) -> io::Result<()> {
        set_marker(&self.0.join(ARCHIVED), false)
    }

    pub(super) fn log_positions(&self) -> BTreeMap<String, String> {
        read_json(&self.0.join(LOG_POSITIONS)).unwrap_or_default()
    }

    pub(super) fn set_log_positions(&self, times: &BTreeMap<String, String>) -> io::Result<()> {
        self.replace(LOG_POSITIONS, &serde_json::to_vec(times)?)
    }

    /// Writes the file `name`, which has either all of the new bytes or the former ones.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = self.0.join(format!("{name}.new"));
        write_private(&new, bytes)?;
        fs::rename(new, self.0.join(name))
    }

    /// Removes the folder, the values of secrets first. Goes on after errors, and returns the first one.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.remove_deployments()?;
        remove_folder(&self.0)
    }
}

impl DeploymentFolder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    pub(crate) fn read_record(&self) -> Option<Deployment> {
        read_json(&self.0.join(RECORD))
    }

    /// The checkout, for as long as the deployment serves: the compose file may mount its files.
    pub(crate) fn checkout(&self) -> PathBuf {
        self.0.join(CHECKOUT)
    }

    /// The compose file that is run.
    pub(crate) fn model(&self) -> PathBuf {
        self.0.join(MODEL)
    }

    /// Keeps a copy of the file `variables` of the checkout, which containers may change.
    pub(crate) fn keep_variables(&self, variables: &Path) -> io::Result<PathBuf> {
        let path = self.0.join(VARIABLES);
        write_private(&path, &fs::read(variables)?)?;
        Ok(path)
    }

    pub(crate) fn record(&self, deployment: &Deployment) -> io::Result<()> {
        write_private(&self.0.join(RECORD), &serde_json::to_vec(deployment)?)
    }

    /// What must not be in the log of its services.
    pub(super) fn masked_values(&self) -> MaskedValues {
        read_json(&self.masked()).unwrap_or_default()
    }

    pub(crate) fn record_masked_values(&self, values: &MaskedValues) -> io::Result<()> {
        write_private(&self.masked(), &serde_json::to_vec(values)?)
    }

    fn masked(&self) -> PathBuf {
        self.0.join(MASKED)
    }

    pub(crate) fn write_model(&self, model: &serde_json::Value) -> io::Result<()> {
        write_private(&self.model(), model.to_string().as_bytes())
    }

    /// Writes the value of a compose secret, which containers may read. Nobody else reaches it.
    pub(crate) fn write_secret(&self, number: usize, value: &str) -> io::Result<PathBuf> {
        let folder = self.0.join(SECRETS);
        DirBuilder::new().recursive(true).mode(0o755).create(&folder)?;
        let path = folder.join(number.to_string());
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o400).open(&path)?;
        file.write_all(value.as_bytes())?;
        // Whatever the umask is: users of containers are not the agent's.
        file.set_permissions(Permissions::from_mode(0o444))?;
        Ok(path)
    }

    /// Removes the folder, the values of secrets first. Goes on after errors, and returns the first one.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.remove_entries(|_| true)?;
        remove_folder(&self.0)
    }

    /// As [`remove`](Self::remove), but the record stays: it names the images, which are removed before the next pull.
    pub(crate) fn remove_all_but_record(&self) -> io::Result<()> {
        self.remove_entries(|name| name != RECORD)
    }

    /// As [`remove`](Self::remove), for the entries of the folder with these names.
    fn remove_entries(&self, is_wanted: impl Fn(&str) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut entries = entries.collect::<io::Result<Vec<_>>>()?;
        let is_secret = |name: &str| SECRET_ENTRIES.contains(&name);
        entries.sort_by_key(|entry| !entry.file_name().to_str().is_some_and(is_secret));
        let mut removed = Ok(());
        for entry in entries.iter().filter(|entry| is_wanted(&entry.file_name().to_string_lossy()))
        {
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            removed = removed.and(if is_folder {
                remove_folder(&path)
            } else {
                set_marker(&path, false)
            });
        }
        removed
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

fn set_marker(path: &Path, exists: bool) -> io::Result<()> {
    if exists {
        return write_private(path, b"");
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use nix::sched::{CloneFlags, unshare};
    use nix::sys::stat::{Mode, umask};

    use super::*;

    fn report() -> Preview {
        let fields = serde_json::json!({
            "preview_id": "prev_1", "generation": 1, "state": "archived", "services": [], "messages": [],
        });
        serde_json::from_value(fields).unwrap()
    }

    fn created(preview: &PreviewFolder, job: &str) -> DeploymentFolder {
        let deployment = preview.deployment(&job.parse().unwrap());
        deployment.create().unwrap();
        deployment
    }

    #[test]
    fn a_report_that_cannot_be_written_removes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let preview = PreviewFolder::new(folder.path().join("prev_1"));
        let deployment = created(&preview, "job_1");
        // In the place of the report.
        fs::create_dir(folder.path().join("prev_1").join(ARCHIVED)).unwrap();
        preview.set_archived(&report()).unwrap_err();
        assert!(deployment.0.exists());
        fs::remove_dir(folder.path().join("prev_1").join(ARCHIVED)).unwrap();
        preview.set_archived(&report()).unwrap();
        assert!(deployment.0.exists());
        preview.remove_archived().unwrap();
        assert!(!deployment.0.exists());
        assert_eq!(preview.archived(), Some(report()));
    }

    #[test]
    fn users_of_containers_can_read_secrets_whatever_the_umask() {
        // Of this thread alone.
        unshare(CloneFlags::CLONE_FS).unwrap();
        umask(Mode::from_bits_truncate(0o077));
        let folder = tempfile::tempdir().unwrap();
        let preview = PreviewFolder::new(folder.path().join("prev_1"));
        let deployment = created(&preview, "job_1");
        let path = deployment.write_secret(1, "value").unwrap();
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o444);
    }

    #[test]
    fn files_that_stay_keep_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let preview = PreviewFolder::new(folder.path().join("prev_1"));
        let (former, next) = (created(&preview, "job_1"), created(&preview, "job_2"));
        fs::create_dir(former.checkout()).unwrap();
        fs::write(former.checkout().join("file"), "").unwrap();
        former.write_secret(1, "value").unwrap();
        former.record_masked_values(&MaskedValues::default()).unwrap();
        former.write_model(&serde_json::Value::Null).unwrap();
        next.write_secret(1, "value").unwrap();
        // A file of another user, for root as well: this thread gives up root's access to files.
        fs::set_permissions(former.checkout(), Permissions::from_mode(0o555)).unwrap();
        let owned = [&former, &next].map(|deployment| deployment.0.join(SECRETS));
        if nix::unistd::geteuid().is_root() {
            for path in [folder.path(), &preview.0, &former.0, &next.0, &owned[0], &owned[1]] {
                chown(path, Some(65534), Some(65534)).unwrap();
            }
        }
        let root = nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
        let removed = preview.remove();
        nix::unistd::setfsuid(root);
        fs::set_permissions(former.checkout(), Permissions::from_mode(0o755)).unwrap();
        assert_eq!(removed.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(former.checkout().join("file").exists() && !next.0.exists());
        assert_eq!(fs::read_dir(&former.0).unwrap().count(), 1);
    }

    #[test]
    fn the_former_deployment_leaves_only_the_names_of_its_images() {
        let folder = tempfile::tempdir().unwrap();
        let preview = PreviewFolder::new(folder.path().join("prev_1"));
        for generation in 1..=2 {
            let deployment = created(&preview, &format!("job_{generation}"));
            fs::create_dir(deployment.checkout()).unwrap();
            deployment.write_model(&serde_json::json!({ "generation": generation })).unwrap();
            let record = Deployment {
                generation,
                endpoints: Vec::new(),
                services: Vec::new(),
                variables: None,
                images: vec![format!("r/a:{generation}")],
            };
            deployment.record(&record).unwrap();
            preview.set_current(&deployment).unwrap();
            for former in preview.outdated(&deployment).unwrap() {
                former.remove_all_but_record().unwrap();
            }
            assert_eq!(preview.current().unwrap().1, record);
        }
        let first = folder.path().join("prev_1/job_1");
        assert!(!first.join("compose.json").exists() && !first.join("src").exists());
        let next = created(&preview, "job_3");
        let outdated = preview.outdated(&next).unwrap();
        assert_eq!(outdated, [DeploymentFolder(first.clone())]);
        assert_eq!(outdated[0].read_record().unwrap().images, ["r/a:1"]);
        outdated[0].remove().unwrap();
        assert!(!first.exists() && next.0.exists() && preview.current().is_some());
    }
}
