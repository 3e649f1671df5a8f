//! Talks to one repository with libgit2. Everything here blocks.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use git2::build::CheckoutBuilder;
use git2::{
    AutotagOption, ConfigLevel, Cred, CredentialType, Direction, ErrorClass, ErrorCode,
    FetchOptions, Oid, RemoteCallbacks, RemoteRedirect, Repository, TreeWalkMode, TreeWalkResult,
};
use secrecy::{ExposeSecret, SecretString};
use stagely_protocol::CommitSha;
use tempfile::TempDir;
use url::Url;

use super::{CloneError, ResolvedRef, Watch, shown};

/// GitHub takes this name with every kind of token, GitLab and Gitea take any.
const TOKEN_USER: &str = "x-access-token";

/// How far a branch is fetched in search of a commit. The largest number is git's word for all of it.
const DEPTHS: [i32; 4] = [1, 50, 1_000, i32::MAX];

/// Where the objects of a kept repository come from: a fetch offers what its references lead to.
const KEPT_REFERENCE: &str = "refs/stagely/kept";

/// One repository and what opens it.
pub(super) struct Access {
    pub(super) url: Url,
    pub(super) token: Option<SecretString>,
    pub(super) watch: Arc<Watch>,
}

impl Access {
    pub(super) fn new(
        url: &str,
        token: Option<SecretString>,
        watch: Arc<Watch>,
    ) -> Result<Self, CloneError> {
        let refused = |detail| CloneError::Address { url: shown(url), detail };
        let parsed = Url::parse(url).map_err(|_| refused("it is not a URL"))?;
        if !matches!(parsed.scheme(), "https" | "http" | "git") {
            return Err(refused("only https, http and git are allowed"));
        }
        // Some give a token in the place of the user.
        if parsed.password().is_some() || !parsed.username().is_empty() {
            return Err(refused("it holds a user name or password; tokens are given apart"));
        }
        Ok(Self { url: parsed, token, watch })
    }

    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let asked = Cell::new(false);
        let mut callbacks = RemoteCallbacks::new();
        callbacks.credentials(move |_, _, allowed| {
            // libgit2 asks again and again while the server refuses.
            let refused = || git2::Error::new(ErrorCode::Auth, ErrorClass::Http, "refused");
            if asked.replace(true) || !allowed.contains(CredentialType::USER_PASS_PLAINTEXT) {
                return Err(refused());
            }
            let token = self.token.as_ref().ok_or_else(refused)?;
            Cred::userpass_plaintext(TOKEN_USER, token.expose_secret())
        });
        callbacks.transfer_progress(|progress| {
            self.watch.received(progress.received_bytes() as u64);
            self.watch.go_on()
        });
        callbacks.sideband_progress(|_| self.watch.go_on());
        callbacks
    }

    /// The repository in the folder `path`, with no configuration but its own: the user's may rewrite
    /// the address (`insteadOf`), and the token would go elsewhere.
    fn create(path: &Path, bare: bool) -> Result<Repository, CloneError> {
        let create = if bare { Repository::init_bare } else { Repository::init };
        Self::isolated(create(path).map_err(internal)?)
    }

    fn isolated(repository: Repository) -> Result<Repository, CloneError> {
        let config = repository.config().and_then(|config| config.open_level(ConfigLevel::Local));
        repository.set_config(&config.map_err(internal)?).map_err(internal)?;
        Ok(repository)
    }

    fn options(&self, depth: i32) -> FetchOptions<'_> {
        let mut options = FetchOptions::new();
        options
            .remote_callbacks(self.callbacks())
            .download_tags(AutotagOption::None)
            .update_fetchhead(false)
            // libgit2 would send the credentials on to wherever it is redirected.
            .follow_redirects(RemoteRedirect::None)
            .depth(depth);
        options
    }

    fn fetch_spec(
        &self,
        repository: &Repository,
        spec: &str,
        depth: i32,
    ) -> Result<(), CloneError> {
        let mut remote = repository.remote_anonymous(self.url.as_str()).map_err(internal)?;
        let result = remote.fetch(&[spec], Some(&mut self.options(depth)), None);
        self.watch.transfer_ended();
        result.map_err(|error| self.error(&error))
    }

    fn error(&self, error: &git2::Error) -> CloneError {
        let url = shown(self.url.as_str());
        let text = error.message().to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if !self.watch.go_on() {
            CloneError::Cancelled
        } else if error.code() == ErrorCode::Auth || has(&["code: 401", "code: 403", "replays"]) {
            CloneError::Authentication { url }
        } else if has(&["code: 404", "code: 410", "repository not found", "not exported"]) {
            CloneError::NotFound { url }
        } else if has(&["redirect"]) {
            CloneError::Address { url, detail: "it has moved; use its new address" }
        } else if has(&["no space left", "disk quota"]) {
            CloneError::DiskFull
        } else {
            match error.class() {
                ErrorClass::Net | ErrorClass::Http | ErrorClass::Ssl | ErrorClass::Os => {
                    CloneError::Network { url, detail: error.message().to_owned() }
                }
                _ => CloneError::Internal(error.message().to_owned()),
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn internal(error: git2::Error) -> CloneError {
    if error.message().to_ascii_lowercase().contains("no space left") {
        return CloneError::DiskFull;
    }
    CloneError::Internal(error.message().to_owned())
}

/// Fetches `commit` into a new repository at `dest` and checks it out.
pub(super) fn fetch(
    access: &Access,
    commit: &CommitSha,
    branch: Option<&str>,
    dest: &Path,
) -> Result<(), CloneError> {
    // Each object's parents and trees would be looked up before it is written; the pack is checked
    // as a whole anyhow.
    git2::opts::strict_object_creation(false);
    // Every object was hashed when the pack came, and Git does not hash it again to read it either.
    git2::opts::strict_hash_verification(false);
    let repository = Access::create(dest, false)?;
    let id = fetch_objects(access, &repository, commit, &branch_specs(branch, true), &DEPTHS)?;
    check_out(access, &repository, id)
}

/// Fetches `commit` by itself where the server serves it so, else by the first of `specs` that holds
/// it, as deep as the last of `depths`.
fn fetch_objects(
    access: &Access,
    repository: &Repository,
    commit: &CommitSha,
    specs: &[String],
    depths: &[i32],
) -> Result<Oid, CloneError> {
    let id = Oid::from_str(commit.as_str()).map_err(internal)?;
    let bare = access.fetch_spec(repository, commit.as_str(), 1);
    match bare {
        Ok(()) => {}
        // libgit2's own answer, before it asks: this server serves no bare commits.
        Err(CloneError::Internal(detail)) => {
            tracing::debug!(detail, "fetching a branch instead");
            fetch_by_branch(access, repository, id, specs, depths)?;
        }
        // A server that serves them has none such. Searching its branches would mean to fetch the
        // whole repository, for a commit that was force-pushed away.
        Err(CloneError::Network { detail, .. }) if is_not_our_ref(&detail) => {
            return Err(gone(access, commit.as_str()));
        }
        Err(error) => return Err(error),
    }
    if repository.find_commit(id).is_err() {
        return Err(gone(access, commit.as_str()));
    }
    Ok(id)
}

/// Whether a server says `not our ref`. Over HTTP libgit2 takes the refusal of a shallow fetch for a
/// packet of the wrong type.
fn is_not_our_ref(detail: &str) -> bool {
    detail.contains("not our ref") || detail == "unexpected packet type"
}

/// `branch`, if it is known, and then all of them if these are `wanted`.
fn branch_specs(branch: Option<&str>, wanted: bool) -> Vec<String> {
    let one = branch.map(|branch| format!("+refs/heads/{branch}:refs/remotes/origin/{branch}"));
    let all = wanted.then(|| "+refs/heads/*:refs/remotes/origin/*".to_owned());
    one.into_iter().chain(all).collect()
}

/// Fetches the branches of one of `specs` after the other, deeper and deeper until `id` is there.
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
                Err(error @ CloneError::Internal(_)) => {
                    tracing::debug!(%error, spec, "no such branch");
                    break;
                }
                Err(error) => return Err(error),
            }
            if repository.find_commit(id).is_ok() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn gone(access: &Access, wanted: &str) -> CloneError {
    CloneError::CommitGone { url: shown(access.url.as_str()), wanted: wanted.to_owned() }
}

fn check_out(access: &Access, repository: &Repository, id: Oid) -> Result<(), CloneError> {
    repository.set_head_detached(id).map_err(internal)?;
    let mut options = CheckoutBuilder::new();
    options.force().disable_filters(!may_filter(repository, id)?).progress(|_, _, _| {
        // libgit2 gives no other way to stop it: it stops at a file that it cannot write.
        if !access.watch.go_on()
            && let Some(root) = repository.workdir()
        {
            let _ = fs::remove_dir_all(root);
        }
    });
    let result = access.watch.on_disk(|| repository.checkout_head(Some(&mut options)));
    if access.watch.go_on() { result.map_err(internal) } else { Err(CloneError::Cancelled) }
}

/// Whether any file may have to be changed on its way to the working tree, as line ends are. libgit2
/// resolves the real path of every file to find that out, which is a third of a checkout's work.
fn may_filter(repository: &Repository, id: Oid) -> Result<bool, CloneError> {
    let commit = repository.find_commit(id).map_err(internal)?;
    let tree = commit.tree().map_err(internal)?;
    let mut has_attributes = false;
    let walked = tree.walk(TreeWalkMode::PreOrder, |_, entry| {
        has_attributes |= entry.name_bytes() == b".gitattributes";
        if has_attributes { TreeWalkResult::Abort } else { TreeWalkResult::Ok }
    });
    match walked {
        // An aborted walk counts as failed.
        Err(_) if has_attributes => Ok(true),
        walked => walked.map(|()| has_attributes).map_err(internal),
    }
}

/// Removes the `.git` of the checkout at `root`.
pub(super) fn remove_repository(access: &Access, root: &Path) -> Result<(), CloneError> {
    let removed = access.watch.on_disk(|| fs::remove_dir_all(root.join(".git")));
    removed.map_err(|error| CloneError::Internal(format!("cannot remove .git: {error}")))
}

/// Moves the `.git` of the checkout at `root` to `objects`.
pub(super) fn move_repository(
    access: &Access,
    root: &Path,
    objects: &Path,
) -> Result<(), CloneError> {
    let moved = access.watch.on_disk(|| fs::rename(root.join(".git"), objects));
    moved.map_err(|error| CloneError::Internal(format!("cannot move .git: {error}")))?;
    let repository = open_objects(objects)?;
    let head = repository.head().and_then(|head| head.peel_to_commit()).map_err(internal)?;
    repository.reference(KEPT_REFERENCE, head.id(), true, "kept").map_err(internal)?;
    Ok(())
}

fn open_objects(objects: &Path) -> Result<Repository, CloneError> {
    Access::isolated(Repository::open_bare(objects).map_err(internal)?)
}

/// The paths in which `head`, which is in `objects`, differs from `commit`, which is fetched. That of a
/// submodule ends in `/`: anything in it may differ.
pub(super) fn changed_paths(
    access: &Access,
    objects: &Path,
    commit: &CommitSha,
    branch: Option<&str>,
    head: &CommitSha,
) -> Result<Vec<String>, CloneError> {
    let repository = open_objects(objects)?;
    let head = Oid::from_str(head.as_str()).map_err(internal)?;
    let depths = DEPTHS.split_last().map_or(&[][..], |(_, limited)| limited);
    let known = Oid::from_str(commit.as_str()).map_err(internal)?;
    let old = match repository.find_commit(known) {
        Ok(_) => known,
        Err(_) => fetch_objects(access, &repository, commit, &branch_specs(branch, false), depths)?,
    };
    access.watch.on_disk(|| differing(&repository, old, head)).map_err(internal)
}

fn differing(repository: &Repository, old: Oid, new: Oid) -> Result<Vec<String>, git2::Error> {
    let tree = |id| repository.find_commit(id)?.tree();
    let diff = repository.diff_tree_to_tree(Some(&tree(old)?), Some(&tree(new)?), None)?;
    // Renames are not looked for, so each difference has one path.
    let path = |delta: git2::DiffDelta<'_>| {
        let path = String::from_utf8_lossy(delta.new_file().path_bytes()?).into_owned();
        let modes = [delta.old_file().mode(), delta.new_file().mode()];
        Some(if modes.contains(&git2::FileMode::Commit) { path + "/" } else { path })
    };
    Ok(diff.deltas().filter_map(path).collect())
}

/// Finds out what `name` stands for.
pub(super) fn resolve(
    access: &Access,
    name: &str,
    scratch: &Path,
) -> Result<ResolvedRef, CloneError> {
    // Only a repository's configuration can forbid redirects here, see `Access::options`.
    let folder = TempDir::with_prefix_in("refs-", scratch);
    let folder = folder.map_err(|error| CloneError::Internal(error.to_string()))?;
    let repository = Access::create(folder.path(), true)?;
    let mut config = repository.config().map_err(internal)?;
    config.set_str("http.followRedirects", "false").map_err(internal)?;
    let mut remote = repository.remote_anonymous(access.url.as_str()).map_err(internal)?;
    let connection = remote
        .connect_auth(Direction::Fetch, Some(access.callbacks()), None)
        .map_err(|error| access.error(&error))?;
    let heads = connection.list().map_err(|error| access.error(&error))?;
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
        .find_map(|full| find(&format!("{full}^{{}}")).or_else(|| find(&full)).map(|it| (full, it)))
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
    fn a_cancelled_checkout_stops_and_leaves_nothing() {
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
        access.watch.cancelled.store(true, Ordering::Relaxed);
        let result = check_out(&access, &repository, id);
        assert!(matches!(result, Err(CloneError::Cancelled)), "{result:?}");
        assert!(!dest.exists());
        // One sign of life for each file.
        let signs = access.watch.signs.load(Ordering::Relaxed);
        assert!(signs < 10, "{signs}");
    }
}
