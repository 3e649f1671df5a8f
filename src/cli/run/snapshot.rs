//! One commit of a local repository in a bare repository of its own, to be served to agents.
//!
//! Objects stay where they are and are borrowed (Git's alternates), so nothing is copied, nothing but
//! this commit's branch or tag and the default branch is shown, and the user's repository is not
//! written to: also not with `--dirty`, whose commit exists only here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use git2::{
    Commit, ErrorCode, IndexAddOption, ObjectType, Repository, RepositoryInitOptions, Signature,
    StatusOptions,
};
use stagely_protocol::CommitSha;
use tempfile::TempDir;
use thiserror::Error;

/// Changed files that an error names.
const SHOWN_MAX: usize = 5;

/// What a commit without a name is served as: servers serve what their refs lead to.
const UNNAMED: &str = "refs/heads/stagely";

/// A folder that cannot be built from.
#[derive(Debug, Error)]
pub(super) enum SnapshotError {
    /// It lies in no repository.
    #[error("{0} is not in a Git repository; `git init` and commit, or give the address of one")]
    NoRepository(PathBuf),
    /// Git does not trust a repository of another user.
    #[error(
        "{0} belongs to another user; if you trust it: git config --global --add safe.directory {0}"
    )]
    OfSomebodyElse(PathBuf),
    /// Its repository has no commit.
    #[error("{0} has no commit yet: commit first, or build what lies there with --dirty")]
    NoCommit(PathBuf),
    /// There is no such name in it.
    #[error("{folder} has no branch, tag or commit {wanted:?}")]
    NoSuchRef {
        /// The repository.
        folder: PathBuf,
        /// What was asked for.
        wanted: String,
    },
    /// What lies there is not what was committed.
    #[error(
        "{} changed and not committed: {}; commit them, include them with --dirty, or name what \
         to build with --ref", files(*count), names.join(", ")
    )]
    Uncommitted {
        /// How many files.
        count: usize,
        /// Some of them.
        names: Vec<String>,
    },
    /// `--dirty` without files beside the repository.
    #[error("{0} is a bare repository, which has no uncommitted changes")]
    Bare(PathBuf),
    /// Git failed.
    #[error("cannot read the repository")]
    Git(#[from] git2::Error),
    /// The temporary repository cannot be made.
    #[error("cannot make a temporary repository")]
    Io(#[from] io::Error),
}

fn files(count: usize) -> String {
    if count == 1 { "1 file is".to_owned() } else { format!("{count} files are") }
}

/// What is to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted<'a> {
    /// What is checked out, all of it committed.
    Head,
    /// What lies in the folder.
    Dirty,
    /// What this name stands for.
    Ref(&'a str),
}

/// A commit in a bare repository of its own. The repository goes with the value.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// The user's repository: its working tree, or itself if it is bare.
    pub(super) origin: PathBuf,
    /// The commit.
    pub(super) commit: CommitSha,
    /// The branch or tag that it was named by, `refs/heads/main`; `None` for a bare commit.
    pub(super) name: Option<String>,
    folder: TempDir,
}

/// A commit, and the branch or tag that it was named by.
struct Named<'a> {
    commit: Commit<'a>,
    name: Option<String>,
}

impl Snapshot {
    /// Takes `wanted` from the repository that `folder` lies in.
    ///
    /// # Errors
    /// [`SnapshotError`]
    pub(super) fn take(folder: &Path, wanted: Wanted<'_>) -> Result<Self, SnapshotError> {
        let user = Repository::discover(folder).map_err(|error| match error.code() {
            ErrorCode::NotFound => SnapshotError::NoRepository(folder.to_owned()),
            ErrorCode::Owner => SnapshotError::OfSomebodyElse(folder.to_owned()),
            _ => SnapshotError::Git(error),
        })?;
        let origin = user.workdir().unwrap_or(user.path()).to_owned();
        let bare = borrow(&user)?;
        let (commit, name) = match wanted {
            Wanted::Head => {
                refuse_uncommitted(&user)?;
                let head = head(&user, &origin)?;
                (head.commit.id(), head.name)
            }
            Wanted::Ref(wanted) => {
                let found = find(&user, &origin, wanted)?;
                (found.commit.id(), found.name)
            }
            Wanted::Dirty => (commit_all(&user, bare.path(), &origin)?, branch_of(&user)),
        };
        let served = Repository::open_bare(bare.path())?;
        let reference = name.as_deref().unwrap_or(UNNAMED);
        served.reference(reference, commit, true, "what is to be built")?;
        point_head(&user, &served, reference)?;
        let commit = commit.to_string().parse().expect("git2 prints object ids");
        Ok(Self { origin, commit, name, folder: bare })
    }

    /// Serves what `wanted` stands for in the user's repository too, and returns what it is called: its
    /// branch, `main` also of `origin/main`; a commit's id where no branch, or another commit, has
    /// that name.
    ///
    /// # Errors
    /// [`SnapshotError`]
    pub(super) fn add_base(&mut self, wanted: &str) -> Result<String, SnapshotError> {
        let user = Repository::open(&self.origin)?;
        let base = find(&user, &self.origin, wanted)?;
        let commit = base.commit.id();
        let served = Repository::open_bare(self.folder.path())?;
        let branch = base.name.or_else(|| branch_of_remote(&user, wanted));
        let branch = branch.as_deref().filter(|name| name.starts_with("refs/heads/"));
        if let Some(name) = branch {
            let built = self.name.as_deref().unwrap_or(UNNAMED);
            if name != built || commit.to_string() == self.commit.as_str() {
                served.reference(name, commit, true, "what is compared with")?;
                return Ok(name.trim_start_matches("refs/heads/").to_owned());
            }
        }
        served.reference("refs/heads/stagely-base", commit, true, "what is compared with")?;
        Ok(commit.to_string())
    }

    /// The bare repository.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Lets HEAD of `served` name the default branch of `user`'s repository, as on a remote, whatever is
/// checked out: a run of another branch does not write what all environments read. The branch is served
/// too, since servers do not tell of a HEAD that leads nowhere. `reference` is what is built.
fn point_head(user: &Repository, served: &Repository, reference: &str) -> Result<(), git2::Error> {
    let checked_out = branch_of(user);
    let guesses = ["refs/heads/main", "refs/heads/master"].map(str::to_owned);
    let candidates = if user.is_bare() {
        // Nothing is checked out there, so HEAD is the default branch.
        checked_out.into_iter().chain(guesses).collect::<Vec<_>>()
    } else {
        default_branch_of_origin(user).into_iter().chain(guesses).chain(checked_out).collect()
    };
    for branch in candidates {
        if branch == reference {
            return served.set_head(&branch);
        }
        if let Some(commit) = tip_of(user, &branch) {
            served.reference(&branch, commit, true, "the default branch")?;
            return served.set_head(&branch);
        }
    }
    if reference.starts_with("refs/heads/") { served.set_head(reference) } else { Ok(()) }
}

/// What the remote said when it was cloned, as a local branch.
fn default_branch_of_origin(user: &Repository) -> Option<String> {
    let head = user.find_reference("refs/remotes/origin/HEAD").ok()?;
    let target = head.symbolic_target().ok().flatten()?;
    let branch = target.strip_prefix("refs/remotes/origin/")?;
    Some(format!("refs/heads/{branch}"))
}

/// The commit of `branch`, `refs/heads/main`: the user's own, or else that of the remote.
fn tip_of(user: &Repository, branch: &str) -> Option<git2::Oid> {
    let of_remote = branch.replacen("refs/heads/", "refs/remotes/origin/", 1);
    let tip = |name: &str| Some(user.find_reference(name).ok()?.peel_to_commit().ok()?.id());
    tip(branch).or_else(|| tip(&of_remote))
}

/// An empty bare repository that finds the objects of `user`'s.
fn borrow(user: &Repository) -> Result<TempDir, SnapshotError> {
    let folder = tempfile::Builder::new().prefix("stagely-source-").tempdir()?;
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false);
    let bare = Repository::init_opts(folder.path(), &options)?;
    bare.config()?.set_bool("uploadpack.allowAnySHA1InWant", true)?;
    let common = fs::canonicalize(user.commondir())?;
    let alternates = folder.path().join("objects/info/alternates");
    fs::create_dir_all(alternates.parent().unwrap_or(folder.path()))?;
    fs::write(alternates, format!("{}\n", common.join("objects").display()))?;
    // Commits below a shallow clone's edge are nowhere; Git must know that it need not look.
    copy_if_there(&common.join("shallow"), &folder.path().join("shallow"))?;
    Ok(folder)
}

fn copy_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::copy(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn refuse_uncommitted(user: &Repository) -> Result<(), SnapshotError> {
    if user.is_bare() {
        return Ok(());
    }
    let mut options = StatusOptions::new();
    options.include_untracked(true).exclude_submodules(true);
    let statuses = user.statuses(Some(&mut options))?;
    if statuses.is_empty() {
        return Ok(());
    }
    let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let names = statuses.iter().take(SHOWN_MAX).map(|entry| name(entry.path_bytes())).collect();
    Err(SnapshotError::Uncommitted { count: statuses.len(), names })
}

fn head<'a>(user: &'a Repository, origin: &Path) -> Result<Named<'a>, SnapshotError> {
    match user.head() {
        Ok(head) => Ok(Named { commit: head.peel_to_commit()?, name: branch_of(user) }),
        Err(error) if error.code() == ErrorCode::UnbornBranch => {
            Err(SnapshotError::NoCommit(origin.to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The branch that is checked out, also one without a commit.
fn branch_of(user: &Repository) -> Option<String> {
    let head = user.find_reference("HEAD").ok()?;
    let branch = head.symbolic_target().ok().flatten()?;
    branch.starts_with("refs/heads/").then(|| branch.to_owned())
}

fn find<'a>(user: &'a Repository, origin: &Path, wanted: &str) -> Result<Named<'a>, SnapshotError> {
    let unknown =
        |_| SnapshotError::NoSuchRef { folder: origin.to_owned(), wanted: wanted.to_owned() };
    if let Ok(reference) = user.resolve_reference_from_short_name(wanted) {
        let name = reference
            .name()
            .ok()
            .filter(|name| name.starts_with("refs/heads/") || name.starts_with("refs/tags/"));
        return Ok(Named {
            commit: reference.peel_to_commit().map_err(unknown)?,
            name: name.map(str::to_owned),
        });
    }
    let object = user.revparse_single(wanted).map_err(unknown)?;
    let commit = object.peel(ObjectType::Commit).map_err(unknown)?;
    Ok(Named { commit: commit.into_commit().expect("it was peeled to a commit"), name: None })
}

/// The branch that `origin/main` follows.
fn branch_of_remote(user: &Repository, wanted: &str) -> Option<String> {
    let reference = user.resolve_reference_from_short_name(wanted).ok()?;
    let branch = reference.name().ok()?.strip_prefix("refs/remotes/")?.split_once('/')?.1;
    Some(format!("refs/heads/{branch}"))
}

/// Commits all that lies in the working tree into the repository `bare`, as a child of HEAD.
///
/// The commit's time is HEAD's, so the same files give the same commit, and with it the same caches.
fn commit_all(user: &Repository, bare: &Path, origin: &Path) -> Result<git2::Oid, SnapshotError> {
    if user.is_bare() {
        return Err(SnapshotError::Bare(origin.to_owned()));
    }
    // What the user's repository ignores is ignored here too.
    fs::create_dir_all(bare.join("info"))?;
    copy_if_there(&user.commondir().join("info/exclude"), &bare.join("info/exclude"))?;
    let writing = Repository::open_bare(bare)?;
    writing.set_workdir(origin, false)?;
    let parent = match head(user, origin) {
        Ok(head) => Some(writing.find_commit(head.commit.id())?),
        Err(SnapshotError::NoCommit(_)) => None,
        Err(error) => return Err(error),
    };
    let mut index = writing.index()?;
    if let Some(parent) = &parent {
        index.read_tree(&parent.tree()?)?;
    }
    index.add_all(["*"], IndexAddOption::DEFAULT, None)?;
    let tree = writing.find_tree(index.write_tree()?)?;
    let when = parent.as_ref().map_or(git2::Time::new(0, 0), Commit::time);
    let author = Signature::new("stagely", "stagely@localhost", &when)?;
    let parents: Vec<&Commit<'_>> = parent.iter().collect();
    Ok(writing.commit(None, &author, &author, "uncommitted changes", &tree, &parents)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn git(folder: &Path, arguments: &[&str]) -> String {
        let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().unwrap();
        assert!(output.status.success(), "git {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A repository with `kept` and `gone` committed on `main`.
    fn repository() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        git(folder.path(), &["init", "--quiet", "--initial-branch=main"]);
        git(folder.path(), &["config", "user.name", "Tester"]);
        git(folder.path(), &["config", "user.email", "tester@example.org"]);
        for name in ["kept", "gone"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        git(folder.path(), &["add", "--all"]);
        git(folder.path(), &["commit", "--quiet", "--message", "one"]);
        folder
    }

    #[test]
    fn what_is_committed_is_served_under_its_branch() {
        let folder = repository();
        fs::create_dir(folder.path().join("deep")).unwrap();
        let snapshot = Snapshot::take(&folder.path().join("deep"), Wanted::Head).unwrap();
        assert_eq!(snapshot.commit.to_string(), git(folder.path(), &["rev-parse", "HEAD"]));
        assert_eq!(snapshot.name.as_deref(), Some("refs/heads/main"));
        assert_eq!(git(snapshot.path(), &["log", "--format=%s", "main"]), "one");
    }

    #[test]
    fn uncommitted_changes_are_refused_or_included() {
        let folder = repository();
        let path = folder.path();
        fs::write(path.join(".gitignore"), "ignored\n").unwrap();
        fs::write(path.join("ignored"), "").unwrap();
        fs::write(path.join("kept"), "changed").unwrap();
        fs::remove_file(path.join("gone")).unwrap();
        let error = Snapshot::take(path, Wanted::Head).unwrap_err().to_string();
        assert!(
            error.starts_with("3 files are changed and not committed: .gitignore, "),
            "{error}"
        );
        let before = git(path, &["count-objects"]);

        let snapshot = Snapshot::take(path, Wanted::Dirty).unwrap();

        let listed = git(snapshot.path(), &["ls-tree", "--name-only", "main"]);
        assert_eq!(listed, ".gitignore\nkept");
        assert_eq!(git(snapshot.path(), &["show", "main:kept"]), "changed");
        assert_eq!(Snapshot::take(path, Wanted::Dirty).unwrap().commit, snapshot.commit);
        // Nothing of it is in the user's repository.
        assert_eq!(git(path, &["count-objects"]), before);
        assert_eq!(git(path, &["status", "--short"]).lines().count(), 3);
    }

    #[test]
    fn names_stand_for_commits() {
        let folder = repository();
        git(folder.path(), &["tag", "v1"]);
        git(folder.path(), &["commit", "--quiet", "--allow-empty", "--message", "two"]);
        let take = |name| Snapshot::take(folder.path(), Wanted::Ref(name));
        let tagged = take("v1").unwrap();
        assert_eq!(tagged.name.as_deref(), Some("refs/tags/v1"));
        let parent = take("HEAD~1").unwrap();
        assert_eq!((&parent.commit, &parent.name), (&tagged.commit, &None));
        assert_eq!(take("main").unwrap().name.as_deref(), Some("refs/heads/main"));
        assert!(take("nowhere").unwrap_err().to_string().ends_with("tag or commit \"nowhere\""));
    }

    #[test]
    fn what_is_compared_with_is_served_under_its_branch_where_that_is_free() {
        let folder = repository();
        let path = folder.path();
        let first = git(path, &["rev-parse", "HEAD"]);
        git(path, &["update-ref", "refs/remotes/origin/main", &first]);
        git(path, &["checkout", "--quiet", "-b", "feature"]);
        git(path, &["commit", "--quiet", "--allow-empty", "--message", "two"]);
        let base_of = |name| {
            let mut snapshot = Snapshot::take(path, Wanted::Head).unwrap();
            let base = snapshot.add_base(name).unwrap();
            assert_eq!(git(snapshot.path(), &["rev-parse", &base]), first, "{name}");
            base
        };
        assert_eq!(base_of("main"), "main");
        assert_eq!(base_of("origin/main"), "main");
        assert_eq!(base_of("HEAD~1"), first);
        assert_eq!(base_of(&first), first);
        // A branch that is ahead of its remote is built under the name that both have.
        git(path, &["checkout", "--quiet", "-B", "main"]);
        let mut ahead = Snapshot::take(path, Wanted::Head).unwrap();
        assert_eq!(ahead.add_base("origin/main").unwrap(), first);
        assert_ne!(git(ahead.path(), &["rev-parse", "main"]), first);
        let error = ahead.add_base("nowhere").unwrap_err().to_string();
        assert!(error.ends_with("tag or commit \"nowhere\""), "{error}");
    }

    #[test]
    fn head_is_the_default_branch_whatever_is_checked_out() {
        let folder = repository();
        let path = folder.path();
        let first = git(path, &["rev-parse", "HEAD"]);
        let default = || {
            let snapshot = Snapshot::take(path, Wanted::Head).unwrap();
            let shown = git(snapshot.path(), &["ls-remote", "--symref", ".", "HEAD"]);
            let first_line = shown.lines().next().unwrap_or_default();
            first_line.trim_start_matches("ref: ").trim_end_matches("\tHEAD").to_owned()
        };
        assert_eq!(default(), "refs/heads/main");
        git(path, &["checkout", "--quiet", "-b", "feature"]);
        assert_eq!(default(), "refs/heads/main");
        git(path, &["branch", "--quiet", "--move", "main", "trunk"]);
        assert_eq!(default(), "refs/heads/feature", "no other is known to be the default");
        git(path, &["update-ref", "refs/remotes/origin/devel", &first]);
        git(path, &["symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/devel"]);
        assert_eq!(default(), "refs/heads/devel");
        git(path, &["checkout", "--quiet", "--detach"]);
        assert_eq!(default(), "refs/heads/devel");
    }

    #[test]
    fn what_is_no_repository_or_has_no_commit_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let error = Snapshot::take(folder.path(), Wanted::Head).unwrap_err();
        assert!(matches!(error, SnapshotError::NoRepository(_)));
        git(folder.path(), &["init", "--quiet", "--initial-branch=main"]);
        let error = Snapshot::take(folder.path(), Wanted::Head).unwrap_err();
        assert!(matches!(error, SnapshotError::NoCommit(_)));
        fs::write(folder.path().join("file"), "").unwrap();
        let snapshot = Snapshot::take(folder.path(), Wanted::Dirty).unwrap();
        assert_eq!(snapshot.name.as_deref(), Some("refs/heads/main"));
    }
}
