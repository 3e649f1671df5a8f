//! Watches the previews: recovers what a killed agent has left, and reports how the containers are.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use stagely_protocol::{Preview, PreviewState, ServiceState, WireId};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::containers::{self, ServiceContainer, project_name};
use super::folder::{Deployment, DeploymentFolder};
use super::{Previews, RETURN_LIMIT, compose_project, ready};

/// The time between two looks at the containers.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

impl Previews {
    /// Recovers what a killed agent has left, and then watches the previews. Ends only when it is dropped.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut poll = interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = None;
        loop {
            tokio::select! {
                _ = poll.tick() => {}
                () = self.changed.notified() => {}
                is_open = next_change(&mut changes) => {
                    if !is_open {
                        changes = None;
                        continue;
                    }
                }
            }
            self.recover_all().await;
            let known = self.known();
            self.forget_locks(&known);
            // A machine without previews asks its engine nothing.
            if changes.is_none() && !known.is_empty() {
                changes =
                    self.engine().ok().map(|engine| containers::changes(engine, &self.machine));
            }
            for preview in known {
                if let Err(error) = self.look(&preview).await {
                    tracing::warn!(%preview, "cannot look at a preview: {error:#}");
                }
            }
        }
    }

    /// Recovers what can be recovered: the engine may start later than the agent.
    async fn recover_all(&self) {
        let unrecovered = self.shared().unrecovered.clone();
        for preview in unrecovered {
            // A deploy job recovers the preview by itself.
            let Some(_lock) = self.try_lock(&preview) else { continue };
            if let Err(error) = self.recover(&preview).await {
                tracing::error!(%preview, "cannot recover a preview: {error:#}");
            }
        }
    }

    /// Removes what a killed agent had begun to deploy or to archive, and starts what served before. Does nothing if that was
    /// done. The preview's lock is held.
    ///
    /// # Errors
    /// The engine does not answer; it can be tried again.
    pub(crate) async fn recover(&self, preview: &WireId) -> anyhow::Result<()> {
        if !self.shared().unrecovered.contains(preview) {
            return Ok(());
        }
        let folder = self.preview_folder(preview);
        if let Some(report) = folder.archived() {
            self.remove_from_engine(preview).await?;
            self.remove_archived_files(preview, &folder).await;
            self.report(report);
        } else if let Some((deployment, record)) = folder.current() {
            containers::remove_helpers(&self.engine()?, &self.machine, preview).await?;
            if folder.is_updating() {
                tracing::info!(%preview, "going back to the deployment before an update");
                match self.start(preview, &deployment, &record).await {
                    Ok(()) => folder.set_updating(false)?,
                    // The next look reports what is wrong.
                    Err(error) => {
                        tracing::error!(%preview, "cannot start a former deployment: {error:#}");
                    }
                }
            }
            // At once: it serves also while the next deployment is under way.
            self.look_at(preview, &deployment, &record).await?;
        } else {
            self.remove_from_engine(preview).await?;
            self.remove_folder(preview, &folder).await;
        }
        self.shared().unrecovered.remove(preview);
        Ok(())
    }

    /// Starts the containers of a deployment, also in place of those of another one.
    pub(super) async fn start(
        &self,
        preview: &WireId,
        folder: &DeploymentFolder,
        deployment: &Deployment,
    ) -> anyhow::Result<()> {
        let (engine, project) = (self.engine()?, project_name(&self.machine, preview));
        containers::remove_one_off_containers(&engine, &project).await?;
        containers::remove_helpers(&engine, &self.machine, preview).await?;
        self.expect_return(preview, RETURN_LIMIT);
        let compose = compose_project(&self.docker()?, &project, folder, deployment);
        let stop = self.stop.child_token();
        Ok(timeout(RETURN_LIMIT, compose.restart(&stop)).await??)
    }

    /// A former deployment was started again. Until it is ready, the preview is not reported as one that serves, and after
    /// `limit` it is reported as degraded.
    pub(crate) fn expect_return(&self, preview: &WireId, limit: Duration) {
        self.shared().returning.insert(preview.clone(), Instant::now() + limit);
    }

    /// Reports the state of a preview if it has changed. Does nothing while a job changes it.
    async fn look(&self, preview: &WireId) -> anyhow::Result<()> {
        let Some(_lock) = self.try_lock(preview) else { return Ok(()) };
        let folder = self.preview_folder(preview);
        let is_recovered = !self.shared().unrecovered.contains(preview);
        match folder.current().filter(|_| is_recovered && folder.archived().is_none()) {
            Some((files, deployment)) => self.look_at(preview, &files, &deployment).await,
            None => Ok(()),
        }
    }

    /// As [`look`](Self::look), for the deployment that serves. The preview's lock is held.
    async fn look_at(
        &self,
        preview: &WireId,
        files: &DeploymentFolder,
        deployment: &Deployment,
    ) -> anyhow::Result<()> {
        let engine = self.engine()?;
        let found = containers::containers(&engine, &project_name(&self.machine, preview)).await?;
        self.set_addresses(preview, deployment, &found);
        self.begin_log(preview, files, deployment, false);
        self.logs.read(&engine, preview, &found);
        let mut messages = problems(&found, deployment);
        let returns_until = self.shared().returning.get(preview).copied();
        if let Some(until) = returns_until.filter(|_| messages.is_empty()) {
            match ready::not_ready(&found, &deployment.endpoints).await {
                None => drop(self.shared().returning.remove(preview)),
                Some(_) if Instant::now() < until => return Ok(()),
                Some(reason) => messages.push(reason),
            }
        }
        let is_well = messages.is_empty();
        let state = if is_well { PreviewState::Serving } else { PreviewState::Degraded };
        self.report(Preview {
            services: states(&found),
            disk_free_bytes: self.free_disk_space(),
            messages,
            ..Preview::new(preview.clone(), deployment.generation, state)
        });
        Ok(())
    }

    /// Looks at the previews at once. Nobody else must change the one that is of interest.
    pub(crate) fn look_soon(&self) {
        self.changed.notify_one();
    }
}

/// Waits for a change of the containers. `false`: no more will be known. Cancel-safe.
async fn next_change(changes: &mut Option<BoxStream<'static, ()>>) -> bool {
    match changes {
        Some(changes) => changes.next().await.is_some(),
        None => pending().await,
    }
}

/// The states of the services, one for each container.
fn states(found: &[ServiceContainer]) -> Vec<ServiceState> {
    found.iter().map(ServiceContainer::state).collect()
}

/// What is wrong with a preview, in sentences.
fn problems(found: &[ServiceContainer], deployment: &Deployment) -> Vec<String> {
    let mut problems: Vec<_> = found
        .iter()
        .filter_map(|container| {
            Some(format!("the service `{}` {}", container.service, container.problem()?))
        })
        .collect();
    for service in &deployment.services {
        if !found.iter().any(|container| container.service == *service) {
            problems.push(format!("the service `{service}` has no container"));
        }
    }
    problems
}
