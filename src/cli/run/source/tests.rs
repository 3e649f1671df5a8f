//! What an agent gets from folders of all kinds that Git makes.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use stagely_agent::git::{BYTES_MAX, CloneError, FetchRequest, fetch_commit, resolve_ref};
use stagely_protocol::Submodules;
use stagely_test_support::git::{GitServer, Repository, git};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;

#[test]
fn folders_and_addresses_are_distinguished() {
    let address = |text| match RepositoryLocation::parse(text).unwrap() {
        RepositoryLocation::Address(url) => url.to_string(),
        RepositoryLocation::Folder(path) => format!("folder {}", path.display()),
    };
    assert_eq!(address("https://host/o/r"), "https://host/o/r");
    assert_eq!(address("git@host:o/r.git"), "https://host/o/r.git");
    assert_eq!(address("ssh://git@host:22/o/r"), "https://host/o/r");
    assert_eq!(address("."), "folder .");
    assert_eq!(address("a:b"), "folder a:b");
    assert_eq!(address("file:///srv/r"), "folder /srv/r");
    assert!(RepositoryLocation::parse("ftp://host/r").is_err());
}

/// A folder for repositories, and the repository `app` in it.
fn app() -> (TempDir, Repository) {
    let folder = tempfile::tempdir().unwrap();
    let app = Repository::create(folder.path().join("app"));
    app.commit(&[("app/main", "main"), ("shared/library", "library"), ("top", "top")]);
    (folder, app)
}

/// Clones `origin` with `options`, as from another machine.
fn clone(origin: &Repository, options: &[&str]) -> Repository {
    let path = origin.path.with_file_name("clone");
    let url = format!("file://{}", origin.path.display());
    let mut arguments = vec!["clone", "--quiet"];
    arguments.extend(options);
    arguments.extend([url.as_str(), path.to_str().unwrap()]);
    git(&origin.path, &["config", "uploadpack.allowFilter", "true"]);
    git(&origin.path, &["config", "uploadpack.allowAnySHA1InWant", "true"]);
    git(&origin.path, &arguments);
    Repository { path }
}

/// The files that an agent gets, and the commit.
async fn built(folder: &Path, revision: Revision<'_>) -> (BTreeMap<String, String>, CommitSha) {
    try_to_build(folder, revision).await.unwrap()
}

async fn try_to_build(
    folder: &Path,
    revision: Revision<'_>,
) -> Result<(BTreeMap<String, String>, CommitSha), CloneError> {
    let source = RunSource::serve(folder, revision, None).await.unwrap();
    let (dest, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let name = source.reference.as_deref().unwrap();
    let (url, token) = (&source.repository, source.clone_token.clone());
    let commit =
        resolve_ref(url, token, name, &std::env::temp_dir(), &cancel).await.unwrap().commit;
    let request = FetchRequest {
        url: source.repository.clone(),
        commit: commit.clone(),
        branch: None,
        token: source.clone_token.clone(),
        submodules: Submodules::All,
        large_files: true,
        bytes_max: BYTES_MAX,
    };
    fetch_commit(request, dest.path(), &cancel).await?;
    let mut files = BTreeMap::new();
    let mut folders = vec![dest.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dest.path()).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    Ok((files, commit))
}

/// Builds the clean `folder` with and without `--dirty`: all its files and the checked-out commit.
async fn assert_complete(folder: &Path, what: &str) {
    let head = git(folder, &["rev-parse", "HEAD"]);
    for revision in [Revision::Head, Revision::Dirty] {
        let (files, commit) = built(folder, revision).await;
        let texts: Vec<&str> = files.values().map(String::as_str).collect();
        assert_eq!(texts, ["main", "library", "top"], "{what} {revision:?}");
        assert_eq!(commit.as_str(), head, "{what} {revision:?}");
    }
}

#[tokio::test]
async fn a_clean_folder_gives_its_commit_however_it_was_cloned() {
    let cases: [(&str, &[&str]); 6] = [
        ("shallow", &["--depth=1"]),
        ("without blobs", &["--filter=blob:none", "--no-checkout"]),
        ("without trees", &["--filter=tree:0", "--no-checkout"]),
        ("sparse", &["--sparse"]),
        ("sparse and without blobs", &["--filter=blob:none", "--sparse"]),
        ("shared", &["--shared"]),
    ];
    for (what, options) in cases {
        let (_folder, origin) = app();
        origin.commit(&[]);
        let clone = clone(&origin, options);
        if options.contains(&"--no-checkout") {
            clone.git(&["sparse-checkout", "set", "--cone", "app"]);
            clone.git(&["checkout", "--quiet"]);
        }
        assert_eq!(clone.git(&["status", "--short"]), "", "{what}");
        assert_complete(&clone.path, what).await;
    }
}

#[tokio::test]
async fn a_clean_folder_gives_its_commit_whatever_its_index_is() {
    let cases: [(&str, &[&[&str]]); 6] = [
        ("cone", &[&["sparse-checkout", "set", "--cone", "app"]]),
        ("no cone", &[&["sparse-checkout", "set", "--no-cone", "/app/"]]),
        ("sparse index", &[&["sparse-checkout", "set", "--cone", "--sparse-index", "app"]]),
        ("split index", &[&["update-index", "--split-index"]]),
        ("detached", &[&["checkout", "--quiet", "--detach"]]),
        ("packed", &[&["gc", "--quiet"]]),
    ];
    for (what, commands) in cases {
        let (_folder, app) = app();
        for command in commands {
            app.git(command);
        }
        assert_complete(&app.path, what).await;
    }
}

#[tokio::test]
async fn worktrees_reftables_and_bare_repositories_are_read() {
    let (folder, app) = app();
    app.git(&["worktree", "add", "--quiet", "../tree"]);
    assert_complete(&folder.path().join("tree"), "worktree").await;
    app.git(&["clone", "--quiet", "--bare", ".", "../bare.git"]);
    let (files, _) = built(&folder.path().join("bare.git"), Revision::Head).await;
    assert_eq!(files.len(), 3);
    let reftable = folder.path().join("reftable");
    if is_supported(
        folder.path(),
        &["clone", "--quiet", "--ref-format=reftable", "app", "reftable"],
    ) {
        assert_complete(&reftable, "reftable").await;
    }
}

/// Runs `git` in `folder`. An older one knows fewer options.
fn is_supported(folder: &Path, arguments: &[&str]) -> bool {
    let output = std::process::Command::new("git").arg("-C").arg(folder).args(arguments).output();
    output.unwrap().status.success()
}

#[tokio::test]
async fn dirty_keeps_what_is_not_checked_out_and_adds_what_is_new() {
    for options in
        [&["--cone", "app"][..], &["--cone", "--sparse-index", "app"], &["--no-cone", "/app/"]]
    {
        let (_folder, app) = app();
        app.git(&[&["sparse-checkout", "set"], options].concat());
        app.write(&[("app/main", "changed"), ("app/new", "new"), ("other/new", "outside")]);
        let before = app.git(&["count-objects"]);

        let (files, _) = built(&app.path, Revision::Dirty).await;

        let expected = [
            ("app/main", "changed"),
            ("app/new", "new"),
            ("other/new", "outside"),
            ("shared/library", "library"),
            ("top", "top"),
        ];
        let files: Vec<_> =
            files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(files, expected, "{options:?}");
        assert_eq!(app.git(&["count-objects"]), before);
    }
}

#[tokio::test]
async fn the_files_of_a_split_index_stay_in_the_users_repository() {
    let (_folder, app) = app();
    app.git(&["config", "core.splitIndex", "true"]);
    app.git(&["update-index", "--split-index"]);
    app.write(&[("new", "new")]);
    let files_of_git = || fs::read_dir(app.path.join(".git")).unwrap().count();
    let before = files_of_git();
    let (files, _) = built(&app.path, Revision::Dirty).await;
    assert_eq!((files.len(), files_of_git()), (4, before));
}

#[tokio::test]
async fn a_file_that_is_changed_right_after_it_was_added_is_noticed() {
    let (_folder, app) = app();
    // The same length, within the same tick of the clock.
    app.git(&["add", "--all"]);
    app.write(&[("top", "pot")]);
    let (files, _) = built(&app.path, Revision::Dirty).await;
    assert_eq!(files["top"], "pot");
}

#[tokio::test]
async fn filters_of_the_user_apply_to_uncommitted_files() {
    let (_folder, app) = app();
    app.git(&["config", "filter.upper.clean", "tr a-z A-Z"]);
    app.commit(&[(".gitattributes", "loud filter=upper\n"), ("loud", "said")]);
    let (clean, _) = built(&app.path, Revision::Head).await;
    let (dirty, _) = built(&app.path, Revision::Dirty).await;
    assert_eq!(clean["loud"], "SAID");
    assert_eq!(dirty, clean);
}

#[tokio::test]
async fn a_missing_promised_object_is_an_error_in_gits_words() {
    let (_folder, origin) = app();
    let clone = clone(&origin, &["--filter=blob:none", "--no-checkout"]);
    clone.git(&["sparse-checkout", "set", "--cone", "app"]);
    clone.git(&["checkout", "--quiet"]);
    fs::rename(&origin.path, origin.path.with_file_name("gone")).unwrap();
    let error = RunSource::serve(&clone.path, Revision::Head, None).await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("git fetch` failed: fatal: "), "{error}");
}

#[test]
fn sha256_repositories_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    git(folder.path(), &["init", "--quiet", "--object-format=sha256"]);
    let error = UserRepository::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("with sha256 object names"), "{error}");
}

#[test]
fn a_repository_of_another_user_is_refused_with_what_to_do() {
    // Only root can give a folder away.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (_folder, app) = app();
    std::os::unix::fs::chown(&app.path, Some(65_534), None).unwrap();
    let error = UserRepository::open(&app.path.join("app")).unwrap_err().to_string();
    let advice = format!("git config --global --add safe.directory {}", app.path.display());
    assert!(error.ends_with(&advice), "{error}");
}

#[tokio::test]
async fn files_of_git_lfs_come_from_the_folder() {
    let (_folder, app) = app();
    app.git(&["lfs", "install", "--local"]);
    // Nobody answers there, and the folder has the file.
    app.write(&[(".lfsconfig", "[lfs]\n\turl = http://127.0.0.1:1/lfs\n")]);
    app.commit(&[(".gitattributes", "*.bin filter=lfs -text\n"), ("model.bin", "the model")]);
    for revision in [Revision::Head, Revision::Dirty] {
        assert_eq!(built(&app.path, revision).await.0["model.bin"], "the model");
    }
    app.git(&["worktree", "add", "--quiet", "../tree"]);
    let tree = app.path.with_file_name("tree");
    assert_eq!(built(&tree, Revision::Head).await.0["model.bin"], "the model");

    let stored = || git(&app.path.join(".git"), &["count-objects", "-v"]);
    let before = (stored(), fs::read_dir(app.path.join(".git/lfs/objects")).unwrap().count());
    app.write(&[("model.bin", "a new model")]);
    assert_eq!(built(&app.path, Revision::Dirty).await.0["model.bin"], "a new model");
    let after = (stored(), fs::read_dir(app.path.join(".git/lfs/objects")).unwrap().count());
    assert_eq!(before, after);

    app.git(&["rm", "--quiet", "--cached", ".lfsconfig"]);
    fs::remove_file(app.path.join(".lfsconfig")).unwrap();
    // A file that is as new as the index is read again by git, and Git LFS then stores its object again.
    let model = fs::File::options().write(true).open(app.path.join("model.bin")).unwrap();
    model.set_modified(SystemTime::now() - Duration::from_secs(10)).unwrap();
    app.commit(&[]);
    fs::remove_dir_all(app.path.join(".git/lfs/objects")).unwrap();
    let error = try_to_build(&app.path, Revision::Head).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`model.bin` with Git LFS"), "{text}");
    assert!(text.ends_with("it is not in this clone: `git lfs fetch` gets it"), "{text}");
    assert!(error.reason().is_users(), "{error:?}");
}

/// Adds the repository at `url` to `app` as the submodule `path`.
fn add_submodule(app: &Repository, url: &str, path: &str) {
    app.git(&["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", url, path]);
}

#[tokio::test]
async fn submodules_of_a_folder_come_from_the_folder() {
    let (folder, app) = app();
    let inner = Repository::create(folder.path().join("inner"));
    inner.commit(&[("deep", "deep")]);
    let lib = Repository::create(folder.path().join("lib"));
    add_submodule(&lib, "../inner", "inner");
    lib.commit(&[("text", "text")]);
    add_submodule(&app, "../lib", "libs/lib");
    app.git(&["-c", "protocol.file.allow=always", "submodule", "update", "--init", "--recursive"]);
    app.commit(&[]);
    assert_eq!(app.git(&["status", "--short"]), "");
    // What is checked out is enough.
    for gone in [&inner, &lib] {
        fs::rename(&gone.path, gone.path.with_extension("gone")).unwrap();
    }
    let (files, commit) = built(&app.path, Revision::Head).await;
    assert_eq!((&*files["libs/lib/text"], &*files["libs/lib/inner/deep"]), ("text", "deep"));
    assert_eq!(built(&app.path, Revision::Dirty).await, (files, commit));

    app.write(&[("libs/lib/text", "changed"), ("libs/lib/inner/new", "new")]);
    let error = RunSource::serve(&app.path, Revision::Head, None).await.unwrap_err();
    assert!(error.to_string().starts_with("1 file is changed and not committed: libs/lib"));
    let (files, _) = built(&app.path, Revision::Dirty).await;
    assert_eq!((&*files["libs/lib/text"], &*files["libs/lib/inner/new"]), ("changed", "new"));
    let status = git(&app.path.join("libs/lib/inner"), &["status", "--short"]);
    assert_eq!(status, "?? new", "nothing is added to the user's index");
}

#[tokio::test]
async fn submodules_that_the_users_git_does_not_fetch_stay_empty() {
    let (folder, app) = app();
    let lib = Repository::create(folder.path().join("lib"));
    lib.commit(&[("text", "text")]);
    for path in ["fetched", "in-gitmodules", "in-config", "inactive", "checked-out"] {
        add_submodule(&app, "../lib", path);
    }
    app.git(&["config", "--file", ".gitmodules", "submodule.in-gitmodules.update", "none"]);
    app.commit(&[]);
    app.git(&["submodule", "--quiet", "deinit", "--all"]);
    let update = ["submodule", "--quiet", "update", "--init", "checked-out"];
    app.git(&[&["-c", "protocol.file.allow=always"][..], &update].concat());
    for (key, value) in
        [("in-config.update", "none"), ("inactive.active", "off"), ("checked-out.update", "none")]
    {
        app.git(&["config", &format!("submodule.{key}"), value]);
    }

    for revision in [Revision::Head, Revision::Dirty] {
        let (files, _) = built(&app.path, revision).await;
        let modules: Vec<&str> =
            files.keys().filter_map(|path| path.strip_suffix("/text")).collect();
        assert_eq!(modules, ["checked-out", "fetched"]);
    }
}

#[tokio::test]
async fn a_submodule_that_is_not_checked_out_is_fetched_where_git_would() {
    let (folder, app) = app();
    let lib = Repository::create(folder.path().join("lib"));
    lib.commit(&[("text", "text")]);
    let server = GitServer::start();
    server.repository("remote", true).commit(&[("text", "remote")]);
    add_submodule(&app, "../lib", "near");
    let remote = server.folder().join("remote");
    add_submodule(&app, remote.to_str().unwrap(), "far");
    let url = "https://git.example/remote/.git";
    app.git(&["config", "--file", ".gitmodules", "submodule.far.url", url]);
    app.commit(&[]);
    app.git(&["submodule", "--quiet", "deinit", "--all"]);
    let base = server.url("open", "");
    app.git(&["config", &format!("url.{base}.insteadOf"), "https://git.example/"]);

    let (files, _) = built(&app.path, Revision::Head).await;
    assert_eq!((&*files["near/text"], &*files["far/text"]), ("text", "remote"));

    fs::rename(&lib.path, lib.path.with_extension("gone")).unwrap();
    let error = try_to_build(&app.path, Revision::Head).await.unwrap_err();
    let text = format!("{:#}", anyhow::Error::new(error));
    assert!(text.starts_with("cannot fetch the submodule `near` from ../lib: "), "{text}");
    assert!(
        text.contains("/lib\" cannot be cloned: it is a folder; `git submodule update --init`"),
        "{text}"
    );
}
