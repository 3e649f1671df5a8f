//! The agent of a preview's machine and core, each killed at each step of a preview's life.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use stagely::api::{CreateRun, JobStatus, RunStatus, RunView};
use stagely_state::Fleet;
use stagely_state::ids::RunId;
use stagely_test_core::{Core, job};
use stagely_test_support::breakpoint::Breakpoint;
use stagely_test_support::previews::{on_engine, remove_from_engine};
use stagely_test_support::processes::{ChildProcess, processes_with};
use stagely_test_support::wait::{eventually, eventually_within};

use crate::STAGELY;

const SETTINGS: &str = "[builders]\nprovider = \"none\"\nmax-attempts = 8\n";

const MANIFEST: &str = "builds: { app: { context: . } }
preview:
  compose: compose.yaml
  images: { web: app }
  access: public
  branches: [main]
  endpoints: { web: { service: web, port: 8080, health: { timeout: 2m } } }
  migrate: { service: web, command: [/bin/migrate] }
  seed: { service: web, command: [/bin/seed] }
";

const COMPOSE: &str = "services:
  web: { build: ., volumes: ['data:/data'], stop_grace_period: 2m }
volumes: { data: }
";

/// Core, and a machine for previews whose agent is started again as a service manager does.
struct Rack {
    core: Core,
    builder: ChildProcess,
    agent: ChildProcess,
    config: PathBuf,
    machine: Machine,
}

/// The id of a machine. Of a failed test nothing stays on the engine.
struct Machine(String);

impl Drop for Machine {
    fn drop(&mut self) {
        remove_from_engine(&self.0);
    }
}

/// Where a version of the app waits.
#[derive(Default)]
struct Steps {
    migrate: Breakpoint,
    seed: Breakpoint,
    /// Before the service listens for the first time.
    start: Breakpoint,
    /// When it is stopped, if there is a file `/data/slow-stop`.
    stop: Breakpoint,
}

impl Rack {
    async fn start(name: &str) -> Self {
        let core = Core::start(STAGELY, name, SETTINGS).await;
        let (_, builder) = core.add_machine("builder").await;
        let arguments = ["agent".as_ref(), "--config".as_ref(), builder.as_path()];
        let builder = core.start_agent("builder", STAGELY, &arguments);
        let (machine, config) = core.add_machine_for(Fleet::Preview, "preview").await;
        let agent = start_agent(&core, &config);
        Self { core, builder, agent, config, machine: Machine(machine.id.to_string()) }
    }

    /// Kills the agent, and starts it again.
    fn kill_agent(&mut self) {
        self.agent.kill();
        self.agent = start_agent(&self.core, &self.config);
    }

    async fn kill_core(&mut self) {
        self.core.crash();
        self.core.launch().await;
    }

    /// Commits a version of the app, and starts a run.
    async fn push(&self, version: &str, steps: &Steps) -> RunId {
        let wait = |breakpoint: &Breakpoint| breakpoint.command();
        let dockerfile = format!(
            "FROM busybox\nRUN : {}; mkdir -p /www/cgi-bin /data; echo {version} >/www/index.html\n\
             COPY --chmod=755 bin /bin\nCOPY --chmod=755 cgi /www/cgi-bin\nCMD [\"/bin/serve\"]\n",
            self.core.name
        );
        let migrate =
            format!("#!/bin/sh\n{}\necho migrated-{version} >>/data/log\n", wait(&steps.migrate));
        let seed = format!("#!/bin/sh\n{}\necho seeded >>/data/log\n", wait(&steps.seed));
        let serve = format!(
            "#!/bin/sh\nstop() {{\n  test ! -e /data/slow-stop || {}\n  exit 0\n}}\ntrap stop TERM\n\
             test -e /data/started-{version} || {{ {} & wait $!; }}\ntouch /data/started-{version}\n\
             httpd -f -p 8080 -h /www &\nwhile :; do wait; sleep 0.1; done\n",
            wait(&steps.stop),
            wait(&steps.start),
        );
        self.core.repository.commit(&[
            ("Dockerfile", &*dockerfile),
            ("bin/migrate", &*migrate),
            ("bin/seed", &*seed),
            ("bin/serve", &*serve),
            ("cgi/log", "#!/bin/sh\necho; cat /data/log\n"),
            ("cgi/sum", "#!/bin/sh\necho; md5sum /data/large\n"),
            ("compose.yaml", COMPOSE),
            ("stagely.yaml", MANIFEST),
        ]);
        let request = CreateRun { reference: Some("main".to_owned()), ..self.core.request() };
        self.core.run(request).await
    }

    /// Waits until an attempt of the deploy job runs whose log has `text`.
    async fn log_has(&self, run: RunId, attempt: u32, text: &str) {
        eventually(&format!("the log of attempt {attempt} has {text:?}"), async || {
            let view = self.core.view(run).await;
            assert!(!view.status.is_final(), "{view:#?}");
            let deploy = view.jobs.iter().find(|job| job.name == "deploy")?;
            if deploy.attempt < attempt || deploy.status != JobStatus::Running {
                return None;
            }
            self.core.log(deploy).await.contains(text).then_some(())
        })
        .await;
    }

    async fn completed(&self, run: RunId) -> RunView {
        let view = eventually("the preview is deployed", async || {
            let view = self.core.view(run).await;
            view.status.is_final().then_some(view)
        })
        .await;
        if view.status != RunStatus::Completed {
            println!("{}", self.core.log(job(&view, "deploy")).await);
            panic!("{view:#?}");
        }
        view
    }

    /// What the preview answers at `path`, once it answers.
    async fn page(&self, path: &str) -> String {
        eventually_within(Duration::from_mins(2), path, async || {
            let (status, text) = self.core.preview_page_at(path).await;
            (status == 200).then_some(text)
        })
        .await
    }

    async fn preview(&self) -> Value {
        let previews: Value = self.core.get("/previews?all=true").await;
        previews[0].clone()
    }

    /// The preview, of which core knows no problem.
    async fn sound_preview(&self) -> Value {
        let preview = self.preview().await;
        assert!(preview["problem"].is_null(), "{preview:#}");
        preview
    }

    async fn until(&self, status: &str) {
        eventually(&format!("the preview is {status}"), async || {
            (self.sound_preview().await["status"] == status).then_some(())
        })
        .await;
    }

    /// Runs a script in the container of the service.
    fn script(&self, script: &str) {
        let machine = format!("label=stagely.machine={}", self.machine.0);
        let service = "label=com.docker.compose.service=web";
        let container = docker(&["ps", "--quiet", "--filter", &machine, "--filter", service]);
        docker(&["exec", container.trim(), "sh", "-c", script]);
    }

    fn helpers(&self) -> usize {
        let machine = format!("label=stagely.machine={}", self.machine.0);
        let helper = "label=stagely.helper";
        docker(&["ps", "--all", "--quiet", "--filter", &machine, "--filter", helper])
            .lines()
            .count()
    }

    /// Has the preview archived.
    async fn sleep(&self) {
        let id = self.preview().await["id"].as_str().unwrap().to_owned();
        let _: Value = self.core.post(&format!("/previews/{id}/sleep"), Value::Null).await;
    }

    async fn wake(&self) {
        let id = self.preview().await["id"].as_str().unwrap().to_owned();
        let _: Value = self.core.post(&format!("/previews/{id}/wake"), Value::Null).await;
    }

    /// Waits until a volume is being read or written.
    async fn volume_moves(&self) {
        eventually("a volume moves", async || {
            self.sound_preview().await;
            (self.helpers() > 0).then_some(())
        })
        .await;
    }

    /// One container, one volume and one network.
    async fn has_nothing_twice(&self) {
        eventually("nothing is on the engine twice", async || {
            (on_engine(&self.machine.0).len() == 3).then_some(())
        })
        .await;
    }

    async fn finish(self) {
        self.core.end_preview().await;
        eventually("nothing is left on the engine", async || {
            on_engine(&self.machine.0).is_empty().then_some(())
        })
        .await;
        assert!(self.agent.stop().await.success() && self.builder.stop().await.success());
        eventually("nothing of the machine runs", async || {
            processes_with(&self.machine.0).is_empty().then_some(())
        })
        .await;
        self.core.finish().await;
    }
}

fn start_agent(core: &Core, config: &std::path::Path) -> ChildProcess {
    core.start_agent("preview", STAGELY, &["agent".as_ref(), "--config".as_ref(), config])
}

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert!(output.status.success(), "docker {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a file that takes some seconds to archive, and returns its sum.
async fn fill(rack: &Rack) -> String {
    rack.script("dd if=/dev/urandom of=/data/large bs=1M count=50");
    rack.page("/cgi-bin/sum").await
}

#[tokio::test]
async fn an_agent_may_be_killed_at_each_step_of_a_preview() {
    let mut rack = Rack::start("kill-agent").await;
    let one = Steps::default();
    let run = rack.push("one", &one).await;
    rack.log_has(run, 1, "").await;
    rack.kill_agent();
    rack.log_has(run, 2, "Cloned").await;
    rack.kill_agent();
    one.migrate.reached().await;
    rack.kill_agent();
    one.migrate.deserted().await;
    one.migrate.reached().await;
    one.migrate.resume();
    one.seed.reached().await;
    rack.kill_agent();
    one.seed.deserted().await;
    one.migrate.reached().await;
    one.migrate.resume();
    one.seed.reached().await;
    one.seed.resume();
    one.start.reached().await;
    rack.kill_agent();
    one.start.deserted().await;
    for step in [&one.migrate, &one.seed, &one.start] {
        step.reached().await;
        step.resume();
    }
    let view = rack.completed(run).await;
    assert_eq!(job(&view, "deploy").attempt, 6, "{view:#?}");
    assert_eq!(rack.page("/").await, "one\n");
    assert_eq!(rack.page("/cgi-bin/log").await, "migrated-one\nseeded\n");
    rack.has_nothing_twice().await;

    // An update. The former version serves again after each kill.
    let two = Steps::default();
    let run = rack.push("two", &two).await;
    two.migrate.reached().await;
    rack.kill_agent();
    two.migrate.deserted().await;
    assert_eq!(rack.page("/").await, "one\n");
    two.migrate.reached().await;
    two.migrate.resume();
    two.start.reached().await;
    rack.kill_agent();
    two.start.deserted().await;
    two.migrate.reached().await;
    assert_eq!(rack.page("/").await, "one\n");
    two.migrate.resume();
    two.start.reached().await;
    two.start.resume();
    rack.completed(run).await;
    assert_eq!(rack.page("/").await, "two\n");
    let log = "migrated-one\nseeded\nmigrated-two\nmigrated-two\n";
    assert_eq!(rack.page("/cgi-bin/log").await, log);
    rack.has_nothing_twice().await;

    let sum = fill(&rack).await;
    rack.script("touch /data/slow-stop");
    rack.sleep().await;
    two.stop.reached().await;
    rack.kill_agent();
    two.stop.resume();
    rack.volume_moves().await;
    rack.kill_agent();
    rack.until("asleep").await;
    eventually("it is gone", async || on_engine(&rack.machine.0).is_empty().then_some(())).await;

    rack.wake().await;
    rack.volume_moves().await;
    rack.kill_agent();
    two.migrate.reached().await;
    two.migrate.resume();
    rack.until("live").await;
    assert_eq!(rack.page("/").await, "two\n");
    assert_eq!(rack.page("/cgi-bin/sum").await, sum);
    rack.has_nothing_twice().await;
    rack.script("rm /data/slow-stop");
    rack.finish().await;
}

#[tokio::test]
async fn core_may_be_killed_at_each_step_of_a_preview() {
    let mut rack = Rack::start("kill-core").await;
    let one = Steps::default();
    let run = rack.push("one", &one).await;
    rack.log_has(run, 1, "").await;
    rack.kill_core().await;
    for step in [&one.migrate, &one.seed, &one.start] {
        step.reached().await;
        rack.kill_core().await;
        step.resume();
    }
    let view = rack.completed(run).await;
    assert_eq!(job(&view, "deploy").attempt, 1, "{view:#?}");
    assert_eq!(rack.page("/").await, "one\n");
    assert_eq!(rack.page("/cgi-bin/log").await, "migrated-one\nseeded\n");

    let two = Steps::default();
    let run = rack.push("two", &two).await;
    for step in [&two.migrate, &two.start] {
        step.reached().await;
        rack.kill_core().await;
        step.resume();
    }
    rack.completed(run).await;
    assert_eq!(rack.page("/").await, "two\n");
    rack.has_nothing_twice().await;

    let sum = fill(&rack).await;
    rack.script("touch /data/slow-stop");
    rack.sleep().await;
    two.stop.reached().await;
    rack.kill_core().await;
    two.stop.resume();
    rack.volume_moves().await;
    rack.kill_core().await;
    rack.until("asleep").await;
    eventually("it is gone", async || on_engine(&rack.machine.0).is_empty().then_some(())).await;

    rack.wake().await;
    rack.volume_moves().await;
    rack.kill_core().await;
    two.migrate.reached().await;
    two.migrate.resume();
    rack.until("live").await;
    assert_eq!(rack.page("/").await, "two\n");
    assert_eq!(rack.page("/cgi-bin/sum").await, sum);
    assert_eq!(
        rack.page("/cgi-bin/log").await,
        "migrated-one\nseeded\nmigrated-two\nmigrated-two\n"
    );
    rack.has_nothing_twice().await;
    rack.script("rm /data/slow-stop");
    rack.finish().await;
}
