//! Environments.

use crate::api::{EnvironmentImage, EnvironmentView};
use crate::core::records::Records;
use crate::core::state::Environment;

/// An environment.
pub(in crate::core::http) fn environment(
    records: &Records,
    environment: &Environment,
) -> EnvironmentView {
    let project = records.projects.get(&environment.project);
    let images = environment.images.iter().map(|(variant, good)| EnvironmentImage {
        build: variant.clone(),
        tag: good.tag.clone(),
        digest: good.digest.clone(),
        commit: good.commit.clone(),
    });
    EnvironmentView {
        id: environment.id,
        project: project.map(|project| project.name.clone()).unwrap_or_default(),
        name: environment.name.clone(),
        pull_request: environment.pull_request,
        closed: environment.closed,
        newest_run: environment.newest_run,
        images: images.collect(),
        cache_refs: environment.cache_refs.iter().cloned().collect(),
    }
}
