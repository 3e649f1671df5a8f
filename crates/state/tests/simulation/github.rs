//! GitHub: its pull requests and branches, its deliveries, and the reports that it shows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stagely_protocol::CommitSha;
use stagely_state::ids::{EnvironmentId, ProjectId, RunId};
use stagely_state::{
    Approval, Command, CommandKind, DeliveryId, ForkPolicy, GithubLink, PreviewCommand, Project,
    Run, RunState, Timestamp,
};

use crate::rng::Rng;

/// The projects that are linked with a repository at GitHub.
pub(crate) const LINKED: [u128; 2] = [4, 5];

const CHANGES_MAX: u64 = 16;
const PULL_REQUESTS_MAX: u64 = 3;

/// A pull request as GitHub has it.
#[derive(Clone, Debug)]
pub(crate) struct PullRequest {
    pub(crate) project: ProjectId,
    pub(crate) number: u64,
    pub(crate) is_fork: bool,
    pub(crate) is_open: bool,
    /// Whether it has the label of previews.
    pub(crate) is_labeled: bool,
    pub(crate) head: CommitSha,
    /// All its heads, the oldest first.
    heads: Vec<CommitSha>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) closed_at: Timestamp,
}

/// The default branch of a project.
#[derive(Clone, Debug)]
pub(crate) struct Branch {
    pub(crate) head: Option<CommitSha>,
    at: Timestamp,
    /// Whether the last two pushes have the same second. The order of three would not be known.
    is_second: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum DeliveryContent {
    Head { pull_request: PullRequest, before: Option<CommitSha>, is_push: bool },
    Closed { number: u64, at: Timestamp },
    Push { commit: CommitSha, before: Option<CommitSha>, at: Timestamp },
    Command { number: u64, command: Command },
    LabelRemoved { number: u64 },
}

#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) id: DeliveryId,
    pub(crate) project: ProjectId,
    pub(crate) content: DeliveryContent,
}

/// What GitHub shows of an environment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReportContent {
    pub(crate) run: RunId,
    pub(crate) state: RunState,
    pub(crate) approval: Approval,
}

impl ReportContent {
    pub(crate) fn of(run: &Run) -> Self {
        Self { run: run.id, state: run.state.clone(), approval: run.approval.clone() }
    }
}

/// A report that is being written.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) environment: EnvironmentId,
    pub(crate) target: ReportTarget,
    pub(crate) wanted: u64,
    pub(crate) content: ReportContent,
}

/// A pull request, or the default branch, of a project.
pub(crate) type ReportTarget = (ProjectId, Option<u64>);

#[derive(Default)]
pub(crate) struct Github {
    clock: Timestamp,
    changes: u64,
    commits: u64,
    comments: u64,
    pub(crate) pull_requests: Vec<PullRequest>,
    pub(crate) branches: BTreeMap<ProjectId, Branch>,
    /// Projects with deliveries while they were not linked.
    pub(crate) unlinked: BTreeSet<ProjectId>,
    /// Deliveries under way. They arrive in any order.
    pub(crate) in_transit: Vec<Delivery>,
    /// Deliveries that did not arrive. Core may read them later.
    pub(crate) lost: Vec<Delivery>,
    /// Deliveries that arrived. Core may crash before it has committed them.
    pub(crate) sent: Vec<Delivery>,
    /// Reports under way, and the report that each pull request or branch shows.
    pub(crate) writes: Vec<Write>,
    pub(crate) shown: BTreeMap<ReportTarget, ReportContent>,
    /// The commits that the author of each comment may have seen.
    seen: BTreeMap<u64, BTreeSet<CommitSha>>,
}

pub(crate) fn linked(id: ProjectId) -> Project {
    let repository = "owner/name".parse().expect("a repository");
    let link = GithubLink { repository, forks: ForkPolicy::default(), is_configured: false };
    Project { github: Some(link), ..Project::new(id, String::new(), String::new()) }
}

fn preview_command(rng: &mut Rng) -> PreviewCommand {
    match rng.below(6) {
        0 => PreviewCommand::Stop,
        1 => PreviewCommand::Sleep,
        2 => PreviewCommand::Reset,
        3 => PreviewCommand::Extend { by: Duration::from_hours(rng.below(1_000)) },
        _ => PreviewCommand::Start,
    }
}

impl Github {
    /// Advances GitHub's clock, which has whole seconds, so several changes may have the same time.
    fn pass(&mut self, rng: &mut Rng, seconds_min: u64) -> Timestamp {
        self.clock.0 += 1_000 * (seconds_min + rng.below(3));
        self.clock
    }

    fn commit(&mut self) -> CommitSha {
        self.commits += 1;
        format!("{:040x}", self.commits).parse().expect("40 digits")
    }

    fn send(&mut self, rng: &mut Rng, project: ProjectId, content: DeliveryContent) {
        self.in_transit.push(Delivery { id: DeliveryId(rng.id()), project, content });
    }

    /// Somebody changes something at GitHub.
    pub(crate) fn change(&mut self, rng: &mut Rng) {
        if self.changes == CHANGES_MAX {
            return;
        }
        self.changes += 1;
        let index = usize::try_from(rng.below(PULL_REQUESTS_MAX)).expect("small");
        if index >= self.pull_requests.len() {
            return self.open(rng);
        }
        match rng.below(13) {
            12 => self.remove_label(rng, index),
            0..5 => self.push(rng, index),
            5..7 => self.close(rng, index),
            7..9 => self.reopen(rng, index),
            9 => self.push_to_branch(rng),
            _ => self.comment(rng, index),
        }
    }

    fn open(&mut self, rng: &mut Rng) {
        let at = self.pass(rng, 0);
        let head = self.commit();
        let pull_request = PullRequest {
            project: ProjectId::from_bits(rng.pick(&LINKED).expect("there are some")),
            number: 1 + self.pull_requests.len() as u64,
            is_fork: rng.chance(40),
            is_open: true,
            is_labeled: rng.chance(20),
            heads: vec![head.clone()],
            head,
            created_at: at,
            updated_at: at,
            closed_at: at,
        };
        self.pull_requests.push(pull_request.clone());
        let project = pull_request.project;
        self.send(
            rng,
            project,
            DeliveryContent::Head { pull_request, before: None, is_push: false },
        );
    }

    /// Pushes a new commit, or sometimes an earlier one. GitHub makes no delivery for a closed pull request.
    fn push(&mut self, rng: &mut Rng, index: usize) {
        let at = self.pass(rng, 0);
        let new = self.commit();
        let is_back = rng.chance(20);
        let pull_request = &mut self.pull_requests[index];
        let head = if is_back { pull_request.heads[0].clone() } else { new };
        if head == pull_request.head {
            return;
        }
        let before = Some(std::mem::replace(&mut pull_request.head, head.clone()));
        pull_request.heads.push(head);
        pull_request.updated_at = at;
        if pull_request.is_open {
            let (project, pull_request) = (pull_request.project, pull_request.clone());
            self.send(rng, project, DeliveryContent::Head { pull_request, before, is_push: true });
        }
    }

    fn close(&mut self, rng: &mut Rng, index: usize) {
        if self.pull_requests[index].is_open {
            let at = self.pass(rng, 0);
            let pull_request = &mut self.pull_requests[index];
            pull_request.is_open = false;
            (pull_request.closed_at, pull_request.updated_at) = (at, at);
            let (project, number) = (pull_request.project, pull_request.number);
            self.send(rng, project, DeliveryContent::Closed { number, at });
        }
    }

    /// Reopens a pull request, but not within the second in which it was closed.
    fn reopen(&mut self, rng: &mut Rng, index: usize) {
        if !self.pull_requests[index].is_open {
            let at = self.pass(rng, 1);
            let pull_request = &mut self.pull_requests[index];
            pull_request.is_open = true;
            pull_request.updated_at = at;
            let (project, pull_request) = (pull_request.project, pull_request.clone());
            self.send(
                rng,
                project,
                DeliveryContent::Head { pull_request, before: None, is_push: false },
            );
        }
    }

    fn push_to_branch(&mut self, rng: &mut Rng) {
        let project = ProjectId::from_bits(rng.pick(&LINKED).expect("there are some"));
        let is_second = self.branches.get(&project).is_some_and(|branch| branch.is_second);
        let at = self.pass(rng, u64::from(is_second));
        let commit = self.commit();
        let known = self.branches.get(&project);
        let before = known.and_then(|branch| branch.head.clone());
        let is_second = known.is_some_and(|branch| branch.at == at);
        self.branches.insert(project, Branch { head: Some(commit.clone()), at, is_second });
        self.send(rng, project, DeliveryContent::Push { commit, before, at });
    }

    fn remove_label(&mut self, rng: &mut Rng, index: usize) {
        let at = self.pass(rng, 0);
        let pull_request = &mut self.pull_requests[index];
        if std::mem::take(&mut pull_request.is_labeled) {
            pull_request.updated_at = at;
            let (project, number) = (pull_request.project, pull_request.number);
            self.send(rng, project, DeliveryContent::LabelRemoved { number });
        }
    }

    /// Writes a command, or attaches a label.
    fn comment(&mut self, rng: &mut Rng, index: usize) {
        let at = self.pass(rng, 0);
        let pull_request = &mut self.pull_requests[index];
        pull_request.updated_at = at;
        let commit = rng.chance(50).then(|| pull_request.head.to_string());
        let is_label = rng.chance(20);
        let (project, number) = (pull_request.project, pull_request.number);
        let kind = match rng.below(10) {
            number if is_label && number < 3 => {
                pull_request.is_labeled = true;
                CommandKind::Preview { action: PreviewCommand::Start }
            }
            _ if is_label => CommandKind::Approve { commit: Some(pull_request.head.to_string()) },
            0 => CommandKind::Cancel,
            1 => CommandKind::Rebuild { failed_only: rng.chance(50) },
            2 => CommandKind::Test,
            6..10 => CommandKind::Preview { action: preview_command(rng) },
            _ => CommandKind::Approve { commit },
        };
        let mut comment = None;
        if !is_label {
            self.comments += 1;
            comment = Some(self.comments);
            self.seen.insert(self.comments, pull_request.heads.iter().cloned().collect());
        }
        let command = Command { comment, author: "somebody".to_owned(), kind, at, is_late: false };
        self.send(rng, project, DeliveryContent::Command { number, command });
    }

    /// The commits that an approval may be for.
    pub(crate) fn approved_by(&self, command: &Command) -> BTreeSet<CommitSha> {
        match (&command.kind, command.comment) {
            (CommandKind::Approve { commit: Some(commit) }, _) => {
                BTreeSet::from([commit.parse().expect("a commit")])
            }
            (CommandKind::Approve { commit: None }, Some(comment)) => self.seen[&comment].clone(),
            _ => BTreeSet::new(),
        }
    }

    pub(crate) fn find(&self, project: ProjectId, number: u64) -> Option<&PullRequest> {
        self.pull_requests
            .iter()
            .find(|pull_request| (pull_request.project, pull_request.number) == (project, number))
    }
}
