//! Removes files of previews, also those that a container has left as root in a checkout that it mounts: an agent need not be
//! root, and the engine is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bollard::Docker;
use bollard::models::{Mount, MountType};
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListImagesOptions, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use nix::unistd::{AccessFlags, eaccess};
use stagely_protocol::WireId;

use super::{Previews, containers};

/// Where the helper container mounts the folder.
const MOUNT: &str = "folder";

/// How often folders are made writable. Each time those are found that were inside of unreadable ones.
const ROUNDS_MAX: usize = 16;

impl Previews {
    /// Calls `remove`, which removes something below `folder`, a folder of `preview`. As long as it is not permitted, the folders
    /// there are made writable, and `remove` is called again.
    ///
    /// # Errors
    /// The last one of `remove`.
    pub(crate) async fn remove_files(
        &self,
        preview: &WireId,
        folder: &Path,
        remove: impl Fn() -> io::Result<()> + Send + Sync,
    ) -> io::Result<()> {
        let mut removed = remove();
        for _ in 0..ROUNDS_MAX {
            let is_denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            if !removed.as_ref().is_err_and(is_denied) {
                break;
            }
            let locked = locked_folders(folder);
            if locked.is_empty() {
                break;
            }
            // Boxed, because requests to the engine are large futures.
            if let Err(error) = Box::pin(self.unlock(preview, folder, &locked)).await {
                tracing::warn!(%preview, "the engine cannot make files removable: {error:#}");
                break;
            }
            removed = remove();
        }
        removed
    }

    /// Lets everybody write to `folders` below `root`, which only this agent can reach. The engine extracts a tar archive of
    /// them into a container that is never started, so that the image does not matter.
    async fn unlock(
        &self,
        preview: &WireId,
        root: &Path,
        folders: &[PathBuf],
    ) -> anyhow::Result<()> {
        let engine = self.engine()?;
        let image = any_image(&engine).await?;
        let root = root.canonicalize()?;
        let archive = Bytes::from(archive_of(folders)?);
        let mount = Mount {
            target: Some(format!("/{MOUNT}")),
            source: Some(root.to_str().context("the path is not UTF-8")?.to_owned()),
            typ: Some(MountType::BIND),
            ..Mount::default()
        };
        let helper =
            containers::create_helper(&engine, &self.machine, preview, image, MOUNT, mount).await?;
        let options = UploadToContainerOptionsBuilder::new().path("/").build();
        let uploaded =
            engine.upload_to_container(&helper, Some(options), bollard::body_full(archive)).await;
        containers::remove_helper(&engine, &helper).await?;
        Ok(uploaded?)
    }
}

/// An image that the engine has. Listing thousands of images takes many seconds, so that of a container is taken if there is
/// one.
async fn any_image(engine: &Docker) -> anyhow::Result<String> {
    let options = ListContainersOptionsBuilder::new().all(true).limit(1).build();
    let containers = engine.list_containers(Some(options)).await?;
    if let Some(image) = containers.into_iter().find_map(|container| container.image_id) {
        return Ok(image);
    }
    let images = engine.list_images(None::<ListImagesOptions>).await?;
    Ok(images.into_iter().next().context("the engine has no image")?.id)
}

/// The folders at and below `root` to which this process may not write, relative to `root`.
fn locked_folders(root: &Path) -> Vec<PathBuf> {
    let mut waiting = vec![PathBuf::new()];
    let mut locked = Vec::new();
    while let Some(folder) = waiting.pop() {
        let path = root.join(&folder);
        let entries = fs::read_dir(&path).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(folders.map(|entry| folder.join(entry.file_name())));
        let all = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
        if eaccess(&path, all).is_err() {
            locked.push(folder);
        }
    }
    // A folder before those inside.
    locked.sort();
    locked
}

/// A tar archive of folders with mode 0777, which belong to root.
fn archive_of(folders: &[PathBuf]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for folder in folders {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o777);
        header.set_size(0);
        // Ends with a slash, as names of folders in a tar archive do.
        let path = Path::new(MOUNT).join(folder).join("");
        archive.append_data(&mut header, path, io::empty())?;
    }
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn archives_name_folders_of_any_depth() {
        let deep: PathBuf = ["long-name-of-a-folder"; 20].iter().collect();
        let archive = archive_of(&[PathBuf::new(), PathBuf::from("a b"), deep.clone()]).unwrap();
        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        let listed = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = listed.lines().collect();
        assert!(lines.iter().all(|line| line.starts_with("drwxrwxrwx 0/0")), "{listed}");
        let ends =
            ["folder/".to_owned(), "folder/a b/".to_owned(), format!("folder/{}/", deep.display())];
        assert_eq!(lines.len(), ends.len());
        assert!(lines.iter().zip(&ends).all(|(line, end)| line.ends_with(end)), "{listed}");
    }
}
