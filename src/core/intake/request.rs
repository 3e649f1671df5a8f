//! Makes the records of a run or a warm-up that the API or the schedule asks for.

use std::collections::BTreeMap;

use stagely_state::ids::RunId;
use stagely_state::{Environment, Project, Run, Trigger, WantedTests};

use super::fields::{
    InvalidRequest, check_branch, check_builds, check_foreign_set, check_reference, check_set,
    invalid, repository,
};
use super::names;
use crate::api::{CreateRun, CreateWarmUp};
use crate::core::clock::{new_id, now};
use crate::core::records::Records;
use crate::core::secrets::RunSecrets;

/// The records that a request makes.
#[derive(Debug)]
pub(crate) struct RequestedRun {
    pub(crate) run: Run,
    /// New or known.
    pub(crate) project: Project,
    /// New or known.
    pub(crate) environment: Environment,
    /// Stored sealed.
    pub(crate) secrets: RunSecrets,
}

/// Checks a request and makes its records.
///
/// # Errors
/// [`InvalidRequest`], naming the field.
pub(crate) fn run(records: &Records, create: CreateRun) -> Result<RequestedRun, InvalidRequest> {
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
    let environment = names::environment(records, &project, name, create.pull_request)?;
    let run = Run {
        requested_ref: create.reference,
        only_builds: create.builds,
        base: create.base,
        from_fork: create.from_fork,
        set_names: create.set.keys().cloned().collect(),
        with_preview: create.preview,
        wanted_tests: if create.without_tests { WantedTests::None } else { WantedTests::NotPassed },
        ..Run::new(new_id::<RunId>(), &environment, repository.to_string(), now())
    };
    let secrets = RunSecrets { clone_token: create.clone_token, set: create.set };
    Ok(RequestedRun { run, project, environment, secrets })
}

/// Makes the records of a run that fills the caches of the project called `name`; `None` if there is no
/// such project.
///
/// # Errors
/// [`InvalidRequest`], naming the field.
pub(crate) fn warm_up(
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
    let environment = names::environment(records, project, name, None)?;
    let run = Run {
        trigger: Trigger::WarmUp,
        requested_ref: create.branch,
        ..Run::new(new_id::<RunId>(), &environment, project.repository.clone(), now())
    };
    let secrets = RunSecrets { clone_token: create.clone_token, set: BTreeMap::new() };
    Ok(Some(RequestedRun { run, project: project.clone(), environment, secrets }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::intake::fixtures::{app, records_of};

    #[test]
    fn a_pull_request_has_an_environment_with_its_number() {
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
}
