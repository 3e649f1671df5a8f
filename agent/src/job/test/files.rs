//! Reads files of a container, also of one that has ended, through the engine's archive API: so the engine may be on another
//! machine, and files in volumes are found as well.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Component, Path};
use std::pin::pin;

use bollard::Docker;
use bollard::errors::Error as EngineError;
use bollard::query_parameters::DownloadFromContainerOptionsBuilder;
use bytes::Bytes;
use futures_util::StreamExt as _;
use stagely_protocol::is_artifact_path;
use tar::EntryType;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::patterns::Patterns;
use crate::job_log::JobLog;
use crate::pieces::{PIECES_MAX, PieceReader};
use crate::preview::archive::patient;

/// A file that matches.
#[derive(Clone, Copy, Debug)]
pub(super) struct FoundFile<'a> {
    /// Relative to the working folder, or else to the root; [`is_artifact_path`].
    pub(super) name: &'a str,
    /// The absolute path.
    pub(super) path: &'a str,
    pub(super) bytes: u64,
}

/// What is done with each file.
pub(super) trait Visitor: Send + 'static {
    /// `content` has `file.bytes` bytes, or fewer if the archive breaks off.
    ///
    /// # Errors
    /// No further file is visited.
    fn visit(&mut self, file: &FoundFile<'_>, content: &mut dyn Read) -> io::Result<()>;
}

/// Why not all files were visited.
#[derive(Debug, Error)]
pub(super) enum FilesError {
    #[error("the engine does not send them")]
    Engine(#[from] EngineError),
    #[error("they cannot be copied")]
    Io(#[from] io::Error),
    #[error("that takes too long")]
    Late,
    #[error("stopped")]
    Stopped,
}

/// What matched and was left out: why, how often, and the first name.
#[derive(Debug, Default)]
pub(super) struct Notes(BTreeMap<&'static str, (u64, String)>);

impl Notes {
    fn add(&mut self, why: &'static str, name: &str) {
        let (count, _) = self.0.entry(why).or_insert_with(|| (0, name.to_owned()));
        *count += 1;
    }

    /// A sentence for each reason. `what` are the files that were looked for.
    pub(super) fn lines(&self, what: &str) -> Vec<String> {
        let line = |(why, (count, name)): (&&str, &(u64, String))| match count {
            1 => format!("`{name}` is not among {what}: {why}"),
            count => format!("`{name}` and {} others are not among {what}: {why}", count - 1),
        };
        self.0.iter().map(line).collect()
    }
}

/// The files of one container.
pub(super) struct ContainerFiles<'a> {
    pub(super) engine: &'a Docker,
    pub(super) container: &'a str,
    /// The working folder, an absolute path.
    pub(super) folder: &'a str,
    pub(super) stop: &'a CancellationToken,
}

impl ContainerFiles<'_> {
    /// Reads patterns, and warns of those that cannot be used.
    pub(super) fn patterns(&self, texts: &[String], log: &JobLog) -> Patterns {
        let (patterns, problems) = Patterns::new(texts, self.folder);
        for problem in problems {
            log.warn(&problem);
        }
        patterns
    }

    /// Visits the files that match, until `deadline`. The visitor comes back also after an error.
    pub(super) async fn visit<V: Visitor>(
        &self,
        patterns: &Patterns,
        mut visitor: V,
        deadline: Instant,
    ) -> (V, (Notes, Result<(), FilesError>)) {
        let mut notes = Notes::default();
        for root in patterns.roots() {
            let reader = ArchiveReader {
                root: root.clone(),
                folder: self.folder.to_owned(),
                patterns: patterns.clone(),
                visitor,
                notes,
            };
            let visited;
            (visitor, notes, visited) = self.visit_root(root, reader, deadline).await;
            if visited.is_err() {
                return (visitor, (notes, visited));
            }
        }
        (visitor, (notes, Ok(())))
    }

    async fn visit_root<V: Visitor>(
        &self,
        root: &str,
        mut reader: ArchiveReader<V>,
        deadline: Instant,
    ) -> (V, Notes, Result<(), FilesError>) {
        let (pieces, waiting) = mpsc::channel(PIECES_MAX);
        let read = spawn_blocking(move || {
            let read = reader.read(PieceReader::new(waiting));
            (reader, read)
        });
        let (downloaded, read) = tokio::join!(self.download(root, pieces, deadline), read);
        let (reader, read) =
            read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let visited = match (downloaded, read) {
            // The reader has ended because of that.
            (Err(error), _) => Err(error),
            (Ok(false), _) => Ok(()),
            (Ok(true), read) => read.map_err(FilesError::from),
        };
        (reader.visitor, reader.notes, visited)
    }

    /// Sends the pieces of an archive of `root`. `false`: the container has no such file.
    async fn download(
        &self,
        root: &str,
        pieces: mpsc::Sender<Bytes>,
        deadline: Instant,
    ) -> Result<bool, FilesError> {
        let engine = patient(self.engine.clone());
        let options = DownloadFromContainerOptionsBuilder::new().path(root).build();
        let mut archive = pin!(engine.download_from_container(self.container, Some(options)));
        let download = async {
            while let Some(piece) = archive.next().await {
                match piece {
                    Ok(piece) if piece.is_empty() => {}
                    Ok(piece) => {
                        if pieces.send(piece).await.is_err() {
                            break;
                        }
                    }
                    Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => {
                        return Ok(false);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(true)
        };
        let download = self.stop.run_until_cancelled(timeout_at(deadline, download));
        match download.await {
            None => Err(FilesError::Stopped),
            Some(Err(_)) => Err(FilesError::Late),
            Some(Ok(downloaded)) => downloaded,
        }
    }
}

/// Reads the engine's archive of one file or folder.
struct ArchiveReader<V> {
    root: String,
    folder: String,
    patterns: Patterns,
    visitor: V,
    notes: Notes,
}

impl<V: Visitor> ArchiveReader<V> {
    fn read(&mut self, archive: impl Read) -> io::Result<()> {
        for entry in tar::Archive::new(archive).entries()? {
            let mut entry = entry?;
            let kind = entry.header().entry_type();
            if matches!(kind, EntryType::Directory | EntryType::XGlobalHeader) {
                continue;
            }
            let path = match full_path(&self.root, &entry.path_bytes()) {
                Ok(path) => path,
                Err(shown) => {
                    // It cannot be compared with a pattern.
                    self.notes.add("its name is not usable", &shown);
                    continue;
                }
            };
            // A link in place of a folder hides what would match in it.
            if !self.patterns.is_match(&path) && path != self.root {
                continue;
            }
            let name = name_of(&path, &self.folder);
            match kind {
                EntryType::Regular | EntryType::Continuous => {
                    let file = FoundFile { name, path: &path, bytes: entry.size() };
                    self.visitor.visit(&file, &mut entry)?;
                }
                EntryType::Symlink => self.notes.add("it is a symbolic link", name),
                EntryType::Link => self.notes.add("it is a further name of another file", name),
                _ => self.notes.add("it is not a regular file", name),
            }
        }
        Ok(())
    }
}

/// `path` relative to `folder`, or else to the root.
fn name_of<'a>(path: &'a str, folder: &str) -> &'a str {
    let below = Path::new(path).strip_prefix(folder).ok().and_then(Path::to_str);
    below.filter(|name| !name.is_empty()).unwrap_or_else(|| path.trim_start_matches('/'))
}

/// The absolute path of an entry of the archive of `root`. The first part of its name is the last one of `root`.
///
/// # Errors
/// The name, changed so that it can be shown.
fn full_path(root: &str, name: &[u8]) -> Result<String, String> {
    let shown = || String::from_utf8_lossy(name).escape_debug().take(100).collect::<String>();
    let text = std::str::from_utf8(name).map_err(|_| shown())?;
    let mut path = Path::new(root).parent().unwrap_or(Path::new("/")).to_owned();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(shown()),
        }
    }
    let path = path.into_os_string().into_string().map_err(|_| shown())?;
    // The root of all has no name.
    let is_usable = path == "/" || is_artifact_path(path.trim_start_matches('/'));
    if is_usable { Ok(path) } else { Err(shown()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Found(Vec<(String, String)>);

    impl Visitor for Found {
        fn visit(&mut self, file: &FoundFile<'_>, content: &mut dyn Read) -> io::Result<()> {
            let mut text = String::new();
            content.read_to_string(&mut text)?;
            assert_eq!(text.len() as u64, file.bytes);
            self.0.push((file.name.to_owned(), text));
            Ok(())
        }
    }

    /// The bytes of an archive with these entries; a link's text is its target.
    fn archive(entries: &[(&[u8], EntryType, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, kind, text) in entries {
            let mut header = tar::Header::new_gnu();
            // Not by `set_path`, which checks the name.
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_entry_type(*kind);
            let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
            if is_link {
                header.set_link_name_literal(text).unwrap();
            }
            let content = if is_link { "" } else { text };
            header.set_size(content.len() as u64);
            header.set_cksum();
            archive.append(&header, content.as_bytes()).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn reader(texts: &[&str], root: &str) -> ArchiveReader<Found> {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        let (patterns, problems) = Patterns::new(&texts, "/app");
        assert_eq!(problems, [""; 0]);
        let (root, folder) = (root.to_owned(), "/app".to_owned());
        let (visitor, notes) = (Found::default(), Notes::default());
        ArchiveReader { root, folder, patterns, visitor, notes }
    }

    #[test]
    fn files_that_match_are_visited_and_all_else_is_left_out() {
        use EntryType::{Directory, Fifo, Link, Regular, Symlink};
        let entries: [(&[u8], EntryType, &str); 9] = [
            (b"out/", Directory, ""),
            (b"out/a.txt", Regular, "one"),
            (b"out/b.log", Regular, "other"),
            (b"out/deep/c.txt", Regular, "two"),
            (b"out/link.txt", Symlink, "/etc/passwd"),
            (b"out/more.txt", Symlink, "../../etc/passwd"),
            (b"out/hard.txt", Link, "out/a.txt"),
            (b"out/fifo.txt", Fifo, ""),
            (b"../../etc/x.txt", Regular, "three"),
        ];
        let mut reader = reader(&["out/**/*.txt"], "/app/out");
        reader.read(&*archive(&entries)).unwrap();
        let found: Vec<_> =
            reader.visitor.0.iter().map(|(name, text)| (&**name, &**text)).collect();
        assert_eq!(found, [("out/a.txt", "one"), ("out/deep/c.txt", "two")]);
        assert_eq!(
            reader.notes.lines("the artifacts"),
            [
                "`out/hard.txt` is not among the artifacts: it is a further name of another file",
                "`out/link.txt` and 1 others are not among the artifacts: it is a symbolic link",
                "`out/fifo.txt` is not among the artifacts: it is not a regular file",
                "`../../etc/x.txt` is not among the artifacts: its name is not usable",
            ]
        );
    }

    #[test]
    fn names_that_core_refuses_are_left_out() {
        let long = format!("out/{}", "x".repeat(1_000));
        for name in ["out/a\\b.txt", &*long] {
            assert!(full_path("/app/out", name.as_bytes()).is_err(), "{name}");
        }
        assert_eq!(full_path("/app/out", b"out/a b.txt").unwrap(), "/app/out/a b.txt");
        assert_eq!(full_path("/", b"/").unwrap(), "/");
    }

    #[test]
    fn names_are_text_without_control_characters() {
        let entries: [(&[u8], EntryType, &str); 3] = [
            (b"out/\xff", EntryType::Regular, ""),
            (b"out/a\nb", EntryType::Regular, ""),
            ("out/ü b".as_bytes(), EntryType::Regular, ""),
        ];
        let mut reader = reader(&["out"], "/app/out");
        reader.read(&*archive(&entries)).unwrap();
        assert_eq!(reader.visitor.0.len(), 1);
        let notes = reader.notes.lines("the artifacts");
        assert_eq!(
            notes,
            ["`out/\u{fffd}` and 1 others are not among the artifacts: its name is not usable"]
        );
    }

    #[test]
    fn one_file_and_the_root_folder_are_archives_as_well() {
        let mut one = reader(&["/tmp/result.xml"], "/tmp/result.xml");
        one.read(&*archive(&[(b"result.xml", EntryType::Regular, "x")])).unwrap();
        assert_eq!(one.visitor.0[0].0, "tmp/result.xml");
        let mut all = reader(&["/**/*.xml"], "/");
        for name in [&b"/a/b.xml"[..], b"./a/b.xml", b"a/b.xml"] {
            all.read(&*archive(&[(name, EntryType::Regular, "x")])).unwrap();
            assert_eq!(all.visitor.0.pop().unwrap().0, "a/b.xml");
        }
    }

    #[test]
    fn an_archive_that_breaks_off_is_an_error() {
        let whole = archive(&[(b"out/a", EntryType::Regular, "text")]);
        reader(&["out"], "/app/out").read(&whole[..300]).unwrap_err();
    }
}
