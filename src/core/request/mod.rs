//! Turns a request for a run into its records: which project it belongs to, and which environment.

pub mod hooks;
mod names;
pub mod projects;

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};
use stagely_state::ids::{EnvironmentId, RunId};
use stagely_state::{
    BranchName, Environment, InvalidName, Project, Reference, Run, RunState, Trigger,
};
use thiserror::Error;
use url::Url;

use super::clock::now;
use super::records::Records;
use super::secrets::RunSecrets;
use crate::api::{CreateRun, CreateWarmUp, RebuildRun};
use crate::core::clock::new_id;

pub use names::{DEFAULT_ENVIRONMENT, environment_of};

/// The most build arguments that a request may set.
const SET_MAX: usize = 128;
/// The longest text of any field.
const TEXT_BYTES_MAX: usize = 4 * 1024;

/// A request that cannot be served.
#[derive(Debug, Error)]
#[error("{field}: {problem}")]
pub struct InvalidRequest {
    /// The field.
    pub field: &'static str,
    /// What is wrong and what to do.
    pub problem: String,
}

fn invalid(field: &'static str, problem: impl Into<String>) -> InvalidRequest {
    InvalidRequest { field, problem: problem.into() }
}

/// The records that a request makes.
#[derive(Debug)]
pub struct RequestedRun {
    /// The run.
    pub run: Run,
    /// Its project, new or known.
    pub project: Project,
    /// Its environment, new or known.
    pub environment: Environment,
    /// What goes to the store sealed.
    pub secrets: RunSecrets,
}

/// Checks a request and makes its records.
///
/// # Errors
/// [`InvalidRequest`], naming the field.
pub fn run(records: &Records, create: CreateRun) -> Result<RequestedRun, InvalidRequest> {
    let repository = repository(&create.repository)?;
    for (field, reference) in [("ref", &create.reference), ("base", &create.base)] {
        if let Some(reference) = reference {
            check_reference(field, reference)?;
        }
    }
    if create.pull_request == Some(0) {
        return Err(invalid("pull_request", "is the number of a pull request, from 1"));
    }
    if create.from_fork && create.pull_request.is_none() {
        return Err(invalid("from_fork", "is for pull requests; give pull_request, too"));
    }
    check_builds(&create.builds)?;
    check_set(&create.set)?;
    check_foreign_set(create.from_fork, &create.set)?;
    let project = names::project(records, &repository, create.project.as_deref())?;
    let (wanted, reference) = (create.environment.as_deref(), create.reference.as_deref());
    let name = names::environment_name(wanted, create.pull_request, reference)?;
    let environment = environment(records, &project, name, create.pull_request)?;
    let run = Run {
        requested_ref: create.reference,
        only_builds: create.builds,
        base: create.base,
        from_fork: create.from_fork,
        set_names: create.set.keys().cloned().collect(),
        ..Run::new(new_id::<RunId>(), &environment, repository.to_string(), now())
    };
    let secrets = RunSecrets { clone_token: create.clone_token, set: create.set };
    Ok(RequestedRun { run, project, environment, secrets })
}

/// Why a run is not built once more.
#[derive(Debug, Error)]
pub enum RebuildError {
    /// There is no such run.
    #[error("there is no run {0}")]
    NotFound(RunId),
    /// There is no such environment.
    #[error("there is no environment {0}")]
    NoEnvironment(EnvironmentId),
    /// The run is not one that can be.
    #[error("{0}")]
    Conflict(String),
    /// The request must say something else.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
}

/// Makes the records of a run that builds the commit of `id` once more.
///
/// # Errors
/// [`RebuildError`].
pub fn rebuild(
    records: &Records,
    id: RunId,
    rebuild: RebuildRun,
) -> Result<RequestedRun, RebuildError> {
    let earlier = records.runs.get(&id).ok_or(RebuildError::NotFound(id))?;
    check_rebuild(earlier, rebuild.failed).map_err(RebuildError::Conflict)?;
    again(records, earlier, rebuild)
}

/// Makes the records of a run that builds the newest run of an environment once more, also while that one
/// goes on: it takes its place.
///
/// # Errors
/// [`RebuildError`].
pub fn rebuild_environment(
    records: &Records,
    id: EnvironmentId,
    failed_only: bool,
) -> Result<RequestedRun, RebuildError> {
    let environment = records.environments.get(&id).ok_or(RebuildError::NoEnvironment(id))?;
    let project = records.projects.get(&environment.project);
    let is_linked = project.is_some_and(|project| project.github.is_some());
    if environment.closed && environment.pull_request.is_some() && is_linked {
        return Err(RebuildError::Conflict(format!("{} is closed", environment.name)));
    }
    let newest = environment.newest_run.and_then(|run| records.runs.get(&run));
    let Some(newest) = newest else {
        return Err(RebuildError::Conflict("there is no run to be built again".to_owned()));
    };
    if newest.state.is_final() || failed_only {
        check_rebuild(newest, failed_only).map_err(RebuildError::Conflict)?;
    }
    again(records, newest, RebuildRun { failed: failed_only, ..RebuildRun::default() })
}

/// `earlier` once more, which may be.
fn again(
    records: &Records,
    earlier: &Run,
    rebuild: RebuildRun,
) -> Result<RequestedRun, RebuildError> {
    let id = earlier.id;
    let project = records.projects.get(&earlier.project).ok_or(RebuildError::NotFound(id))?;
    let environment = records.environments.get(&earlier.environment);
    let environment = environment.ok_or(RebuildError::NotFound(id))?;
    check_arguments(earlier, &rebuild)?;
    let commit = earlier.commit.as_ref().map(ToString::to_string);
    let run = Run {
        trigger: Trigger::Retry,
        requested_ref: commit.or_else(|| earlier.requested_ref.clone()),
        // A commit says nothing of branches, and what is built may depend on it.
        branch: earlier.branch.clone(),
        only_builds: earlier.only_builds.clone(),
        base: earlier.base.clone(),
        from_fork: earlier.from_fork,
        github: earlier.github.clone(),
        approval: earlier.approval.clone(),
        set_names: rebuild.set.keys().cloned().collect(),
        rebuilds: Some(earlier.original()),
        keeps: rebuild.failed.then_some(id),
        ..Run::new(new_id::<RunId>(), environment, earlier.repository.clone(), now())
    };
    let secrets = RunSecrets { clone_token: rebuild.clone_token, set: rebuild.set };
    Ok(RequestedRun { run, project: project.clone(), environment: environment.clone(), secrets })
}

/// The build arguments of `earlier` must be given again, and where jobs are kept no others.
fn check_arguments(earlier: &Run, rebuild: &RebuildRun) -> Result<(), InvalidRequest> {
    let id = earlier.id;
    check_set(&rebuild.set)?;
    check_foreign_set(earlier.from_fork, &rebuild.set)?;
    let missing = |name: &&String| !rebuild.set.contains_key(*name);
    let missing: Vec<&str> = earlier.set_names.iter().filter(missing).map(String::as_str).collect();
    if !missing.is_empty() {
        let names = missing.join(", ");
        let problem =
            format!("{id} was given {names}, whose values went with its end: set them again");
        return Err(invalid("set", problem));
    }
    let added = |name: &&String| !earlier.set_names.contains(*name);
    let added: Vec<&str> = rebuild.set.keys().filter(added).map(String::as_str).collect();
    if rebuild.failed && !added.is_empty() {
        let names = added.join(", ");
        let problem = format!(
            "{id} was not given {names}, so what completed there was built without: leave it out, or \
             build all of it again without `failed`"
        );
        return Err(invalid("set", problem));
    }
    Ok(())
}

fn check_rebuild(earlier: &Run, only_failed: bool) -> Result<(), String> {
    let id = earlier.id;
    if !earlier.state.is_final() {
        return Err(format!("{id} has not ended; wait for it or cancel it first"));
    }
    if earlier.trigger == Trigger::WarmUp {
        return Err(format!("{id} is a warm-up; start another with `stagely warm`"));
    }
    if only_failed && earlier.state == RunState::Completed {
        return Err(format!("nothing failed in {id}; without `failed` all of it is built again"));
    }
    Ok(())
}

/// Makes the records of a run that fills the caches of the project called `name`; `None` if there is no
/// such project.
///
/// # Errors
/// [`InvalidRequest`], naming the field.
pub fn warm_up(
    records: &Records,
    name: &str,
    create: CreateWarmUp,
) -> Result<Option<RequestedRun>, InvalidRequest> {
    if let Some(branch) = &create.branch {
        check_branch("branch", branch)?;
    }
    let Some(project) = records.projects.values().find(|project| project.name == name) else {
        return Ok(None);
    };
    let name = names::environment_name(None, None, create.branch.as_deref())?;
    let environment = environment(records, project, name, None)?;
    let run = Run {
        trigger: Trigger::WarmUp,
        requested_ref: create.branch,
        ..Run::new(new_id::<RunId>(), &environment, project.repository.clone(), now())
    };
    let secrets = RunSecrets { clone_token: create.clone_token, set: BTreeMap::new() };
    Ok(Some(RequestedRun { run, project: project.clone(), environment, secrets }))
}

/// The environment called `name`: the one there is, or a new one.
fn environment(
    records: &Records,
    project: &Project,
    name: String,
    pull_request: Option<u64>,
) -> Result<Environment, InvalidRequest> {
    let known = records
        .environments
        .values()
        .find(|found| found.project == project.id && found.name == name);
    let Some(known) = known else {
        let new = Environment::new(new_id::<EnvironmentId>(), project.id, name);
        return Ok(Environment { pull_request, ..new });
    };
    if pull_request.is_some() && known.pull_request != pull_request {
        let problem = match known.pull_request {
            Some(other) => format!("{name} is that of pull request {other}; name another"),
            None => format!("{name} is there already, for no pull request; name another"),
        };
        return Err(invalid("environment", problem));
    }
    Ok(known.clone())
}

fn repository(text: &str) -> Result<Url, InvalidRequest> {
    const FIELD: &str = "repository";
    if text.len() > TEXT_BYTES_MAX {
        return Err(invalid(FIELD, "is longer than 4096 bytes"));
    }
    let url: Url = text
        .parse()
        .map_err(|error| invalid(FIELD, format!("is not a URL ({error}); write https://…")))?;
    if !matches!(url.scheme(), "http" | "https" | "git") || url.host().is_none() {
        return Err(invalid(FIELD, "must start with https://, http:// or git://"));
    }
    if url.password().is_some() || !url.username().is_empty() {
        return Err(invalid(FIELD, "holds a user or password; give it as clone_token"));
    }
    // An address is stored and shown, so no token may be in it.
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid(
            FIELD,
            "ends in `?…` or `#…`, which no repository needs; give a token as clone_token, and a \
             branch, tag or commit as ref",
        ));
    }
    Ok(url)
}

fn check_reference(field: &'static str, reference: &str) -> Result<Reference, InvalidRequest> {
    reference.parse().map_err(|error: InvalidName| invalid(field, error.problem))
}

fn check_branch(field: &'static str, branch: &str) -> Result<BranchName, InvalidRequest> {
    branch.parse().map_err(|error: InvalidName| invalid(field, error.problem))
}

fn check_builds(builds: &[String]) -> Result<(), InvalidRequest> {
    if builds.len() > SET_MAX || builds.iter().any(|build| build.len() > 255) {
        return Err(invalid("builds", "is too long"));
    }
    Ok(())
}

/// A build of a fork runs what a stranger wrote.
fn check_foreign_set(
    from_fork: bool,
    set: &BTreeMap<String, SecretString>,
) -> Result<(), InvalidRequest> {
    if from_fork && !set.is_empty() {
        let problem = "may be secret, and the builds of forks get no secrets: leave it out";
        return Err(invalid("set", problem));
    }
    Ok(())
}

fn check_set(set: &BTreeMap<String, SecretString>) -> Result<(), InvalidRequest> {
    if set.len() > SET_MAX {
        return Err(invalid("set", format!("has more than {SET_MAX} entries")));
    }
    for (name, value) in set {
        let good = !name.is_empty()
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !good {
            let problem = format!("{name:?} is not the name of a build argument");
            return Err(invalid("set", problem));
        }
        if value.expose_secret().len() > 64 * 1024 {
            return Err(invalid("set", format!("the value of {name} is longer than 64 KiB")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use stagely_protocol::CommitSha;
    use stagely_state::Approval;

    use super::*;

    /// Records of one project with one run, made by `create` and then changed.
    fn records_of(create: CreateRun, change: impl FnOnce(&mut Run)) -> (Records, RunId) {
        let RequestedRun { mut run, project, environment, .. } =
            super::run(&Records::default(), create).unwrap();
        change(&mut run);
        let id = run.id;
        let mut records = Records::default();
        records.projects.insert(project.id, project);
        records.environments.insert(environment.id, environment);
        records.runs.insert(id, run);
        (records, id)
    }

    fn app() -> CreateRun {
        CreateRun::new("https://host/owner/app.git".to_owned())
    }

    fn failed() -> RunState {
        RunState::Failed { plan_error: None }
    }

    #[test]
    fn a_pull_request_has_an_environment_of_its_own_that_says_so() {
        let create = CreateRun { pull_request: Some(7), from_fork: true, ..app() };
        let RequestedRun { run, environment, .. } =
            super::run(&Records::default(), create).unwrap();
        assert_eq!((&*environment.name, environment.pull_request), ("pr-7", Some(7)));
        assert!(run.from_fork);

        let (records, _) = records_of(CreateRun { pull_request: Some(7), ..app() }, |_| {});
        let other =
            CreateRun { pull_request: Some(8), environment: Some("pr-7".to_owned()), ..app() };
        let error = super::run(&records, other).unwrap_err().to_string();
        assert!(error.contains("environment") && error.contains("pull request 7"), "{error}");
        let fork = CreateRun { from_fork: true, ..app() };
        assert_eq!(super::run(&records, fork).unwrap_err().field, "from_fork");
    }

    #[test]
    fn a_base_is_checked_as_a_ref_is() {
        let create = CreateRun { base: Some("--upload-pack=x".to_owned()), ..app() };
        assert_eq!(super::run(&Records::default(), create).unwrap_err().field, "base");
    }

    #[test]
    fn a_rebuild_is_of_the_same_commit_on_the_same_branch_with_the_same_choices() {
        let commit: CommitSha = "a".repeat(40).parse().unwrap();
        let create = CreateRun {
            reference: Some("main".to_owned()),
            base: Some("release".to_owned()),
            builds: vec!["web".to_owned()],
            pull_request: Some(7),
            from_fork: true,
            ..app()
        };
        let (records, id) = records_of(create, |run| {
            run.state = failed();
            run.commit = Some(commit.clone());
            run.branch = Some("main".to_owned());
        });

        let made =
            rebuild(&records, id, RebuildRun { failed: true, ..Default::default() }).unwrap();

        let (earlier, run) = (&records.runs[&id], made.run);
        assert_ne!(run.id, id);
        assert_eq!((run.trigger, run.keeps, run.rebuilds), (Trigger::Retry, Some(id), Some(id)));
        assert_eq!(run.requested_ref.as_deref(), Some(commit.as_str()));
        assert_eq!(run.branch.as_deref(), Some("main"));
        assert_eq!(
            (run.environment, &run.only_builds, &run.base, run.from_fork, &run.repository),
            (
                earlier.environment,
                &earlier.only_builds,
                &earlier.base,
                earlier.from_fork,
                &earlier.repository
            )
        );
        assert!(run.commit.is_none() && !run.state.is_final());
    }

    #[test]
    fn an_environment_is_rebuilt_by_its_newest_run_also_while_that_goes_on() {
        let create = CreateRun { pull_request: Some(7), from_fork: true, ..app() };
        let (mut records, id) = records_of(create, |run| run.approval = Approval::Awaited);
        let environment = records.runs[&id].environment;
        let none = rebuild_environment(&records, environment, false).unwrap_err();
        assert!(none.to_string().contains("no run"), "{none}");
        records.environments.get_mut(&environment).unwrap().newest_run = Some(id);

        let run = rebuild_environment(&records, environment, false).unwrap().run;

        assert_eq!((run.rebuilds, run.keeps, run.trigger), (Some(id), None, Trigger::Retry));
        assert_eq!(run.approval, Approval::Awaited, "nobody has agreed to it by building it again");
        let open = rebuild_environment(&records, environment, true).unwrap_err();
        assert!(open.to_string().contains("has not ended"), "{open}");
        let nowhere = rebuild_environment(&records, new_id::<EnvironmentId>(), false);
        assert!(matches!(nowhere, Err(RebuildError::NoEnvironment(_))));
    }

    #[test]
    fn a_rebuild_of_a_rebuild_repeats_the_first_run() {
        let first = new_id::<RunId>();
        let (records, id) = records_of(app(), |run| {
            run.state = failed();
            run.rebuilds = Some(first);
        });

        let made = rebuild(&records, id, RebuildRun { failed: true, ..Default::default() });

        let run = made.unwrap().run;
        assert_eq!((run.rebuilds, run.keeps), (Some(first), Some(id)));
    }

    #[test]
    fn a_rebuild_that_cannot_be_says_why() {
        let refused = |change: fn(&mut Run), failed| {
            let (records, id) = records_of(app(), change);
            match rebuild(&records, id, RebuildRun { failed, ..Default::default() }) {
                Err(RebuildError::Conflict(message)) => message,
                other => panic!("{other:?}"),
            }
        };
        assert!(refused(|_| {}, false).contains("has not ended"));
        assert!(refused(|run| run.state = RunState::Completed, true).contains("nothing failed"));
        let warm_up = |run: &mut Run| {
            run.state = RunState::Completed;
            run.trigger = Trigger::WarmUp;
        };
        assert!(refused(warm_up, false).contains("stagely warm"));
        let unknown = rebuild(&Records::default(), new_id::<RunId>(), RebuildRun::default());
        assert!(matches!(unknown, Err(RebuildError::NotFound(_))));
    }

    #[test]
    fn a_rebuild_names_the_arguments_that_must_be_given_again() {
        let secret = || SecretString::from("x");
        let set = ["TOKEN", "MODE"].map(|name| (name.to_owned(), secret()));
        let (records, id) =
            records_of(CreateRun { set: set.into(), ..app() }, |run| run.state = failed());

        let given =
            RebuildRun { set: [("MODE".to_owned(), secret())].into(), ..Default::default() };
        let error = rebuild(&records, id, given).unwrap_err();
        assert!(matches!(&error, RebuildError::Invalid(it) if it.field == "set"), "{error}");
        assert!(error.to_string().contains("given TOKEN,"), "{error}");

        let set = ["TOKEN", "MODE"].map(|name| (name.to_owned(), secret()));
        let given = RebuildRun { set: set.into(), ..Default::default() };
        let made = rebuild(&records, id, given).unwrap();
        assert_eq!(made.run.set_names, records.runs[&id].set_names);
    }

    #[test]
    fn a_rebuild_that_keeps_jobs_takes_no_arguments_that_they_were_built_without() {
        let (records, id) = records_of(app(), |run| run.state = failed());
        let set = || [("MODE".to_owned(), SecretString::from("x"))].into();
        let with =
            |failed| rebuild(&records, id, RebuildRun { failed, set: set(), ..Default::default() });

        let error = with(true).unwrap_err();
        assert!(matches!(&error, RebuildError::Invalid(it) if it.field == "set"), "{error}");
        assert!(error.to_string().contains("not given MODE,"), "{error}");
        assert!(with(false).unwrap().run.set_names.contains("MODE"));
    }

    #[test]
    fn a_warm_up_is_of_a_known_project_and_in_the_environment_of_its_branch() {
        let create = CreateRun { reference: Some("main".to_owned()), ..app() };
        let (records, id) = records_of(create, |_| {});
        let project = records.projects.values().next().unwrap().name.clone();
        let on = |branch: &str| CreateWarmUp { branch: Some(branch.to_owned()), clone_token: None };

        let main = warm_up(&records, &project, on("main")).unwrap().unwrap();
        let default = warm_up(&records, &project, CreateWarmUp::default()).unwrap().unwrap();

        assert_eq!(main.run.trigger, Trigger::WarmUp);
        assert_eq!(main.environment.id, records.runs[&id].environment);
        assert_eq!((&*default.environment.name, default.run.requested_ref), ("default", None));
        assert!(warm_up(&records, "nobody", CreateWarmUp::default()).unwrap().is_none());
        let commit = "a".repeat(40);
        for branch in [&*commit, "refs/pull/7/head", "refs/tags/v1"] {
            assert_eq!(warm_up(&records, &project, on(branch)).unwrap_err().field, "branch");
        }
        assert!(check_branch("branch", "refs/heads/main").is_ok());
    }

    #[test]
    fn an_address_that_may_hold_a_token_is_refused_with_where_it_belongs() {
        for end in ["?private_token=abc", "?", "#main"] {
            let error = repository(&format!("https://host/owner/app.git{end}")).unwrap_err();
            assert!(error.problem.contains("clone_token"), "{error}");
            assert!(!error.to_string().contains("abc"), "{error}");
        }
    }
}
