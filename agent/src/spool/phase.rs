//! How far a job and the delivery of its log are.

use stagely_protocol::Status;

/// How far a job is, and whether its log can be delivered.
#[derive(Debug, Default)]
pub(super) enum Phase {
    #[default]
    Running,
    /// The image is pushed, and the job exports its cache.
    Pushed(PushReport),
    /// The final STATUS is due once core has acknowledged every line.
    Ended { status: Status, is_pushed: bool },
    /// The log cannot be delivered, and the job has not ended yet. `end` is its final STATUS, whatever the job
    /// reports.
    Abandoned { end: Box<Status>, push: Option<PushReport> },
    /// The log cannot be delivered, and the job has ended. The final STATUS is due.
    AbandonedEnd(Status),
}

/// The STATUS that says that the image is pushed. The final STATUS follows it.
#[derive(Debug)]
pub(super) struct PushReport {
    pub(super) status: Status,
    /// The number of lines before it.
    pub(super) lines: u64,
    pub(super) is_acknowledged: bool,
}

impl Phase {
    /// The phase after the image is pushed. The final STATUS of a job whose log is abandoned stays.
    pub(super) fn push(self, report: PushReport) -> Self {
        match self {
            Self::Running | Self::Pushed(_) => Self::Pushed(report),
            Self::Abandoned { end, push: _ } => Self::Abandoned { end, push: Some(report) },
            Self::Ended { .. } | Self::AbandonedEnd(_) => self,
        }
    }

    /// The phase after core has stored the STATUS of the push.
    pub(super) fn acknowledge_push(&mut self) {
        match self {
            Self::Pushed(report) | Self::Abandoned { push: Some(report), .. } => {
                report.is_acknowledged = true;
            }
            Self::Running
            | Self::Ended { .. }
            | Self::Abandoned { push: None, .. }
            | Self::AbandonedEnd(_) => {}
        }
    }

    /// The phase after the job has ended with `status`.
    pub(super) fn end(self, status: Status) -> Self {
        match self {
            Self::Running => Self::Ended { status, is_pushed: false },
            Self::Pushed(_) => Self::Ended { status, is_pushed: true },
            Self::Ended { is_pushed, .. } => Self::Ended { status, is_pushed },
            Self::Abandoned { end, push: _ } => Self::AbandonedEnd(*end),
            Self::AbandonedEnd(_) => self,
        }
    }

    /// The phase after the log turned out to be undeliverable. The job fails with `failure`, unless its image
    /// is pushed.
    pub(super) fn abandon(self, failure: Status) -> Self {
        match self {
            Self::Running => Self::Abandoned { end: Box::new(failure), push: None },
            Self::Pushed(report) => {
                let end = Status { exporting_cache: false, ..report.status.clone() };
                Self::Abandoned { end: Box::new(end), push: Some(report) }
            }
            Self::Ended { status, is_pushed: true } => Self::AbandonedEnd(status),
            Self::Ended { is_pushed: false, .. } => Self::AbandonedEnd(failure),
            Self::Abandoned { .. } | Self::AbandonedEnd(_) => self,
        }
    }

    /// Whether the log cannot be delivered.
    pub(super) const fn is_abandoned(&self) -> bool {
        matches!(self, Self::Abandoned { .. } | Self::AbandonedEnd(_))
    }

    /// Whether the image is pushed and the job has not ended.
    pub(super) const fn is_pushed(&self) -> bool {
        matches!(self, Self::Pushed(_) | Self::Abandoned { push: Some(_), .. })
    }

    /// The final STATUS of a job that has ended.
    pub(super) const fn final_status(&self) -> Option<&Status> {
        match self {
            Self::Ended { status, .. } | Self::AbandonedEnd(status) => Some(status),
            Self::Running | Self::Pushed(_) | Self::Abandoned { .. } => None,
        }
    }

    /// The STATUS to send next, and the number of lines that core must have acknowledged first. `lines` is the
    /// number of lines of the log.
    pub(super) fn next_status(&self, lines: u64) -> Option<(&Status, u64)> {
        match self {
            Self::Pushed(report) if !report.is_acknowledged => Some((&report.status, report.lines)),
            Self::Ended { status, .. } => Some((status, lines)),
            Self::Abandoned { push: Some(report), .. } if !report.is_acknowledged => {
                Some((&report.status, 0))
            }
            Self::AbandonedEnd(status) => Some((status, 0)),
            Self::Running | Self::Pushed(_) | Self::Abandoned { .. } => None,
        }
    }
}
