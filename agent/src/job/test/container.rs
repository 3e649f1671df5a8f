//! The container of one attempt of a test: creates, runs and removes it.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::LazyLock;
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as EngineError;
use bollard::models::{
    ContainerCreateBody, ContainerState, ContainerStateStatusEnum, HostConfig, HostConfigLogConfig,
    NetworkConnectRequest,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptions, InspectContainerOptions,
    ListContainersOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures_util::StreamExt as _;
use futures_util::stream::Stream;
use stagely_protocol::text::readable;
use stagely_protocol::{FailureReason, Stream as OutputStream, WireId};
use tokio::time::{sleep_until, timeout};

use super::cases::cut;
use super::environment::environment;
use super::network::TestNetwork;
use super::{JobError, Testing, engine_error, stopped};
use crate::docker::container_start_failure;
use crate::job_log::{JobLog, LineStream};
use crate::preview::containers::{self, MACHINE_LABEL, PREVIEW_LABEL};
use crate::retry::Backoff;

/// Holds the id of a test job.
const JOB_LABEL: &str = "stagely.job";

/// Holds [`PROCESS`].
const PROCESS_LABEL: &str = "stagely.process";

/// Distinguishes this agent from a killed one before it.
static PROCESS: LazyLock<String> = LazyLock::new(|| format!("{:016x}", rand::random::<u64>()));

/// What browsers need in `/dev/shm`. It takes memory only as far as it is used.
const SHARED_MEMORY_BYTES: i64 = 1024 * 1024 * 1024;

/// What a shell says about a program that it cannot start.
const EXIT_NOT_STARTED: i32 = 127;

/// How long the last output of a container that has ended may take.
const OUTPUT_LIMIT: Duration = Duration::from_secs(10);

/// How long an engine may not say whether a container has ended.
const ENGINE_LIMIT: Duration = Duration::from_mins(1);

const ENGINE_INTERVAL: Duration = Duration::from_secs(1);

/// How many of the last lines explain a failure, and the most bytes of each. Together they fit into a message of STATUS.
const LAST_LINES: usize = 20;
const LAST_LINE_BYTES_MAX: usize = 180;

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) exit_code: i32,
    pub(super) was_out_of_memory: bool,
    /// It was stopped, because its time was over.
    pub(super) is_late: bool,
    /// The last lines of its output, masked.
    pub(super) last_lines: Vec<String>,
}

/// A container that was created for one attempt.
pub(super) struct TestContainer<'a> {
    testing: &'a Testing<'a>,
    pub(super) id: String,
    /// The working folder of its command, an absolute path.
    pub(super) folder: String,
}

impl<'a> TestContainer<'a> {
    pub(super) async fn create(testing: &'a Testing<'a>) -> Result<Self, JobError> {
        let (engine, test) = (&testing.engine, testing.test);
        let machine = &testing.settings.machine;
        let mut labels: HashMap<_, _> = [
            (MACHINE_LABEL.to_owned(), machine.to_string()),
            (JOB_LABEL.to_owned(), test.job_id.to_string()),
            (PROCESS_LABEL.to_owned(), PROCESS.clone()),
        ]
        .into();
        let preview = test.preview.as_ref().and_then(|preview| preview.preview_id.as_ref());
        if let Some(preview) = preview {
            // It ends with the preview, whose networks cannot be removed before.
            labels.insert(PREVIEW_LABEL.to_owned(), preview.to_string());
        }
        let network = TestNetwork::of(testing).await?;
        let body = ContainerCreateBody {
            image: Some(test.image.to_string()),
            cmd: Some(test.command.clone()).filter(|command| !command.is_empty()),
            env: Some(environment(test)),
            labels: Some(labels),
            host_config: Some(HostConfig {
                network_mode: network.first,
                extra_hosts: Some(network.extra_hosts),
                shm_size: Some(SHARED_MEMORY_BYTES),
                // The job's log has it.
                log_config: Some(HostConfigLogConfig {
                    typ: Some("none".to_owned()),
                    ..HostConfigLogConfig::default()
                }),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let create = engine.create_container(None::<CreateContainerOptions>, body);
        let id = create.await.map_err(|error| start_error(&error))?.id;
        let mut container = Self { testing, id, folder: "/".to_owned() };
        match container.prepare(&network.others).await {
            Ok(()) => Ok(container),
            Err(error) => {
                let _ = container.remove().await;
                Err(engine_error(&error))
            }
        }
    }

    /// Adds the container to more networks, and finds out its working folder.
    async fn prepare(&mut self, networks: &[String]) -> Result<(), EngineError> {
        let engine = &self.testing.engine;
        for network in networks {
            let request =
                NetworkConnectRequest { container: self.id.clone(), endpoint_config: None };
            engine.connect_network(network, request).await?;
        }
        let inspected = engine.inspect_container(&self.id, None::<InspectContainerOptions>).await?;
        let folder = inspected.config.and_then(|config| config.working_dir);
        if let Some(folder) = folder.filter(|folder| folder.starts_with('/')) {
            self.folder = folder;
        }
        Ok(())
    }

    /// Runs the command, whose output goes to the job's log.
    pub(super) async fn run(&self) -> Result<Ended, JobError> {
        let Testing { engine, log, stop, deadline, .. } = self.testing;
        let options = AttachContainerOptionsBuilder::new().stream(true).stdout(true).stderr(true);
        let attached = engine.attach_container(&self.id, Some(options.build())).await;
        let attached = attached.map_err(|error| engine_error(&error))?;
        let command = self.testing.test.command.join(" ");
        log.info(&match &*command {
            "" => "Running the command of the image".to_owned(),
            command => format!("Running: {command}"),
        });
        engine
            .start_container(&self.id, None::<StartContainerOptions>)
            .await
            .map_err(|error| start_error(&error))?;
        let mut output = OutputLog::new(log);
        let (state, is_late) = {
            let mut ended = pin!(self.end(copy(attached.output, &mut output)));
            tokio::select! {
                () = stop.cancelled() => return Err(stopped()),
                state = &mut ended => (state?, false),
                () = sleep_until(*deadline) => {
                    log.info("The time of the test is over: stopping it");
                    let (stopped, state) = tokio::join!(self.stop(), &mut ended);
                    stopped?;
                    (state?, true)
                }
            }
        };
        Ok(Ended {
            exit_code: state.exit_code.and_then(|code| code.try_into().ok()).unwrap_or(1),
            was_out_of_memory: state.oom_killed.unwrap_or(false),
            is_late,
            last_lines: output.finish(),
        })
    }

    /// Waits for the end of the container and of its output.
    async fn end(&self, output: impl Future<Output = ()>) -> Result<ContainerState, JobError> {
        let (mut output, mut exit) = (pin!(output), pin!(self.exit()));
        tokio::select! {
            () = &mut output => exit.await,
            state = &mut exit => {
                // A process of another container may have the output.
                let _ = timeout(OUTPUT_LIMIT, output).await;
                state
            }
        }
    }

    /// Waits until the container has ended, also if the engine does not answer for a while.
    async fn exit(&self) -> Result<ContainerState, JobError> {
        let engine = &self.testing.engine;
        let backoff = || Backoff::constant(ENGINE_INTERVAL, ENGINE_LIMIT);
        // Since when it does not say.
        let mut failures = None;
        loop {
            let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
            let _ = pin!(engine.wait_container(&self.id, Some(options))).next().await;
            let inspected = engine.inspect_container(&self.id, None::<InspectContainerOptions>);
            let error = match inspected.await {
                Ok(inspected) => {
                    let state = inspected.state.unwrap_or_default();
                    if state.status.is_some_and(is_being_removed) {
                        let message = "the container of the test was removed meanwhile";
                        return Err(JobError::with_message(FailureReason::Engine, message));
                    }
                    if state.running != Some(true) {
                        return Ok(state);
                    }
                    None
                }
                Err(error @ EngineError::DockerResponseServerError { status_code: 404, .. }) => {
                    return Err(engine_error(&error));
                }
                Err(error) => Some(error),
            };
            let mut pause = failures.take().filter(|_| error.is_some()).unwrap_or_else(backoff);
            if !pause.wait(self.testing.stop, |_| {}).await {
                return Err(error.map_or_else(stopped, |error| engine_error(&error)));
            }
            failures = error.map(|_| pause);
        }
    }

    /// Ends the command: SIGTERM, and SIGKILL after the grace.
    async fn stop(&self) -> Result<(), JobError> {
        let grace = i32::try_from(self.testing.settings.grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().t(grace).build();
        let stopped = self.testing.engine.stop_container(&self.id, Some(options)).await;
        stopped.map_err(|error| engine_error(&error))
    }

    /// Removes the container, running or not, with the volumes that its image declares.
    pub(super) async fn remove(self) -> Result<(), EngineError> {
        containers::remove_container(&self.testing.engine, Some(self.id)).await
    }
}

/// Somebody else removes the container: its preview ends. Its exit code says nothing about the test.
const fn is_being_removed(status: ContainerStateStatusEnum) -> bool {
    matches!(status, ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD)
}

/// An engine refuses to create or start a container because of its image or its command, or because of itself.
fn start_error(error: &EngineError) -> JobError {
    let EngineError::DockerResponseServerError { message, .. } = error else {
        return engine_error(error);
    };
    if let Some(reason) = container_start_failure(message) {
        return JobError::with_message(reason, message.clone());
    }
    let reason = FailureReason::Test { failed: 0, exit_code: EXIT_NOT_STARTED };
    JobError::with_message(reason, format!("the test cannot be started: {message}"))
}

/// Copies the output of a container to the log.
async fn copy(output: impl Stream<Item = Result<LogOutput, EngineError>>, log: &mut OutputLog<'_>) {
    let mut output = pin!(output);
    while let Some(piece) = output.next().await {
        match piece {
            Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => {
                log.push(OutputStream::Stdout, &message);
            }
            Ok(LogOutput::StdErr { message }) => log.push(OutputStream::Stderr, &message),
            Ok(LogOutput::StdIn { .. }) => {}
            Err(error) => {
                log.log.warn(&format!("the output of the test breaks off: {error}"));
                return;
            }
        }
    }
}

/// Turns output into lines of the job's log, and keeps the last ones.
struct OutputLog<'a> {
    log: &'a JobLog,
    stdout: LineStream,
    stderr: LineStream,
    last: VecDeque<String>,
}

impl<'a> OutputLog<'a> {
    fn new(log: &'a JobLog) -> Self {
        let stream = || LineStream::new(log.masker());
        Self { log, stdout: stream(), stderr: stream(), last: VecDeque::new() }
    }

    fn push(&mut self, stream: OutputStream, bytes: &[u8]) {
        let lines = match stream {
            OutputStream::Stdout => self.stdout.push(bytes),
            OutputStream::Stderr => self.stderr.push(bytes),
        };
        self.append(stream, lines);
    }

    /// The last lines that are not blank.
    fn finish(mut self) -> Vec<String> {
        let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
        self.append(OutputStream::Stdout, stdout);
        self.append(OutputStream::Stderr, stderr);
        self.last.into()
    }

    fn append(&mut self, stream: OutputStream, lines: Vec<String>) {
        for line in lines.iter().filter(|line| !line.trim().is_empty()) {
            let mut shown = readable(line);
            if shown.len() > LAST_LINE_BYTES_MAX {
                shown = format!("{}…", cut(&shown, LAST_LINE_BYTES_MAX));
            }
            self.last.push_back(shown);
            if self.last.len() > LAST_LINES {
                self.last.pop_front();
            }
        }
        let lines: Vec<_> = lines.into_iter().map(|line| (stream, line)).collect();
        self.log.append_masked(&lines);
    }
}

/// Removes the containers of tests that a killed agent of `machine` has left.
pub(in crate::job) async fn remove_leftovers(
    engine: &Docker,
    machine: &WireId,
) -> Result<(), EngineError> {
    let labels = vec![format!("{MACHINE_LABEL}={machine}"), JOB_LABEL.to_owned()];
    let filters: HashMap<_, _> = [("label".to_owned(), labels)].into();
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    for listed in engine.list_containers(Some(options)).await? {
        let labels = listed.labels.unwrap_or_default();
        if labels.get(PROCESS_LABEL) != Some(&*PROCESS) {
            containers::remove_container(engine, listed.id).await?;
        }
    }
    Ok(())
}
