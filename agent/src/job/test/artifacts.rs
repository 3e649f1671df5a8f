//! The artifacts of a test: packs the files that match into one archive, and has it uploaded.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use stagely_protocol::{
    ARTIFACT_BYTES_MAX, ARTIFACT_FILES_MAX, COMMENT_IMAGE_BYTES_MAX, COMMENT_IMAGES_MAX, Digest,
    ErrorChain, StoredArtifacts,
};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::files::{ContainerFiles, FoundFile, Visitor};
use super::patterns::Patterns;
use super::upload::{Upload, UploadError};
use super::{COPY_LIMIT, JobError, Testing, stopped};
use crate::pieces::digest_of;

/// The name of the archive in the job's folder.
const FILE_NAME: &str = "artifacts.tar";

/// What browsers show as a picture, by the end of the name.
const IMAGE_ENDINGS: [&str; 5] = [".png", ".jpg", ".jpeg", ".gif", ".webp"];

impl Testing<'_> {
    /// Uploads the files that match. Failures are warnings: the test has its result.
    ///
    /// # Errors
    /// The job was stopped.
    pub(super) async fn store_artifacts(
        &self,
        files: &ContainerFiles<'_>,
        deadline: Instant,
    ) -> Result<Option<StoredArtifacts>, JobError> {
        let texts = [&*self.test.artifacts, &self.test.comment_images].concat();
        if texts.is_empty() {
            return Ok(None);
        }
        let patterns = files.patterns(&texts, self.log);
        let (images, _) = Patterns::new(&self.test.comment_images, files.folder);
        let archive = match Archive::create(self.folder, images) {
            Ok(archive) => archive,
            Err(error) => return Ok(self.not_stored(&error)),
        };
        let copy_deadline = deadline.min(Instant::now() + COPY_LIMIT);
        let (archive, visited) = files.visit(&patterns, archive, copy_deadline).await;
        self.note_visit("the artifacts", visited)?;
        for note in archive.notes() {
            self.log.warn(&note);
        }
        let packed = spawn_blocking(|| archive.finish()).await.map_err(io::Error::other).flatten();
        match packed {
            Ok(Some((path, artifacts))) => self.upload(&path, artifacts, deadline).await,
            Ok(None) => {
                self.log.warn(&format!("no artifact matches `{}`", texts.join("`, `")));
                Ok(None)
            }
            Err(error) => Ok(self.not_stored(&error)),
        }
    }

    async fn upload(
        &self,
        path: &Path,
        artifacts: StoredArtifacts,
        deadline: Instant,
    ) -> Result<Option<StoredArtifacts>, JobError> {
        let Some(core) = self.settings.previews.core() else {
            return Ok(self.not_stored(&UploadError::NoCore));
        };
        let (count, mebibytes) = (artifacts.files, artifacts.bytes.div_ceil(1 << 20));
        self.log.info(&format!("Uploading {count} files, {mebibytes} MiB"));
        let (job, digest, bytes) = (&self.test.job_id, &artifacts.digest, artifacts.bytes);
        let upload = Upload { core, job, path, digest, bytes };
        match upload.run(deadline, self.stop).await {
            Ok(()) => Ok(Some(artifacts)),
            Err(UploadError::Stopped) => Err(stopped()),
            Err(error) => Ok(self.not_stored(&error)),
        }
    }

    fn not_stored(&self, error: &(dyn std::error::Error + 'static)) -> Option<StoredArtifacts> {
        self.log.warn(&format!("the artifacts are not stored: {}", ErrorChain(error)));
        None
    }
}

/// An archive that files are added to.
struct Archive {
    path: PathBuf,
    builder: tar::Builder<File>,
    images: Patterns,
    names: HashSet<String>,
    bytes: u64,
    comment_images: Vec<String>,
    /// Files that are one too many, and the first of them.
    left_out: u64,
    first_left_out: String,
    /// Pictures that are no pictures or too large, and those that are one too many.
    other_images: u64,
    /// The end of the last whole file.
    end: u64,
}

impl Archive {
    fn create(folder: &Path, images: Patterns) -> io::Result<Self> {
        let path = folder.join(FILE_NAME);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).clone();
        Ok(Self {
            builder: tar::Builder::new(options.open(&path)?),
            path,
            images,
            names: HashSet::new(),
            bytes: 0,
            comment_images: Vec::new(),
            left_out: 0,
            first_left_out: String::new(),
            other_images: 0,
            end: 0,
        })
    }

    /// Sentences about what was left out.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.left_out > 0 {
            notes.push(format!(
                "{} files, the first of them `{}`, are not among the artifacts: there may be {ARTIFACT_FILES_MAX} files \
                 with {} MiB together",
                self.left_out,
                self.first_left_out,
                ARTIFACT_BYTES_MAX >> 20
            ));
        }
        if self.other_images > 0 {
            notes.push(format!(
                "{} files match `comment_images` and are not shown: there may be {COMMENT_IMAGES_MAX} pictures of at most {} \
                 MiB, with names that end in {}",
                self.other_images,
                COMMENT_IMAGE_BYTES_MAX >> 20,
                IMAGE_ENDINGS.join(", ")
            ));
        }
        notes
    }

    fn add_image(&mut self, name: &str, bytes: u64) {
        let lower = name.to_ascii_lowercase();
        let is_image = IMAGE_ENDINGS.iter().any(|ending| lower.ends_with(ending));
        if is_image
            && bytes <= COMMENT_IMAGE_BYTES_MAX
            && self.comment_images.len() < COMMENT_IMAGES_MAX
        {
            self.comment_images.push(name.to_owned());
        } else {
            self.other_images += 1;
        }
    }

    /// Completes the archive. Returns its path and what STATUS says about it; `None` if it has no file.
    fn finish(self) -> io::Result<Option<(PathBuf, StoredArtifacts)>> {
        if self.names.is_empty() {
            return Ok(None);
        }
        let mut file = self.builder.into_inner()?;
        // What came after the last whole file, and a new end of the archive.
        file.set_len(self.end)?;
        file.seek(SeekFrom::End(0))?;
        file.write_all(&[0; 1024])?;
        file.seek(SeekFrom::Start(0))?;
        let (digest, bytes) = digest(&mut file)?;
        let (files, comment_images) = (self.names.len() as u64, self.comment_images);
        Ok(Some((self.path, StoredArtifacts { digest, bytes, files, comment_images })))
    }
}

impl Visitor for Archive {
    fn visit(&mut self, file: &FoundFile<'_>, content: &mut dyn Read) -> io::Result<()> {
        let FoundFile { name, path, bytes } = *file;
        if self.names.contains(name) {
            // One relative to the working folder, one to the root.
            return Ok(());
        }
        let is_too_many = self.names.len() as u64 >= ARTIFACT_FILES_MAX;
        if is_too_many || bytes > ARTIFACT_BYTES_MAX - self.bytes {
            if self.left_out == 0 {
                name.clone_into(&mut self.first_left_out);
            }
            self.left_out += 1;
            return Ok(());
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o644);
        let mut content = content.take(bytes);
        self.builder.append_data(&mut header, name, &mut content)?;
        if content.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.end = self.builder.get_mut().stream_position()?;
        self.bytes += bytes;
        self.names.insert(name.to_owned());
        if self.images.is_match(path) {
            self.add_image(name, bytes);
        }
        Ok(())
    }
}

fn digest(file: &mut File) -> io::Result<(Digest, u64)> {
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((digest_of(hash), bytes)),
            length => {
                hash.update(&buffer[..length]);
                bytes += length as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(folder: &Path) -> Archive {
        let (images, _) = Patterns::new(&["shots".to_owned()], "/app");
        Archive::create(folder, images).unwrap()
    }

    fn add(archive: &mut Archive, name: &str, text: &str) {
        let path = format!("/app/{name}");
        let file = FoundFile { name, path: &path, bytes: text.len() as u64 };
        archive.visit(&file, &mut text.as_bytes()).unwrap();
    }

    fn listed(path: &Path) -> Vec<(String, String)> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        });
        entries.collect()
    }

    #[test]
    fn an_archive_has_each_file_once_and_names_its_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = archive(folder.path());
        let long = format!("report/{}.txt", "long".repeat(100));
        for (name, text) in [("a.txt", "one"), (&*long, "two"), ("a.txt", "again")] {
            add(&mut archive, name, text);
        }
        for number in 0..5 {
            add(&mut archive, &format!("shots/{number}.PNG"), "picture");
        }
        add(&mut archive, "shots/page.html", "");
        let notes = archive.notes();
        assert!(
            notes.len() == 1 && notes[0].starts_with("2 files match `comment_images`"),
            "{notes:?}"
        );
        let (path, stored) = archive.finish().unwrap().unwrap();
        assert_eq!((stored.files, stored.bytes), (8, path.metadata().unwrap().len()));
        assert_eq!(stored.comment_images, [0, 1, 2, 3].map(|number| format!("shots/{number}.PNG")));
        let digest = Sha256::new_with_prefix(std::fs::read(&path).unwrap());
        assert_eq!(stored.digest, digest_of(digest));
        let listed = listed(&path);
        assert_eq!(listed[..2], [("a.txt".to_owned(), "one".to_owned()), (long, "two".to_owned())]);
        assert_eq!(listed.len(), 8);
    }

    #[test]
    fn a_file_that_breaks_off_leaves_a_whole_archive_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = archive(folder.path());
        add(&mut archive, "a.txt", "one");
        let file = FoundFile { name: "b.txt", path: "/app/b.txt", bytes: 100_000 };
        let error = archive.visit(&file, &mut &b"begin"[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let (path, stored) = archive.finish().unwrap().unwrap();
        assert_eq!((stored.files, stored.bytes), (1, 512 + 512 + 1024));
        assert_eq!(listed(&path), [("a.txt".to_owned(), "one".to_owned())]);
    }

    #[test]
    fn files_that_are_too_many_or_too_large_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = archive(folder.path());
        let large = FoundFile { name: "large", path: "/app/large", bytes: ARTIFACT_BYTES_MAX + 1 };
        archive.visit(&large, &mut io::repeat(0)).unwrap();
        for number in 0..=ARTIFACT_FILES_MAX {
            add(&mut archive, &number.to_string(), "");
        }
        let notes = archive.notes();
        assert!(notes[0].starts_with("2 files, the first of them `large`, are not"), "{notes:?}");
        let (_, stored) = archive.finish().unwrap().unwrap();
        assert_eq!(stored.files, ARTIFACT_FILES_MAX);
    }

    #[test]
    fn without_files_there_is_no_archive() {
        let folder = tempfile::tempdir().unwrap();
        assert!(archive(folder.path()).finish().unwrap().is_none());
    }
}
