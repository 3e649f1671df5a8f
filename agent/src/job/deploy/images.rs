//! The images of a deployment: makes space for them, and pulls them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use stagely_protocol::{DeployProblem, ErrorChain, FailureReason, RegistryProblem};
use tokio::sync::{OnceCell, watch};

use super::{Deploying, JobError, folder_error, reason};
use crate::docker::{self, PullError};
use crate::job::prerequisites::{RegistryBackoff, log_in};
use crate::preview::containers;
use crate::preview::folder::Deployment;
use crate::preview::model::Model;

/// Images that are pulled at the same time. The engine itself pulls three layers of each.
const PULLS_MAX: usize = 3;

impl Deploying<'_> {
    /// Makes space before the pull: many deployments would fill the disk.
    pub(super) async fn remove_outdated_images(
        &self,
        former: Option<&Deployment>,
        next: &Deployment,
    ) -> Result<(), JobError> {
        let outdated = self.folder.outdated(&self.target).map_err(|error| folder_error(&error))?;
        let mut images = Vec::new();
        for deployment in outdated {
            images.extend(deployment.read_record().into_iter().flat_map(|record| record.images));
            let (previews, preview) = (&self.settings.previews, &self.deploy.preview_id);
            let removed =
                previews.remove_files(preview, deployment.path(), || deployment.remove()).await;
            if let Err(error) = removed {
                tracing::warn!(%preview, %error, "cannot remove a former deployment");
            }
        }
        let kept = former.map_or(&[][..], |former| &former.images);
        let outdated: BTreeSet<_> = images
            .into_iter()
            .filter(|image| !kept.contains(image) && !next.images.contains(image))
            .collect();
        for image in outdated {
            containers::remove_image(&self.engine, &image).await;
        }
        Ok(())
    }

    /// Pulls the images that the engine does not have. `first` gets the first one that is there.
    pub(super) async fn pull(
        &self,
        model: &Model,
        first: &watch::Sender<Option<String>>,
    ) -> Result<(), JobError> {
        let mut images: BTreeMap<&(String, Option<String>), &String> = BTreeMap::new();
        for (service, image) in &model.images {
            // Errors name a service that this run did not build only if no other one has the image.
            let named = images.entry(image).or_insert(service);
            if model.built.contains(service) {
                *named = service;
            }
        }
        let login = OnceCell::new();
        // Boxed, because the compiler cannot see that a stream of borrowing futures is Send.
        let mut pulls: Vec<BoxFuture<'_, Result<(), JobError>>> = Vec::new();
        for ((image, platform), service) in images {
            let (login, is_built) = (&login, model.built.contains(service));
            pulls.push(Box::pin(async move {
                let error = |error| pull_error(&error, service, is_built);
                if !docker::has_image(self.docker, image).await.map_err(error)? {
                    login.get_or_try_init(|| self.log_in()).await?;
                    self.pull_image(image, platform.as_deref(), error).await?;
                }
                if first.borrow().is_none() {
                    first.send_replace(Some(image.clone()));
                }
                Ok(())
            }));
        }
        stream::iter(pulls).buffer_unordered(PULLS_MAX).try_collect::<()>().await
    }

    /// Logs in to core's registry.
    async fn log_in(&self) -> Result<(), JobError> {
        let registry = self.deploy.image.registry();
        let auth = self.deploy.registry_auth.as_ref();
        log_in(self.docker, registry, auth, self.log, self.stop).await
    }

    async fn pull_image(
        &self,
        image: &str,
        platform: Option<&str>,
        error_of: impl Fn(PullError) -> JobError,
    ) -> Result<(), JobError> {
        self.log.info(&format!("Pulling {image}"));
        let (started, mut backoff) = (Instant::now(), RegistryBackoff::new(self.docker));
        while let Err(error) = docker::pull(self.docker, image, platform, self.stop).await {
            backoff.wait_after(error_of(error), self.log, self.stop).await?;
        }
        let seconds = started.elapsed().as_secs_f64();
        self.log.info(&format!("Pulled {image} in {seconds:.1}s"));
        Ok(())
    }
}

/// An image of the compose file's own that its registry does not have, or does not give, is a mistake of the compose file.
fn pull_error(error: &PullError, service: &str, is_built: bool) -> JobError {
    if is_built {
        return JobError::new(error.reason(), error);
    }
    let message = format!("the service `{service}`: {}", ErrorChain(error));
    let reason = match error.reason() {
        FailureReason::Registry {
            problem: RegistryProblem::Missing | RegistryProblem::Authentication,
        }
        | FailureReason::Internal => reason(DeployProblem::Compose),
        other => other,
    };
    JobError::with_message(reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_cannot_be_reached_is_no_mistake_of_the_compose_file() {
        let reason_of = |problem| {
            let error = PullError::Failed {
                image: "registry.invalid/db".to_owned(),
                detail: "no such host".to_owned(),
                reason: FailureReason::Registry { problem },
            };
            let error = pull_error(&error, "db", false);
            let expected = "the service `db`: cannot pull registry.invalid/db: no such host";
            assert_eq!(error.message, expected);
            error.reason
        };
        for problem in [RegistryProblem::Refused, RegistryProblem::Unavailable] {
            assert_eq!(reason_of(problem), FailureReason::Registry { problem });
        }
        for problem in [RegistryProblem::Missing, RegistryProblem::Authentication] {
            assert_eq!(reason_of(problem), reason(DeployProblem::Compose));
        }
    }
}
