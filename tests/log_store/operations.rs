//! Random operations on the store, compared with a model.

use proptest::prelude::*;
use proptest::sample::Index;
use stagely::core::logs::{AppendError, LogStore, StoredLine};
use stagely_protocol::{LogLine, Stream};
use stagely_state::Attempt;
use stagely_state::ids::JobId;

use crate::fixtures::{Database, FIRST, JOB, append, line, lines, read_all, runtime, stream};

/// An operation of an agent or of core on the store, over a few logs.
#[derive(Clone, Debug)]
enum Operation {
    /// Lines that follow the stored ones. The agent repeats some that it has sent before.
    Append {
        log: usize,
        again: Index,
        lines: Vec<(u64, bool, String)>,
    },
    /// One line without a number.
    AppendUnnumbered {
        log: usize,
        line: String,
    },
    /// Lines after a gap.
    AppendAfterGap {
        log: usize,
    },
    Read {
        log: usize,
        from: Index,
        page: usize,
    },
    Forget {
        job: usize,
    },
    Reopen,
}

const LOGS: [Attempt; 3] = [
    FIRST,
    Attempt { job: JOB, number: 2 },
    Attempt { job: JobId::from_bits(1 << 100), number: 1 },
];

fn operation() -> impl Strategy<Value = Operation> {
    let log = 0..LOGS.len();
    // Texts that leave room in a chunk, and texts that fill it.
    let text = prop_oneof![4 => "[a-zü\u{1b}\"]{0,12}", 1 => "[a-z]{3000,5000}"];
    let lines = prop::collection::vec((any::<u64>(), any::<bool>(), text), 0..6);
    prop_oneof![
        8 => (log.clone(), any::<Index>(), lines)
            .prop_map(|(log, again, lines)| Operation::Append { log, again, lines }),
        4 => (log.clone(), ".{0,12}").prop_map(|(log, line)| Operation::AppendUnnumbered { log, line }),
        1 => log.clone().prop_map(|log| Operation::AppendAfterGap { log }),
        3 => (log, any::<Index>(), 1..5_usize)
            .prop_map(|(log, from, page)| Operation::Read { log, from, page }),
        1 => (0..2_usize).prop_map(|job| Operation::Forget { job }),
        1 => Just(Operation::Reopen),
    ]
}

async fn check_operation(store: &LogStore, logs: &mut [Vec<StoredLine>; 3], operation: Operation) {
    match operation {
        Operation::Append { log, again, lines } => {
            let (attempt, known) = (LOGS[log], &mut logs[log]);
            let first = again.index(known.len() + 1);
            let new = lines.into_iter().map(|(t, is_stderr, data)| StoredLine {
                t,
                stream: stream(is_stderr),
                data,
            });
            let sent: Vec<StoredLine> = known[first..].iter().cloned().chain(new).collect();
            let batch: Vec<LogLine<'_>> =
                sent.iter().map(|sent| line(sent.t, sent.stream, &sent.data)).collect();
            let next = append(store, attempt, Some(first as u64), &batch).await.unwrap();
            known.truncate(first);
            known.extend(sent);
            assert_eq!(next, known.len() as u64);
        }
        Operation::AppendUnnumbered { log, line: data } => {
            let (attempt, known) = (LOGS[log], &mut logs[log]);
            let batch = lines(&[&data]);
            let next = append(store, attempt, None, &batch).await.unwrap();
            known.push(StoredLine { t: 0, stream: Stream::Stdout, data });
            assert_eq!(next, known.len() as u64);
        }
        Operation::AppendAfterGap { log } => {
            let (attempt, known) = (LOGS[log], logs[log].len() as u64);
            let refused = append(store, attempt, Some(known + 1), &lines(&["?"])).await;
            let is_right =
                matches!(refused, Err(AppendError::Gap { expected }) if expected == known);
            assert!(is_right, "{refused:?}");
        }
        Operation::Read { log, from, page } => {
            let (attempt, known) = (LOGS[log], &logs[log]);
            let from = from.index(known.len() + 1);
            let (first, read) = store.read(attempt, from as u64, page).await.unwrap();
            assert_eq!(first, from as u64);
            assert!(read.len() >= page.min(known.len() - from));
            assert_eq!(read, known[from..from + read.len()]);
        }
        Operation::Forget { job } => {
            let job = LOGS[job * 2].job;
            store.forget(&[job]).await.unwrap();
            for (attempt, known) in LOGS.iter().zip(logs) {
                if attempt.job == job {
                    known.clear();
                }
            }
        }
        Operation::Reopen => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_operations_leave_each_line_stored_once_in_order(
        operations in prop::collection::vec(operation(), 1..40),
    ) {
        let (runtime, database) = (runtime(), Database::new());
        let mut store = database.open();
        let mut logs: [Vec<StoredLine>; 3] = Default::default();
        for operation in operations {
            if matches!(operation, Operation::Reopen) {
                runtime.block_on(store.close());
                store = database.open();
            }
            runtime.block_on(check_operation(&store, &mut logs, operation));
        }
        runtime.block_on(store.close());
        let store = database.open();
        for (attempt, known) in LOGS.into_iter().zip(&logs) {
            prop_assert_eq!(&runtime.block_on(read_all(&store, attempt, 7)), known);
        }
    }
}
