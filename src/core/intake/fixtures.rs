//! Records that requests have made, for tests.

use stagely_state::Run;
use stagely_state::ids::RunId;

use super::request::{self, RequestedRun};
use crate::api::CreateRun;
use crate::core::records::Records;

/// Records of one project with one run, made by `create` and then changed.
pub(super) fn records_of(create: CreateRun, change: impl FnOnce(&mut Run)) -> (Records, RunId) {
    let RequestedRun { mut run, project, environment, .. } =
        request::run(&Records::default(), create).unwrap();
    change(&mut run);
    let id = run.id;
    let mut records = Records::default();
    records.projects.insert(project.id, project);
    records.environments.insert(environment.id, environment);
    records.runs.insert(id, run);
    (records, id)
}

pub(super) fn app() -> CreateRun {
    CreateRun::new("https://host/owner/app.git".to_owned())
}
