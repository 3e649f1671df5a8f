//! Appending, following and forgetting lines.

use std::time::Duration;

use stagely::core::logs::{AppendError, NewLines};
use stagely_protocol::{CUT_MARK, LINE_BYTES_MAX};
use stagely_state::Attempt;
use stagely_state::ids::JobId;

use crate::fixtures::{Database, FIRST, JOB, append, first_of, lines, open, read_all, texts};

#[tokio::test]
async fn single_lines_without_numbers_follow_one_another() {
    let database = Database::new();
    let store = database.open();
    for number in 0..500_u64 {
        let text = format!("line {number}");
        let next = append(&store, FIRST, None, &lines(&[&text])).await.unwrap();
        assert_eq!(next, number + 1);
    }
    let expected: Vec<String> = (0..500).map(|number| format!("line {number}")).collect();
    assert_eq!(texts(&store, JOB).await, expected);
}

#[tokio::test]
async fn a_gap_is_refused_with_the_next_expected_line() {
    let database = Database::new();
    let store = database.open();
    append(&store, FIRST, Some(0), &lines(&["a", "b"])).await.unwrap();

    let refused = append(&store, FIRST, Some(3), &lines(&["d"])).await;

    assert!(matches!(refused, Err(AppendError::Gap { expected: 2 })), "{refused:?}");
    assert_eq!(texts(&store, JOB).await, ["a", "b"]);
    assert_eq!(append(&store, FIRST, Some(1), &lines(&["b", "c", "d"])).await.unwrap(), 4);
    assert_eq!(texts(&store, JOB).await, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn a_line_that_its_agent_did_not_cut_is_cut_and_marked() {
    let database = Database::new();
    let store = database.open();
    let long = "ü".repeat(LINE_BYTES_MAX);
    append(&store, FIRST, None, &lines(&[&long, "after"])).await.unwrap();

    let stored = texts(&store, JOB).await;

    assert_eq!(stored[1], "after");
    let kept = stored[0].strip_suffix(CUT_MARK).unwrap();
    assert!(long.starts_with(kept));
    assert!((LINE_BYTES_MAX - 3..=LINE_BYTES_MAX).contains(&stored[0].len()));
}

#[tokio::test]
async fn followers_of_a_log_are_notified_of_readable_lines_only() {
    let database = Database::new();
    let store = open(&database.path, 100);
    let mut live = store.follow(FIRST);
    append(&store, FIRST, None, &lines(&["a"])).await.unwrap();
    assert_eq!(live.after(0).await, NewLines::Stored);

    let text = "x".repeat(101);
    for _ in 0..3 {
        append(&store, FIRST, None, &lines(&[&text, &text])).await.unwrap();
    }

    assert_eq!(live.after(1).await, NewLines::Stored);
    assert_eq!(texts(&store, JOB).await.len(), 2, "one line, and the notice that the rest is cut");
    let more = tokio::time::timeout(Duration::from_millis(50), live.after(2)).await;
    assert!(more.is_err(), "there is nothing more to read");
}

#[tokio::test]
async fn followers_get_numbered_lines_encoded_and_once_unless_they_are_cut_or_behind() {
    let database = Database::new();
    let store = open(&database.path, 1 << 20);
    let mut live = store.follow(FIRST);
    append(&store, FIRST, Some(0), &lines(&["a\u{1b}[0m", "\"b\""])).await.unwrap();
    let NewLines::Encoded { message, end: 2 } = live.after(0).await else { panic!("two lines") };
    let json: serde_json::Value = serde_json::from_str(&message).unwrap();
    assert_eq!(
        (&json["type"], &json["attempt"], &json["first"]),
        (&"lines".into(), &1.into(), &0.into())
    );
    let text = |line: usize| json["lines"][line]["data"].as_str().unwrap();
    assert_eq!((text(0), text(1)), ("a\u{1b}[0m", "\"b\""));

    // The agent repeats a line after a reconnect: only the new one counts, and must be read.
    append(&store, FIRST, Some(1), &lines(&["\"b\"", "c"])).await.unwrap();
    assert_eq!(live.after(2).await, NewLines::Stored);
    append(&store, FIRST, Some(1), &lines(&["\"b\""])).await.unwrap();
    let long = "x".repeat(LINE_BYTES_MAX + 1);
    append(&store, FIRST, Some(3), &lines(&[&long])).await.unwrap();
    assert_eq!(live.after(3).await, NewLines::Stored, "a cut line is not encoded");

    for number in 4..40 {
        append(&store, FIRST, Some(number), &lines(&["d"])).await.unwrap();
    }
    assert_eq!(live.after(4).await, NewLines::Stored, "it is far behind");
    assert_eq!(texts(&store, JOB).await.len(), 40);
    let NewLines::Encoded { end, .. } = live.after(32).await else { panic!("the newest 8") };
    assert_eq!(end, 33);
}

#[tokio::test]
async fn all_attempts_of_a_job_are_forgotten_and_no_other_job() {
    let database = Database::new();
    let store = database.open();
    let other = JobId::from_bits(JOB.bits() + 1);
    let text = "x".repeat(9_000);
    for number in 1..=3 {
        for _ in 0..20 {
            append(&store, Attempt { job: JOB, number }, None, &lines(&[&text])).await.unwrap();
        }
    }
    append(&store, first_of(other), None, &lines(&["kept"])).await.unwrap();

    store.forget(&[JOB]).await.unwrap();

    store.close().await;
    let store = database.open();
    for number in 1..=3 {
        assert_eq!(read_all(&store, Attempt { job: JOB, number }, 100).await, []);
        assert_eq!(store.next_line(Attempt { job: JOB, number }).await.unwrap(), 0);
    }
    assert_eq!(texts(&store, other).await, ["kept"]);
}

#[tokio::test]
async fn waiting_lines_of_a_forgotten_log_are_not_stored_afterwards() {
    let database = Database::new();
    let store = database.open();
    let batch = lines(&["late"]);
    let mut receipts = Vec::new();
    for _ in 0..50 {
        receipts.push(store.append(FIRST, None, &batch).await.unwrap());
    }

    store.forget(&[JOB]).await.unwrap();

    for receipt in &mut receipts {
        receipt.stored().await.unwrap();
    }
    assert_eq!(read_all(&store, FIRST, 100).await, []);
}

#[tokio::test]
async fn damage_of_one_log_affects_only_its_job() {
    const CHUNKS: redb::TableDefinition<'static, (u128, u32, u64), &[u8]> =
        redb::TableDefinition::new("chunks");
    let database = Database::new();
    let store = database.open();
    append(&store, FIRST, Some(0), &lines(&["before"])).await.unwrap();
    store.close().await;
    let raw = redb::Database::open(&database.path).unwrap();
    let write = raw.begin_write().unwrap();
    let key = (JOB.bits(), 1, 0);
    write.open_table(CHUNKS).unwrap().insert(key, &b"not a chunk"[..]).unwrap();
    write.commit().unwrap();
    drop(raw);
    let store = database.open();
    let other = JobId::from_bits(8);

    let (damaged, whole) = (lines(&["after"]), lines(&["of another job"]));
    let stored = tokio::join!(
        append(&store, FIRST, Some(1), &damaged),
        append(&store, first_of(other), Some(0), &whole),
    );

    assert_eq!((stored.0.unwrap(), stored.1.unwrap()), (2, 1));
    assert_eq!(texts(&store, other).await, ["of another job"]);
    let (_, after) = store.read(FIRST, 1, 10).await.unwrap();
    assert_eq!(after[0].data, "after");
    assert!(store.read(FIRST, 0, 10).await.is_err());
    store.close().await;
}
