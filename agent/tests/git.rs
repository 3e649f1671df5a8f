//! Clones over real HTTP, from git's own server.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use secrecy::SecretString;
use stagely_agent::git::{
    BYTES_MAX, ChangedPath, CloneError, FetchRequest, FetchWait, changed_paths, fetch_commit,
    fetch_commit_and_objects, fetch_commit_and_report, resolve_ref,
};
use stagely_protocol::{CommitSha, Submodules};
use stagely_test_support::git::{GitServer, Repository, TOKEN};
use stagely_test_support::wait::eventually;
use tokio_util::sync::CancellationToken;

fn request(url: String, commit: &CommitSha) -> FetchRequest {
    FetchRequest {
        url,
        commit: commit.clone(),
        branch: None,
        token: None,
        submodules: Submodules::All,
        large_files: true,
        bytes_max: BYTES_MAX,
    }
}

fn with_token(request: FetchRequest, token: &str) -> FetchRequest {
    FetchRequest { token: Some(token.to_owned().into()), ..request }
}

/// Fetches and returns the text of `file`.
async fn fetch(request: FetchRequest, file: &str) -> Result<String, CloneError> {
    let folder = tempfile::tempdir().unwrap();
    let dest = folder.path().join("src");
    let checkout = fetch_commit(request, &dest, &CancellationToken::new()).await?;
    assert!(checkout.bytes > 0);
    let file = dest.join(file);
    // Also where the file is in a submodule.
    for folder in file.ancestors().skip(1).take_while(|folder| folder.starts_with(&dest)) {
        assert!(!folder.join(".git").exists(), "{}", folder.display());
    }
    Ok(fs::read_to_string(file).unwrap())
}

fn long_history(server: &GitServer, name: &str, bare_commits: bool) -> [CommitSha; 3] {
    let repository = server.repository(name, bare_commits);
    let first = repository.commit(&[("file", "first")]);
    for number in 0..80 {
        repository.git(&["commit", "--quiet", "--allow-empty", "-m", &number.to_string()]);
    }
    let second = repository.commit(&[("file", "second")]);
    repository.git(&["switch", "--quiet", "--create", "feature/new-api"]);
    let third = repository.commit(&[("file", "third")]);
    repository.git(&["switch", "--quiet", "main"]);
    [first, second, third]
}

#[tokio::test]
async fn any_commit_is_fetched_alone_if_the_server_allows_it() {
    let server = GitServer::start();
    let commits = long_history(&server, "app", true);
    for (commit, text) in commits.iter().zip(["first", "second", "third"]) {
        let request = request(server.url("open", "app/.git"), commit);
        assert_eq!(fetch(request, "file").await.unwrap(), text);
    }
    let folder = tempfile::tempdir().unwrap();
    let request = request(server.url("open", "app/.git"), &commits[1]);
    let checkout = fetch_commit(request, folder.path(), &CancellationToken::new()).await.unwrap();
    // One commit, one tree and one file; the 80 commits before it take 10 KB.
    assert!(checkout.bytes < 1_000, "{checkout:?}");
}

#[tokio::test]
async fn without_single_commits_the_branch_is_fetched_as_deep_as_needed() {
    let server = GitServer::start();
    let commits = long_history(&server, "app", false);
    for branch in [None, Some("main"), Some("feature/new-api"), Some("deleted")] {
        for (commit, text) in commits.iter().zip(["first", "second", "third"]) {
            let branch = branch.map(str::to_owned);
            let request =
                FetchRequest { branch, ..request(server.url("open", "app/.git"), commit) };
            assert_eq!(fetch(request, "file").await.unwrap(), text);
        }
    }
}

#[test]
fn modes_come_from_git_whatever_the_umask_is() {
    let server = GitServer::start();
    let repository = server.repository("app", true);
    fs::create_dir_all(repository.path.join("bin")).unwrap();
    fs::write(repository.path.join("bin/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(repository.path.join("bin/run"), fs::Permissions::from_mode(0o755))
        .unwrap();
    let commit = repository.commit(&[("text", "a text")]);
    let request = request(server.url("open", "app/.git"), &commit);
    for mask in [0o077, 0o000, 0o022] {
        let request = request.clone();
        // The new thread has its own umask, and so have the threads that it starts.
        let checked_out = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            umask(Mode::from_bits_truncate(mask));
            let folder = tempfile::tempdir().unwrap();
            let dest = folder.path().join("src");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let stop = CancellationToken::new();
            runtime.unwrap().block_on(fetch_commit(request, &dest, &stop)).unwrap();
            let mode = |path: &str| dest.join(path).metadata().unwrap().permissions().mode();
            ["text", "bin/run", "bin"].map(|path| mode(path) & 0o7777)
        });
        assert_eq!(checked_out.join().unwrap(), [0o644, 0o755, 0o755], "umask {mask:o}");
    }
}

#[tokio::test]
async fn submodules_that_git_does_not_fetch_stay_empty() {
    let server = GitServer::start();
    server.repository("lib", true).commit(&[("text", "of the submodule")]);
    let app = server.repository("app", true);
    app.commit(&[("text", "of the repository")]);
    let lib = app.path.parent().unwrap().join("lib");
    for path in ["stray", "unwanted"] {
        app.git(&["clone", "--quiet", lib.to_str().unwrap(), path]);
    }
    let modules =
        "[submodule \"unwanted\"]\n path = unwanted\n url = ../lib/.git\n update = none\n";
    let commit = app.commit(&[(".gitmodules", modules)]);
    let folder = tempfile::tempdir().unwrap();
    let dest = folder.path().join("src");
    let request = request(server.url("open", "app/.git"), &commit);

    let checkout = fetch_commit(request, &dest, &CancellationToken::new()).await.unwrap();

    assert_eq!(
        (checkout.submodules, &checkout.without_address[..]),
        (0, &["stray".to_owned()][..])
    );
    for path in ["stray", "unwanted"] {
        assert_eq!(fs::read_dir(dest.join(path)).unwrap().count(), 0, "{path}");
    }
}

#[tokio::test]
async fn gitattributes_of_any_folder_determine_line_ends() {
    let server = GitServer::start();
    let repository = server.repository("app", true);
    let plain = repository.commit(&[("windows/file.bat", "one\ntwo\n")]);
    let with_attributes = repository.commit(&[("windows/.gitattributes", "*.bat text eol=crlf\n")]);
    for (commit, text) in [(plain, "one\ntwo\n"), (with_attributes, "one\r\ntwo\r\n")] {
        let request = request(server.url("open", "app/.git"), &commit);
        assert_eq!(fetch(request, "windows/file.bat").await.unwrap(), text);
    }
}

#[tokio::test]
async fn missing_repositories_commits_and_servers_are_different_errors() {
    let server = GitServer::start();
    let commit = server.repository("app", true).commit(&[("file", "text")]);
    server.repository("strict", false).commit(&[("file", "text")]);
    let fetch_from = |url, commit: &CommitSha| fetch(request(url, commit), "file");

    let gone: CommitSha = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
    // Where bare commits are served, the branches are not searched.
    for (repository, searched) in [("app/.git", false), ("strict/.git", true)] {
        let before = server.requests().lines().count();
        let error = fetch_from(server.url("open", repository), &gone).await.unwrap_err();
        assert!(matches!(error, CloneError::CommitGone { .. }), "{error:?}");
        let requests = server.requests().lines().count() - before;
        assert_eq!(requests > 3, searched, "{}", server.requests());
    }
    let error = fetch_from(server.url("open", "nothing/.git"), &commit).await.unwrap_err();
    assert!(matches!(error, CloneError::NotFound { .. }), "{error:?}");
    let error = fetch_from(server.url("status", "503/app"), &commit).await.unwrap_err();
    assert!(matches!(error, CloneError::Network { .. }), "{error:?}");
    let error = fetch_from("http://127.0.0.1:1/app".to_owned(), &commit).await.unwrap_err();
    assert!(matches!(error, CloneError::Network { .. }), "{error:?}");
    let refused = [
        "file:///etc",
        "/etc",
        "ssh://git@127.0.0.1/app",
        "http://u:secret@127.0.0.1/app",
        "http://secret@127.0.0.1/app",
    ];
    for url in refused {
        let error = fetch_from(url.to_owned(), &commit).await.unwrap_err();
        assert!(matches!(error, CloneError::Address { .. }), "{error:?}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_private_repository_needs_the_right_token() {
    let server = GitServer::start();
    let commit = server.repository("app", true).commit(&[("file", "text")]);
    let private = || request(server.url("private", "app/.git"), &commit);

    assert_eq!(fetch(with_token(private(), TOKEN), "file").await.unwrap(), "text");
    for refused in [private(), with_token(private(), "wrong")] {
        let error = fetch(refused, "file").await.unwrap_err();
        assert!(matches!(error, CloneError::Authentication { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_redirect_to_another_host_gets_no_token() {
    let server = GitServer::start();
    let commit = server.repository("app", true).commit(&[("file", "text")]);
    let url = server.url("away", "app/.git");

    let fetched = fetch(with_token(request(url.clone(), &commit), TOKEN), "file").await;
    let (token, cancel) = (Some(SecretString::from(TOKEN)), CancellationToken::new());
    let resolved = resolve_ref(&url, token, "main", &std::env::temp_dir(), &cancel).await;
    // Asking again does not help.
    for error in [fetched.unwrap_err(), resolved.unwrap_err()] {
        assert!(error.to_string().contains("it has moved"), "{error}");
        assert!(!error.reason().is_transient());
    }

    let requests = server.requests();
    assert!(requests.contains("/away/") && !requests.contains("localhost"), "{requests}");
}

/// Run alone, in a process whose user has a git configuration of their own.
const REWRITTEN: &str = "the_users_git_configuration_does_not_apply";

#[tokio::test]
async fn the_users_git_configuration_does_not_apply() {
    let server = GitServer::start();
    let commit = server.repository("app", true).commit(&[("file", "line\n")]);
    if std::env::var_os("GIT_TEST_URL").is_none() {
        let home = tempfile::tempdir().unwrap();
        let config =
            "[url \"http://127.0.0.1:1/\"]\n insteadOf = http://\n[core]\n autocrlf = true\n";
        fs::write(home.path().join(".gitconfig"), config).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", REWRITTEN])
            .envs([("HOME", home.path()), ("XDG_CONFIG_HOME", home.path())])
            .env("GIT_TEST_URL", "set")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let request = with_token(request(server.url("private", "app/.git"), &commit), TOKEN);
    assert_eq!(fetch(request, "file").await.unwrap(), "line\n");
    let (url, token) = (server.url("private", "app/.git"), Some(SecretString::from(TOKEN)));
    let (scratch, cancel) = (std::env::temp_dir(), CancellationToken::new());
    let resolved = resolve_ref(&url, token, "main", &scratch, &cancel).await.unwrap();
    assert_eq!(resolved.commit, commit);
}

#[tokio::test]
async fn submodules_are_fetched_also_nested_and_relative() {
    let server = GitServer::start();
    let inner = server.repository("inner", true);
    inner.commit(&[("file", "inner")]);
    let add = |to: &Repository, url: &str, path: &str| {
        let local = server.url("private", "inner/.git");
        let auth = local.replace("http://", &format!("http://x:{TOKEN}@"));
        let origin =
            if url == "../../middle/.git" { auth.replace("inner", "middle") } else { auth };
        to.git(&["submodule", "--quiet", "add", &origin, path]);
        to.git(&["config", "--file", ".gitmodules", &format!("submodule.{path}.url"), url]);
        to.commit(&[])
    };
    let middle = server.repository("middle", false);
    add(&middle, &server.url("private", "inner/.git"), "deep");
    let outer = server.repository("outer", true);
    let commit = add(&outer, "../../middle/.git", "libs/middle");

    let request = with_token(request(server.url("private", "outer/.git"), &commit), TOKEN);
    let text = fetch(request.clone(), "libs/middle/deep/file").await.unwrap();
    assert_eq!(text, "inner");

    let folder = tempfile::tempdir().unwrap();
    let request = FetchRequest { submodules: Submodules::None, ..request };
    fetch_commit(request, folder.path(), &CancellationToken::new()).await.unwrap();
    assert!(!folder.path().join("libs/middle/deep").exists());
}

#[tokio::test]
async fn a_clone_that_hangs_is_cancelled() {
    let server = GitServer::start();
    let commit = server.repository("app", true).commit(&[("file", "text")]);
    let (cancel, folder) = (CancellationToken::new(), tempfile::tempdir().unwrap());
    let request = request(server.url("hang", "app/.git"), &commit);
    let started = Instant::now();
    let (result, ()) = tokio::join!(fetch_commit(request, folder.path(), &cancel), async {
        eventually("the clone's request hangs", async || {
            (!server.requests().is_empty()).then_some(())
        })
        .await;
        cancel.cancel();
    });
    assert!(matches!(result, Err(CloneError::Cancelled)));
    // The server hangs for an hour; silence would end the clone after a minute.
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_silent_server_is_reported_within_two_seconds() {
    let server = GitServer::start();
    let commit = server.repository("app", true).commit(&[("file", "text")]);
    let (cancel, folder) = (CancellationToken::new(), tempfile::tempdir().unwrap());
    let request = request(server.url("hang", "app/.git"), &commit);
    let started = Instant::now();
    let waits = RefCell::new(Vec::new());
    let on_wait = |wait| {
        waits.borrow_mut().push((wait, started.elapsed()));
        cancel.cancel();
    };
    let result = fetch_commit_and_report(request, folder.path(), on_wait, &cancel).await;
    assert!(matches!(result, Err(CloneError::Cancelled)), "{result:?}");
    let waits = waits.into_inner();
    let [(FetchWait::Silence, after)] = waits[..] else { panic!("{waits:?}") };
    let expected = Duration::from_millis(1_400)..Duration::from_millis(2_500);
    assert!(expected.contains(&after), "{after:?}");
    assert_eq!(FetchWait::Silence.limit(), Duration::from_mins(1));
}

#[tokio::test]
async fn names_are_resolved_to_commits() {
    let server = GitServer::start();
    let repository = server.repository("app", true);
    let commit = repository.commit(&[("file", "text")]);
    repository.git(&["tag", "light"]);
    repository.git(&["tag", "--annotate", "--message", "x", "v1"]);
    repository.git(&["branch", "feature/x"]);
    let (url, cancel) = (server.url("private", "app/.git"), CancellationToken::new());
    let token = || Some(SecretString::from(TOKEN));
    let cases = [
        ("HEAD", Some("refs/heads/main")),
        ("main", Some("refs/heads/main")),
        ("feature/x", Some("refs/heads/feature/x")),
        ("v1", Some("refs/tags/v1")),
        ("refs/tags/light", Some("refs/tags/light")),
        (commit.as_str(), None),
    ];
    let scratch = std::env::temp_dir();
    for (name, full) in cases {
        let resolved = resolve_ref(&url, token(), name, &scratch, &cancel).await.unwrap();
        assert_eq!((&resolved.commit, resolved.name.as_deref()), (&commit, full), "{name}");
        assert_eq!(resolved.default_branch.as_deref(), full.map(|_| "main"), "{name}");
    }
    let error = resolve_ref(&url, token(), "nothing", &scratch, &cancel).await.unwrap_err();
    assert!(matches!(error, CloneError::CommitGone { .. }));
    let error = resolve_ref(&url, None, "main", &scratch, &cancel).await.unwrap_err();
    assert!(matches!(error, CloneError::Authentication { .. }), "{error:?}");
}

/// What changed from each of `olds` to `head`, sorted, with a `+` before added paths; the checkout of `head` has no `.git`.
async fn changes(url: &str, head: &CommitSha, olds: &[&CommitSha]) -> Vec<Vec<String>> {
    let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let (dest, objects) = (folder.path().join("src"), folder.path().join("objects"));
    let head_request = FetchRequest { branch: Some("main".into()), ..request(url.into(), head) };
    fetch_commit_and_objects(head_request.clone(), &dest, &objects, &cancel).await.unwrap();
    assert!(!dest.join(".git").exists());
    let mut all = Vec::new();
    for old in olds {
        let request = FetchRequest { commit: (*old).clone(), ..head_request.clone() };
        let paths = changed_paths(request, head, &objects, &cancel).await.unwrap();
        let mark = |changed: &ChangedPath| if changed.is_added { "+" } else { "" };
        let mut paths: Vec<_> =
            paths.iter().map(|changed| format!("{}{}", mark(changed), changed.path)).collect();
        paths.sort();
        all.push(paths);
    }
    all
}

#[tokio::test]
async fn changed_paths_are_found_without_the_commits_between() {
    let server = GitServer::start();
    for bare_commits in [true, false] {
        let name = if bare_commits { "app" } else { "strict" };
        let repository = server.repository(name, bare_commits);
        let first = repository.commit(&[("api/main.c", "1"), ("web/a", "1"), ("gone", "x")]);
        let second = repository.commit(&[("api/main.c", "2")]);
        repository.git(&["rm", "--quiet", "gone"]);
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(repository.path.join("web/a"), mode).unwrap();
        let head = repository.commit(&[("web/\u{e9}", "new"), ("README", "x")]);
        let newer = repository.commit(&[("later", "x")]);

        let url = server.url("open", &format!("{name}/.git"));
        let changes = changes(&url, &head, &[&second, &first, &head, &newer]).await;

        let since_second = ["+README", "+web/\u{e9}", "gone", "web/a"];
        assert_eq!(changes[0], since_second, "{name}");
        assert_eq!(changes[1], ["+README", "+web/\u{e9}", "api/main.c", "gone", "web/a"], "{name}");
        assert!(changes[2].is_empty(), "{changes:?}");
        assert_eq!(changes[3], ["later"], "{name}");
    }
}

#[tokio::test]
async fn comparing_with_a_commit_of_countless_files_is_refused() {
    let server = GitServer::start();
    let repository = server.repository("bomb", true);
    // Ten folders that are the same folder, ten levels deep.
    let mut entry = format!("blob {}", repository.git(&["hash-object", "-w", "/dev/null"]).trim());
    for _ in 0..11 {
        let mode = if entry.starts_with("blob") { "100644" } else { "40000" };
        let names = (0..10).map(|name| format!("{mode} {entry}\t{name}\n"));
        let listed = names.collect::<String>();
        let path = repository.path.join("listed");
        fs::write(&path, listed).unwrap();
        let tree = Command::new("git")
            .arg("mktree")
            .current_dir(&repository.path)
            .stdin(fs::File::open(&path).unwrap())
            .output()
            .unwrap();
        entry = format!("tree {}", String::from_utf8(tree.stdout).unwrap().trim());
    }
    let tree = entry.strip_prefix("tree ").unwrap();
    let bomb: CommitSha = repository.git(&["commit-tree", tree, "-m", "x"]).trim().parse().unwrap();
    repository.git(&["branch", "bomb", bomb.as_str()]);
    let head = repository.commit(&[("file", "text")]);
    let folder = tempfile::tempdir().unwrap();
    let (dest, objects) = (folder.path().join("src"), folder.path().join("objects"));
    let (url, cancel) = (server.url("open", "bomb/.git"), CancellationToken::new());
    let fetched = request(url.clone(), &head);
    fetch_commit_and_objects(fetched, &dest, &objects, &cancel).await.unwrap();

    let error = changed_paths(request(url, &bomb), &head, &objects, &cancel).await.unwrap_err();

    assert_eq!(error.to_string(), "the repository has more than 1000000 files");
}

#[tokio::test]
async fn a_fetch_ends_when_it_has_received_or_would_write_too_much() {
    let server = GitServer::start();
    let repository = server.repository("large", true);
    let noise: Vec<u8> = (0..3_000_000).map(|_| rand::random()).collect();
    fs::write(repository.path.join("noise"), noise).unwrap();
    let large_commit = repository.commit(&[]);
    let module = server.repository("module", true);
    // The packs are small, and each checkout for itself has less than the limit.
    module.commit(&[("zeros", &"0".repeat(60_000))]);
    let parent = server.repository("parent", true);
    let url = server.url("open", "module/.git");
    parent.git(&["-c", "protocol.allow=always", "submodule", "--quiet", "add", &url, "module"]);
    let split = parent.commit(&[("zeros", &"0".repeat(60_000))]);

    for (name, commit) in [("large", &large_commit), ("parent", &split)] {
        let folder = tempfile::tempdir().unwrap();
        let request = request(server.url("open", &format!("{name}/.git")), commit);
        let limited = FetchRequest { bytes_max: 100_000, ..request.clone() };
        let cancel = CancellationToken::new();
        let error = fetch_commit(limited, &folder.path().join("one"), &cancel).await.unwrap_err();
        assert!(matches!(innermost(&error), CloneError::DiskFull), "{name}: {error:?}");
        fetch_commit(request, &folder.path().join("two"), &cancel).await.unwrap();
    }
}

fn innermost(error: &CloneError) -> &CloneError {
    match error {
        CloneError::Submodule { source, .. } => innermost(source),
        error => error,
    }
}

#[tokio::test]
async fn comparing_with_a_missing_commit_is_an_error_of_its_own() {
    let server = GitServer::start();
    let gone: CommitSha = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
    for bare_commits in [true, false] {
        let name = if bare_commits { "app" } else { "strict" };
        let head = server.repository(name, bare_commits).commit(&[("file", "text")]);
        let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let (dest, objects) = (folder.path().join("src"), folder.path().join("objects"));
        let request = request(server.url("open", &format!("{name}/.git")), &head);
        fetch_commit_and_objects(request.clone(), &dest, &objects, &cancel).await.unwrap();

        let request = FetchRequest { commit: gone.clone(), ..request };
        let error = changed_paths(request, &head, &objects, &cancel).await.unwrap_err();

        assert!(matches!(error, CloneError::CommitGone { .. }), "{error:?}");
    }
}

/// Makes git keep `*.bin` of `repository` with Git LFS, and fetch nothing on a checkout.
fn with_lfs(repository: &Repository) {
    repository.git(&["lfs", "install", "--local", "--skip-smudge"]);
    repository.write(&[(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")]);
}

#[tokio::test]
async fn files_of_git_lfs_are_fetched_with_their_modes() {
    let server = GitServer::start();
    let app = server.repository("app", true);
    with_lfs(&app);
    // More than one batch, and two files with the same content.
    let names: Vec<String> = (0..130).map(|number| format!("many/{number}.bin")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), name.as_str())).collect();
    app.write(&files);
    app.write(&[("copy.bin", "many/7.bin"), ("run.bin", "#!/bin/sh\n"), ("empty.bin", "")]);
    fs::set_permissions(app.path.join("run.bin"), fs::Permissions::from_mode(0o755)).unwrap();
    let commit = app.commit(&[]);
    assert!(app.git(&["show", "HEAD:run.bin"]).starts_with("version https://git-lfs"));
    let request = with_token(request(server.url("private", "app/.git"), &commit), TOKEN);

    let folder = tempfile::tempdir().unwrap();
    let checkout = fetch_commit(request, folder.path(), &CancellationToken::new()).await.unwrap();

    assert_eq!(checkout.large_files, 132);
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(names.iter().all(|name| text(name) == *name));
    assert_eq!((&*text("copy.bin"), &*text("empty.bin")), ("many/7.bin", ""));
    let mode = folder.path().join("run.bin").metadata().unwrap().permissions().mode();
    assert_eq!((&*text("run.bin"), mode & 0o777), ("#!/bin/sh\n", 0o755));
}

#[tokio::test]
async fn another_lfs_server_gets_no_token() {
    let (server, other) = (GitServer::start(), GitServer::start());
    let app = server.repository("app", true);
    with_lfs(&app);
    let url = other.url("open", "app/.git/info/lfs");
    app.write(&[(".lfsconfig", &format!("[lfs]\n\turl = {url}\n"))]);
    let commit = app.commit(&[("model.bin", "the model")]);
    let elsewhere = other.repository("app", true).path.join(".git/lfs");
    fs::rename(app.path.join(".git/lfs"), elsewhere).unwrap();
    let request = with_token(request(server.url("private", "app/.git"), &commit), TOKEN);
    assert_eq!(fetch(request.clone(), "model.bin").await.unwrap(), "the model");

    // The server of the repository may name another port for an object.
    app.git(&["rm", "--quiet", ".lfsconfig"]);
    let commit = app.commit(&[]);
    let href = other.url("private", "app/.git/info/lfs/objects/0123");
    let answer = serde_json::json!({ "actions": { "download": { "href": href } } });
    fs::write(server.folder().join("LFS_ANSWER"), answer.to_string()).unwrap();
    let error = fetch(FetchRequest { commit, ..request }, "model.bin").await.unwrap_err();
    assert!(error.to_string().contains("`model.bin` with Git LFS"), "{error}");

    let requests = other.requests();
    assert!(requests.contains("/objects/batch -") && requests.contains("/0123 -"), "{requests}");
    assert!(requests.lines().all(|line| line.ends_with(" -")), "{requests}");
}

#[tokio::test]
async fn a_missing_or_wrong_lfs_object_is_an_error_with_its_path() {
    let server = GitServer::start();
    let lib = server.repository("lib", true);
    with_lfs(&lib);
    lib.commit(&[("model.bin", "of the submodule")]);
    let app = server.repository("app", true);
    let url = server.url("open", "lib/.git");
    app.git(&["-c", "filter.lfs.smudge=cat", "submodule", "--quiet", "add", &url, "libs/lib"]);
    with_lfs(&app);
    let commit = app.commit(&[("big/one.bin", "large")]);
    let request = || request(server.url("open", "app/.git"), &commit);
    assert_eq!(fetch(request(), "libs/lib/model.bin").await.unwrap(), "of the submodule");
    assert_eq!(fetch(request(), "big/one.bin").await.unwrap(), "large");

    let objects = |repository: &Repository| repository.path.join(".git/lfs/objects");
    fs::rename(objects(&lib), lib.path.join("away")).unwrap();
    let error = fetch(request(), "big/one.bin").await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("cannot fetch `libs/lib/model.bin` with Git LFS from http"), "{text}");
    assert!(text.ends_with("/lib/.git/info/lfs: Object does not exist"), "{text}");
    assert!(error.reason().is_users() && !error.reason().is_transient(), "{error:?}");
    fs::rename(lib.path.join("away"), objects(&lib)).unwrap();

    let id = app.git(&["lfs", "ls-files", "--long"]);
    let id = id.split(' ').next().unwrap();
    let file = objects(&app).join(&id[..2]).join(&id[2..4]).join(id);
    fs::remove_file(&file).unwrap();
    for (content, words) in [("wrong", "its SHA-256 is "), ("longer", "it has 6 bytes or more")] {
        fs::write(&file, content).unwrap();
        let error = fetch(request(), "big/one.bin").await.unwrap_err().to_string();
        assert!(error.contains("big/one.bin") && error.contains(words), "{error}");
    }

    // Whoever reads only the manifest needs no large files.
    let before = server.requests().lines().count();
    let request = FetchRequest { large_files: false, ..request() };
    assert!(fetch(request, "big/one.bin").await.unwrap().starts_with("version https://git-lfs"));
    assert!(!server.requests().lines().skip(before).any(|line| line.contains("/lfs/")));
}

#[tokio::test]
async fn encodings_of_attributes_are_applied_and_other_filters_reported() {
    let server = GitServer::start();
    let app = server.repository("app", true);
    let attributes = "*.ps1 text working-tree-encoding=UTF-16LE-BOM eol=crlf\n\
                      *.txt working-tree-encoding=latin1\nsecret/* filter=git-crypt\n";
    app.write(&[(".gitattributes", attributes), ("secret/a", "encrypted"), ("secret/b", "too")]);
    fs::write(app.path.join("run.ps1"), [0xff, 0xfe, 0xe9, 0, 0x0d, 0, 0x0a, 0]).unwrap();
    fs::write(app.path.join("old.txt"), [0xe9]).unwrap();
    let commit = app.commit(&[]);
    assert_eq!(app.git(&["show", "HEAD:run.ps1"]), "é");
    let folder = tempfile::tempdir().unwrap();
    let (url, cancel) = (server.url("open", "app/.git"), CancellationToken::new());

    let checkout = fetch_commit(request(url.clone(), &commit), folder.path(), &cancel).await;

    for file in ["run.ps1", "old.txt"] {
        let bytes = |root: &Path| fs::read(root.join(file)).unwrap();
        assert_eq!(bytes(folder.path()), bytes(&app.path), "{file}");
    }
    let unapplied = checkout.unwrap().unapplied_filters;
    let [unapplied] = &unapplied[..] else { panic!("{unapplied:?}") };
    assert_eq!((&*unapplied.filter, &*unapplied.path), ("git-crypt", "secret/a"));

    fs::write(app.path.join(".gitattributes"), "*.txt working-tree-encoding=klingon\n").unwrap();
    app.git(&["update-index", "--add", ".gitattributes"]);
    app.git(&["commit", "--quiet", "--message", "an unknown encoding"]);
    let error = fetch(request(url, &app.head()), "old.txt").await.unwrap_err();
    let words = "`old.txt` with `working-tree-encoding=klingon`: the encoding is not known";
    assert!(error.to_string().ends_with(words), "{error}");
    assert!(!error.reason().is_transient());
}

#[tokio::test]
async fn a_repository_that_has_moved_on_its_server_is_followed() {
    let server = GitServer::start();
    server.repository("lib", true).commit(&[("text", "of the submodule")]);
    let app = server.repository("app", true);
    let here = |path: &str| server.url("open", path).replace("http://", "");
    let moved = |path: &str| server.url("to", &here(path));
    app.git(&["submodule", "--quiet", "add", &moved("lib/.git"), "lib"]);
    let commit = app.commit(&[("file", "text")]);
    let request = request(moved("app/.git"), &commit);
    assert_eq!(fetch(request.clone(), "lib/text").await.unwrap(), "of the submodule");
    let (scratch, cancel) = (std::env::temp_dir(), CancellationToken::new());
    let resolved = resolve_ref(&request.url, None, "main", &scratch, &cancel).await.unwrap();
    assert_eq!(resolved.commit, commit);
}

#[tokio::test]
async fn the_token_does_not_follow_to_another_port() {
    let (server, other) = (GitServer::start(), GitServer::start());
    let commit = other.repository("app", true).commit(&[("file", "text")]);
    let target = other.url("private", "app/.git");
    // The second asks for the token before it redirects.
    for area in ["to", "private-to"] {
        let url = server.url(area, &target.replace("http://", ""));
        let fetched = fetch(with_token(request(url.clone(), &commit), TOKEN), "file").await;
        let (token, cancel) = (Some(SecretString::from(TOKEN)), CancellationToken::new());
        let resolved = resolve_ref(&url, token, "main", &std::env::temp_dir(), &cancel).await;
        for error in [fetched.unwrap_err(), resolved.unwrap_err()] {
            assert!(!error.reason().is_transient());
            let is_named =
                error.to_string().contains(&format!("it has moved (redirected to {target}"));
            assert!(is_named || area == "private-to", "{error}");
        }
    }
    let requests = other.requests();
    assert!(requests.lines().all(|line| line.ends_with(" -")), "{requests}");
}

#[tokio::test]
async fn an_error_of_a_submodule_has_its_path_and_both_addresses() {
    let server = GitServer::start();
    let app = server.repository("app", true);
    let lib = server.repository("lib", true);
    lib.commit(&[("text", "text")]);
    app.git(&["clone", "--quiet", lib.path.to_str().unwrap(), "libs/lib"]);
    let modules = "[submodule \"lib\"]\n path = libs/lib\n url = ../../gone/.git\n";
    let commit = app.commit(&[(".gitmodules", modules)]);
    let error = fetch(request(server.url("open", "app/.git"), &commit), "file").await.unwrap_err();
    let text = format!("{:#}", anyhow::Error::new(error));
    let gone = server.url("open", "gone/.git");
    let expected =
        format!("cannot fetch the submodule `libs/lib` from ../../gone/.git: {gone} was not found");
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_shallow_submodule_is_not_searched_in_its_history() {
    let server = GitServer::start();
    let lib = server.repository("lib", false);
    lib.commit(&[("text", "old")]);
    let app = server.repository("app", true);
    app.git(&["submodule", "--quiet", "add", &server.url("open", "lib/.git"), "lib"]);
    let commit = app.commit(&[]);
    lib.commit(&[("text", "new")]);
    let request = request(server.url("open", "app/.git"), &commit);
    assert_eq!(fetch(request.clone(), "lib/text").await.unwrap(), "old");
    let request = FetchRequest { submodules: Submodules::Shallow, ..request };
    let error = format!("{:#}", anyhow::Error::new(fetch(request, "lib/text").await.unwrap_err()));
    assert!(error.contains("has no "), "{error}");
}

#[tokio::test]
async fn repositories_that_libgit2_cannot_read_are_refused_at_once() {
    let server = GitServer::start();
    let app = server.repository("app", true);
    app.commit(&[("file", "old")]);
    let commit = app.commit(&[("file", "text")]);
    let path = |name: &str| server.folder().join(name).to_str().unwrap().to_owned();
    let url = format!("file://{}", app.path.display());
    app.git(&["clone", "--quiet", "--depth=1", &url, &path("shallow")]);
    app.git(&["init", "--quiet", "--object-format=sha256", &path("sha256")]);
    for (name, words) in [("shallow", "it is a shallow clone"), ("sha256", "are not sha1")] {
        let url = server.url("open", &format!("{name}/.git"));
        let fetched = fetch(request(url.clone(), &commit), "file").await.unwrap_err();
        let (scratch, cancel) = (std::env::temp_dir(), CancellationToken::new());
        let resolved = resolve_ref(&url, None, "main", &scratch, &cancel).await.unwrap_err();
        for error in [fetched, resolved] {
            assert!(error.to_string().contains(words), "{error}");
            assert!(!error.reason().is_transient());
        }
    }
}
