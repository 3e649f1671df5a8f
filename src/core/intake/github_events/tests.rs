//! Which runs, closings and commands are made of GitHub's news, and which news is ignored.

use stagely_state::ids::{EnvironmentId, ProjectId};
use stagely_state::{Approval, ForkPolicy, GithubLink, Run, Timestamp};

use super::*;
use crate::core::github::PullRequestState;
use crate::core::github::webhook::command::UnknownCommand;
use crate::core::github::webhook::event::Irrelevant;

const PROJECT: ProjectId = ProjectId::from_bits(1);

fn records(forks: ForkPolicy) -> Records {
    let repository = "https://github.com/acme/shop.git".to_owned();
    let github = "acme/shop".parse().unwrap();
    let link = GithubLink { repository: github, forks, is_configured: false };
    let project =
        Project { github: Some(link), ..Project::new(PROJECT, "shop".to_owned(), repository) };
    let mut records = Records::default();
    records.projects.insert(PROJECT, project);
    records
}

fn repository() -> Repository {
    let full_name = "Acme/Shop".parse().unwrap();
    Repository { full_name, default_branch: "main".to_owned(), is_private: true }
}

fn pull_request() -> PullRequest {
    PullRequest {
        number: 7,
        state: PullRequestState::Open,
        head: "b".repeat(40).parse().unwrap(),
        head_branch: "fix".to_owned(),
        is_from_fork: false,
        base_branch: "release".to_owned(),
        author: "alice".to_owned(),
        is_known_contributor: false,
        labels: Vec::new(),
        created_at: Timestamp(1_000),
        updated_at: Timestamp(2_000),
        closed_at: None,
    }
}

fn opened(pull_request: PullRequest) -> WebhookEvent {
    WebhookEvent::HeadMoved { repository: repository(), pull_request, is_push: false, before: None }
}

fn run_of(event: Event) -> (Run, Environment) {
    let Event::HeadMoved { run, environment, .. } = event else { panic!("{event:?}") };
    (*run, environment)
}

fn outcome(records: &Records, news: &WebhookEvent) -> Result<Event, String> {
    event(records, &GithubConfig::default(), news).map_err(|ignored| ignored.to_string())
}

/// `records` with an environment of pull request 7.
fn with_environment(mut records: Records) -> Records {
    let id = EnvironmentId::from_bits(9);
    let mut environment = Environment::new(id, PROJECT, "pr-7".to_owned());
    environment.pull_request = Some(7);
    records.environments.insert(id, environment);
    records
}

#[test]
fn a_pull_request_makes_a_run_of_its_head_in_its_own_environment() {
    let records = records(ForkPolicy::Approval);
    let (run, environment) = run_of(outcome(&records, &opened(pull_request())).unwrap());
    assert_eq!((&*environment.name, environment.pull_request), ("pr-7", Some(7)));
    assert_eq!(run.requested_ref.as_deref(), Some(&*"b".repeat(40)));
    assert_eq!(run.branch.as_deref(), Some("fix"));
    assert_eq!(run.base.as_deref(), Some("release"));
    assert_eq!((run.trigger, run.approval), (Trigger::PrOpened, Approval::NotNeeded));
    assert_eq!(run.repository, records.projects[&PROJECT].repository);
    assert!(run.github.unwrap().is_private);

    let known = with_environment(records);
    let (_, again) = run_of(outcome(&known, &opened(pull_request())).unwrap());
    assert_eq!(again.id, EnvironmentId::from_bits(9));
}

#[test]
fn the_project_decides_whether_a_fork_is_built() {
    let fork = |is_known_contributor| PullRequest {
        is_from_fork: true,
        is_known_contributor,
        ..pull_request()
    };
    let of = |policy, is_known| {
        let event = outcome(&records(policy), &opened(fork(is_known)))?;
        let (run, _) = run_of(event);
        assert!(run.from_fork);
        Ok::<_, String>(run.approval)
    };
    assert_eq!(of(ForkPolicy::Approval, true), Ok(Approval::Awaited));
    assert_eq!(of(ForkPolicy::KnownContributors, false), Ok(Approval::Awaited));
    assert_eq!(of(ForkPolicy::KnownContributors, true), Ok(Approval::NotNeeded));
    assert!(of(ForkPolicy::Never, true).unwrap_err().contains("forks"));
    let own = outcome(&records(ForkPolicy::Never), &opened(pull_request()));
    assert_eq!(run_of(own.unwrap()).0.approval, Approval::NotNeeded);
}

#[test]
fn drafts_closed_pull_requests_and_other_repositories_are_ignored() {
    let records = records(ForkPolicy::Approval);
    let draft = PullRequest { state: PullRequestState::Draft, ..pull_request() };
    let error = outcome(&records, &opened(draft.clone())).unwrap_err();
    assert!(error.contains("github.drafts"), "{error}");
    let config = GithubConfig { drafts: true, ..GithubConfig::default() };
    assert!(event(&records, &config, &opened(draft)).is_ok());
    let closed = PullRequest { state: PullRequestState::Closed, ..pull_request() };
    assert!(outcome(&records, &opened(closed)).is_err());
    let odd = PullRequest { base_branch: "--upload-pack=x".to_owned(), ..pull_request() };
    assert!(outcome(&records, &opened(odd)).is_err());
    let error = outcome(&Records::default(), &opened(pull_request())).unwrap_err();
    assert!(error.contains("stagely project add"), "{error}");
}

#[test]
fn a_push_makes_a_run_of_the_default_branch() {
    let commit: CommitSha = "b".repeat(40).parse().unwrap();
    let news = WebhookEvent::BranchPushed {
        repository: repository(),
        head: commit,
        before: None,
        at: Timestamp(1),
    };
    let (run, environment) = run_of(outcome(&records(ForkPolicy::Never), &news).unwrap());
    assert_eq!((&*environment.name, environment.pull_request), ("main", None));
    assert_eq!((run.trigger, run.branch.as_deref()), (Trigger::Push, Some("main")));
}

#[test]
fn closings_and_commands_need_an_environment() {
    let without = records(ForkPolicy::Approval);
    let with = with_environment(records(ForkPolicy::Approval));
    let closed = WebhookEvent::PullRequestClosed {
        repository: repository(),
        pull_request: PullRequest { closed_at: Some(Timestamp(9)), ..pull_request() },
    };
    assert!(outcome(&without, &closed).unwrap_err().contains("nothing was built"));
    let event = outcome(&with, &closed).unwrap();
    assert!(matches!(event, Event::PullRequestClosed { at: Timestamp(9), .. }), "{event:?}");

    let command = |command| WebhookEvent::Commanded {
        repository: repository(),
        number: 7,
        comment: 3,
        author: "carol".to_owned(),
        command,
        at: Timestamp(4),
    };
    let event = outcome(&with, &command(Ok(CommandKind::Cancel))).unwrap();
    let Event::CommandGiven { command: stored, .. } = event else { panic!("{event:?}") };
    assert_eq!((stored.comment, &*stored.author), (Some(3), "carol"));
    let unknown = UnknownCommand::of("dance");
    let message = unknown.to_string();
    let error = outcome(&with, &command(Err(unknown))).unwrap_err();
    assert_eq!(error, message);
    assert!(outcome(&without, &command(Ok(CommandKind::Cancel))).is_err());
}

#[test]
fn a_label_approves_the_head_at_that_time() {
    let with = with_environment(records(ForkPolicy::Approval));
    let labeled = |label: &str, is_from_fork| WebhookEvent::Labeled {
        repository: repository(),
        pull_request: PullRequest { is_from_fork, ..pull_request() },
        label: label.to_owned(),
        sender: "carol".to_owned(),
    };
    let event = outcome(&with, &labeled("stagely-approve", true)).unwrap();
    let Event::CommandGiven { command, .. } = event else { panic!("{event:?}") };
    let commit = Some("b".repeat(40));
    assert_eq!((command.comment, command.kind), (None, CommandKind::Approve { commit }));
    assert!(outcome(&with, &labeled("bug", true)).is_err());
    assert!(outcome(&with, &labeled("stagely-approve", false)).is_err());
}

#[test]
fn the_label_of_previews_starts_one_and_its_removal_ends_it() {
    let without = records(ForkPolicy::Approval);
    let with = with_environment(records(ForkPolicy::Approval));
    let of_label = || PullRequest { labels: vec!["Stagely-Preview".to_owned()], ..pull_request() };
    let labeled = || WebhookEvent::Labeled {
        repository: repository(),
        pull_request: of_label(),
        label: "Stagely-Preview".to_owned(),
        sender: "carol".to_owned(),
    };
    let event = outcome(&with, &labeled()).unwrap();
    let Event::CommandGiven { command, .. } = event else { panic!("{event:?}") };
    let action = PreviewCommand::Start;
    assert_eq!((command.comment, command.kind), (None, CommandKind::Preview { action }));

    // It may come before the delivery of the opening, and later heads have the label.
    for news in [labeled(), opened(of_label())] {
        assert_eq!(run_of(outcome(&without, &news).unwrap()).0.with_preview, Some(true));
    }
    assert_eq!(run_of(outcome(&without, &opened(pull_request())).unwrap()).0.with_preview, None);

    let unlabeled = |label: &str| WebhookEvent::Unlabeled {
        repository: repository(),
        pull_request: pull_request(),
        label: label.to_owned(),
    };
    let event = outcome(&with, &unlabeled("stagely-preview")).unwrap();
    let environment = EnvironmentId::from_bits(9);
    assert!(
        matches!(event, Event::PreviewLabelRemoved { environment: id } if id == environment),
        "{event:?}"
    );
    assert!(outcome(&with, &unlabeled("bug")).is_err());
    assert!(outcome(&without, &unlabeled("stagely-preview")).is_err());
}

fn head_of(event: Event) -> (Head, HeadSource) {
    let Event::HeadMoved { head, source, .. } = event else { panic!("{event:?}") };
    (head, source)
}

#[test]
fn a_head_has_its_time_its_predecessor_and_whether_it_is_the_first() {
    let records = records(ForkPolicy::Approval);
    let head = |news: &WebhookEvent| head_of(outcome(&records, news).unwrap());
    let new = PullRequest { updated_at: Timestamp(1_000), ..pull_request() };
    let before: Option<CommitSha> = Some("a".repeat(40).parse().unwrap());
    let push = |pull_request| WebhookEvent::HeadMoved {
        repository: repository(),
        pull_request,
        is_push: true,
        before: before.clone(),
    };

    let (first, source) = head(&opened(new.clone()));
    assert_eq!((first.at, first.is_first, first.before), (Timestamp(1_000), true, None));
    assert_eq!(source, HeadSource::Delivery);
    let (reopened, _) = head(&opened(pull_request()));
    assert_eq!((reopened.at, reopened.is_first), (Timestamp(2_000), false));
    let (pushed, _) = head(&push(new));
    assert_eq!((pushed.is_first, pushed.before), (false, before.clone()), "within a second");
    let event = outcome(&records, &push(pull_request())).unwrap();
    assert_eq!(run_of(event).0.trigger, Trigger::PrSynchronized);
}

#[test]
fn a_listed_pull_request_makes_the_same_run_as_a_delivery_and_carries_the_known_head() {
    let records = records(ForkPolicy::Never);
    let config = GithubConfig::default();
    let of = |pull_request: &PullRequest, believed| {
        listed(&records, &config, &repository(), pull_request, believed)
    };
    let known: Option<CommitSha> = Some("a".repeat(40).parse().unwrap());

    let event = of(&pull_request(), known.clone()).unwrap();
    let (head, source) = head_of(event.clone());
    assert_eq!(source, HeadSource::Listing { believed: known });
    assert_eq!((head.at, head.is_first, head.before), (Timestamp(2_000), false, None));
    assert_eq!(run_of(event).0.trigger, Trigger::PrSynchronized);

    let new = PullRequest { updated_at: Timestamp(1_000), ..pull_request() };
    let event = of(&new, None).unwrap();
    assert!(!head_of(event.clone()).0.is_first, "a push may have followed within a second");
    assert_eq!(run_of(event).0.trigger, Trigger::PrOpened);

    let draft = PullRequest { state: PullRequestState::Draft, ..pull_request() };
    assert!(of(&draft, None).is_err());
    let fork = PullRequest { is_from_fork: true, ..pull_request() };
    assert!(of(&fork, None).is_err(), "the project builds none");
    let unknown = listed(&Records::default(), &config, &repository(), &pull_request(), None);
    assert!(unknown.is_err());
}

#[test]
fn a_closing_without_its_time_takes_that_of_the_last_change() {
    let with = with_environment(records(ForkPolicy::Approval));
    let closed =
        WebhookEvent::PullRequestClosed { repository: repository(), pull_request: pull_request() };
    let event = outcome(&with, &closed).unwrap();
    assert!(matches!(event, Event::PullRequestClosed { at: Timestamp(2_000), .. }), "{event:?}");
}

#[test]
fn pull_requests_of_two_projects_may_have_the_same_number() {
    let mut records = with_environment(records(ForkPolicy::Approval));
    let other = ProjectId::from_bits(2);
    let environment = records.environments.get_mut(&EnvironmentId::from_bits(9)).unwrap();
    environment.project = other;

    let closed =
        WebhookEvent::PullRequestClosed { repository: repository(), pull_request: pull_request() };
    assert!(outcome(&records, &closed).unwrap_err().contains("nothing was built"));
    let (_, environment) = run_of(outcome(&records, &opened(pull_request())).unwrap());
    assert_ne!(environment.id, EnvironmentId::from_bits(9));
    assert_eq!(environment.project, PROJECT);
}

#[test]
fn news_of_an_unlinked_project_is_ignored() {
    let mut records = with_environment(records(ForkPolicy::Approval));
    records.projects.get_mut(&PROJECT).unwrap().github = None;
    for news in [
        opened(pull_request()),
        WebhookEvent::PullRequestClosed { repository: repository(), pull_request: pull_request() },
    ] {
        let error = outcome(&records, &news).unwrap_err();
        assert!(error.contains("no project is of Acme/Shop"), "{error}");
    }
}

#[test]
fn a_push_has_the_commit_before_and_an_invalid_branch_is_refused() {
    let records = records(ForkPolicy::Never);
    let before: CommitSha = "a".repeat(40).parse().unwrap();
    let push = |branch: &str| WebhookEvent::BranchPushed {
        repository: Repository { default_branch: branch.to_owned(), ..repository() },
        head: "b".repeat(40).parse().unwrap(),
        before: Some(before.clone()),
        at: Timestamp(3),
    };
    let (head, source) = head_of(outcome(&records, &push("main")).unwrap());
    assert_eq!((head.at, head.before, head.is_first), (Timestamp(3), Some(before.clone()), false));
    assert_eq!(source, HeadSource::Delivery);
    assert!(outcome(&records, &push("--upload-pack=x")).is_err());
}

#[test]
fn the_configured_label_approves_in_any_case() {
    let with = with_environment(records(ForkPolicy::Approval));
    let config = GithubConfig { approval_label: "Ready".to_owned(), ..GithubConfig::default() };
    let labeled = |label: &str| WebhookEvent::Labeled {
        repository: repository(),
        pull_request: PullRequest { is_from_fork: true, ..pull_request() },
        label: label.to_owned(),
        sender: "carol".to_owned(),
    };
    assert!(event(&with, &config, &labeled("ready")).is_ok());
    assert!(event(&with, &config, &labeled("stagely-approve")).is_err());
    let without = records(ForkPolicy::Approval);
    assert!(event(&without, &config, &labeled("ready")).is_err(), "nothing was built");
}

#[test]
fn ignored_news_has_a_reason() {
    let records = records(ForkPolicy::Approval);
    assert_eq!(outcome(&records, &WebhookEvent::Ping).unwrap_err(), "GitHub reaches this core");
    let irrelevant = WebhookEvent::Irrelevant(Irrelevant::NoCommand);
    let error = outcome(&records, &irrelevant).unwrap_err();
    assert_eq!(error, "the comment holds no command");
}
