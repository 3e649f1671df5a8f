//! Which machine's agent is connected, and the way to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stagely_agent::protocol::CoreMessage;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ids::MachineId;

/// Messages that may wait for one agent. Core sends a handful a job; an agent that lets so many pile
/// up is not reading, and its session is ended.
const WAITING_MAX: usize = 64;

/// The open sessions. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    open: Arc<Mutex<HashMap<MachineId, Session>>>,
}

#[derive(Debug)]
struct Session {
    /// Tells a session from the one that the same machine opened after it.
    number: u64,
    messages: mpsc::Sender<CoreMessage>,
    end: CancellationToken,
}

/// One session's own end of its entry in [`Sessions`].
#[derive(Debug)]
pub struct SessionEntry {
    machine: MachineId,
    number: u64,
    /// What to send to the agent.
    pub messages: mpsc::Receiver<CoreMessage>,
    /// Fires when the session must end.
    pub end: CancellationToken,
}

impl Sessions {
    /// Opens the session of `machine`, and ends the one it had: its agent has dialled again.
    pub fn open(&self, machine: MachineId) -> SessionEntry {
        let (sender, messages) = mpsc::channel(WAITING_MAX);
        let end = CancellationToken::new();
        let mut open = self.lock();
        let number = open.get(&machine).map_or(0, |session| session.number) + 1;
        let session = Session { number, messages: sender, end: end.clone() };
        if let Some(old) = open.insert(machine, session) {
            old.end.cancel();
        }
        SessionEntry { machine, number, messages, end }
    }

    /// Removes a session's entry. Returns false if the machine has opened another since.
    pub fn close(&self, entry: &SessionEntry) -> bool {
        let mut open = self.lock();
        let is_newest =
            open.get(&entry.machine).is_some_and(|session| session.number == entry.number);
        if is_newest {
            open.remove(&entry.machine);
        }
        is_newest
    }

    /// Sends `message` if the agent is connected and reads. What is lost here is sent again after the
    /// agent's next HELLO.
    pub fn send(&self, machine: MachineId, message: CoreMessage) -> bool {
        let open = self.lock();
        let Some(session) = open.get(&machine) else { return false };
        let sent = session.messages.try_send(message).is_ok();
        if !sent {
            session.end.cancel();
        }
        sent
    }

    /// Ends the machine's session, if one is open.
    pub fn end(&self, machine: MachineId) {
        if let Some(session) = self.lock().get(&machine) {
            session.end.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MachineId, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
