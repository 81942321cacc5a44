//! A program's hold on a connection or a resolution.

use std::sync::Arc;
use std::task::Waker;

use anyverbs_engine::Time;
use anyverbs_engine::cm::{self, Action, ConnectionManager, Id, State};

use super::mailbox::{Mailbox, Notice, poll, wait};
use crate::core::Core;
use crate::error::NicError;
use crate::nic::Nic;

/// Names a connection or a resolution of a device. When it is dropped, what it names is ended in the way
/// that its state asks for: a request is taken back or rejected, a connection disconnected.
pub(super) struct Handle {
    pub(super) nic: Nic,
    pub(super) id: Id,
    pub(super) mailbox: Arc<Mailbox>,
}

impl Handle {
    /// Calls the connection manager, if the id still means this.
    pub(super) fn call<R>(
        &self,
        action: &'static str,
        call: impl FnOnce(&mut Core, Time) -> Result<R, NicError>,
    ) -> Result<R, NicError> {
        self.nic.control(|core| {
            if self.mailbox.has_ended() {
                return Err(NicError::cm(action)(cm::Error::UnknownId));
            }
            let now = core.waiter.now();
            let result = call(core, now);
            core.carry_out_cm(now);
            result
        })
    }

    /// The same, for a call that concerns nothing else.
    pub(super) fn call_engine<R>(
        &self,
        action: &'static str,
        call: impl FnOnce(&mut ConnectionManager, Time, Id, &mut Vec<Action>) -> Result<R, cm::Error>,
    ) -> Result<R, NicError> {
        self.call(action, |core, now| {
            call(&mut core.cm.engine, now, self.id, &mut core.cm.actions).map_err(NicError::cm(action))
        })
    }

    pub(super) fn state(&self) -> Option<State> {
        self.nic.control(|core| (!self.mailbox.has_ended()).then(|| core.cm.engine.state(self.id)).flatten())
    }

    pub(super) fn poll(&self) -> Option<Notice> {
        poll(&self.nic, || self.mailbox.take())
    }

    pub(super) fn wait(&self, deadline: Option<Time>) -> Option<Notice> {
        // When nothing will ever come there is no point in waiting.
        let ready = || self.mailbox.is_ready();
        wait(&self.nic, deadline, ready, || self.mailbox.take_or_end())?.ok()
    }

    pub(super) fn set_waker(&self, waker: &Waker) {
        self.mailbox.set_waker(waker);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.mailbox.has_ended() {
            self.nic.control(|core| core.let_go(self.id, &self.mailbox));
        }
    }
}
