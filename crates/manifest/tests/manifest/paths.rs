//! Contexts, Dockerfiles, compose files and the file itself inside a checkout.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use stagely_manifest::{check_paths, read_checkout, validate};

use super::accepted;

fn repository(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "FROM scratch\n").unwrap();
    }
    folder
}

fn problems(text: &str, root: &Path) -> Vec<String> {
    let problems = validate("stagely.yaml", text.as_bytes(), root).unwrap_err().to_string();
    problems.lines().map(str::to_owned).collect()
}

#[test]
fn existing_paths_are_found() {
    let root = repository(&["api/Dockerfile", "web/main.c", "docker/web.Dockerfile"]);
    let manifest = accepted(
        "builds:\n  a: {context: api}\n  b: {context: web, dockerfile: docker/web.Dockerfile}\n  \
         c: {context: web, dockerfile: ../api/Dockerfile}\n",
    );
    check_paths(&manifest, root.path(), "stagely.yaml").unwrap();
}

#[test]
fn missing_paths_are_reported_with_their_position() {
    let root = repository(&["api/main.c", "file"]);
    let text = "\
builds:
  a:
    context: api
  b:
    context: api
    dockerfile: prod.Dockerfile
  c: {context: nowhere, machine: big}
  d: {context: file}
  e: {context: /tmp}
";
    assert_eq!(
        problems(text, root.path()),
        [
            "stagely.yaml:3:14: builds.a.dockerfile: no Dockerfile: neither `api/Dockerfile` nor \
             `Dockerfile` is a file of the repository",
            "stagely.yaml:6:17: builds.b.dockerfile: no Dockerfile: neither \
             `api/prod.Dockerfile` nor `prod.Dockerfile` is a file of the repository",
            "stagely.yaml:7:16: builds.c.context: the context `nowhere` is not in the repository",
            "stagely.yaml:7:34: builds.c.machine: `big` is not a machine size; there are \
             `small`, `medium`, `large` and `xlarge`",
            "stagely.yaml:8:16: builds.d.context: the context `file` is not a folder",
            "stagely.yaml:9:16: builds.e.context: `/tmp` is absolute: paths are relative to the \
             repository's root",
        ]
    );
}

#[test]
fn symlinks_out_of_the_repository_are_refused() {
    let outside = repository(&["Dockerfile"]);
    let root = repository(&["api/Dockerfile"]);
    symlink(outside.path(), root.path().join("away")).unwrap();
    symlink(outside.path().join("Dockerfile"), root.path().join("api/away")).unwrap();
    let text = "builds:\n  a: {context: away}\n  b: {context: api, dockerfile: away}\n";
    assert_eq!(
        problems(text, root.path()),
        [
            "stagely.yaml:2:16: builds.a.context: `away` leads out of the repository",
            "stagely.yaml:3:33: builds.b.dockerfile: `away` leads out of the repository",
        ]
    );
}

#[test]
fn the_compose_file_must_be_a_file_of_the_repository() {
    let outside = repository(&["compose.yaml"]);
    let root = repository(&["Dockerfile", "deploy/compose.yaml"]);
    let at = |name: &str| root.path().join(name);
    symlink("deploy/compose.yaml", at("inside.yaml")).unwrap();
    symlink(outside.path().join("compose.yaml"), at("outside.yaml")).unwrap();
    symlink(outside.path(), at("away")).unwrap();
    mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    let text = |path: &str| {
        format!(
            "builds: {{a: {{context: .}}}}\npreview:\n  compose: {path}\n  endpoints: {{web: \
             {{service: web, port: 80}}}}\n"
        )
    };
    for path in ["deploy/compose.yaml", "./deploy/../inside.yaml"] {
        check_paths(&accepted(&text(path)), root.path(), "stagely.yaml").unwrap();
    }
    for path in ["compose.yaml", "deploy", "fifo", "deploy/compose.yaml/x"] {
        let problem = format!("the compose file `{path}` is not a file of the repository");
        assert_eq!(
            problems(&text(path), root.path()),
            [format!("stagely.yaml:3:12: preview.compose: {problem}")]
        );
    }
    for path in ["outside.yaml", "away/compose.yaml"] {
        assert_eq!(
            problems(&text(path), root.path()),
            [format!("stagely.yaml:3:12: preview.compose: `{path}` leads out of the repository")]
        );
    }
    assert_eq!(
        problems("builds: {a: {context: .}}\npreview: {image: b, port: 80}\n", root.path()),
        ["stagely.yaml:2:18: preview.image: there is no build `b`; did you mean `a`?"]
    );
}

#[test]
fn the_file_itself_must_be_a_regular_file_of_the_repository() {
    let outside = repository(&[]);
    fs::write(outside.path().join("secret"), "a secret of the host").unwrap();
    mkfifo(&outside.path().join("fifo"), Mode::S_IRWXU).unwrap();
    let root = repository(&["ci/stagely.yaml"]);
    let file = root.path().join("stagely.yaml");
    let read = |target: &Path| {
        symlink(target, &file).unwrap();
        let bytes = read_checkout(root.path());
        fs::remove_file(&file).unwrap();
        bytes.map_err(|error| error.to_string())
    };
    let refused = Err("it is a symlink to nothing in the repository".to_owned());
    for name in ["secret", "fifo", "nothing"] {
        assert_eq!(read(&outside.path().join(name)), refused, "{name}");
    }
    assert_eq!(read(Path::new("/dev/zero")), refused);
    assert_eq!(read(Path::new("ci/stagely.yaml")), Ok(b"FROM scratch\n".to_vec()));
    let not_a_file = Err("it is not a file".to_owned());
    assert_eq!(read(Path::new("ci")), not_a_file);
    mkfifo(&file, Mode::S_IRWXU).unwrap();
    assert_eq!(read_checkout(root.path()).map_err(|error| error.to_string()), not_a_file);
}
