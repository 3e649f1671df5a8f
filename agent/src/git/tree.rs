//! Looks through the tree of a commit before it is checked out. The commit is somebody else's: a tree of ten trees that
//! are the same tree, ten levels deep, takes 1 KB and has ten thousand million files.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use git2::{ObjectType, Oid, Repository};

use super::error::CloneError;
use super::thread::FetchMonitor;

/// The deepest nesting of folders. A path of Linux has at most 4,096 bytes.
const DEPTH_MAX: usize = 1_000;

/// Git and libgit2 ignore a larger `.gitattributes`.
const ATTRIBUTES_BYTES_MAX: u64 = 100 * 1024 * 1024;

/// The properties of a commit's tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TreeSummary {
    /// Whether a folder has a `.gitattributes`.
    pub(super) has_attributes: bool,
    /// Whether one of them names a filter or an encoding.
    pub(super) has_filters: bool,
}

/// Looks through the tree of `commit`, without recursion, and counts its files and bytes.
///
/// # Errors
/// [`CloneError::TooLarge`]; [`CloneError::Cancelled`] soon after the caller cancels.
pub(super) fn summarize(
    repository: &Repository,
    commit: Oid,
    monitor: &FetchMonitor,
) -> Result<TreeSummary, CloneError> {
    let root = repository.find_commit(commit).map_err(CloneError::from_local)?.tree_id();
    let objects = repository.odb().map_err(CloneError::from_local)?;
    let mut summary = TreeSummary::default();
    let mut sizes: HashMap<Oid, u64> = HashMap::new();
    let mut folders = vec![(root, 0)];
    while let Some((folder, depth)) = folders.pop() {
        let (mut entries, mut bytes) = (0, 0_u64);
        if !monitor.may_continue() {
            return Err(CloneError::Cancelled);
        }
        if depth > DEPTH_MAX {
            return Err(CloneError::TooLarge(format!("nests folders more than {DEPTH_MAX} deep")));
        }
        for entry in &repository.find_tree(folder).map_err(CloneError::from_local)? {
            entries += 1;
            match entry.kind() {
                Some(ObjectType::Tree) => folders.push((entry.id(), depth + 1)),
                Some(ObjectType::Blob) => {
                    let has_attributes = entry.name_bytes() == b".gitattributes";
                    let size = match sizes.entry(entry.id()) {
                        Entry::Occupied(known) => *known.get(),
                        Entry::Vacant(new) => {
                            let header = objects.read_header(entry.id());
                            *new.insert(header.map_err(CloneError::from_local)?.0 as u64)
                        }
                    };
                    bytes = bytes.saturating_add(size);
                    if has_attributes {
                        summary.has_attributes = true;
                        if size <= ATTRIBUTES_BYTES_MAX && !summary.has_filters {
                            let text = objects.read(entry.id()).map_err(CloneError::from_local)?;
                            summary.has_filters = names_filters(text.data());
                        }
                    }
                }
                _ => {}
            }
        }
        monitor.check_out(entries, bytes)?;
    }
    Ok(summary)
}

/// Whether attributes name a filter or an encoding.
fn names_filters(attributes: &[u8]) -> bool {
    let has = |word: &[u8]| attributes.windows(word.len()).any(|part| part == word);
    has(b"filter=") || has(b"working-tree-encoding=")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tempfile::TempDir;

    use super::super::thread::ENTRIES_MAX;
    use super::*;

    struct Made {
        repository: Repository,
        _folder: TempDir,
    }

    impl Made {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Self { repository: Repository::init_bare(folder.path()).unwrap(), _folder: folder }
        }

        /// A tree whose entries are all `entry`.
        fn tree(&self, names: &[&str], entry: Oid, mode: i32) -> Oid {
            let mut tree = self.repository.treebuilder(None).unwrap();
            for name in names {
                tree.insert(name, entry, mode).unwrap();
            }
            tree.write().unwrap()
        }

        fn summary_of(&self, tree: Oid) -> Result<TreeSummary, CloneError> {
            let author = git2::Signature::now("Tester", "tester@example.org").unwrap();
            let tree = self.repository.find_tree(tree).unwrap();
            let commit = self.repository.commit(None, &author, &author, "c", &tree, &[]).unwrap();
            summarize(&self.repository, commit, &FetchMonitor::default())
        }
    }

    const FILE: i32 = 0o100_644;
    const FOLDER: i32 = 0o040_000;

    #[test]
    fn attributes_are_found_in_any_folder() {
        let made = Made::new();
        let blob = made.repository.blob(b"12345").unwrap();
        let below = made.tree(&["a", ".gitattributes"], blob, FILE);
        let plain = made.summary_of(made.tree(&["a", "b", "c"], blob, FILE)).unwrap();
        assert_eq!(plain, TreeSummary::default());
        let nested = made.summary_of(made.tree(&["x", "y"], below, FOLDER)).unwrap();
        assert_eq!(nested, TreeSummary { has_attributes: true, ..TreeSummary::default() });
    }

    #[test]
    fn folders_that_are_nested_too_deeply_are_refused() {
        let made = Made::new();
        let mut tree = made.tree(&["f"], made.repository.blob(b"").unwrap(), FILE);
        for _ in 0..20_000 {
            tree = made.tree(&["d"], tree, FOLDER);
        }
        let error = made.summary_of(tree).unwrap_err();
        assert_eq!(error.to_string(), "the repository nests folders more than 1000 deep");
    }

    #[test]
    fn a_small_pack_with_countless_files_is_refused() {
        let made = Made::new();
        let names = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
        let mut tree = made.tree(&names, made.repository.blob(b"").unwrap(), FILE);
        for _ in 0..10 {
            tree = made.tree(&names, tree, FOLDER);
        }
        let error = made.summary_of(tree).unwrap_err();
        assert_eq!(error.to_string(), "the repository has more than 1000000 files");
    }

    #[test]
    fn several_checkouts_have_one_limit_of_files_and_bytes() {
        let made = Made::new();
        let blob = made.repository.blob(&[b'a'; 600]).unwrap();
        let tree = made.tree(&["f"], blob, FILE);
        let author = git2::Signature::now("Tester", "tester@example.org").unwrap();
        let tree = made.repository.find_tree(tree).unwrap();
        let commit = made.repository.commit(None, &author, &author, "c", &tree, &[]).unwrap();
        let monitor = FetchMonitor::new(1_000);
        summarize(&made.repository, commit, &monitor).unwrap();
        let error = summarize(&made.repository, commit, &monitor).unwrap_err();
        assert!(matches!(error, CloneError::DiskFull), "{error}");

        let monitor = FetchMonitor::default();
        monitor.check_out(ENTRIES_MAX, 0).unwrap();
        let error = summarize(&made.repository, commit, &monitor).unwrap_err();
        assert_eq!(error.to_string(), "the repository has more than 1000000 files");
    }

    #[test]
    fn a_cancelled_walk_ends() {
        let made = Made::new();
        let tree = made.tree(&["f"], made.repository.blob(b"").unwrap(), FILE);
        let author = git2::Signature::now("Tester", "tester@example.org").unwrap();
        let tree = made.repository.find_tree(tree).unwrap();
        let commit = made.repository.commit(None, &author, &author, "c", &tree, &[]).unwrap();
        let monitor = FetchMonitor::default();
        monitor.is_cancelled.store(true, Ordering::Relaxed);
        let result = summarize(&made.repository, commit, &monitor);
        assert!(matches!(result, Err(CloneError::Cancelled)), "{result:?}");
    }
}
