//! What happens when a database is damaged.

use std::fs;

use stagely_protocol::{ErrorChain, LogLine, Stream};
use stagely_state::Attempt;
use stagely_state::ids::JobId;

use super::*;

const PAGE_BYTES: usize = 4_096;

fn attempt(number: u64) -> Attempt {
    Attempt { job: JobId::from_bits(number.into()), number: 1 }
}

async fn append(logs: &LogStore, number: u64) -> Result<(), String> {
    let data = format!("{number} {:x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).repeat(60);
    let line = LogLine { t: 0, stream: Stream::Stdout, data: data.into() };
    let mut receipt = logs.append(attempt(number), None, &[line]).await.unwrap();
    receipt.stored().await.map(drop).map_err(|error| error.to_string())
}

/// Opens the folder, and reads and appends to all logs. Returns the errors.
async fn use_all(config: &Config, jobs: u64) -> Vec<String> {
    let data = match DataFolder::open(config, FolderCheck::None).await {
        Ok(data) => data,
        Err(error) => return vec![format!("{error:#}")],
    };
    let mut errors = Vec::new();
    for number in 0..jobs {
        let read = data.logs.read(attempt(number), 0, 10).await;
        errors.extend(read.err().map(|error| ErrorChain(&error).to_string()));
        errors.extend(append(&data.logs, number).await.err());
    }
    data.logs.close().await;
    errors
}

/// A page of zeros, and a file that ends early, where a disk failed.
#[tokio::test]
async fn damage_names_the_file_and_what_to_do() {
    const JOBS: u64 = 40;
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.core.data_dir = folder.path().to_owned();
    assert_eq!(use_all(&config, JOBS).await, [""; 0]);
    for (name, advice) in [(RECORDS_FILE, "restore the data folder"), (LOGS_FILE, "move it away")] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        let mut found = 0;
        for at in (0..whole.len()).step_by(2 * PAGE_BYTES) {
            let mut zeroed = whole.clone();
            zeroed[at..at + PAGE_BYTES].fill(0);
            for damaged in [&zeroed, &whole[..at.max(1)]] {
                fs::write(&path, damaged).unwrap();
                let errors = use_all(&config, JOBS).await;
                found += usize::from(!errors.is_empty());
                for error in errors {
                    let is_named = error.contains(&format!("{} is damaged (", path.display()));
                    assert!(is_named && error.contains(advice), "{name} {at}: {error}");
                }
            }
        }
        assert!(found >= whole.len() / PAGE_BYTES / 2, "{name}: only {found} were noticed");
        fs::write(&path, &whole).unwrap();
    }
    fs::remove_file(folder.path().join(LOGS_FILE)).unwrap();
    assert_eq!(use_all(&config, JOBS).await, [""; 0]);
}

#[tokio::test]
async fn a_database_that_is_gone_is_not_begun_anew() {
    for remaining in
        [&[KEY_FILE][..], &[LOGS_FILE], &["bound.json"], &[ARCHIVES], &[KEY_FILE, LOGS_FILE]]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.core.data_dir = folder.path().to_owned();
        for name in remaining {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let records = folder.path().join(RECORDS_FILE);
        for what in ["the file is missing", "the file is empty"] {
            let [error] = &use_all(&config, 1).await[..] else { panic!("{remaining:?} {what}") };
            let is_named = error.contains(&format!("{} is damaged ({what})", records.display()));
            assert!(is_named && error.contains("restore the data folder"), "{error}");
            fs::write(&records, "").unwrap();
        }
    }
    // A first start that was interrupted.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(RECORDS_FILE), "").unwrap();
    let mut config = Config::default();
    config.core.data_dir = folder.path().to_owned();
    assert_eq!(use_all(&config, 1).await, [""; 0]);
}
