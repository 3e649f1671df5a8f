//! The compose file that is run: of the commit, or of one image.

use std::fs;
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;
use serde_json::Value;
use stagely_protocol::{DeployProblem, FailureReason};

use super::{Deploying, JobError, compose_error, folder_error, reason};
use crate::docker::ComposeProject;
use crate::job::clone::clone;
use crate::preview::model::{self, Model};
use crate::preview::{self, ComposeFiles};

impl Deploying<'_> {
    /// Writes the compose file that is run. Also returns the file with variables that it may need.
    pub(super) async fn make_model(&self) -> Result<(Model, Option<PathBuf>), JobError> {
        let (deploy, checkout) = (self.deploy, self.target.checkout());
        let files = if let Some(path) = &deploy.compose_path {
            Some(self.check_out(path, &checkout).await?)
        } else {
            let file = model::of_one_image(deploy);
            self.target.write_model(&file).map_err(|error| folder_error(&error))?;
            None
        };
        let variables = files.as_ref().and_then(|files| files.variables.as_deref());
        let variables = variables
            .map(|variables| self.target.keep_variables(variables))
            .transpose()
            .map_err(|error| folder_error(&error))?;
        let main = files.map_or_else(|| self.target.model(), |files| files.main);
        // Messages name the file of the repository, which the agent has written again elsewhere.
        let written = main.display().to_string();
        let plain = deploy.env.0.clone().into_iter();
        let secret = deploy.secrets.0.iter();
        let secret = secret.map(|(name, value)| (name.clone(), value.expose_secret().to_owned()));
        let compose = ComposeProject::new(self.docker.clone(), self.project.clone(), main)
            .with_variables(variables.clone(), plain.chain(secret));
        let (mut resolved, active) =
            tokio::try_join!(compose.config(self.stop), compose.services(self.stop)).map_err(
                |error| {
                    let mut error = compose_error(&error);
                    if let Some(path) = &deploy.compose_path {
                        error.message = error.message.replace(&written, path);
                    }
                    error
                },
            )?;
        if deploy.compose_path.is_some() {
            let root = checkout.canonicalize().map_err(|error| folder_error(&error))?;
            if !deploy.allow_privileged {
                self.check_access(&mut resolved, &root)?;
            }
            for sentence in preview::lost_writes(&resolved, &active, &root) {
                self.log.warn(&sentence);
            }
        }
        let machine = &self.settings.machine;
        let mut model = model::prepare(resolved, active, deploy, machine, &self.project)
            .map_err(|error| JobError::new(reason(DeployProblem::Compose), &error))?;
        for sentence in &model.warnings {
            self.log.warn(sentence);
        }
        let mut number = 0;
        model::store_secrets(&mut model.file, deploy, |value| {
            number += 1;
            self.target.write_secret(number, value).map(|path| path.display().to_string())
        })
        .map_err(|error| folder_error(&error))?;
        let text = variables.as_ref().map(fs::read).transpose();
        let text = text.map_err(|error| folder_error(&error))?.unwrap_or_default();
        // As compose reads it.
        let text = String::from_utf8_lossy(&text);
        let missing = preview::missing_sources(&model.file, &model.active, &checkout, &text);
        if !missing.is_empty() {
            let message = missing.join("; ");
            return Err(JobError::with_message(reason(DeployProblem::Compose), message));
        }
        self.target.write_model(&model.file).map_err(|error| folder_error(&error))?;
        Ok((model, variables))
    }

    /// Refuses a compose file that asks for access to the machine.
    fn check_access(&self, resolved: &mut Value, checkout: &Path) -> Result<(), JobError> {
        let found = preview::violations(resolved, checkout);
        if found.is_empty() {
            return Ok(());
        }
        for sentence in &found {
            self.log.info(&format!("Refused: {sentence}"));
        }
        Err(JobError::with_message(reason(DeployProblem::Forbidden), found.join("; ")))
    }

    /// Fetches the commit, and finds its compose file.
    async fn check_out(&self, path: &str, checkout: &Path) -> Result<ComposeFiles, JobError> {
        let Some(context) = &self.deploy.context else {
            let message = "DEPLOY has a compose_path and no context";
            return Err(JobError::with_message(FailureReason::Internal, message));
        };
        clone(context, checkout, self.log, self.stop).await?;
        let root = checkout.canonicalize().map_err(|error| folder_error(&error))?;
        let is_checked = !self.deploy.allow_privileged;
        preview::find_compose_files(&root, path, is_checked).map_err(|error| {
            let problem = match &error {
                preview::FilesError::Outside { .. } | preview::FilesError::Unsupported { .. } => {
                    DeployProblem::Forbidden
                }
                _ => DeployProblem::Compose,
            };
            JobError::new(reason(problem), &error)
        })
    }
}
