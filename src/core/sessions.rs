//! The sessions of connected agents, and the messages that core sends to them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stagely_protocol::CoreMessage;
use stagely_state::ids::{MachineId, SessionId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Most messages that wait for one agent. Core sends a handful for each job, so an agent with more is not reading,
/// and its session is ended.
const WAITING_MAX: usize = 64;

/// The open sessions. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    open: HashMap<MachineId, SessionHandle>,
    /// The newest session of all machines.
    newest: SessionId,
}

#[derive(Debug)]
struct SessionHandle {
    id: SessionId,
    /// In boxes, because a new channel allocates 32 messages, and most sessions are idle.
    messages: mpsc::Sender<Box<CoreMessage>>,
    end: CancellationToken,
}

/// The side of a session that serves the agent's connection.
#[derive(Debug)]
pub struct SessionEntry {
    machine: MachineId,
    pub id: SessionId,
    /// The messages to send to the agent.
    pub messages: mpsc::Receiver<Box<CoreMessage>>,
    /// Fires when the session must end.
    pub end: CancellationToken,
}

impl Sessions {
    /// Opens a session of `machine`, and ends its former one: its agent has connected again.
    pub fn open(&self, machine: MachineId) -> SessionEntry {
        let (sender, messages) = mpsc::channel(WAITING_MAX);
        let end = CancellationToken::new();
        let mut inner = self.lock();
        inner.newest = inner.newest.next();
        let id = inner.newest;
        let session = SessionHandle { id, messages: sender, end: end.clone() };
        if let Some(old) = inner.open.insert(machine, session) {
            old.end.cancel();
        }
        SessionEntry { machine, id, messages, end }
    }

    /// Removes the session, unless the machine has opened another one since.
    pub fn close(&self, entry: &SessionEntry) {
        let open = &mut self.lock().open;
        let newest = open.get(&entry.machine).map(|session| session.id);
        if newest == Some(entry.id) {
            open.remove(&entry.machine);
        }
    }

    /// Sends `message` if the agent is connected and reads. A lost message is sent again after the agent's next HELLO.
    pub fn send(&self, machine: MachineId, message: CoreMessage) -> bool {
        let open = &self.lock().open;
        let Some(session) = open.get(&machine) else { return false };
        let sent = session.messages.try_send(Box::new(message)).is_ok();
        if !sent {
            session.end.cancel();
        }
        sent
    }

    /// Ends the machine's session, if one is open.
    pub fn end(&self, machine: MachineId) {
        if let Some(session) = self.lock().open.get(&machine) {
            session.end.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_ends_late_leaves_the_newest_alone() {
        let (sessions, machine) = (Sessions::default(), MachineId::from_bits(1));
        let first = sessions.open(machine);
        let second = sessions.open(machine);
        assert!(first.end.is_cancelled());
        sessions.close(&second);
        let third = sessions.open(machine);

        sessions.close(&first);

        assert!(!third.end.is_cancelled());
        sessions.end(machine);
        assert!(third.end.is_cancelled(), "it is still the one that is known");
    }
}
