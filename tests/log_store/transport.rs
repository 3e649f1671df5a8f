//! Lines from a spool to the store over a connection that breaks at random.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;
use stagely::core::logs::LogStore;
use stagely_agent::spool::Spool;
use stagely_protocol::{AgentMessage, Status, StatusState, Stream, WireId};
use tokio::runtime::Runtime;

use crate::fixtures::{FIRST, JOB, MIB, append, open, read_all, runtime, stream};

#[derive(Clone, Debug)]
enum TransportEvent {
    /// The build writes lines.
    Write(Vec<(bool, String)>),
    /// The agent sends a batch.
    Send,
    /// Core receives and stores this many of the sent messages.
    Deliver(Index),
    /// The agent receives this many of core's acknowledgements.
    Acknowledge(Index),
    /// The connection breaks, and the messages in it are lost. The agent connects again.
    Break,
    /// Core restarts.
    RestartCore,
    /// The agent restarts. It keeps the logs of jobs that have ended.
    RestartAgent,
}

fn transport_event() -> impl Strategy<Value = TransportEvent> {
    let text = prop_oneof![20 => "[a-zü\u{1b}\"\\\\]{0,20}", 1 => "[a-z]{2000,70000}"];
    let lines = prop::collection::vec((any::<bool>(), text), 0..30);
    prop_oneof![
        4 => lines.prop_map(TransportEvent::Write),
        5 => Just(TransportEvent::Send),
        4 => any::<Index>().prop_map(TransportEvent::Deliver),
        3 => any::<Index>().prop_map(TransportEvent::Acknowledge),
        2 => Just(TransportEvent::Break),
        1 => Just(TransportEvent::RestartCore),
        1 => Just(TransportEvent::RestartAgent),
    ]
}

/// An agent's spool, a connection, and core's store.
struct Transport {
    runtime: Runtime,
    folder: tempfile::TempDir,
    spool: Spool,
    store: Option<LogStore>,
    to_core: Vec<String>,
    to_agent: Vec<u64>,
    has_ended: bool,
}

impl Transport {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::create(folder.path().join("spool"), wire(), Arc::default()).unwrap();
        let store = Some(open(&folder.path().join("logs.redb"), 64 * MIB));
        let (to_core, to_agent) = (Vec::new(), Vec::new());
        Self { runtime: runtime(), folder, spool, store, to_core, to_agent, has_ended: false }
    }

    fn store(&self) -> &LogStore {
        self.store.as_ref().unwrap()
    }

    fn apply(&mut self, event: TransportEvent) {
        match event {
            TransportEvent::Write(lines) => {
                let lines = lines.iter().map(|(is_stderr, text)| (stream(*is_stderr), &**text));
                self.spool.append(lines).unwrap();
            }
            TransportEvent::Send => {
                let batch = self.spool.next_batch().unwrap();
                self.to_core.extend(batch.map(|log| AgentMessage::Log(log.log(&wire())).to_json()));
            }
            TransportEvent::Deliver(count) => {
                let count = count.index(self.to_core.len() + 1);
                self.deliver(count);
            }
            TransportEvent::Acknowledge(count) => {
                let count = count.index(self.to_agent.len() + 1);
                self.to_agent.drain(..count).for_each(|lines| self.spool.acknowledge(lines));
            }
            TransportEvent::Break => self.reconnect(),
            TransportEvent::RestartCore => {
                self.runtime.block_on(self.store().close());
                self.store = Some(open(&self.folder.path().join("logs.redb"), 64 * MIB));
                self.reconnect();
            }
            TransportEvent::RestartAgent if self.has_ended => {
                let spool = self.folder.path().join("spool");
                self.spool = Spool::recover(spool, wire(), Arc::default()).unwrap().unwrap();
                self.reconnect();
            }
            TransportEvent::RestartAgent => {}
        }
    }

    fn deliver(&mut self, count: usize) {
        for message in self.to_core.drain(..count) {
            let Ok(AgentMessage::Log(log)) = AgentMessage::parse(&message) else {
                panic!("not a log: {message}")
            };
            let store = self.store.as_ref().unwrap();
            let stored = append(store, FIRST, log.first, &log.lines);
            self.to_agent.push(self.runtime.block_on(stored).unwrap());
        }
    }

    fn reconnect(&mut self) {
        self.to_core.clear();
        self.to_agent.clear();
        let next_line = self.runtime.block_on(self.store().next_line(FIRST)).unwrap();
        self.spool.resume(next_line).unwrap();
    }

    fn end(&mut self) {
        self.spool.finish(Status::new(wire(), StatusState::Completed)).unwrap();
        self.has_ended = true;
    }

    /// Delivers the rest over a connection that does not break.
    fn deliver_all(&mut self) {
        self.reconnect();
        while self.spool.waiting() > 0 {
            self.apply(TransportEvent::Send);
        }
        self.deliver(self.to_core.len());
        self.to_agent.drain(..).for_each(|lines| self.spool.acknowledge(lines));
    }
}

fn wire() -> WireId {
    JOB.to_string().parse().unwrap()
}

fn stored_text(text: &str) -> String {
    stagely_protocol::cut_line(text).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_line_of_a_build_is_stored_once_after_any_failures(
        before in prop::collection::vec(transport_event(), 1..40),
        after in prop::collection::vec(transport_event(), 0..15),
    ) {
        let mut transport = Transport::new();
        let mut written = Vec::new();
        for event in before {
            if let TransportEvent::Write(lines) = &event {
                written.extend(lines.iter().map(|(is_err, text)| (stream(*is_err), stored_text(text))));
            }
            transport.apply(event);
        }
        transport.end();
        for event in after.into_iter().filter(|event| !matches!(event, TransportEvent::Write(_))) {
            transport.apply(event);
        }
        transport.deliver_all();

        prop_assert!(transport.spool.status_due().is_some(), "the end is never reported");
        let stored = transport.runtime.block_on(read_all(transport.store(), FIRST, 100));
        let stored: Vec<(Stream, String)> =
            stored.into_iter().map(|line| (line.stream, line.data)).collect();
        prop_assert_eq!(stored, written);
    }
}
