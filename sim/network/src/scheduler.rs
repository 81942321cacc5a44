//! Who runs when: passing the baton between the threads of programs, and progressing NICs.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyverbs_nic::Time;

use crate::Failure;
use crate::state::{Due, Sleep, State};

/// What unwinds a program when the run has failed.
struct Stopped;

/// The program that a thread is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    /// The address of its network's [`Shared`].
    network: usize,
    program: usize,
}

thread_local! {
    static IDENTITY: Cell<Option<Identity>> = const { Cell::new(None) };
}

/// Makes the thread a program, or none, until it is dropped.
struct Disguise(Option<Identity>);

impl Disguise {
    fn new(identity: Option<Identity>) -> Self {
        Disguise(IDENTITY.replace(identity))
    }
}

impl Drop for Disguise {
    fn drop(&mut self) {
        IDENTITY.set(self.0);
    }
}

/// A network, as its hosts, links, waiters and programs share it.
pub(crate) struct Shared {
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(state: State) -> Self {
        Shared { state: Mutex::new(state) }
    }

    /// The state. Never held while a program or a NIC runs.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identity(&self, program: usize) -> Identity {
        Identity { network: std::ptr::from_ref(self).addr(), program }
    }

    /// The program of this network that this thread is.
    fn current_program(&self) -> Option<usize> {
        let identity = IDENTITY.get()?;
        (identity == self.identity(identity.program)).then_some(identity.program)
    }

    /// Gives up the baton until it comes back. Returns at once on a thread that is no program.
    pub(crate) fn sleep(&self, host: usize, sleep: Sleep) {
        let Some(me) = self.current_program() else { return };
        let mut state = self.lock();
        if state.failure.is_none() {
            state.programs[me].unwinding = thread::panicking();
            state.touch(host);
            let own = state.programs[me].host;
            state.touch(own);
            state.park(me, host, sleep);
            state = self.pass_baton(state, Some(me));
        }
        if state.failure.is_none() {
            return;
        }
        if !thread::panicking() {
            drop(state);
            resume_unwind(Box::new(Stopped));
        }
        // A destructor of a program that is being unwound: it may not be unwound again. Nothing will
        // happen any more, but its deadlines have to come.
        match sleep {
            Sleep::Wait(Some(deadline)) => state.now = state.now.max(deadline),
            Sleep::Wait(None) => {}
            Sleep::Relax => state.now = state.now + state.config.relax_step.max(Duration::from_nanos(1)),
        }
    }

    /// Lets the program run whose turn it is. Returns when the baton has come back to `me`, or at
    /// once if the caller is no program (any more).
    fn pass_baton<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        me: Option<usize>,
    ) -> MutexGuard<'a, State> {
        state.baton = None;
        let next;
        (state, next) = self.choose(state);
        state.baton = next;
        if next != me
            && let Some(next) = next
        {
            state.programs[next].bell.notify_one();
        }
        match me {
            Some(me) => self.await_baton(state, me),
            None => state,
        }
    }

    fn await_baton<'a>(&'a self, mut state: MutexGuard<'a, State>, me: usize) -> MutexGuard<'a, State> {
        let bell = state.programs[me].bell.clone();
        while state.baton != Some(me) {
            state = bell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Works through events until a program has to run; `None` when all have ended.
    fn choose<'a>(&'a self, mut state: MutexGuard<'a, State>) -> (MutexGuard<'a, State>, Option<usize>) {
        loop {
            let Some(first) = state.programs.iter().position(|p| !p.finished) else {
                return (state, None);
            };
            if state.failure.is_some() {
                return (state, Some(first));
            }
            if let Some(host) = state.touched.pop_first() {
                state = self.progress(state, host);
                continue;
            }
            match state.next_due() {
                Ok(Due::Resume(program)) => return (state, Some(program)),
                Ok(Due::Service(host)) => {
                    state = self.progress(state, host);
                    state.rouse(host);
                }
                Err(failure) => state.failure = Some(failure),
            }
        }
    }

    /// Lets the NIC of `host` progress, and notes when it wants to again.
    fn progress<'a>(&'a self, mut state: MutexGuard<'a, State>, host: usize) -> MutexGuard<'a, State> {
        state.touched.remove(&host);
        let Some(nic) = state.hosts[host].nic.as_ref().and_then(|nic| nic.upgrade()) else {
            state.set_timer(host, None);
            return state;
        };
        state.progressing = true;
        drop(state);
        let outcome = {
            // To the NIC this thread is the scheduler, not the program that gave up the baton.
            let _disguise = Disguise::new(None);
            catch_unwind(AssertUnwindSafe(move || nic.progress())).map_err(message)
        };
        let mut state = self.lock();
        state.progressing = false;
        match outcome {
            Ok(deadline) => state.set_timer(host, deadline),
            Err(message) => {
                let failure =
                    Failure::NicPanicked { host: state.hosts[host].address, message, at: state.now };
                state.failure.get_or_insert(failure);
            }
        }
        state
    }

    /// Begins: the first program gets the baton.
    pub(crate) fn start(&self) {
        drop(self.pass_baton(self.lock(), None));
    }

    /// The whole life of a program's thread.
    pub(crate) fn run_program(&self, me: usize, body: Box<dyn FnOnce() + Send>) {
        let outcome = {
            let _disguise = Disguise::new(Some(self.identity(me)));
            let stopped = self.await_baton(self.lock(), me).failure.is_some();
            catch_unwind(AssertUnwindSafe(move || {
                // Whether it runs or not, what the body owns is dropped while the program has the
                // baton, and by unwinding if the run has failed.
                let body = body;
                if stopped {
                    resume_unwind(Box::new(Stopped));
                }
                body();
            }))
        };
        let panic = match outcome {
            Err(payload) if !payload.is::<Stopped>() => Some(message(payload)),
            _ => None,
        };
        let mut state = self.lock();
        if let Some(message) = panic {
            let host = state.hosts[state.programs[me].host].address;
            let at: Time = state.now;
            // A panic whose unwinding made the run fail is what made it fail.
            if state.failure.is_none() || state.programs[me].unwinding {
                state.failure = Some(Failure::HostPanicked { host, message, at });
            }
        }
        let host = state.programs[me].host;
        state.touch(host);
        state.finish_program(me);
        drop(self.pass_baton(state, None));
    }
}

/// What a panic says.
fn message(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => match payload.downcast::<&'static str>() {
            Ok(message) => (*message).to_owned(),
            Err(_) => "(a value that is no message)".to_owned(),
        },
    }
}
