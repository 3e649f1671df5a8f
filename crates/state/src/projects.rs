//! Projects whose repositories are listened to.

use super::step::Step;
use super::{ClosedBy, Environment, Project};
use crate::ids::{EnvironmentId, ProjectId};

impl Step<'_> {
    /// Takes over what may change of a project.
    pub(super) fn set_project(&mut self, project: Project) {
        let (id, github, max_concurrent) =
            (project.id, project.github.clone(), project.max_concurrent);
        self.state.insert_new_project(project);
        self.state.change_project(id, |known| {
            known.github = github;
            known.max_concurrent = max_concurrent;
        });
    }

    /// The record stays: its name is that of its images and caches in the registry, which another
    /// repository must not take over.
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
            // If somebody adds the project again, its pull requests are open as soon as a list says so.
            self.close_environment(environment, ClosedBy::Github);
        }
    }
}
