//! The end of a test: core stops, and the checks that nothing is left behind.

use std::fs;
use std::process::Command;

use stagely::api::{QueueView, RunView};
use stagely::core::store::{Store, StoreContents};
use stagely_state::{Effect, RunState};
use stagely_test_support::files::files_below;
use stagely_test_support::git::TOKEN;
use stagely_test_support::processes::processes_with;
use stagely_test_support::wait::eventually;

use crate::Core;

impl Core {
    /// Stops core and checks that nothing is left behind. Returns the contents of the store.
    pub async fn finish(mut self) -> StoreContents {
        eventually("all machines are gone", async || {
            let queue: QueueView = self.get("/queue").await;
            (queue.live_machines == 0).then_some(())
        })
        .await;
        eventually("all runs have ended", async || {
            let runs: Vec<RunView> = self.get("/runs?limit=1000").await;
            runs.iter().all(|run| run.status.is_final()).then_some(())
        })
        .await;
        // Planning that is being stopped has no file between two of its steps, so one check is not enough.
        let mut empty = 0;
        eventually("all planning has ended", async || {
            let is_empty = files_below(&self.path("data/scratch")).is_empty();
            empty = if is_empty { empty + 1 } else { 0 };
            (empty == 4).then_some(())
        })
        .await;
        let status = self.shut_down().await;
        assert!(status.success(), "core: {status}");
        let (store, mut stored) = Store::open(&self.path("data/core.redb")).unwrap();
        add_ended(&store, &mut stored);
        for run in stored.state.runs.keys() {
            assert_eq!(store.run_secrets(*run).unwrap(), None);
        }
        self.nothing_runs(&stored).await;
        self.no_file_is_left();
        nothing_is_open(&stored);
        self.no_secret_is_readable();
        stored
    }

    /// Checks that no process of a machine or a build is left, no container and no builder.
    async fn nothing_runs(&self, stored: &StoreContents) {
        for text in [stored.core_id.as_str(), &self.name] {
            eventually(&format!("no process has {text:?}"), async || {
                processes_with(text).is_empty().then_some(())
            })
            .await;
        }
        for list in [&["ps", "--all", "--no-trunc"][..], &["buildx", "ls"]] {
            let output = Command::new("docker").args(list).output().unwrap();
            assert!(output.status.success(), "docker {list:?}: is the Docker engine running?");
            let text = String::from_utf8(output.stdout).unwrap();
            let is_ours = |id: &str| text.contains(id);
            let machines = stored.state.machines.keys().any(|id| is_ours(&id.to_string()));
            assert!(!machines && !is_ours(&self.name), "docker {list:?}: {text}");
        }
    }

    /// Checks that no work folder, login or temporary file is left.
    fn no_file_is_left(&self) {
        for folder in ["data/machines", "data/scratch"] {
            let entries = fs::read_dir(self.path(folder)).map(Iterator::count).unwrap_or_default();
            assert_eq!(entries, 0, "{folder}: {:?}", files_below(&self.path(folder)));
        }
        let mut left = files_below(self.folder());
        left.retain(|path| {
            let path = path.strip_prefix(self.folder()).unwrap();
            let is_private = path.starts_with("home") || path.starts_with("tmp");
            is_private
                || path.ends_with("config.json")
                || path.components().any(|part| part.as_os_str() == "jobs")
        });
        assert!(left.is_empty(), "{left:?}");
    }

    /// Checks that neither the databases nor core's log contain a readable secret.
    fn no_secret_is_readable(&self) {
        let password = self.registry.password();
        for path in files_below(self.folder()) {
            if path.ends_with("registry-password") {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            for secret in [TOKEN, &password] {
                let holds = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
                assert!(!holds, "{} holds a secret", path.display());
            }
        }
    }
}

/// Adds the ended records, which core does not read at its start.
fn add_ended(store: &Store, stored: &mut StoreContents) {
    let state = &mut stored.state;
    for ended in store.newest_ended_runs(None, usize::MAX).unwrap() {
        state.jobs.extend(ended.jobs.into_iter().map(|job| (job.id, job)));
        state.runs.entry(ended.run.id).or_insert(ended.run);
    }
    for machine in store.newest_ended_machines(usize::MAX).unwrap() {
        state.machines.entry(machine.id).or_insert(machine);
    }
}

/// Every run has ended, and its secrets and tokens are gone.
fn nothing_is_open(stored: &StoreContents) {
    let state = &stored.state;
    let is_final = |run: &RunState| run.is_final();
    assert!(state.runs.values().all(|run| is_final(&run.state)), "{:#?}", state.runs);
    // Reports to GitHub and the removal of caches may be pending after the end of a run.
    let may_wait =
        |effect: &Effect| matches!(effect, Effect::Report { .. } | Effect::CleanUp { .. });
    assert!(state.outbox.values().all(may_wait), "{:#?}", state.outbox);
    for (machine, _) in &stored.machine_tokens {
        let is_live =
            state.machines.get(machine).is_some_and(|machine| !machine.state.is_terminated());
        assert!(is_live, "{machine} is gone and its tokens are not");
    }
}
