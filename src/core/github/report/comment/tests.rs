//! The text of the comment, word by word.

use stagely_protocol::{Arch, CaseOutcome, DeployProblem, StoredArtifacts, TestCase, TestResults};
use stagely_state::ids::MachineId;
use stagely_state::{
    Access, Approval, Bill, BudgetScope, BudgetUse, ClosedBy, Cost, DataLoss, EnvironmentState,
    Machine, MachineKind, MachineState, MissingCapacity, Month, PlanFailure, PreviewState,
    PriceSegment, Shortage, SkipReason, SkippedBuild, Timestamp, Usd,
};

use super::*;
use crate::core::github::report::fixtures::{
    DEPLOY, MACHINE, ReportFixture, commit, job_id, user_failure,
};

/// The comment without its marker and footer, which are the same in each.
fn middle(fixture: &ReportFixture, excerpts: &Excerpts) -> String {
    let body = render(&fixture.view(), excerpts);
    assert_eq!(body, render(&fixture.view(), excerpts), "the same records give the same text");
    let rest = body.strip_prefix("<!-- stagely env_00000000000000000000000002 -->\n\n").unwrap();
    let (middle, footer) = rest.rsplit_once("\n\n").unwrap();
    let view = fixture.view();
    let (run, commit) = (view.run.id, view.commit().unwrap());
    let begin = format!(
        "<sub>Run [`{run}`](https://core.example/runs/{run}) · commit `{}`",
        &commit.as_str()[..12]
    );
    assert!(footer.starts_with(&begin) && footer.ends_with("</sub>\n"), "{footer}");
    middle.to_owned()
}

fn assert_text(fixture: &ReportFixture, words: &str) {
    assert_eq!(middle(fixture, &Excerpts::new()), words);
}

/// The address of a job's page.
fn log(number: u128) -> String {
    format!("https://core.example/jobs/{}", job_id(number))
}

#[test]
fn each_open_job_has_its_state() {
    let mut fixture = ReportFixture::multi_platform();
    fixture.running(1);
    fixture.job(2).attempt = 0;
    fixture.job(2).emulated = true;
    let expected = format!(
        "\
### ⏳ Building…

| Build | Platform | State | Cached | Digest | Log |
|---|---|---|---|---|---|
| `app` | linux/amd64 | ⏳ running |  |  | [Log]({}) |
| `app` | linux/arm64 (emulated) | queued |  |  |  |
| `app` (merged) | linux/amd64, linux/arm64 | queued |  |  |  |

**⚠️ Warnings**

- `app_arm64`: built under QEMU emulation, which is slow",
        log(1)
    );
    assert_text(&fixture, &expected);
}

#[test]
fn a_job_without_capacity_says_since_when_and_why() {
    let mut fixture = ReportFixture::many(1);
    let job = fixture.job(1);
    job.attempt = 0;
    let since = Timestamp(1_700_000_000_000);
    let message = "no `c5.xlarge` in eu-central-1".to_owned();
    job.missing_capacity = Some(MissingCapacity { since, launches: 1, message });
    let text = middle(&fixture, &Excerpts::new());
    // GitHub shows `&#58;` as a colon.
    let text = text.replace("&#58;", ":");
    let state = "queued, waits for capacity since 22:13:20 UTC: no `c5.xlarge` in eu-central-1";
    assert!(text.contains(state), "{text}");

    // The next launch.
    let id = MachineId::from_bits(9);
    let machine = Machine::new(id, MachineKind::Launched, Arch::Amd64, Timestamp(0));
    fixture.job(1).state = JobState::Provisioning { attempt: 1, machine: id };
    for (state, waits) in [(MachineState::Requested, true), (MachineState::Booting, false)] {
        fixture.records.machines.insert(id, Machine { state, ..machine.clone() });
        let text = middle(&fixture, &Excerpts::new());
        assert_eq!(text.contains("starting, waits for capacity"), waits, "{text}");
    }
}

#[test]
fn a_completed_job_has_its_time_its_cached_share_and_its_digest() {
    let mut fixture = ReportFixture::multi_platform();
    fixture.completed(1, 63);
    fixture.completed(2, 5);
    fixture.completed(3, 2);
    fixture.job(3).attempt = 1;
    fixture.job(3).steps.clear();
    fixture.job(2).reused_from = Some(job_id(9));
    fixture.end_run(RunState::Completed);
    let expected = format!(
        "\
### ✅ Build completed

| Build | Platform | State | Cached | Digest | Log |
|---|---|---|---|---|---|
| `app` | linux/amd64 | ✅ completed in 1m 3s | 1/2 | `sha256:cccccccccccc` | [Log]({}) |
| `app` | linux/arm64 | ✅ reused from an earlier run | 1/2 | `sha256:bbbbbbbbbbbb` | [Log]({}) |
| `app` (merged) | linux/amd64, linux/arm64 | ✅ completed in 2.0s |  | `sha256:cccccccccccc` | \
[Log]({}) |

<details><summary>Images</summary>

```text
r/app/pr-7:app@sha256:{}
```

</details>",
        log(1),
        log(2),
        log(3),
        "c".repeat(64)
    );
    assert_text(&fixture, &expected);
    let body = render(&fixture.view(), &Excerpts::new());
    assert!(body.ends_with(" · commit `aaaaaaaaaaaa` · 1m 30s</sub>\n"), "{body}");
}

#[test]
fn a_failure_has_the_step_and_its_last_lines() {
    let mut fixture = ReportFixture::multi_platform();
    fixture.completed(1, 3);
    fixture.failed(2, user_failure("[2/3] RUN make", 2), "the step's last lines");
    let reason = FailureReason::DependencyFailed { job: "app_arm64".to_owned() };
    fixture.failed(3, reason, "");
    fixture.job(3).started_at = None;
    fixture.end_run(RunState::Failed { plan_error: None });
    let text = vec!["cc main.c".to_owned(), "make: *** [all] ```Error``` 2".to_owned()];
    let expected = format!(
        "\
### ❌ Build failed [View Logs]({0})

| Build | Platform | State | Cached | Digest | Log |
|---|---|---|---|---|---|
| `app` | linux/amd64 | ✅ completed in 3.0s | 1/2 | `sha256:cccccccccccc` | [Log]({1}) |
| `app` | linux/arm64 | ❌ failed in 4.0s |  |  | [Log]({0}) |
| `app` (merged) | linux/amd64, linux/arm64 | ❌ not started: `app_arm64` did not complete |  |  |  |

**`app_arm64`**: step `[2/3] RUN make` failed with exit code 2 · [Log]({0})

````text
cc main.c
make: *** [all] ```Error``` 2
````",
        log(2),
        log(1)
    );
    assert_eq!(middle(&fixture, &Excerpts::from([(job_id(2), text)])), expected);
    let silent = middle(&fixture, &Excerpts::new());
    assert!(silent.ends_with("```text\nthe step's last lines\n```"), "{silent}");
}

#[test]
fn several_failures_link_to_the_page_of_the_run() {
    let mut fixture = ReportFixture::many(2);
    fixture.failed(1, FailureReason::MachineLost, "its agent was silent");
    fixture.failed(2, user_failure("", 1), "");
    fixture.end_run(RunState::Failed { plan_error: None });
    let text = middle(&fixture, &Excerpts::new());
    let run = "https://core.example/runs/run_00000000000000000000000003";
    assert!(text.starts_with(&format!("### ❌ Build failed [View Logs]({run})\n")), "{text}");
    let lost = format!(
        "**`job1`**: the machine was lost · [Log]({})\n\n```text\nits agent was silent\n```\n",
        log(1)
    );
    assert!(text.contains(&lost), "{text}");
    assert!(text.contains("**`job2`**: the build failed (exit code 1)"), "{text}");
}

#[test]
fn an_error_of_the_plan_has_its_line_and_column() {
    let mut fixture = ReportFixture::new();
    let message = "stagely.yaml:3:5: unknown field `biulds`\nstagely.yaml:9:1: no `context`";
    let error = PlanFailure { reason: FailureReason::Manifest, message: message.to_owned() };
    fixture.end_run(RunState::Failed { plan_error: Some(error) });
    let expected = format!(
        "\
### ❌ Build failed [View Logs](https://core.example/runs/run_00000000000000000000000003)

Stagely.yaml is missing or not valid:

```text
{message}
```"
    );
    assert_text(&fixture, &expected.replace("Stagely.yaml", "stagely.yaml"));
}

#[test]
fn a_cancelled_run_has_its_reason() {
    let mut fixture = ReportFixture::many(1);
    fixture.job(1).state = JobState::Cancelled;
    fixture.environment().report.note = Some("`/stagely cancel` by @ada: cancelled".to_owned());
    fixture.end_run(RunState::Cancelled { reason: CancelReason::Requested });
    let expected = format!(
        "\
### ⏹ Build cancelled

| Build | Platform | State | Cached | Digest | Log |
|---|---|---|---|---|---|
| `job1` | linux/amd64 | ⏹ cancelled |  |  | [Log]({}) |

> `/stagely cancel` by @\u{2060}ada&#58; cancelled",
        log(1)
    );
    assert_text(&fixture, &expected);
    fixture.end_run(RunState::Cancelled { reason: CancelReason::EnvironmentClosed });
    let text = middle(&fixture, &Excerpts::new());
    assert!(text.starts_with("### ⏹ Build cancelled: the pull request was closed\n"), "{text}");
}

#[test]
fn a_commit_of_a_fork_explains_its_approval() {
    let mut fixture = ReportFixture::new();
    fixture.run().state = RunState::AwaitingApproval;
    fixture.run().approval = Approval::Awaited;
    let expected = format!(
        "\
### 🔒 Waits for approval

Commit `{}` comes from a fork, and nothing of it is built until somebody who may write to this repository \
has looked at it and comments `/stagely approve aaaaaaaaaaaa`.

The label `ok-to-build` does the same. Either holds for that commit alone, which gets no secrets and writes \
no shared cache.",
        commit()
    );
    assert_text(&fixture, &expected);
}

#[test]
fn skipped_builds_and_warnings_have_their_reasons() {
    let mut fixture = ReportFixture::many(2);
    fixture.completed(1, 1);
    fixture.completed(2, 1);
    for job in 1..=2 {
        fixture.job(job).warnings = vec!["`FROM` has no *tag*".to_owned()];
    }
    let reason = SkipReason::Branch { branch: Some("fix|me".to_owned()) };
    fixture.run().skipped = vec![SkippedBuild { variant: "docs".into(), reason }];
    fixture.end_run(RunState::Completed);
    let text = middle(&fixture, &Excerpts::new());
    let row = "\n| `docs` | | skipped: its only&#95;branches does not name fix&#124;me | | | |\n";
    assert!(text.contains(row), "{text}");
    let warning = "\n- `job1, job2`: `FROM` has no &#42;tag&#42;";
    assert!(text.ends_with(warning), "{text}");
}

#[test]
fn the_warning_about_emulation_is_shown_once() {
    let mut fixture = ReportFixture::many(1);
    fixture.completed(1, 1);
    fixture.job(1).emulated = true;
    fixture.job(1).warnings = vec!["arm64 is emulated on this amd64 machine".to_owned()];
    fixture.end_run(RunState::Completed);
    let text = middle(&fixture, &Excerpts::new());
    let warnings = "**⚠️ Warnings**\n\n- `job1`: arm64 is emulated on this amd64 machine";
    assert!(text.ends_with(warnings), "{text}");
}

/// Text that strangers may write into names and messages.
const HOSTILE: &str = "a|b`c``<!-- stagely --> @everyone [x](http://evil) ](http://evil)\n\n# big \
                       \u{202e}rtl\u{200b} www.evil.org <img src=x>";

#[test]
fn hostile_text_makes_no_markup() {
    let mut fixture = ReportFixture::multi_platform();
    for number in 1..=3 {
        fixture.job(number).name = format!("{HOSTILE}{number}");
        fixture.job(number).variant = HOSTILE.into();
        fixture.job(number).warnings = vec![HOSTILE.to_owned()];
        fixture.job(number).attempt = 1;
    }
    fixture.failed(1, user_failure(HOSTILE, 1), HOSTILE);
    fixture.failed(2, FailureReason::DependencyFailed { job: HOSTILE.to_owned() }, HOSTILE);
    fixture.failed(3, FailureReason::Internal, &format!("{HOSTILE}\n```\n````\n<!-- x"));
    let reason = SkipReason::NoImage { build: HOSTILE.to_owned() };
    fixture.run().skipped = vec![SkippedBuild { variant: HOSTILE.into(), reason }];
    fixture.environment().report.note = Some(HOSTILE.to_owned());
    fixture.end_run(RunState::Failed { plan_error: None });
    let excerpts = Excerpts::from([(job_id(1), vec![HOSTILE.to_owned(), "`````".to_owned()])]);
    let body = render(&fixture.view(), &excerpts);
    assert!(!body.contains(['\u{202e}', '\u{200b}']), "{body}");
    let visible = without_code(&body);
    for markup in ["<!-- s", "@everyone", "](http://evil", "www.evil", "<img", "\n# big"] {
        assert_eq!(
            visible.matches(markup).count(),
            usize::from(markup == "<!-- s"),
            "{markup}: {visible}"
        );
    }
    let rows = body.lines().filter(|line| line.starts_with("| "));
    let bars: Vec<usize> = rows.map(|row| row.matches('|').count()).collect();
    assert_eq!(bars, [7; 5], "{body}");
}

/// The Markdown without its blocks and spans of code.
fn without_code(body: &str) -> String {
    let (mut left, mut fence) = (String::new(), None);
    for line in body.lines() {
        match (&fence, line.strip_suffix("text").filter(|fence| fence.starts_with("```"))) {
            (Some(end), _) if line == *end => fence = None,
            (Some(_), _) => {}
            (None, Some(begin)) => fence = Some(begin.to_owned()),
            (None, None) => left.push_str(&(without_spans(line) + "\n")),
        }
    }
    assert_eq!(fence, None, "a block does not end");
    left
}

fn without_spans(line: &str) -> String {
    let mut left = String::new();
    let mut rest = line;
    while let Some(begin) = rest.find('`') {
        left.push_str(&rest[..begin]);
        let run = rest[begin..].chars().take_while(|c| *c == '`').count();
        rest = &rest[begin + run..];
        let ticks = "`".repeat(run);
        let is_end = |at: &usize| {
            let (before, after) = (&rest[..*at], &rest[at + run..]);
            !before.ends_with('`') && !after.starts_with('`')
        };
        let end = rest.match_indices(&ticks).map(|(at, _)| at).find(is_end);
        rest = &rest[end.expect("a span ends") + run..];
    }
    left + rest
}

#[test]
fn the_body_keeps_to_its_limit_also_with_long_texts() {
    let mut fixture = ReportFixture::many(500);
    let mut excerpts = Excerpts::new();
    for number in 1..=500 {
        let step = format!("[1/2] RUN {}", "ä|".repeat(500));
        if number > 250 {
            fixture.failed(number, user_failure(&step, 1), &"words\n".repeat(1_000));
        } else {
            fixture.completed(number, 1);
        }
        fixture.job(number).name = format!("job{number}-{}", "`|".repeat(200));
        fixture.job(number).variant = format!("job{number}-{}", "ä`".repeat(200)).into();
        fixture.job(number).warnings = vec![format!("{number} {}", "<".repeat(400))];
        excerpts.insert(job_id(number), vec!["😀`".repeat(2_000); 30]);
    }
    let reason = SkipReason::NoImage { build: "<".repeat(400) };
    fixture.run().skipped = vec![SkippedBuild { variant: "&".repeat(400).into(), reason }; 500];
    fixture.environment().report.note = Some("&".repeat(10_000));
    fixture.end_run(RunState::Failed { plan_error: None });
    let body = render(&fixture.view(), &excerpts);
    assert!(body.encode_utf16().count() <= 65_536, "{}", body.len());
    for part in ["### ❌", "more builds: [all", "more: [all", "Images", "Warnings", "\n> ", "<sub>"]
    {
        assert!(body.contains(part), "{part} is missing: {} bytes", body.len());
    }
    // The failed job comes first in a table that is cut.
    let first = body.lines().find(|line| line.starts_with("| ") && line.contains("job")).unwrap();
    assert!(first.contains("❌"), "{first}");
    without_code(&body);

    let message = "stagely.yaml:1:1: <x>\n".repeat(10_000);
    let error = PlanFailure { reason: FailureReason::Manifest, message };
    fixture.end_run(RunState::Failed { plan_error: Some(error) });
    let body = render(&fixture.view(), &excerpts);
    assert!(body.encode_utf16().count() <= 65_536, "{}", body.len());
    assert!(body.contains("(the rest is on the run's page)") && body.contains("<sub>"));
}

const LIVE: PreviewState = PreviewState::Live { machine: MACHINE };

/// The section about the preview. The key is written as KEY.
fn preview_section(fixture: &ReportFixture) -> String {
    let text = middle(fixture, &Excerpts::new()).replace(&fixture.key(), "KEY");
    let begin = text.find("**Preview**").expect("there is a section");
    let end = text[begin..].find("\n\n| Build").map_or(text.len(), |end| begin + end);
    text[begin..end].to_owned()
}

const LINK: &str =
    "[`pr-7-app.preview.example`](https://pr-7-app.preview.example/?stagely-access=KEY)";
const MAIL: &str =
    "Further endpoints: [`mail`](https://pr-7-app-mail.preview.example/?stagely-access=KEY)";

#[test]
fn a_live_preview_has_its_addresses_and_its_commit() {
    let mut fixture = ReportFixture::many(1);
    fixture.completed(1, 1);
    fixture.end_run(RunState::Completed);
    fixture.preview(LIVE);
    let text = format!("**Preview**: 🟢 {LINK} shows commit `aaaaaaaaaaaa`.\n\n{MAIL}");
    assert_eq!(preview_section(&fixture), text);
    let body = middle(&fixture, &Excerpts::new());
    assert!(body.starts_with("### ✅ Build completed\n\n**Preview**: 🟢 ["), "{body}");

    let settings = |fixture: &mut ReportFixture, access| {
        let shown = fixture.preview(LIVE).shown.as_mut().unwrap();
        shown.deployment.settings.access = access;
    };
    settings(&mut fixture, Access::Public);
    assert!(!preview_section(&fixture).contains("KEY"));
    settings(&mut fixture, Access::Token);
    let text = preview_section(&fixture);
    assert!(text.contains("example/) (with a token of Stagely) shows") && !text.contains("KEY"));
}

#[test]
fn each_state_of_a_preview_has_its_sentence() {
    let job = job_id(DEPLOY);
    let since = Timestamp(0);
    let states = [
        (
            PreviewState::Deploying { job },
            format!("⏳ {LINK} is being deployed with commit `aaaaaaaaaaaa`."),
        ),
        (
            PreviewState::Updating { machine: MACHINE, job },
            format!("🟢 {LINK} shows commit `aaaaaaaaaaaa`, and is being deployed again."),
        ),
        (
            PreviewState::Archiving { machine: MACHINE, since, wakes: false },
            format!("💤 {LINK} goes to sleep with commit `aaaaaaaaaaaa`."),
        ),
        (
            PreviewState::Archiving { machine: MACHINE, since, wakes: true },
            format!("⏳ {LINK} moves to another machine with commit `aaaaaaaaaaaa`."),
        ),
        (
            PreviewState::Asleep,
            format!(
                "💤 {LINK} sleeps with commit `aaaaaaaaaaaa`. Whoever opens it wakes it, and so does \
                 `/stagely preview`."
            ),
        ),
        (PreviewState::Waking { job }, format!("⏳ {LINK} starts with commit `aaaaaaaaaaaa`.")),
        (PreviewState::Ended, "⏹ ended. `/stagely preview` brings it back.".to_owned()),
        (
            PreviewState::Failed { job },
            "❌ commit `aaaaaaaaaaaa` could not be deployed. `/stagely preview` tries again."
                .to_owned(),
        ),
    ];
    for (state, sentence) in states {
        let mut fixture = ReportFixture::new();
        fixture.add_deployment();
        fixture.preview(state);
        let text = preview_section(&fixture);
        assert_eq!(text.lines().next(), Some(&*format!("**Preview**: {sentence}")));
    }
    let mut fixture = ReportFixture::new();
    fixture.preview(PreviewState::Ended);
    fixture.environment().state = EnvironmentState::closed(ClosedBy::Github);
    assert_eq!(preview_section(&fixture), "**Preview**: ⏹ ended with the pull request.");
}

#[test]
fn while_a_newer_commit_is_on_its_way_the_section_names_both() {
    let mut fixture = ReportFixture::new();
    fixture.preview(LIVE);
    fixture.start_run(4, "b".repeat(40).parse().unwrap());
    let first = |fixture: &ReportFixture| {
        let text = preview_section(fixture);
        let line = text.lines().next().unwrap().to_owned();
        line.strip_prefix(&format!("**Preview**: 🟢 {LINK} shows commit `aaaaaaaaaaaa`"))
            .unwrap()
            .to_owned()
    };
    assert_eq!(first(&fixture), "; commit `bbbbbbbbbbbb` follows.");
    fixture.add_deployment();
    fixture.preview(PreviewState::Updating { machine: MACHINE, job: job_id(DEPLOY) });
    assert_eq!(first(&fixture), " while commit `bbbbbbbbbbbb` is being deployed.");
    let reason = FailureReason::Deploy { problem: DeployProblem::Service };
    let message = "the service `web` ended with exit code 3; its last line: no database";
    fixture.failed(DEPLOY, reason, message);
    fixture.end_run(RunState::Failed { plan_error: None });
    fixture.preview(LIVE).problem = Some(message.to_owned());
    assert_eq!(first(&fixture), ". ❌ The deployment of commit `bbbbbbbbbbbb` failed.");
    let body =
        middle(&fixture, &Excerpts::from([(job_id(DEPLOY), vec!["listening on 8080".to_owned()])]));
    let failure = format!(
        "**`deploy`**: a service did not start · [Log]({})\n\n```text\n{message}\n```\n\n\
         ```text\nlistening on 8080\n```",
        log(DEPLOY)
    );
    assert!(body.ends_with(&failure), "{body}");
    assert_eq!(body.matches("no database").count(), 1, "{body}");
    fixture.job(DEPLOY).state = JobState::Cancelled;
    assert_eq!(first(&fixture), ". Commit `bbbbbbbbbbbb` is not deployed.");
}

#[test]
fn problems_of_a_preview_are_shown_with_what_became_of_its_data() {
    let mut fixture = ReportFixture::new();
    let preview = fixture.preview(PreviewState::Asleep);
    preview.problem = Some("the service `web` was not healthy within 120 s".to_owned());
    preview.data_loss = Some(DataLoss {
        at: Timestamp(1_795_000_000_000),
        archived_at: Some(Timestamp(1_794_900_000_000)),
        reason: "its machine was lost".to_owned(),
    });
    preview.extended_until = Some(Timestamp(1_795_100_000_000));
    let expected = "\n\n❌ It could not be started:\n\n```text\nthe service `web` was not healthy within 120 s\n```\n\n\
        ⚠️ Its machine was lost (2026-11-18 11:06 UTC). The data is that of 2026-11-17 07:20 UTC.\n\n\
        It stays at least until 2026-11-19 14:53 UTC.";
    let text = preview_section(&fixture);
    assert!(text.ends_with(expected), "{text}");

    let loss = DataLoss {
        at: Timestamp(1_795_000_000_000),
        archived_at: None,
        reason: "the data was not archived: it is larger than 2 GiB".to_owned(),
    };
    let preview = fixture.preview(PreviewState::Asleep);
    preview.problem = Some(loss.reason.clone());
    preview.data_loss = Some(loss);
    preview.extended_until = None;
    let text = preview_section(&fixture);
    let expected = "\n\n⚠️ The data was not archived&#58; it is larger than 2 GiB (2026-11-18 11:06 UTC). \
        There is no archive, so the data is fresh.";
    assert!(text.ends_with(expected) && !text.contains("❌"), "{text}");
}

#[test]
fn a_preview_that_was_asked_for_in_vain_is_explained() {
    let mut fixture = ReportFixture::many(1);
    fixture.run().with_preview = Some(true);
    fixture.completed(1, 1);
    assert!(!middle(&fixture, &Excerpts::new()).contains("**Preview**"));
    fixture.end_run(RunState::Completed);
    let text = middle(&fixture, &Excerpts::new());
    assert!(text.contains("**Preview**: there is none, because `stagely.yaml`"), "{text}");
}

#[test]
fn hostile_texts_of_a_preview_make_no_markup() {
    let mut fixture = ReportFixture::new();
    let preview = fixture.preview(LIVE);
    preview.problem = Some(HOSTILE.to_owned());
    preview.data_loss =
        Some(DataLoss { at: Timestamp(0), archived_at: None, reason: format!("{HOSTILE}!") });
    let endpoints = &mut preview.shown.as_mut().unwrap().deployment.endpoints;
    HOSTILE.clone_into(&mut endpoints[1].name);
    let body = render(&fixture.view(), &Excerpts::new());
    let visible = without_code(&body);
    for markup in ["@everyone", "](http://evil", "www.evil", "<img", "\n# big"] {
        assert!(!visible.contains(markup), "{markup}: {visible}");
    }
}

fn cost(amount: u64, approximate: bool) -> Cost {
    Cost { amount: Usd(amount), approximate }
}

#[test]
fn the_comment_says_what_the_run_the_pull_request_and_the_preview_cost() {
    let mut fixture = ReportFixture::multi_platform();
    let without = middle(&fixture, &Excerpts::new());
    assert!(!without.contains("Cost"), "{without}");
    fixture.completed(1, 60);
    fixture.add_deployment();
    fixture.job(1).cost = cost(13_000, false);
    fixture.job(DEPLOY).cost = cost(11_000, true);
    fixture.environment().spending.builders = cost(40_000, false);
    fixture.environment().spending.previews = cost(11_000, true);
    let text = middle(&fixture, &Excerpts::new());
    let sentence = "Cost ≈ $0.024: build 0.013, preview 0.011 · this pull request ≈ $0.051";
    assert!(text.lines().any(|line| line == sentence), "{text}");

    fixture.preview(PreviewState::Live { machine: MACHINE });
    let machine = Machine::new(MACHINE, MachineKind::Launched, Arch::Amd64, Timestamp(0));
    let bill = Bill {
        project: fixture.environment().project,
        environment: fixture.environment().id,
        job: job_id(DEPLOY),
        price_max: Usd(50_000),
        extras: Usd(7_000),
        approximate: true,
        is_priced: true,
        earlier: 0,
        segments: vec![PriceSegment { from: Timestamp(0), price: Usd(24_000) }],
        settled: Usd(0),
        settled_until: Timestamp(0),
        ended_at: None,
        lease_max: None,
    };
    fixture.records.live.insert(MACHINE, None);
    fixture.records.machines.insert(MACHINE, Machine { bill: Some(bill), ..machine });
    let text = middle(&fixture, &Excerpts::new());
    let sentence = format!("{sentence} · preview ≈ $0.024/h awake, $0 asleep");
    assert!(text.lines().any(|line| line == sentence), "{text}");
}

#[test]
fn a_job_that_waits_for_money_says_which_command_helps() {
    let mut fixture = ReportFixture::multi_platform();
    let month: Month = "2026-11".parse().unwrap();
    let project = fixture.environment().project;
    let shortage = Shortage {
        scope: BudgetScope::Project(project, month),
        used: BudgetUse { limit: Usd(50_000_000), spent: Usd(49_900_000), reserved: Usd(0) },
        project,
        needed: Usd(4_300_000),
    };
    let queued = QueuedJob { job: job_id(1), reason: QueueReason::Budget(shortage) };
    fixture.records.set_queue(vec![queued]);
    let name = fixture.records.projects[&project].name.clone();

    let text = middle(&fixture, &Excerpts::new());

    let words = format!(
        "queued, waits: November's budget of {name} is used up ($50.00); `stagely budget allow {name} 5`"
    );
    assert!(text.contains(&words), "{text}");
}

#[test]
fn tests_are_told_with_the_cases_that_failed() {
    let mut fixture = ReportFixture::new();
    let case = TestCase {
        suite: "login.spec.ts".to_owned(),
        name: "remembers me".to_owned(),
        outcome: CaseOutcome::Failed,
        message: "expected true".to_owned(),
        lines: vec!["at login.spec.ts 7".to_owned()],
        seconds: 1.0,
    };
    fixture.add_test(1, "e2e");
    fixture.add_test(2, "e2e");
    let text = middle(&fixture, &Excerpts::new());
    assert!(text.contains("#### Tests\n\n- `e2e`: ⏳ waits or runs\n"), "{text}");

    let results = TestResults { passed: 30, ..TestResults::default() };
    fixture.job(1).results = Some(results);
    fixture.completed(1, 1);
    let results = TestResults { passed: 4, failed: 1, cases: vec![case], ..TestResults::default() };
    fixture.failed(2, FailureReason::Test { failed: 1, exit_code: 1 }, "");
    fixture.job(2).results = Some(results);
    fixture.end_run(RunState::Failed { plan_error: None });
    let text = middle(&fixture, &Excerpts::new());
    assert!(text.contains("- `e2e`: ❌ 34 passed, 1 failed\n"), "{text}");
    assert!(text.contains("### ❌ Test failed [View Logs]("), "{text}");
    let case = format!(
        "❌ login.spec.ts › remembers me · [Log]({})\n\nexpected true\n\n```text\nat login.spec.ts 7\n```",
        log(2)
    );
    assert!(text.contains(&case), "{text}");
}

#[test]
fn pictures_of_tests_are_shown_where_github_can_fetch_them() {
    let mut fixture = ReportFixture::new();
    fixture.add_test(1, "e2e");
    fixture.add_test(2, "e2e");
    for (number, names) in [(1, &["a.png", "b](x) <i>.png", "c.png"][..]), (2, &["d.gif", "e.gif"])]
    {
        fixture.completed(number, 1);
        fixture.job(number).artifacts = Some(StoredArtifacts {
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            bytes: 5_120,
            files: 3,
            comment_images: names.iter().map(ToString::to_string).collect(),
        });
    }
    let url = |number, picture| format!("{}/pictures/{picture}", log(number));
    let text = middle(&fixture, &Excerpts::new());
    let shown = format!(
        "\n![a.png]({}) ![b&#93;(x) &#60;i&#62;.png]({}) ![c.png]({}) ![d.gif]({})\n",
        url(1, 1),
        url(1, 2),
        url(1, 3),
        url(2, 1)
    );
    assert!(text.contains(&shown), "{text}");
    assert!(!text.contains("e.gif"), "one test shows four: {text}");

    // However many cases have failed.
    let lines = vec!["line ".repeat(40); 20];
    let case = TestCase {
        suite: "login.spec.ts".to_owned(),
        name: "remembers me".to_owned(),
        outcome: CaseOutcome::Failed,
        message: "expected true".to_owned(),
        lines,
        seconds: 1.0,
    };
    let results = TestResults { failed: 30, cases: vec![case; 30], ..TestResults::default() };
    fixture.job(1).results = Some(results);
    let text = middle(&fixture, &Excerpts::new());
    assert!(text.contains(&shown) && text.contains("… and more"), "{text}");

    fixture.open_logs = false;
    let text = middle(&fixture, &Excerpts::new());
    assert!(text.contains(&format!("\n[`a.png`]({})", url(1, 1))), "{text}");
    assert!(!text.contains("!["), "{text}");
}

#[test]
fn hostile_texts_of_tests_make_no_markup_and_stay_small() {
    let mut fixture = ReportFixture::new();
    let case = TestCase {
        suite: HOSTILE.to_owned(),
        name: HOSTILE.to_owned(),
        outcome: CaseOutcome::Failed,
        message: HOSTILE.to_owned(),
        lines: vec![HOSTILE.to_owned(); 20],
        seconds: 0.0,
    };
    for number in 1..=20 {
        fixture.add_test(number, "e2e");
        HOSTILE.clone_into(&mut fixture.job(number).build);
        fixture.failed(number, FailureReason::Test { failed: 200, exit_code: 1 }, HOSTILE);
        let cases = vec![case.clone(); 200];
        fixture.job(number).results =
            Some(TestResults { failed: 200, cases, ..TestResults::default() });
    }
    let body = render(&fixture.view(), &Excerpts::new());
    assert!(body.len() < BODY_BYTES_MAX, "{}", body.len());
    assert!(body.contains("… and more"), "{body}");
    let visible = without_code(&body);
    for markup in ["@everyone", "](http://evil", "www.evil", "<img", "\n# big"] {
        assert!(!visible.contains(markup), "{markup}: {visible}");
    }
}
