//! Makes the records of a rebuild: a new run of an earlier run's commit.

use stagely_state::ids::{EnvironmentId, RunId};
use stagely_state::{Environment, Run, RunState, Trigger, WantedTests};
use thiserror::Error;

use super::fields::{InvalidRequest, check_foreign_set, check_set, invalid};
use super::request::RequestedRun;
use crate::api::{RebuildEnvironment, RebuildRun};
use crate::core::clock::{new_id, now};
use crate::core::records::Records;
use crate::core::secrets::RunSecrets;

/// A run is not rebuilt.
#[derive(Debug, Error)]
pub(crate) enum RebuildError {
    #[error("there is no run {0}")]
    NotFound(RunId),
    #[error("there is no environment {0}")]
    NoEnvironment(EnvironmentId),
    #[error(transparent)]
    Conflict(#[from] NotRebuildable),
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
}

/// The state of a run or of its environment that rules out a rebuild.
#[derive(Debug, Error)]
pub(crate) enum NotRebuildable {
    #[error("{0} has not ended; wait for it or cancel it first")]
    Open(RunId),
    #[error("{0} is a warm-up; start another with `stagely warm`")]
    WarmUp(RunId),
    #[error("{0} only started a preview again; rebuild the run whose images it had")]
    OfPreview(RunId),
    #[error("nothing failed in {0}; without `failed` all of it is built again")]
    NothingFailed(RunId),
    #[error("{name} is closed")]
    Closed { name: String },
    #[error("there is no run to be built again")]
    NoRun,
}

/// Makes the records of a rebuild of the run `earlier`.
///
/// # Errors
/// [`RebuildError`].
pub(crate) fn rebuild(
    records: &Records,
    earlier: &Run,
    rebuild: RebuildRun,
) -> Result<RequestedRun, RebuildError> {
    check_rebuild(earlier, rebuild.failed && !rebuild.preview && !rebuild.tests)?;
    rebuild_of(records, earlier, rebuild)
}

/// Makes the records of a rebuild of an environment's `newest` run. If that run is still open, the rebuild
/// supersedes it.
///
/// # Errors
/// [`RebuildError`].
pub(crate) fn rebuild_environment(
    records: &Records,
    id: EnvironmentId,
    newest: Option<&Run>,
    rebuild: RebuildEnvironment,
) -> Result<RequestedRun, RebuildError> {
    check_open(records, id)?;
    let newest = newest.ok_or(NotRebuildable::NoRun)?;
    let RebuildEnvironment { failed_only, preview, tests } = rebuild;
    if newest.state.is_final() || failed_only || tests {
        check_rebuild(newest, failed_only && !preview && !tests)?;
    }
    let rebuild = RebuildRun { failed: failed_only, preview, tests, ..RebuildRun::default() };
    rebuild_of(records, newest, rebuild)
}

/// Makes the records of a run that deploys the commit of an environment's `newest` run. Images that are there already
/// are reused.
///
/// # Errors
/// [`RebuildError`].
pub(crate) fn deploy_newest(
    records: &Records,
    id: EnvironmentId,
    newest: &Run,
) -> Result<RequestedRun, RebuildError> {
    check_open(records, id)?;
    rebuild_of(records, newest, RebuildRun { failed: true, preview: true, ..RebuildRun::default() })
}

/// Checks that the environment exists, and is not that of a closed pull request.
fn check_open(records: &Records, id: EnvironmentId) -> Result<(), RebuildError> {
    let environment = records.environments.get(&id).ok_or(RebuildError::NoEnvironment(id))?;
    let project = records.projects.get(&environment.project);
    let is_linked = project.is_some_and(|project| project.github.is_some());
    if environment.state.is_closed() && environment.pull_request.is_some() && is_linked {
        return Err(NotRebuildable::Closed { name: environment.name.clone() }.into());
    }
    Ok(())
}

/// Makes the records of a rebuild of `earlier`, which [`check_rebuild`] allows.
fn rebuild_of(
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
        trigger: Trigger::Rebuild,
        requested_ref: commit.or_else(|| earlier.requested_ref.clone()),
        // The branch cannot be found from the commit, and the plan may depend on it.
        branch: earlier.branch.clone(),
        only_builds: earlier.only_builds.clone(),
        base: earlier.base.clone(),
        from_fork: earlier.from_fork,
        github: earlier.github.clone(),
        set_names: rebuild.set.keys().cloned().collect(),
        with_preview: if rebuild.preview {
            Some(true)
        } else {
            inherited_preview(earlier, environment)
        },
        rebuilds: Some(earlier.original()),
        wanted_tests: wanted_tests(earlier, rebuild.tests),
        reuses: rebuild.reuses().then_some(id),
        ..Run::new(new_id::<RunId>(), environment, earlier.repository.clone(), now())
    };
    let run = run.with_approval(earlier.approval.clone());
    let secrets = RunSecrets { clone_token: rebuild.clone_token, set: rebuild.set };
    Ok(RequestedRun { run, project: project.clone(), environment: environment.clone(), secrets })
}

const fn wanted_tests(earlier: &Run, again: bool) -> WantedTests {
    match (again, earlier.wanted_tests) {
        (true, _) => WantedTests::All,
        (false, WantedTests::None) => WantedTests::None,
        (false, WantedTests::NotPassed | WantedTests::All) => WantedTests::NotPassed,
    }
}

/// What `earlier` says about a preview, unless it says so because of a label that was removed since.
fn inherited_preview(earlier: &Run, environment: &Environment) -> Option<bool> {
    let is_outdated =
        environment.label_removed_at.is_some_and(|removed_at| earlier.created_at <= removed_at);
    earlier.with_preview.filter(|is_wanted| !is_wanted || !is_outdated)
}

/// Checks that the build arguments of `earlier` are given again, and, if jobs are reused, no others.
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
    if rebuild.reuses() && !added.is_empty() {
        let names = added.join(", ");
        let problem = format!(
            "{id} was not given {names}, so what completed there was built without: leave it out, or \
             build all of it again without `failed`"
        );
        return Err(invalid("set", problem));
    }
    Ok(())
}

fn check_rebuild(earlier: &Run, only_failed: bool) -> Result<(), NotRebuildable> {
    let id = earlier.id;
    if !earlier.state.is_final() {
        return Err(NotRebuildable::Open(id));
    }
    if earlier.trigger == Trigger::WarmUp {
        return Err(NotRebuildable::WarmUp(id));
    }
    if earlier.trigger.is_of_preview() {
        return Err(NotRebuildable::OfPreview(id));
    }
    if only_failed && earlier.state == RunState::Completed {
        return Err(NotRebuildable::NothingFailed(id));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use stagely_protocol::CommitSha;
    use stagely_state::Approval;

    use super::*;
    use crate::api::CreateRun;
    use crate::core::intake::fixtures::{app, records_of};

    fn failed() -> RunState {
        RunState::Failed { plan_error: None }
    }

    #[test]
    fn a_rebuild_has_the_commit_the_branch_and_the_choices_of_its_run() {
        let commit: CommitSha = "a".repeat(40).parse().unwrap();
        let create = CreateRun {
            reference: Some("main".to_owned()),
            base: Some("release".to_owned()),
            builds: vec!["web".to_owned()],
            pull_request: Some(7),
            from_fork: true,
            without_tests: true,
            ..app()
        };
        let (records, id) = records_of(create, |run| {
            run.state = failed();
            run.commit = Some(commit.clone());
            run.branch = Some("main".to_owned());
        });

        let made = rebuild(
            &records,
            &records.runs[&id],
            RebuildRun { failed: true, ..Default::default() },
        )
        .unwrap();

        let (earlier, run) = (&records.runs[&id], made.run);
        assert_ne!(run.id, id);
        assert_eq!((run.trigger, run.reuses, run.rebuilds), (Trigger::Rebuild, Some(id), Some(id)));
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
        assert_eq!(run.wanted_tests, WantedTests::None);
        let tests = RebuildRun { tests: true, ..Default::default() };
        let again = rebuild(&records, earlier, tests).unwrap().run;
        assert_eq!(again.wanted_tests, WantedTests::All, "they are asked for");
    }

    #[test]
    fn the_newest_run_of_an_environment_is_rebuilt_also_while_it_is_open() {
        let create = CreateRun { pull_request: Some(7), from_fork: true, ..app() };
        let (records, id) = records_of(create, |run| {
            *run = run.clone().with_approval(Approval::Awaited);
        });
        let environment = records.runs[&id].environment;
        let all = RebuildEnvironment::default();
        let none = rebuild_environment(&records, environment, None, all).unwrap_err();
        assert!(none.to_string().contains("no run"), "{none}");

        let newest = records.runs.get(&id);
        let run = rebuild_environment(&records, environment, newest, all).unwrap().run;

        assert_eq!((run.rebuilds, run.reuses, run.trigger), (Some(id), None, Trigger::Rebuild));
        assert_eq!(run.approval, Approval::Awaited, "a rebuild is no approval");
        let failed = RebuildEnvironment { failed_only: true, ..all };
        let open = rebuild_environment(&records, environment, newest, failed).unwrap_err();
        assert!(open.to_string().contains("has not ended"), "{open}");
        let nowhere = rebuild_environment(&records, new_id::<EnvironmentId>(), None, all);
        assert!(matches!(nowhere, Err(RebuildError::NoEnvironment(_))));
    }

    #[test]
    fn a_rebuild_of_a_rebuild_names_the_first_run() {
        let first = new_id::<RunId>();
        let (records, id) = records_of(app(), |run| {
            run.state = failed();
            run.rebuilds = Some(first);
        });

        let made = rebuild(
            &records,
            &records.runs[&id],
            RebuildRun { failed: true, ..Default::default() },
        );

        let run = made.unwrap().run;
        assert_eq!((run.rebuilds, run.reuses), (Some(first), Some(id)));
    }

    #[test]
    fn a_refused_rebuild_has_a_reason() {
        let refused = |change: fn(&mut Run), failed| {
            let (records, id) = records_of(app(), change);
            match rebuild(&records, &records.runs[&id], RebuildRun { failed, ..Default::default() })
            {
                Err(RebuildError::Conflict(reason)) => reason.to_string(),
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
        let wake = |run: &mut Run| {
            run.state = RunState::Completed;
            run.trigger = Trigger::Wake;
        };
        assert!(refused(wake, false).contains("only started a preview"));
    }

    #[test]
    fn a_preview_is_deployed_with_the_images_of_a_completed_run() {
        let create = CreateRun { pull_request: Some(7), ..app() };
        let (records, id) = records_of(create, |run| run.state = RunState::Completed);
        let newest = &records.runs[&id];
        let preview = RebuildRun { failed: true, preview: true, ..Default::default() };
        let rebuilt = rebuild(&records, newest, preview).unwrap().run;
        let deployed = deploy_newest(&records, newest.environment, newest).unwrap().run;
        for run in [&rebuilt, &deployed] {
            assert_eq!(
                (run.with_preview, run.reuses, run.rebuilds),
                (Some(true), Some(id), Some(id))
            );
        }
        // The next rebuild has it, too, unless its label was removed since.
        let (mut records, id) = records_of(app(), |run| {
            run.state = RunState::Completed;
            run.with_preview = Some(true);
        });
        let again = |records: &Records| {
            rebuild(records, &records.runs[&id], RebuildRun::default()).unwrap().run.with_preview
        };
        assert_eq!(again(&records), Some(true));
        let run = &records.runs[&id];
        let (environment, removed_at) = (run.environment, run.created_at);
        let environment = records.environments.get_mut(&environment).unwrap();
        environment.label_removed_at = Some(removed_at);
        assert_eq!(again(&records), None);
    }

    #[test]
    fn missing_build_arguments_are_named() {
        let secret = || SecretString::from("x");
        let set = ["TOKEN", "MODE"].map(|name| (name.to_owned(), secret()));
        let (records, id) =
            records_of(CreateRun { set: set.into(), ..app() }, |run| run.state = failed());

        let request =
            RebuildRun { set: [("MODE".to_owned(), secret())].into(), ..Default::default() };
        let error = rebuild(&records, &records.runs[&id], request).unwrap_err();
        assert!(
            matches!(&error, RebuildError::Invalid(invalid) if invalid.field == "set"),
            "{error}"
        );
        assert!(error.to_string().contains("given TOKEN,"), "{error}");

        let set = ["TOKEN", "MODE"].map(|name| (name.to_owned(), secret()));
        let request = RebuildRun { set: set.into(), ..Default::default() };
        let made = rebuild(&records, &records.runs[&id], request).unwrap();
        assert_eq!(made.run.set_names, records.runs[&id].set_names);
    }

    #[test]
    fn a_rebuild_of_failed_jobs_takes_no_further_build_arguments() {
        let (records, id) = records_of(app(), |run| run.state = failed());
        let set = || [("MODE".to_owned(), SecretString::from("x"))].into();
        let with = |failed| {
            rebuild(
                &records,
                &records.runs[&id],
                RebuildRun { failed, set: set(), ..Default::default() },
            )
        };

        let error = with(true).unwrap_err();
        assert!(
            matches!(&error, RebuildError::Invalid(invalid) if invalid.field == "set"),
            "{error}"
        );
        assert!(error.to_string().contains("not given MODE,"), "{error}");
        assert!(with(false).unwrap().run.set_names.contains("MODE"));
    }
}
