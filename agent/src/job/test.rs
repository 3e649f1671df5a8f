//! A TEST job: runs a command in a new container of an image, reads its `JUnit` files, and uploads its artifacts.

mod artifacts;
mod upload;

mod container;
mod environment;
mod network;

mod cases;
mod junit;
mod results;

mod files;
mod patterns;

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as EngineError;
use stagely_protocol::{
    ErrorChain, FailureReason, StoredArtifacts, TEST_REPORT_SECONDS_MAX, Test, TestResults,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use self::cases::Cases;
use self::container::TestContainer;
pub(super) use self::container::remove_leftovers;
use self::files::{ContainerFiles, FilesError, Notes};
use self::junit::JunitFiles;
use self::results::{Attempt, attempts_results};
use super::JobSettings;
use super::error::JobError;
use super::prerequisites::{RegistryBackoff, log_in, wait_for_engine};
use super::report::JobOutput;
use super::test_report::{TestReport, counts};
use crate::docker::{self, DockerCommand};
use crate::job_log::JobLog;

/// The most retries, whatever TEST says.
const RETRIES_MAX: u32 = 3;

/// How long files are copied out of a container.
const COPY_LIMIT: Duration = Duration::from_mins(4);

/// How long everything after the command may take: less than core waits for the report.
const REPORT_LIMIT: Duration = Duration::from_secs(TEST_REPORT_SECONDS_MAX - 30);

pub(super) async fn perform(
    test: &Test,
    settings: &JobSettings,
    docker: &DockerCommand,
    folder: &Path,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<JobOutput, JobError> {
    let started = Instant::now();
    let limit = Duration::from_secs(test.timeout_seconds);
    let deadline = started + limit;
    let preparing = stop.child_token();
    let prepared = async {
        wait_for_engine(docker, log, &preparing).await?;
        let engine = docker.endpoint.connect().map_err(|error| engine_error(&error))?;
        remove_leftovers(&engine, &settings.machine).await.map_err(|error| engine_error(&error))?;
        pull(test, docker, log, &preparing).await?;
        Ok::<_, JobError>(engine)
    };
    let mut prepared = pin!(prepared);
    let engine = if let Ok(engine) = timeout_at(deadline, &mut prepared).await {
        engine?
    } else {
        preparing.cancel();
        let _ = prepared.await;
        return Err(timed_out(limit));
    };
    let testing = Testing { test, settings, engine, log, stop, folder, deadline };
    let (mut report, failure) = testing.run(limit).await?;
    report.results = report.results.map(TestResults::bounded);
    match failure {
        None => Ok(JobOutput {
            test: Some(report),
            duration: started.elapsed(),
            ..JobOutput::default()
        }),
        Some(error) => Err(JobError { test: Some(Box::new(report)), ..error }),
    }
}

fn stopped() -> JobError {
    JobError::with_message(FailureReason::Internal, "stopped")
}

fn timed_out(limit: Duration) -> JobError {
    let reason = FailureReason::Timeout { limit_seconds: limit.as_secs() };
    JobError::with_message(reason.clone(), reason.to_string())
}

fn engine_error(error: &EngineError) -> JobError {
    JobError::new(FailureReason::Engine, error)
}

/// Pulls the image, unless it is named by a digest and the engine has it.
async fn pull(
    test: &Test,
    docker: &DockerCommand,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<(), JobError> {
    let error_of = |error: docker::PullError| JobError::new(error.reason(), &error);
    let image = test.image.as_str();
    if image.contains('@') && docker::has_image(docker, image).await.map_err(error_of)? {
        return Ok(());
    }
    log_in(docker, test.image.registry(), test.registry_auth.as_ref(), log, stop).await?;
    log.info(&format!("Pulling {image}"));
    let (started, mut backoff) = (Instant::now(), RegistryBackoff::new(docker));
    while let Err(error) = docker::pull(docker, image, None, stop).await {
        backoff.wait_after(error_of(error), log, stop).await?;
    }
    log.info(&format!("Pulled {image} in {:.1}s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// A test on its way.
struct Testing<'a> {
    test: &'a Test,
    settings: &'a JobSettings,
    engine: Docker,
    log: &'a JobLog,
    stop: &'a CancellationToken,
    /// The job's own.
    folder: &'a Path,
    /// When the command is stopped.
    deadline: Instant,
}

impl Testing<'_> {
    /// Runs the command until it passes or may not be tried again. Returns what is known of it, and why it failed.
    async fn run(&self, limit: Duration) -> Result<(TestReport, Option<JobError>), JobError> {
        let attempts_max = self.test.retries.min(RETRIES_MAX) + 1;
        let mut attempts = Vec::new();
        loop {
            let number = attempts.len() + 1;
            if number > 1 {
                self.log.info(&format!("Trying again: attempt {number} of {attempts_max}"));
            }
            let container = TestContainer::create(self).await?;
            let attempted = self.attempt(&container, &mut attempts, attempts_max).await;
            let removed = container.remove().await;
            let Some(ended) = attempted? else {
                removed.map_err(|error| engine_error(&error))?;
                continue;
            };
            if let Err(error) = removed {
                // The next agent, or the next test, removes it.
                tracing::warn!(%error, "cannot remove the container of a test");
            }
            let results = attempts_results(self.test, &attempts);
            self.log_results(results.as_ref());
            let failure = if ended.is_late {
                Some(timed_out(limit))
            } else {
                results::failure(&attempts, results.as_ref())
            };
            let report = TestReport { results, artifacts: ended.artifacts };
            return Ok((report, failure));
        }
    }

    /// Runs the command once. `None`: it failed and is tried again.
    async fn attempt(
        &self,
        container: &TestContainer<'_>,
        attempts: &mut Vec<Attempt>,
        attempts_max: u32,
    ) -> Result<Option<LastAttempt>, JobError> {
        let ended = container.run().await?;
        let report_deadline = Instant::now() + REPORT_LIMIT;
        let files = ContainerFiles {
            engine: &self.engine,
            container: &container.id,
            folder: &container.folder,
            stop: self.stop,
        };
        let is_late = ended.is_late;
        let cases = self.read_junit(&files, report_deadline).await?;
        // Reading takes time, too.
        let is_over = is_late || Instant::now() >= self.deadline;
        let is_last = is_over || attempts.len() + 1 >= attempts_max as usize;
        let attempt = Attempt::new(ended, cases);
        let is_failed = attempt.is_failed();
        attempts.push(attempt);
        if is_failed && !is_last {
            return Ok(None);
        }
        let artifacts = self.store_artifacts(&files, report_deadline).await?;
        Ok(Some(LastAttempt { is_late, artifacts }))
    }

    /// Reads the `JUnit` files of an attempt. `None`: there are none.
    async fn read_junit(
        &self,
        files: &ContainerFiles<'_>,
        deadline: Instant,
    ) -> Result<Option<Cases>, JobError> {
        if self.test.junit.is_empty() {
            return Ok(None);
        }
        let patterns = files.patterns(&self.test.junit, self.log);
        let junit = JunitFiles::new(self.log.masker().clone());
        let deadline = deadline.min(Instant::now() + COPY_LIMIT);
        let (junit, visited) = files.visit(&patterns, junit, deadline).await;
        self.note_visit("the JUnit files", visited)?;
        for warning in junit.warnings() {
            self.log.warn(warning);
        }
        let cases = junit.cases();
        if cases.is_none() {
            let patterns = self.test.junit.join("`, `");
            self.log.warn(&format!("no JUnit file matches `{patterns}`"));
        }
        Ok(cases)
    }

    /// Warns of what was left out, and of files that could not be read.
    ///
    /// # Errors
    /// The job was stopped.
    fn note_visit(
        &self,
        what: &str,
        (notes, visited): (Notes, Result<(), FilesError>),
    ) -> Result<(), JobError> {
        for note in notes.lines(what) {
            self.log.warn(&note);
        }
        match visited {
            Ok(()) => Ok(()),
            Err(FilesError::Stopped) => Err(stopped()),
            Err(error) => {
                let error = ErrorChain(&error);
                self.log.warn(&format!("not all of {what} can be read: {error}"));
                Ok(())
            }
        }
    }

    fn log_results(&self, results: Option<&TestResults>) {
        let Some(results) = results else { return };
        for line in results::failed_lines(results) {
            self.log.info(&line);
        }
        self.log.info(&counts(results));
    }
}

/// What the last attempt leaves behind.
struct LastAttempt {
    /// The command was stopped, because its time was over.
    is_late: bool,
    artifacts: Option<StoredArtifacts>,
}
