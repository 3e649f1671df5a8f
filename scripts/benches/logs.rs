//! Log lines: throughput, latency and disk space.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use redb::{Database, Durability, TableDefinition};
use stagely_protocol::Stream;

use crate::core::processor_time;
use crate::load::{self, Load, Outcome, Pool, RawLine, as_f64};
use crate::repair;
use crate::report::{Pairs, Row, median, print, quantile};

const PAIRS: usize = 3;

/// Batches of 100 lines, as fast as core accepts them.
const fn full_speed(agents: usize, batches: usize, window: usize) -> Load {
    Load { agents, lines_of_batch: 100, batches, window, pace: None }
}

pub(crate) async fn measure() -> anyhow::Result<()> {
    let pool = Arc::new(Pool::new(100));
    println!("log lines of {:.0} bytes on average", pool.bytes_of_line());
    let mut rows = Vec::new();
    measure_throughput(full_speed(1, 10_000, 16), &pool, &mut rows).await?;
    measure_throughput(full_speed(50, 800, 4), &pool, &mut rows).await?;
    rows.push(paced().await?);
    rows.extend(repair::measure().await?);
    print(rows);
    Ok(())
}

async fn measure_throughput(
    load: Load,
    pool: &Arc<Pool>,
    rows: &mut Vec<Row>,
) -> anyhow::Result<()> {
    let (mut pairs, mut processor_pairs) = (Pairs::default(), Pairs::default());
    let mut outcomes = Vec::new();
    for pair in 0..PAIRS {
        let outcome = load::run(load, pool).await?;
        let pool = Arc::clone(pool);
        let raw = tokio::task::spawn_blocking(move || write_directly(load, &pool)).await??;
        let speed = |seconds: f64| as_f64(load.lines()) / seconds / 1e6;
        let micros_of_100 = |seconds: f64| seconds * 1e6 / as_f64(load.lines()) * 100.0;
        eprintln!(
            "logs, {} agents, pair {}: {:.2} M lines/s, raw {:.2}",
            load.agents,
            pair + 1,
            speed(outcome.seconds),
            speed(raw.seconds),
        );
        pairs.0.push((speed(outcome.seconds), speed(raw.seconds)));
        processor_pairs
            .0
            .push((micros_of_100(outcome.processor_seconds), micros_of_100(raw.processor_seconds)));
        outcomes.push(outcome);
    }
    rows.extend(rows_of(load, &pairs, &processor_pairs, &outcomes));
    Ok(())
}

fn rows_of(load: Load, pairs: &Pairs, processor_pairs: &Pairs, outcomes: &[Outcome]) -> Vec<Row> {
    let (stagely, raw) = pairs.medians();
    let (processor, raw_processor) = processor_pairs.medians();
    // Raw does the same work in as much time if the ratio is 1; core may take 1/0.6 of it.
    let share = raw_processor / processor;
    let has_aim = load.agents > 1;
    let agents = match load.agents {
        1 => "1 agent".to_owned(),
        agents => format!("{agents} agents"),
    };
    let of_each =
        |value: &dyn Fn(&Outcome) -> f64| median(&outcomes.iter().map(value).collect::<Vec<_>>());
    let p50 = of_each(&|outcome| quantile(&outcome.latencies, 0.5));
    let p99 = of_each(&|outcome| quantile(&outcome.latencies, 0.99));
    let bytes = of_each(&|outcome| as_f64(outcome.bytes) / as_f64(load.lines()));
    let if_aimed = |aim: &str| if has_aim { aim.to_owned() } else { String::new() };
    vec![
        Row {
            what: format!("lines stored and shown, {agents} and viewers"),
            stagely: format!("{stagely:.2} M/s"),
            raw: format!("{raw:.2} M/s"),
            ratio: format!("{:.2}", pairs.ratio()),
            aim: if_aimed("≥ 0.8 M/s"),
            is_met: has_aim.then_some(stagely >= 0.8),
        },
        Row {
            what: format!("processor time of core for 100 lines, {agents} (ratio: raw to core)"),
            stagely: format!("{processor:.0} µs"),
            raw: format!("{raw_processor:.0} µs"),
            ratio: format!("{share:.2}"),
            aim: if_aimed("≥ 0.6 of raw"),
            is_met: has_aim.then_some(share >= 0.6),
        },
        Row {
            what: format!("sent to visible under that load, {agents}, p50 / p99"),
            stagely: format!("{p50:.1} / {p99:.1} ms"),
            aim: if_aimed("p50 ≤ 25 ms"),
            is_met: has_aim.then_some(p50 <= 25.0),
            ..Row::default()
        },
        Row {
            what: format!("disk for a line, {agents}"),
            stagely: format!("{bytes:.1} bytes"),
            aim: "≤ 20 bytes".to_owned(),
            is_met: Some(bytes <= 20.0),
            ..Row::default()
        },
    ]
}

async fn paced() -> anyhow::Result<Row> {
    let pace = Some(Duration::from_millis(100));
    let load = Load { agents: 50, lines_of_batch: 10, batches: 60, window: 16, pace };
    let outcome = load::run(load, &Arc::new(Pool::new(10))).await?;
    let (p50, p99) = (quantile(&outcome.latencies, 0.5), quantile(&outcome.latencies, 0.99));
    Ok(Row {
        what: "sent to visible, 50 agents × 10 lines every 100 ms, p50 / p99".to_owned(),
        stagely: format!("{p50:.1} / {p99:.1} ms"),
        aim: "p99 ≤ 5 ms".to_owned(),
        is_met: Some(p99 <= 5.0),
        ..Row::default()
    })
}

/// Job, attempt and first line, like the keys of core's chunks.
type ChunkKey = (u128, u32, u64);
const CHUNKS: TableDefinition<'static, ChunkKey, &[u8]> = TableDefinition::new("chunks");

/// What the raw alternative took.
struct Raw {
    seconds: f64,
    processor_seconds: f64,
}

/// Compresses and stores the same batches without core.
///
/// One thread for each processor compresses, and one commits all waiting chunks together.
fn write_directly(load: Load, pool: &Arc<Pool>) -> anyhow::Result<Raw> {
    let folder = tempfile::tempdir()?;
    let database = Database::create(folder.path().join("raw.redb"))?;
    let (chunks, waiting) = sync_channel(load.agents * load.window);
    let compressing = std::thread::available_parallelism()?.get().min(load.agents);
    // Core has ended, and nothing else happens in this process.
    let used_before = processor_time(std::process::id())?;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..compressing {
            let chunks = chunks.clone();
            scope.spawn(move || compress(load, pool, thread, compressing, &chunks));
        }
        drop(chunks);
        commit(&database, load.agents * load.window, &waiting)
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let used = processor_time(std::process::id())?.saturating_sub(used_before);
    Ok(Raw { seconds, processor_seconds: used.as_secs_f64() })
}

/// Compresses the batches of every `step`th agent, one of each in turn.
fn compress(
    load: Load,
    pool: &Pool,
    from: usize,
    step: usize,
    chunks: &SyncSender<(ChunkKey, Vec<u8>)>,
) {
    for batch in 0..load.batches {
        for agent in (from..load.agents).step_by(step) {
            let lines: Vec<RawLine<'_>> = pool
                .batch(agent, batch)
                .iter()
                .map(|(t, data)| (*t, Stream::Stdout, data.as_str()))
                .collect();
            let plain = postcard::to_stdvec(&lines).expect("a vector takes every line");
            let bytes = zstd::bulk::compress(&plain, 3).expect("a buffer of the bound's size");
            let key = (agent as u128, 1, (batch * load.lines_of_batch) as u64);
            // The receiver exists until all senders are dropped.
            let _ = chunks.send((key, bytes));
        }
    }
}

fn commit(
    database: &Database,
    group_max: usize,
    waiting: &Receiver<(ChunkKey, Vec<u8>)>,
) -> anyhow::Result<()> {
    while let Ok(first) = waiting.recv() {
        let mut write = database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        write.set_quick_repair(true);
        {
            let mut table = write.open_table(CHUNKS)?;
            let more = waiting.try_iter().take(group_max);
            for (key, bytes) in std::iter::once(first).chain(more) {
                table.insert(key, bytes.as_slice())?;
            }
        }
        write.commit()?;
    }
    Ok(())
}
