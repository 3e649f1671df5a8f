//! The time to open a log database of 1 GB after its writer was killed.

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rand::SeedableRng as _;
use rand::distr::{Alphanumeric, SampleString as _};
use rand::rngs::StdRng;
use redb::{Database, TableDefinition};
use stagely::core::clock::new_id;
use stagely::core::logs::{LogSettings, LogStore};
use stagely_protocol::{LogLine, Stream};
use stagely_state::Attempt;
use stagely_state::ids::JobId;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::load::bytes_on_disk;
use crate::report::{Row, median};

/// The role that fills a log store until it is killed.
pub(crate) const FILL_ROLE: &str = "fill-log-database";
/// The role that fills a plain redb database with chunks of the same size until it is killed.
pub(crate) const FILL_PLAIN_ROLE: &str = "fill-plain-database";

const BYTES: u64 = 1 << 30;
const KILLS: usize = 5;
const WRITERS: usize = 50;

const SETTINGS: LogSettings =
    LogSettings { job_bytes_max: u64::MAX / 2, cache_bytes: 32 << 20, disk_free_min_bytes: 0 };

/// The number of chunks in one commit of the plain database, and their size in bytes.
const PLAIN_GROUP: u64 = 50;
const PLAIN_CHUNK_BYTES: usize = 7_600;
const PLAIN: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("chunks");

pub(crate) async fn measure() -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("logs.redb");
    let mut seconds = Vec::new();
    for kill in 0..KILLS {
        kill_while_it_writes(FILL_ROLE, &path, BYTES + (kill as u64) * (8 << 20)).await?;
        let begin = Instant::now();
        let store = LogStore::open(&path, SETTINGS)?;
        seconds.push(begin.elapsed().as_secs_f64());
        store.close().await;
    }
    let plain = folder.path().join("plain.redb");
    kill_while_it_writes(FILL_PLAIN_ROLE, &plain, BYTES).await?;
    let begin = Instant::now();
    drop(Database::create(&plain)?);
    let raw = begin.elapsed().as_secs_f64();
    let stagely = median(&seconds);
    Ok(vec![Row {
        what: "1 GB log database opens after kill -9 (raw: redb as it comes)".to_owned(),
        stagely: format!("{:.0} ms", stagely * 1e3),
        raw: format!("{:.0} ms", raw * 1e3),
        ratio: format!("{:.3}", stagely / raw),
        aim: "≤ 100 ms".to_owned(),
        is_met: Some(stagely <= 0.1),
    }])
}

/// Starts a writer, and kills it when the file takes `bytes` on the disk.
async fn kill_while_it_writes(role: &str, path: &Path, bytes: u64) -> anyhow::Result<()> {
    let child = Command::new(std::env::current_exe()?).arg(role).arg(path).spawn()?;
    let mut child = Killed(child);
    while bytes_on_disk(path).unwrap_or_default() < bytes {
        ensure!(child.0.try_wait()?.is_none(), "the writer has ended by itself");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A process that is killed when the value is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Appends batches of 100 lines that compress badly, so that a gigabyte is reached soon.
pub(crate) async fn fill(path: &Path) -> anyhow::Result<()> {
    let store = LogStore::open(path, SETTINGS)?;
    let mut rng = StdRng::seed_from_u64(u64::from(std::process::id()));
    let batch = |_| -> Vec<String> {
        (0..100).map(|_| Alphanumeric.sample_string(&mut rng, 100)).collect()
    };
    let batches: Arc<Vec<Vec<String>>> = Arc::new((0..WRITERS).map(batch).collect());
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (store, batches) = (store.clone(), Arc::clone(&batches));
        writers.spawn(async move {
            let job = new_id::<JobId>();
            for number in 0.. {
                let lines = &batches[(writer + number) % WRITERS];
                let lines: Vec<LogLine<'_>> = lines
                    .iter()
                    .map(|line| LogLine { t: 0, stream: Stream::Stdout, data: line.into() })
                    .collect();
                store.append(Attempt { job, number: 1 }, None, &lines).await?.stored().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    Ok(())
}

/// Appends the same amount without the log store, which makes opening fast.
pub(crate) fn fill_plain(path: &Path) -> anyhow::Result<()> {
    let database = Database::create(path)?;
    let mut rng = StdRng::seed_from_u64(1);
    let chunk = Alphanumeric.sample_string(&mut rng, PLAIN_CHUNK_BYTES);
    for group in 0.. {
        let write = database.begin_write()?;
        {
            let mut table = write.open_table(PLAIN)?;
            for number in 0..PLAIN_GROUP {
                table.insert(group * PLAIN_GROUP + number, chunk.as_bytes())?;
            }
        }
        write.commit()?;
    }
    Ok(())
}
