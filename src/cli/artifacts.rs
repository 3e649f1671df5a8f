//! `stagely artifacts`: what the tests of a run have left, and its download.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::HumanBytes;
use stagely_protocol::{ARTIFACT_BYTES_MAX, ARTIFACT_FILES_MAX, StoredArtifacts};
use stagely_state::ids::RunId;
use tar::{Archive, EntryType};
use tokio::task::spawn_blocking;

use super::connect::ServerArgs;
use super::core_handle::CoreHandle;
use super::output::{note, print};
use super::table::table;
use super::test_results::test_jobs;
use crate::api::{JobView, RunView};
use crate::client::Client;

/// Lists what the tests of a run have left, or downloads it
#[derive(Args, Debug)]
pub struct ArtifactsArgs {
    /// The run, run_…
    #[arg(value_name = "RUN")]
    run: RunId,
    /// Download the files into this folder, those of each test into a folder of their own
    #[arg(long, value_name = "DIR")]
    download: Option<PathBuf>,
    /// Print JSON
    #[arg(long, conflicts_with = "download")]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely artifacts`.
///
/// # Errors
/// Core cannot be reached, or does not have the artifacts any more; a file cannot be written.
pub async fn artifacts(arguments: ArtifactsArgs) -> anyhow::Result<ExitCode> {
    let get = async |client: &Client| client.run(arguments.run).await;
    let (core, run) = CoreHandle::find(&arguments.server, get).await?;
    let done = if let Some(folder) = &arguments.download {
        download(core.client(), &run, folder).await
    } else {
        let jobs: Vec<&JobView> = with_artifacts(&run).map(|(job, _)| job).collect();
        print(arguments.json, &jobs, |_| list(&run))
    };
    core.close().await?;
    done
}

fn with_artifacts(run: &RunView) -> impl Iterator<Item = (&JobView, &StoredArtifacts)> {
    test_jobs(run).filter_map(|job| Some((job, job.test.as_ref()?.artifacts.as_ref()?)))
}

fn list(run: &RunView) -> String {
    let rows = with_artifacts(run).map(|(job, artifacts)| {
        [
            job.id.to_string(),
            job.name.clone(),
            artifacts.files.to_string(),
            HumanBytes(artifacts.bytes).to_string(),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return format!("the tests of {} have left no artifacts", run.id);
    }
    table(["JOB", "TEST", "FILES", "SIZE"], rows)
}

async fn download(client: &Client, run: &RunView, folder: &Path) -> anyhow::Result<ExitCode> {
    let jobs: Vec<_> = with_artifacts(run).collect();
    if jobs.is_empty() {
        bail!("the tests of {} have left no artifacts", run.id);
    }
    for (job, artifacts) in jobs {
        let target = folder.join(folder_of(&job.name));
        let mut archive = tempfile::tempfile().context("cannot create a file for the download")?;
        let mut response = client.artifacts(job.id).await?;
        while let Some(bytes) = response.chunk().await.context("the download broke off")? {
            archive.write_all(&bytes).context("cannot write the download")?;
        }
        archive.seek(SeekFrom::Start(0))?;
        let shown = target.display().to_string();
        spawn_blocking(move || unpack(archive, &target))
            .await?
            .with_context(|| format!("cannot unpack the artifacts of {}", job.name))?;
        note(&format!("{}: {} files in {shown}", job.name, artifacts.files));
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of a job as that of one folder.
/// The folder of a job: `test/unit/1`. Parts of the name that lead elsewhere are no parts of the path.
fn folder_of(job: &str) -> PathBuf {
    job.split('/').map(folder_name).collect()
}

fn folder_name(part: &str) -> String {
    let name: String = part
        .chars()
        .map(|char| if char.is_alphanumeric() || "-_.".contains(char) { char } else { '-' })
        .collect();
    if name.trim_matches('.').is_empty() { "test".to_owned() } else { name }
}

/// Writes the files of the archive below `folder`. Core has checked the archive; whoever answers in its place has not.
fn unpack(archive: File, folder: &Path) -> anyhow::Result<()> {
    let (mut files, mut bytes) = (0, 0_u64);
    for entry in Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if entry.header().entry_type() != EntryType::Regular || !is_plain {
            bail!("{} is no plain file", path.display());
        }
        files += 1;
        bytes = bytes.saturating_add(entry.size());
        if files > ARTIFACT_FILES_MAX || bytes > ARTIFACT_BYTES_MAX {
            bail!("there is more than a test may leave");
        }
        write(&mut entry, folder, &path)
            .with_context(|| format!("cannot write {}", folder.join(&path).display()))?;
    }
    Ok(())
}

/// Writes one file, in place of one from an earlier download. Links in the folder are not followed.
fn write(content: &mut impl Read, folder: &Path, path: &Path) -> io::Result<()> {
    let mut parent = folder.to_owned();
    fs::create_dir_all(&parent)?;
    for part in path.parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        match fs::create_dir(&parent) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(&parent)?.is_dir() {
                    return Err(io::Error::other("a file or a link is in the place of a folder"));
                }
            }
            created => created?,
        }
    }
    let file = folder.join(path);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(file)?;
    io::copy(content, &mut file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    fn archive(entries: &[(&str, EntryType)]) -> File {
        let mut builder = Builder::new(tempfile::tempfile().unwrap());
        for (path, kind) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(3);
            header.set_mode(0o644);
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, &b"abc"[..]).unwrap();
        }
        let mut file = builder.into_inner().unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    #[test]
    fn files_are_written_below_the_folder_alone() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("e2e");
        let files = [("report/index.html", EntryType::Regular), ("log", EntryType::Regular)];
        for _ in 0..2 {
            unpack(archive(&files), &target).unwrap();
            assert_eq!(fs::read_to_string(target.join("report/index.html")).unwrap(), "abc");
        }
        for (path, kind) in [
            ("../out", EntryType::Regular),
            ("/tmp/out", EntryType::Regular),
            ("link", EntryType::Symlink),
        ] {
            assert!(unpack(archive(&[(path, kind)]), &target).is_err(), "{path}");
        }
        std::os::unix::fs::symlink(folder.path(), target.join("away")).unwrap();
        assert!(unpack(archive(&[("away/out", EntryType::Regular)]), &target).is_err());
        assert!(!folder.path().join("out").exists());
    }

    #[test]
    fn the_folder_of_a_test_has_a_plain_name() {
        assert_eq!(folder_name("e2e (2/3)"), "e2e--2-3-");
        assert_eq!(folder_of("test/unit/1"), Path::new("test/unit/1"));
        assert_eq!(folder_of("test/../unit-1"), Path::new("test/test/unit-1"));
        assert_eq!(folder_name(".."), "test");
    }
}
