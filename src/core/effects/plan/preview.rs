//! What the preview of a run depends on.

use stagely_state::{Preview, PreviewState};

use super::Subject;
use crate::core::plan::PreviewContext;
use crate::core::previews::PreviewHosts;
use crate::core::records::SharedRecords;

/// The owned parts of a [`PreviewContext`].
#[derive(Clone)]
pub(super) struct PreviewInputs {
    hosts: PreviewHosts,
    requested: Option<bool>,
    is_open: bool,
}

impl PreviewInputs {
    pub(super) fn new(hosts: &PreviewHosts, records: &SharedRecords, subject: &Subject) -> Self {
        let records = records.read();
        let is_open = |preview: &Preview| {
            !matches!(preview.state, PreviewState::Ending | PreviewState::Ended)
        };
        Self {
            hosts: hosts.clone(),
            requested: subject.run.with_preview,
            is_open: records.preview_of(subject.environment.id).is_some_and(is_open),
        }
    }

    pub(super) fn context(&self) -> PreviewContext<'_> {
        PreviewContext { hosts: &self.hosts, requested: self.requested, is_open: self.is_open }
    }
}
