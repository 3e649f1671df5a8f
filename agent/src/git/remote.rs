//! Talks to one repository with libgit2. All functions block.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use git2::build::CheckoutBuilder;
use git2::{
    AutotagOption, ConfigLevel, Cred, CredentialType, Direction, ErrorClass, ErrorCode,
    FetchOptions, Oid, RemoteCallbacks, RemoteRedirect, Repository,
};
use secrecy::{ExposeSecret, SecretString};
use stagely_protocol::{CommitSha, SUBMODULE_ADDRESSES_REF};
use tempfile::TempDir;
use url::Url;

use super::error::{CloneError, is_not_our_ref, without_credentials};
use super::filters::{self, Filtered};
use super::relay::Relay;
use super::thread::FetchMonitor;
use super::{ChangedPath, tree};
use crate::proxy::{Proxy, is_loopback};

/// The user name for tokens. GitHub accepts it with every kind of token; GitLab and Gitea accept any name.
pub(super) const TOKEN_USER: &str = "x-access-token";

/// The depths to which a branch is fetched in search of a commit. For git, the largest number means the whole branch.
const DEPTHS: [i32; 4] = [1, 50, 1_000, i32::MAX];

/// Points to the commit of a kept repository. A fetch tells the server that it has the commits of its references.
const KEPT_REFERENCE: &str = "refs/stagely/kept";

/// The commit that a name refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedRef {
    /// The commit; for an annotated tag, the tagged commit.
    pub commit: CommitSha,
    /// The full name, `refs/heads/main`; `None` if the name was a commit id.
    pub name: Option<String>,
    /// The repository's default branch, `main`; `None` if the name was a commit id, or if the server does not
    /// report the default branch.
    pub default_branch: Option<String>,
}

impl ResolvedRef {
    /// The branch, if the name refers to one.
    pub fn branch(&self) -> Option<&str> {
        self.name.as_deref()?.strip_prefix("refs/heads/")
    }
}

/// One repository, and the credential for it.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) url: Url,
    pub(super) token: Option<SecretString>,
    pub(super) monitor: Arc<FetchMonitor>,
    /// Stands in for a server behind a proxy.
    relay: Option<Arc<Relay>>,
}

impl Access {
    pub(super) fn new(
        url: &str,
        token: Option<SecretString>,
        monitor: Arc<FetchMonitor>,
    ) -> Result<Self, CloneError> {
        let refused = |detail| CloneError::Address { url: without_credentials(url), detail };
        let parsed = Url::parse(url).map_err(|_| refused("it is not a URL"))?;
        if !matches!(parsed.scheme(), "https" | "http" | "git") {
            return Err(refused("only https, http and git are allowed"));
        }
        // Some users put a token in the place of the user name.
        if parsed.password().is_some() || !parsed.username().is_empty() {
            return Err(refused("it holds a user name or password; tokens are given apart"));
        }
        let refused = |detail| CloneError::Refused { url: without_credentials(url), detail };
        let proxy = Proxy::of(&parsed).map_err(|error| refused(error.to_string()))?;
        let relay = proxy.map(|proxy| Relay::start(&parsed, &proxy)).transpose();
        let relay = relay.map_err(|error| CloneError::Internal(error.to_string()))?;
        Ok(Self { url: parsed, token, monitor, relay: relay.map(Arc::new) })
    }

    /// The address for libgit2.
    fn transport_url(&self) -> &Url {
        self.relay.as_ref().map_or(&self.url, |relay| &relay.url)
    }

    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let was_asked = Cell::new(false);
        let mut callbacks = RemoteCallbacks::new();
        callbacks.credentials(move |url, _, allowed| {
            // libgit2 follows redirects to another port of the same host.
            let target =
                Url::parse(url).ok().filter(|url| url.origin() != self.transport_url().origin());
            if let Some(target) = target {
                let words = format!("redirected to {}", without_credentials(target.as_str()));
                return Err(git2::Error::new(ErrorCode::GenericError, ErrorClass::Http, words));
            }
            // libgit2 asks again whenever the server has refused the credential.
            let refused = || git2::Error::new(ErrorCode::Auth, ErrorClass::Http, "refused");
            if was_asked.replace(true) || !allowed.contains(CredentialType::USER_PASS_PLAINTEXT) {
                return Err(refused());
            }
            let token = self.token.as_ref().ok_or_else(refused)?;
            Cred::userpass_plaintext(TOKEN_USER, token.expose_secret())
        });
        callbacks
            .transfer_progress(|progress| self.monitor.received(progress.received_bytes() as u64));
        callbacks.sideband_progress(|_| self.monitor.may_continue());
        callbacks
    }

    /// Creates a repository in the folder `path` that uses only its own configuration. The user's configuration may
    /// rewrite the address (`insteadOf`), and the token would go to another server.
    fn create(path: &Path, bare: bool) -> Result<Repository, CloneError> {
        let create = if bare { Repository::init_bare } else { Repository::init };
        Self::isolated(create(path).map_err(CloneError::from_local)?)
    }

    pub(super) fn isolated(repository: Repository) -> Result<Repository, CloneError> {
        let config = repository.config().and_then(|config| config.open_level(ConfigLevel::Local));
        let mut config = config.map_err(CloneError::from_local)?;
        // The user's attributes would filter files.
        config.set_str("core.attributesFile", "/dev/null").map_err(CloneError::from_local)?;
        repository.set_config(&config).map_err(CloneError::from_local)?;
        Ok(repository)
    }

    fn options(&self, depth: i32) -> FetchOptions<'_> {
        let mut options = FetchOptions::new();
        options
            .remote_callbacks(self.callbacks())
            .download_tags(AutotagOption::None)
            .update_fetchhead(false)
            // libgit2 would send the credentials to the target of a redirect.
            .follow_redirects(RemoteRedirect::None)
            .depth(depth);
        options
    }

    /// Fetches the references that match `spec`.
    fn fetch_spec(
        &self,
        repository: &Repository,
        spec: &str,
        depth: i32,
    ) -> Result<(), FetchSpecError> {
        let remote = repository.remote_anonymous(self.transport_url().as_str());
        let mut remote = remote.map_err(CloneError::from_local)?;
        let result = remote.fetch(&[spec], Some(&mut self.options(depth)), None);
        self.monitor.transfer_ended();
        self.monitor.check_received()?;
        result.map_err(|error| {
            let is_missing = is_not_our_ref(&error);
            match self.server_error(&error) {
                error @ (CloneError::Network { .. } | CloneError::Refused { .. }) if is_missing => {
                    FetchSpecError::NoSuchCommit(error)
                }
                error => error.into(),
            }
        })
    }

    fn server_error(&self, error: &git2::Error) -> CloneError {
        if self.monitor.may_continue() {
            if let Some(problem) = self.relay.as_ref().and_then(|relay| relay.problem()) {
                return CloneError::from_proxy(problem, &self.url);
            }
            CloneError::from_server(error, &self.url)
        } else {
            CloneError::Cancelled
        }
    }
}

/// Why the references that match a refspec could not be fetched.
enum FetchSpecError {
    /// libgit2 refuses the refspec before it sends a request: the server does not serve single commits, or has no
    /// such branch.
    NotServed(String),
    /// The server serves single commits and does not have this one.
    NoSuchCommit(CloneError),
    Other(CloneError),
}

impl From<CloneError> for FetchSpecError {
    fn from(error: CloneError) -> Self {
        match error {
            CloneError::Internal(detail) => Self::NotServed(detail),
            error => Self::Other(error),
        }
    }
}

/// Fetches `commit` into a new repository at `dest` and checks it out. Without `has_search` at most one commit of each
/// branch is fetched.
pub(super) fn fetch(
    access: &Access,
    commit: &CommitSha,
    branch: Option<&str>,
    has_search: bool,
    dest: &Path,
) -> Result<Filtered, CloneError> {
    // Otherwise libgit2 looks up the parents and trees of each object before it writes it. The pack is checked as a
    // whole anyway.
    git2::opts::strict_object_creation(false);
    // Every object was hashed when the pack was received. Git does not hash it again on reading either.
    git2::opts::strict_hash_verification(false);
    let repository = Access::create(dest, false)?;
    let depths = if has_search { &DEPTHS[..] } else { &DEPTHS[..1] };
    let specs = branch_specs(branch, true);
    let id = fetch_objects(access, &repository, commit, &specs, depths)?;
    check_out(access, &repository, id)
}

/// Fetches `commit` alone if the server serves single commits. Otherwise fetches the first of `specs` that holds it, to
/// at most the last of `depths`.
fn fetch_objects(
    access: &Access,
    repository: &Repository,
    commit: &CommitSha,
    specs: &[String],
    depths: &[i32],
) -> Result<Oid, CloneError> {
    let id = Oid::from_str(commit.as_str()).map_err(CloneError::from_local)?;
    match access.fetch_spec(repository, commit.as_str(), 1) {
        Ok(()) => {}
        Err(FetchSpecError::NotServed(detail)) => {
            tracing::debug!(detail, "fetching a branch instead of the single commit");
            fetch_by_branch(access, repository, id, specs, depths)?;
        }
        // The branches are not searched: that would fetch the whole repository for a commit that was probably
        // removed by a force-push.
        Err(FetchSpecError::NoSuchCommit(_)) => return Err(gone(access, commit.as_str())),
        Err(FetchSpecError::Other(error)) => return Err(error),
    }
    if repository.find_commit(id).is_err() {
        return Err(gone(access, commit.as_str()));
    }
    Ok(id)
}

/// The refspec of `branch`, if it is known, and then that of all branches if `with_all`.
fn branch_specs(branch: Option<&str>, with_all: bool) -> Vec<String> {
    let one = branch.map(|branch| format!("+refs/heads/{branch}:refs/remotes/origin/{branch}"));
    let all = with_all.then(|| "+refs/heads/*:refs/remotes/origin/*".to_owned());
    one.into_iter().chain(all).collect()
}

/// Fetches the branches of each of `specs`, to each of `depths`, until `id` is there.
fn fetch_by_branch(
    access: &Access,
    repository: &Repository,
    id: Oid,
    specs: &[String],
    depths: &[i32],
) -> Result<(), CloneError> {
    for spec in specs {
        for depth in depths {
            match access.fetch_spec(repository, spec, *depth) {
                Ok(()) => {}
                Err(FetchSpecError::NotServed(detail)) => {
                    tracing::debug!(detail, spec, "no such branch");
                    break;
                }
                Err(FetchSpecError::NoSuchCommit(error) | FetchSpecError::Other(error)) => {
                    return Err(error);
                }
            }
            if repository.find_commit(id).is_ok() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn gone(access: &Access, wanted: &str) -> CloneError {
    CloneError::CommitGone {
        url: without_credentials(access.url.as_str()),
        wanted: wanted.to_owned(),
    }
}

fn check_out(access: &Access, repository: &Repository, id: Oid) -> Result<Filtered, CloneError> {
    let summary = tree::summarize(repository, id, &access.monitor)?;
    write_files(access, repository, id, summary.has_attributes)?;
    if summary.has_filters {
        access.monitor.on_disk(|| filters::apply(repository, &access.monitor))
    } else {
        Ok(Filtered::default())
    }
}

/// The addresses of submodules that the server of a folder gives, by path; none of any other server.
pub(super) fn submodule_addresses(
    access: &Access,
    repository: &Repository,
) -> Result<HashMap<Vec<u8>, String>, CloneError> {
    if !is_loopback(&access.url) {
        return Ok(HashMap::new());
    }
    let spec = format!("+{SUBMODULE_ADDRESSES_REF}:{SUBMODULE_ADDRESSES_REF}");
    match access.fetch_spec(repository, &spec, 1) {
        Ok(()) => {}
        Err(FetchSpecError::NotServed(_) | FetchSpecError::NoSuchCommit(_)) => {
            return Ok(HashMap::new());
        }
        Err(FetchSpecError::Other(error)) => return Err(error),
    }
    let Ok(reference) = repository.find_reference(SUBMODULE_ADDRESSES_REF) else {
        return Ok(HashMap::new());
    };
    let blob = reference.peel_to_blob().map_err(CloneError::from_local)?;
    let parts: Vec<&[u8]> = blob.content().split(|byte| *byte == 0).collect();
    let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
    Ok(parts.chunks_exact(2).map(|pair| (pair[0].to_vec(), text(pair[1]))).collect())
}

fn write_files(
    access: &Access,
    repository: &Repository,
    id: Oid,
    may_filter: bool,
) -> Result<(), CloneError> {
    repository.set_head_detached(id).map_err(CloneError::from_local)?;
    let mut options = CheckoutBuilder::new();
    // To find out whether a filter changes a file, libgit2 resolves the real path of every file, which is a third of a
    // checkout's work.
    options.force().disable_filters(!may_filter).progress(|_, _, _| {
        // libgit2 has no way to stop a checkout. Without its folder the next file cannot be written.
        if !access.monitor.may_continue()
            && let Some(root) = repository.workdir()
        {
            let _ = fs::remove_dir_all(root);
        }
    });
    let result = access.monitor.on_disk(|| repository.checkout_head(Some(&mut options)));
    if access.monitor.may_continue() {
        result.map_err(CloneError::from_local)
    } else {
        Err(CloneError::Cancelled)
    }
}

/// Removes the `.git` of the checkout at `root`.
pub(super) fn remove_repository(access: &Access, root: &Path) -> Result<(), CloneError> {
    let removed = access.monitor.on_disk(|| fs::remove_dir_all(root.join(".git")));
    removed.map_err(|error| CloneError::Internal(format!("cannot remove .git: {error}")))
}

/// Moves the `.git` of the checkout at `root` to `objects`.
pub(super) fn move_repository(
    access: &Access,
    root: &Path,
    objects: &Path,
) -> Result<(), CloneError> {
    let moved = access.monitor.on_disk(|| fs::rename(root.join(".git"), objects));
    moved.map_err(|error| CloneError::Internal(format!("cannot move .git: {error}")))?;
    let repository = open_objects(objects)?;
    let head =
        repository.head().and_then(|head| head.peel_to_commit()).map_err(CloneError::from_local)?;
    repository
        .reference(KEPT_REFERENCE, head.id(), true, "kept")
        .map_err(CloneError::from_local)?;
    Ok(())
}

fn open_objects(objects: &Path) -> Result<Repository, CloneError> {
    Access::isolated(Repository::open_bare(objects).map_err(CloneError::from_local)?)
}

/// The paths in which `head`, which is in `objects`, differs from `commit`, which is fetched.
pub(super) fn changed_paths(
    access: &Access,
    objects: &Path,
    commit: &CommitSha,
    branch: Option<&str>,
    head: &CommitSha,
) -> Result<Vec<ChangedPath>, CloneError> {
    let repository = open_objects(objects)?;
    let head = Oid::from_str(head.as_str()).map_err(CloneError::from_local)?;
    let depths = DEPTHS.split_last().map_or(&[][..], |(_, limited)| limited);
    let wanted = Oid::from_str(commit.as_str()).map_err(CloneError::from_local)?;
    let specs = branch_specs(branch, false);
    let old = match repository.find_commit(wanted) {
        Ok(_) => wanted,
        Err(_) => fetch_objects(access, &repository, commit, &specs, depths)?,
    };
    // The comparison can neither be stopped nor limited. `head` was looked through when it was checked out.
    tree::summarize(&repository, old, &access.monitor)?;
    access.monitor.on_disk(|| differing(&repository, old, head)).map_err(CloneError::from_local)
}

fn differing(repository: &Repository, old: Oid, new: Oid) -> Result<Vec<ChangedPath>, git2::Error> {
    let tree = |id| repository.find_commit(id)?.tree();
    let diff = repository.diff_tree_to_tree(Some(&tree(old)?), Some(&tree(new)?), None)?;
    // Renames are not detected, so each difference has one path.
    let path = |delta: git2::DiffDelta<'_>| {
        let path = String::from_utf8_lossy(delta.new_file().path_bytes()?).into_owned();
        let modes = [delta.old_file().mode(), delta.new_file().mode()];
        let path = if modes.contains(&git2::FileMode::Commit) { path + "/" } else { path };
        Some(ChangedPath { path, is_added: delta.status() == git2::Delta::Added })
    };
    Ok(diff.deltas().filter_map(path).collect())
}

/// Finds the commit that `name` refers to.
pub(super) fn resolve(
    access: &Access,
    name: &str,
    scratch: &Path,
) -> Result<ResolvedRef, CloneError> {
    // Only a repository's configuration can forbid redirects here, see `Access::options`.
    let folder = TempDir::with_prefix_in("refs-", scratch);
    let folder = folder.map_err(|error| CloneError::Internal(error.to_string()))?;
    let repository = Access::create(folder.path(), true)?;
    let mut config = repository.config().map_err(CloneError::from_local)?;
    config.set_str("http.followRedirects", "false").map_err(CloneError::from_local)?;
    let mut remote = repository
        .remote_anonymous(access.transport_url().as_str())
        .map_err(CloneError::from_local)?;
    let connection = remote
        .connect_auth(Direction::Fetch, Some(access.callbacks()), None)
        .map_err(|error| access.server_error(&error))?;
    let heads = connection.list().map_err(|error| access.server_error(&error))?;
    let find = |wanted: &str| heads.iter().find(|head| head.name() == wanted);

    let default = find("HEAD").and_then(|head| head.symref_target());
    let default_branch = default.and_then(|full| full.strip_prefix("refs/heads/"));
    let default_branch = default_branch.map(str::to_owned);
    let candidates = match name {
        "" | "HEAD" => vec![default.unwrap_or("HEAD").to_owned()],
        full if full.starts_with("refs/") => vec![full.to_owned()],
        short => vec![format!("refs/heads/{short}"), format!("refs/tags/{short}")],
    };
    let (full, head) = candidates
        .into_iter()
        // `^{}` is the commit behind an annotated tag.
        .find_map(|full| {
            let head = find(&format!("{full}^{{}}")).or_else(|| find(&full))?;
            Some((full, head))
        })
        .ok_or_else(|| gone(access, name))?;
    let commit = head.oid().to_string().parse();
    let commit = commit.map_err(|error| CloneError::Internal(format!("{error}")))?;
    Ok(ResolvedRef { commit, name: Some(full), default_branch })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_cancelled_checkout_stops_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let dest = folder.path().join("src");
        let repository = Access::create(&dest, false).unwrap();
        for number in 0..200 {
            let path = dest.join(format!("folder-{}/{number}", number % 20));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, number.to_string()).unwrap();
        }
        let mut index = repository.index().unwrap();
        index.add_all(["*"], git2::IndexAddOption::DEFAULT, None).unwrap();
        let tree = repository.find_tree(index.write_tree().unwrap()).unwrap();
        let author = git2::Signature::now("Tester", "tester@example.org").unwrap();
        let id = repository.commit(None, &author, &author, "a commit", &tree, &[]).unwrap();
        for number in 0..20 {
            fs::remove_dir_all(dest.join(format!("folder-{number}"))).unwrap();
        }

        let access = Access::new("https://git.example/app", None, Arc::default()).unwrap();
        access.monitor.is_cancelled.store(true, Ordering::Relaxed);
        let result = write_files(&access, &repository, id, false);
        assert!(matches!(result, Err(CloneError::Cancelled)), "{result:?}");
        assert!(!dest.exists());
        // libgit2 calls back once for each file.
        let callbacks = access.monitor.progress_count.load(Ordering::Relaxed);
        assert!(callbacks < 10, "{callbacks}");
    }
}
