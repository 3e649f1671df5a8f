//! The text of the comment, word by word.

use stagely_protocol::Arch;
use stagely_state::ids::MachineId;
use stagely_state::{
    Approval, Machine, MachineKind, MachineState, MissingCapacity, PlanFailure, SkipReason,
    SkippedBuild, Timestamp,
};

use super::*;
use crate::core::github::report::fixtures::{ReportFixture, commit, job_id, user_failure};

/// The comment without its marker and footer, which are the same in each.
fn middle(fixture: &ReportFixture, excerpts: &Excerpts) -> String {
    let body = render(&fixture.view(), excerpts);
    assert_eq!(body, render(&fixture.view(), excerpts), "the same records give the same text");
    let rest = body.strip_prefix("<!-- stagely env_00000000000000000000000002 -->\n\n").unwrap();
    let (middle, footer) = rest.rsplit_once("\n\n").unwrap();
    let run = "run_00000000000000000000000003";
    let begin =
        format!("<sub>Run [`{run}`](https://core.example/runs/{run}) · commit `aaaaaaaaaaaa`");
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
