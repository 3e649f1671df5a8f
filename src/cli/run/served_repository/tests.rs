//! Serves commits of real repositories made by Git.

use std::process::Command;

use tempfile::TempDir;

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
fn the_checked_out_commit_is_served_under_its_branch() {
    let folder = repository();
    fs::create_dir(folder.path().join("deep")).unwrap();
    let served = ServedRepository::new(&folder.path().join("deep"), Revision::Head).unwrap();
    assert_eq!(served.commit.to_string(), git(folder.path(), &["rev-parse", "HEAD"]));
    assert_eq!(served.name.as_deref(), Some("refs/heads/main"));
    assert_eq!(git(served.path(), &["log", "--format=%s", "main"]), "one");
}

#[test]
fn uncommitted_changes_are_refused_or_included() {
    let folder = repository();
    let path = folder.path();
    fs::write(path.join(".gitignore"), "ignored\n").unwrap();
    fs::write(path.join("ignored"), "").unwrap();
    fs::write(path.join("kept"), "changed").unwrap();
    fs::remove_file(path.join("gone")).unwrap();
    let error = ServedRepository::new(path, Revision::Head).unwrap_err().to_string();
    assert!(error.starts_with("3 files are changed and not committed: .gitignore, "), "{error}");
    let before = git(path, &["count-objects"]);

    let served = ServedRepository::new(path, Revision::Dirty).unwrap();

    let listed = git(served.path(), &["ls-tree", "--name-only", "main"]);
    assert_eq!(listed, ".gitignore\nkept");
    assert_eq!(git(served.path(), &["show", "main:kept"]), "changed");
    assert_eq!(ServedRepository::new(path, Revision::Dirty).unwrap().commit, served.commit);
    // The user's repository is unchanged.
    assert_eq!(git(path, &["count-objects"]), before);
    assert_eq!(git(path, &["status", "--short"]).lines().count(), 3);
}

#[test]
fn branches_tags_and_commits_are_found_by_name() {
    let folder = repository();
    git(folder.path(), &["tag", "v1"]);
    git(folder.path(), &["commit", "--quiet", "--allow-empty", "--message", "two"]);
    let take = |name| ServedRepository::new(folder.path(), Revision::Ref(name));
    let tagged = take("v1").unwrap();
    assert_eq!(tagged.name.as_deref(), Some("refs/tags/v1"));
    let parent = take("HEAD~1").unwrap();
    assert_eq!((&parent.commit, &parent.name), (&tagged.commit, &None));
    assert_eq!(take("main").unwrap().name.as_deref(), Some("refs/heads/main"));
    assert!(take("nowhere").unwrap_err().to_string().ends_with("tag or commit \"nowhere\""));
}

#[test]
fn the_base_is_served_under_its_branch_if_no_other_commit_has_that_name() {
    let folder = repository();
    let path = folder.path();
    let first = git(path, &["rev-parse", "HEAD"]);
    git(path, &["update-ref", "refs/remotes/origin/main", &first]);
    git(path, &["checkout", "--quiet", "-b", "feature"]);
    git(path, &["commit", "--quiet", "--allow-empty", "--message", "two"]);
    let base_of = |name| {
        let served = ServedRepository::new(path, Revision::Head).unwrap();
        let base = served.add_base(name).unwrap();
        assert_eq!(git(served.path(), &["rev-parse", &base]), first, "{name}");
        base
    };
    assert_eq!(base_of("main"), "main");
    assert_eq!(base_of("origin/main"), "main");
    assert_eq!(base_of("HEAD~1"), first);
    assert_eq!(base_of(&first), first);
    // The branch that is built and its remote branch have the same name.
    git(path, &["checkout", "--quiet", "-B", "main"]);
    let ahead = ServedRepository::new(path, Revision::Head).unwrap();
    assert_eq!(ahead.add_base("origin/main").unwrap(), first);
    assert_ne!(git(ahead.path(), &["rev-parse", "main"]), first);
    let error = ahead.add_base("nowhere").unwrap_err().to_string();
    assert!(error.ends_with("tag or commit \"nowhere\""), "{error}");
}

#[test]
fn head_is_the_default_branch_not_the_checked_out_branch() {
    let folder = repository();
    let path = folder.path();
    let first = git(path, &["rev-parse", "HEAD"]);
    let default = || {
        let served = ServedRepository::new(path, Revision::Head).unwrap();
        let refs = git(served.path(), &["ls-remote", "--symref", ".", "HEAD"]);
        let first_line = refs.lines().next().unwrap_or_default();
        first_line.trim_start_matches("ref: ").trim_end_matches("\tHEAD").to_owned()
    };
    assert_eq!(default(), "refs/heads/main");
    git(path, &["checkout", "--quiet", "-b", "feature"]);
    assert_eq!(default(), "refs/heads/main");
    git(path, &["branch", "--quiet", "--move", "main", "trunk"]);
    assert_eq!(default(), "refs/heads/feature", "no other branch is known to be the default");
    git(path, &["update-ref", "refs/remotes/origin/devel", &first]);
    git(path, &["symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/devel"]);
    assert_eq!(default(), "refs/heads/devel");
    git(path, &["checkout", "--quiet", "--detach"]);
    assert_eq!(default(), "refs/heads/devel");
}

#[test]
fn a_missing_repository_and_a_missing_commit_are_different_errors() {
    let folder = tempfile::tempdir().unwrap();
    let error = ServedRepository::new(folder.path(), Revision::Head).unwrap_err();
    assert!(matches!(error, FolderError::NoRepository(_)));
    git(folder.path(), &["init", "--quiet", "--initial-branch=main"]);
    let error = ServedRepository::new(folder.path(), Revision::Head).unwrap_err();
    assert!(matches!(error, FolderError::NoCommit(_)));
    fs::write(folder.path().join("file"), "").unwrap();
    let served = ServedRepository::new(folder.path(), Revision::Dirty).unwrap();
    assert_eq!(served.name.as_deref(), Some("refs/heads/main"));
}
