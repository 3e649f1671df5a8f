//! Environments.

use stagely_state::{Environment, Project};

use crate::api::{EnvironmentImage, EnvironmentView};
use crate::core::records::Records;

pub(in crate::core::http) fn environment(
    records: &Records,
    environment: &Environment,
) -> EnvironmentView {
    let project = records.projects.get(&environment.project);
    let images = environment.images.iter().map(|(variant, good)| EnvironmentImage {
        build: variant.to_string(),
        tag: good.tag.clone(),
        digest: good.digest.clone(),
        commit: good.commit.clone(),
    });
    EnvironmentView {
        id: environment.id,
        project: project.map(|project| project.name.clone()).unwrap_or_default(),
        name: environment.name.clone(),
        pull_request: environment.pull_request,
        closed: environment.state.is_closed(),
        newest_run: environment.newest_run,
        images: images.collect(),
        cache_refs: environment.cache_refs.iter().cloned().collect(),
        head: environment.head.as_ref().map(|head| head.commit.clone()),
        comment: environment.report.comment,
        comment_url: project.and_then(|project| comment_url(project, environment)),
        report_problem: environment.report.problem.clone(),
    }
}

fn comment_url(project: &Project, environment: &Environment) -> Option<String> {
    let (number, comment) = (environment.pull_request?, environment.report.comment?);
    project.github.as_ref()?;
    let address = project.repository.trim_end_matches('/');
    let address = address.strip_suffix(".git").unwrap_or(address);
    Some(format!("{address}/pull/{number}#issuecomment-{comment}"))
}
