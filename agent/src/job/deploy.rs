//! A DEPLOY job: runs images as a preview, in place of what serves, and goes back to that if they do not become healthy.

mod compose_file;
mod images;

mod commands;
mod data;

mod failure;
mod undo;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::errors::Error as EngineError;
use secrecy::ExposeSecret as _;
use stagely_protocol::{Deploy, DeployProblem, Endpoint, EndpointAddress, FailureReason};
use tokio::sync::watch;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::JobSettings;
use super::error::JobError;
use super::prerequisites::wait_for_engine;
use super::report::JobOutput;
use crate::docker::{self, ComposeError, ComposeProject, DockerCommand};
use crate::job_log::JobLog;
use crate::preview::containers::{self, ServiceContainer};
use crate::preview::folder::{Deployment, DeploymentFolder, PreviewFolder};
use crate::preview::model::{self, Model};
use crate::preview::ready::Readiness;
use crate::preview::{self, MaskedValues};

/// The time between two lines about services that start.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn perform(
    deploy: &Deploy,
    settings: &JobSettings,
    docker: &DockerCommand,
    log: &Arc<JobLog>,
    stop: &CancellationToken,
) -> Result<JobOutput, JobError> {
    let started = Instant::now();
    wait_for_engine(docker, log, stop).await?;
    if !docker.endpoint.is_on_this_machine() {
        let message = format!(
            "previews need an engine on the agent's own machine, and this one is at {}",
            docker.endpoint.host()
        );
        return Err(JobError::with_message(FailureReason::EngineSettings, message));
    }
    let lock = stop.run_until_cancelled(settings.previews.lock(&deploy.preview_id)).await;
    let Some(lock) = lock else { return Err(stopped()) };
    // Also if the agent has just been started: what served before goes on serving.
    settings
        .previews
        .recover(&deploy.preview_id)
        .await
        .map_err(|error| JobError::with_message(FailureReason::Engine, format!("{error:#}")))?;
    let folder = settings.previews.preview_folder(&deploy.preview_id);
    let target = folder.deployment(&deploy.job_id);
    // The job may have been tried before.
    settings
        .previews
        .remove_files(&deploy.preview_id, target.path(), || target.remove())
        .await
        .and_then(|()| target.create())
        .map_err(|error| JobError::io("cannot create the preview's folder", &error))?;
    let former = folder.current();
    let mut deployment = Deploying {
        deploy,
        settings,
        docker,
        engine: docker.endpoint.connect().map_err(|error| engine_error(&error))?,
        project: containers::project_name(&settings.machine, &deploy.preview_id),
        folder,
        target,
        former,
        log,
        stop,
        has_changed_containers: false,
    };
    match deployment.run().await {
        Ok(endpoints) => {
            settings.previews.forget_report(&deploy.preview_id);
            drop(lock);
            settings.previews.look_soon();
            Ok(JobOutput { endpoints, duration: started.elapsed(), ..JobOutput::default() })
        }
        Err(error) => {
            let error = deployment.undo(error).await;
            drop(lock);
            settings.previews.look_soon();
            Err(error)
        }
    }
}

fn stopped() -> JobError {
    JobError::with_message(FailureReason::Internal, "stopped")
}

fn engine_error(error: &EngineError) -> JobError {
    JobError::new(FailureReason::Engine, error)
}

fn folder_error(error: &io::Error) -> JobError {
    JobError::io("cannot use the preview's folder", error)
}

const fn reason(problem: DeployProblem) -> FailureReason {
    FailureReason::Deploy { problem }
}

/// One deployment on its way.
struct Deploying<'a> {
    deploy: &'a Deploy,
    settings: &'a JobSettings,
    docker: &'a DockerCommand,
    engine: Docker,
    project: String,
    folder: PreviewFolder,
    target: DeploymentFolder,
    /// What served before, and can serve again.
    former: Option<(DeploymentFolder, Deployment)>,
    log: &'a Arc<JobLog>,
    stop: &'a CancellationToken,
    /// Whether the engine has something of this deployment.
    has_changed_containers: bool,
}

impl Deploying<'_> {
    async fn run(&mut self) -> Result<Vec<EndpointAddress>, JobError> {
        let deploy = self.deploy;
        let mut deployment = Box::pin(self.prepare()).await?;

        let is_update = self.former.is_some();
        self.folder.set_updating(is_update).map_err(|error| folder_error(&error))?;
        self.has_changed_containers = true;
        if deploy.fresh {
            self.settings.previews.hold(&deploy.preview_id);
            self.remove_data().await?;
        }
        self.note_unseeded().await?;
        let compose =
            preview::compose_project(self.docker, &self.project, &self.target, &deployment);
        if let Some(command) = &deploy.migrate {
            self.run_command(&compose, "migrate", DeployProblem::Migrate, command).await?;
        }
        if let Some(command) = deploy.seed.as_ref().filter(|_| self.folder.is_unseeded()) {
            self.run_command(&compose, "seed", DeployProblem::Seed, command).await?;
        }
        self.folder.set_unseeded(false).map_err(|error| folder_error(&error))?;
        self.settings.previews.hold(&deploy.preview_id);
        self.start(&compose).await?;
        let addresses = self.wait_until_ready(&deployment.endpoints).await?;

        let found = self.containers().await?;
        // A service may have no containers by its own choice: `scale: 0`.
        deployment.services.retain(|name| found.iter().any(|container| container.service == *name));
        self.target.record(&deployment).map_err(|error| folder_error(&error))?;
        // Before it serves: the next agent removes a preview that is archived.
        self.folder.forget_archive().map_err(|error| folder_error(&error))?;
        self.folder.set_current(&self.target).map_err(|error| folder_error(&error))?;
        let previews = &self.settings.previews;
        for former in self.folder.outdated(&self.target).unwrap_or_default() {
            let remove = || former.remove_all_but_record();
            let removed = previews.remove_files(&deploy.preview_id, former.path(), remove).await;
            if let Err(error) = removed {
                tracing::warn!(preview = %deploy.preview_id, %error, "cannot remove the files of a former deployment");
            }
        }
        // From here on the files of the former deployment are gone.
        if let Err(error) = self.folder.set_updating(false) {
            tracing::warn!(%error, "cannot mark the end of an update");
        }
        previews.set_addresses(&deploy.preview_id, &deployment, &found);
        previews.begin_log(&deploy.preview_id, &self.target, &deployment, true);
        Ok(addresses)
    }

    /// Makes the compose file, and gets the images and, at the same time, the archived data.
    async fn prepare(&mut self) -> Result<Deployment, JobError> {
        let (image, image_found) = watch::channel(None);
        let Some(archive) = self.archive() else {
            return self.get_images(image).await.map(|(_, deployment)| deployment);
        };
        self.has_changed_containers = true;
        let stop = self.stop.child_token();
        let prepared = async {
            let prepared = self.get_images(image).await;
            if prepared.is_err() {
                stop.cancel();
            }
            prepared
        };
        let restored = self.restore(&archive, image_found, &stop);
        let (prepared, restored) = tokio::join!(prepared, restored);
        let (model, deployment) = prepared?;
        self.remove_unknown_volumes(&model, &restored?).await?;
        Ok(deployment)
    }

    /// Makes the compose file, and pulls its images. `first` gets the first one that is there.
    async fn get_images(
        &self,
        first: watch::Sender<Option<String>>,
    ) -> Result<(Model, Deployment), JobError> {
        // After a wake on the same engine it is there.
        let image = self.deploy.image.to_string();
        if docker::has_image(self.docker, &image).await.is_ok_and(|has_image| has_image) {
            first.send_replace(Some(image));
        }
        let former = self.former.as_ref().map(|(_, former)| former);
        let (model, variables) = self.make_model().await?;
        let images = model.images.iter();
        let deployment = Deployment {
            generation: self.deploy.generation,
            endpoints: self.endpoints(),
            services: model.active.clone(),
            variables,
            images: images
                .filter(|(service, _)| model.built.contains(*service))
                .map(|(_, (image, _))| image.clone())
                .collect(),
        };
        self.target.record(&deployment).map_err(|error| folder_error(&error))?;
        let masked = self.masked_values();
        self.target.record_masked_values(&masked).map_err(|error| folder_error(&error))?;
        self.remove_outdated_images(former, &deployment).await?;
        self.pull(&model, &first).await?;
        Ok((model, deployment))
    }

    fn masked_values(&self) -> MaskedValues {
        let secrets = self.deploy.secrets.0.values();
        MaskedValues {
            env: self.deploy.env.0.clone(),
            secrets: secrets.map(|secret| secret.expose_secret().to_owned()).collect(),
        }
    }

    /// The endpoints, each with its service.
    fn endpoints(&self) -> Vec<Endpoint> {
        let mut endpoints = self.deploy.endpoints.clone();
        for endpoint in &mut endpoints {
            endpoint.service = model::service_of(self.deploy, &endpoint.service).to_owned();
        }
        endpoints
    }

    async fn containers(&self) -> Result<Vec<ServiceContainer>, JobError> {
        containers::containers(&self.engine, &self.project)
            .await
            .map_err(|error| engine_error(&error))
    }

    async fn start(&self, compose: &ComposeProject) -> Result<(), JobError> {
        self.log.info("Starting the services");
        let up = compose.up(self.log, self.stop);
        let progress = async {
            let mut ticks = interval(PROGRESS_INTERVAL);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let Ok(found) = self.containers().await else { continue };
                let waiting = found
                    .iter()
                    .filter(|container| !container.is_healthy() && !container.is_done())
                    .map(|container| {
                        let state = container.state();
                        format!("{}: {}", state.name, state.health.unwrap_or(state.state))
                    });
                let waiting: Vec<_> = waiting.collect();
                if !waiting.is_empty() {
                    self.log.info(&format!("Starting: {}", waiting.join("; ")));
                }
            }
        };
        let result = tokio::select! {
            result = up => result,
            () = progress => return Ok(()),
        };
        match result {
            Ok(()) => Ok(()),
            Err(ComposeError::Failed { machine: None, detail, .. }) => {
                Err(match self.service_failure().await {
                    Some(error) => error,
                    None => JobError::with_message(reason(DeployProblem::Service), detail),
                })
            }
            Err(error) => Err(compose_error(&error)),
        }
    }

    async fn wait_until_ready(
        &self,
        endpoints: &[Endpoint],
    ) -> Result<Vec<EndpointAddress>, JobError> {
        let (engine, project, log) = (&self.engine, &*self.project, &**self.log);
        let readiness = Readiness { engine, project, endpoints, log };
        match readiness.wait(self.stop).await {
            Ok(addresses) => Ok(addresses),
            Err(failure) => Err(self.explain(failure).await),
        }
    }
}

fn compose_error(error: &ComposeError) -> JobError {
    let reason = match error {
        ComposeError::Failed { machine: Some(machine), .. } => machine.clone(),
        ComposeError::Failed { machine: None, .. } | ComposeError::TooLarge => {
            reason(DeployProblem::Compose)
        }
        ComposeError::Missing | ComposeError::Process(_) => FailureReason::Engine,
        ComposeError::Unreadable(_) => FailureReason::Internal,
    };
    JobError::new(reason, error)
}
