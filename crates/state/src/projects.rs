//! Adding, changing and removing projects that are linked with a repository at GitHub.

use super::step::Step;
use super::{ClosedBy, Environment, Project};
use crate::ids::{EnvironmentId, ProjectId};

impl Step<'_> {
    /// Adds the project, or changes what may change of a known one.
    pub(super) fn set_project(&mut self, project: Project) {
        let (id, github, max_concurrent) =
            (project.id, project.github.clone(), project.max_concurrent);
        self.state.insert_new_project(project);
        self.state.change_project(id, |known| {
            known.github = github;
            known.max_concurrent = max_concurrent;
        });
    }

    /// Removes the link with GitHub. The record stays: its name is part of its images and caches in the registry, and
    /// another repository must not get it.
    pub(super) fn remove_project(&mut self, id: ProjectId) {
        if self.state.projects.get(&id).is_none_or(|project| project.github.is_none()) {
            return;
        }
        self.state.change_project(id, |project| project.github = None);
        let is_open = |environment: &&Environment| {
            environment.project == id
                && environment.pull_request.is_some()
                && !environment.state.is_closed()
        };
        let open = self.state.environments.values().filter(is_open);
        let open: Vec<EnvironmentId> = open.map(|environment| environment.id).collect();
        for environment in open {
            // If the project is added again, GitHub's list opens its pull requests again.
            self.close_environment(environment, ClosedBy::Github);
        }
    }
}
