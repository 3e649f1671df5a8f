//! Causes of cache misses, with a real Docker engine and a real registry.
//!
//! The registry is named by `STAGELY_REGISTRY`, `STAGELY_REGISTRY_USERNAME` and
//! `STAGELY_REGISTRY_PASSWORD_FILE`; the engine must be able to pull `busybox`.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::json;
use stagely_agent::docker::{
    self, BuildFiles, BuildOutcome, BuildRequest, DockerCommand, Endpoint, Engine, RunningBuild,
};
use stagely_agent::fingerprint::{BuildInputs, cache_miss};
use stagely_agent::job_log::{JobLog, LineSink};
use stagely_agent::mask::MaskerBuilder;
use stagely_agent::spool::SpoolError;
use stagely_protocol::{
    Arch, BuildConfig, CacheMiss, FileChange, Fingerprint, MissCause, RegistryAuth, Stream,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: these tests need a registry"))
}

struct Printed;

impl LineSink for Printed {
    fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError> {
        for (_, line) in lines {
            println!("{line}");
        }
        Ok(())
    }
}

/// One build, repeated with changes.
struct Setup {
    folder: TempDir,
    docker: DockerCommand,
    name: String,
    args: serde_json::Map<String, serde_json::Value>,
    previous: Option<Fingerprint>,
}

impl Setup {
    async fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let docker = DockerCommand {
            machine: "vm_cache_miss_test".parse().unwrap(),
            endpoint: Endpoint::find(None).unwrap(),
            config: folder.path().join("docker"),
            grace: Duration::from_secs(5),
            registry_retry_limit: Duration::from_secs(10),
            engine_may_start: true,
        };
        Engine::probe(&docker.endpoint).await.expect("these tests need a Docker engine");
        docker::create_config(&docker.config).unwrap();
        let password = fs::read_to_string(setting("STAGELY_REGISTRY_PASSWORD_FILE")).unwrap();
        let auth = json!({
            "username": setting("STAGELY_REGISTRY_USERNAME"), "password": password.trim(),
        });
        let auth: RegistryAuth = serde_json::from_value(auth).unwrap();
        let stop = CancellationToken::new();
        docker::login(&docker, &setting("STAGELY_REGISTRY"), &auth, &stop).await.unwrap();
        // Other runs of this test left layers in the engine's own cache.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let name = format!("agent-tests/{name}-{}", now.as_nanos());
        fs::create_dir(folder.path().join("context")).unwrap();
        Self { folder, docker, name, args: serde_json::Map::new(), previous: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("context").join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    fn image(&self, tag: &str) -> String {
        format!("{}/{}:{tag}", setting("STAGELY_REGISTRY"), self.name)
    }

    async fn image_is_built(&self, dockerfile: &str, tag: &str) -> (BuildFiles, BuildOutcome) {
        let config = json!({
            "context_path": ".", "target_image": self.image(tag), "build_args": self.args,
            "platform": format!("linux/{}", Arch::of_this_program()),
            "cache_from": [self.image("cache")], "cache_to": self.image("cache"),
        });
        let config: BuildConfig = serde_json::from_value(config).unwrap();
        let context = self.folder.path().join("context");
        let files = BuildFiles { dockerfile: context.join(dockerfile), context };
        let masker = MaskerBuilder::default().build().unwrap();
        let stop = CancellationToken::new();
        let log = Arc::new(JobLog::new(Arc::new(Printed), masker, stop.clone()));
        let request = BuildRequest {
            docker: self.docker.clone(),
            config,
            files: files.clone(),
            containerd_store: true,
            folder: self.folder.path().to_owned(),
            log,
        };
        let mut running = RunningBuild::start(request, stop);
        let outcome = running.pushed().await.unwrap();
        running.exported().await.unwrap();
        (files, outcome)
    }

    /// Builds, and keeps the fingerprint for the next time.
    async fn miss(&mut self) -> Option<CacheMiss> {
        let (files, outcome) = self.image_is_built("Dockerfile", "app").await;
        let args = serde_json::from_value(self.args.clone().into()).unwrap();
        let mut inputs =
            BuildInputs::read(&files.context, &files.dockerfile, &args, &CancellationToken::new())
                .unwrap();
        inputs.add_images(&outcome.base_images);
        let previous =
            self.previous.as_ref().map(|previous| BuildInputs::from_fingerprint(previous).unwrap());
        self.previous = inputs.to_fingerprint();
        cache_miss(previous.as_ref(), &inputs, &outcome.steps, outcome.has_imported_cache)
    }

    async fn files_of_miss(&mut self, step: &str) -> Vec<(String, FileChange)> {
        let miss = self.miss().await.unwrap();
        assert_eq!(miss.step, step);
        let MissCause::Files { count, files } = miss.cause else { panic!("{miss:?}") };
        assert_eq!(count, files.len());
        files.into_iter().map(|file| (file.path, file.change)).collect()
    }
}

fn of(step: &str, cause: MissCause) -> CacheMiss {
    CacheMiss { step: step.to_owned(), cause }
}

#[tokio::test]
async fn each_change_is_the_cause_of_the_miss_in_the_next_build() {
    let mut setup = Setup::new("miss").await;
    let dockerfile = format!(
        "FROM busybox AS make\nARG MODE=dev\nRUN echo {}\nCOPY src/ /src/\nRUN echo $MODE >/mode\n\
         FROM busybox\nCOPY --from=make /src /mode /app/\nCOPY README /\n",
        setup.name
    );
    setup.write("Dockerfile", &dockerfile);
    setup.write("src/a.c", "one");
    setup.write("src/b.c", "one");
    setup.write("README", "one");
    setup.write(".dockerignore", "**/*.log\n");
    let first = format!("[make 2/4] RUN echo {}", setup.name);
    let copy = "[make 3/4] COPY src/ /src/";

    assert_eq!(setup.miss().await, Some(of(&first, MissCause::NoCache)));
    setup.write("src/ignored.log", "");
    assert_eq!(setup.miss().await, None);

    setup.write("src/a.c", "two");
    setup.write("src/new.c", "");
    fs::remove_file(setup.path("src/b.c")).unwrap();
    setup.write("README", "two, which a later step copies");
    let expected = [
        ("src/a.c", FileChange::Changed),
        ("src/b.c", FileChange::Removed),
        ("src/new.c", FileChange::Added),
    ];
    let files = setup.files_of_miss(copy).await;
    assert_eq!(files, expected.map(|(path, change)| (path.to_owned(), change)));

    fs::set_permissions(setup.path("src/a.c"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(setup.files_of_miss(copy).await, [("src/a.c".to_owned(), FileChange::Changed)]);

    setup.args.insert("MODE".to_owned(), "prod".into());
    let names = vec!["MODE".to_owned()];
    let miss = setup.miss().await.unwrap();
    assert_eq!(miss.cause, MissCause::BuildArgs { names });

    setup.write("Dockerfile", &dockerfile.replace(">/mode", ">>/mode"));
    let run = "[make 4/4] RUN echo prod >>/mode";
    assert_eq!(setup.miss().await, Some(of(run, MissCause::Instruction)));

    assert_eq!(setup.miss().await, None);
}

#[tokio::test]
async fn a_new_base_image_is_reported_with_both_digests() {
    let mut setup = Setup::new("base").await;
    for version in ["one", "two"] {
        setup.write("base", &format!("FROM busybox\nRUN echo {version}{} >/v\n", setup.name));
        let (_, base) = setup.image_is_built("base", "base").await;
        setup.write("Dockerfile", &format!("FROM {}\nRUN cat /v\n", setup.image("base")));
        let miss = setup.miss().await.unwrap();
        assert_eq!(miss.step, "[2/2] RUN cat /v");
        let with_digest = format!("{}@{}", setup.image("base"), base.digest.expect("a digest"));
        if version == "one" {
            assert!(!matches!(miss.cause, MissCause::BaseImage { .. }), "{miss:?}");
        } else {
            let MissCause::BaseImage { was, is } = miss.cause else { panic!("{miss:?}") };
            assert_ne!(was, is);
            assert_eq!(is, with_digest);
        }
    }
    assert_eq!(setup.miss().await, None);
}
