//! Where threads sleep until there is something to receive.

use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyverbs_memory::Bell;
use anyverbs_nic::Time;
use anyverbs_nic::link::Waiter;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::time::{ClockId, clock_gettime};

use super::patience::Patience;
use super::sides::SideBell;

/// How long a thread sleeps at most that could not get an eventfd, since nobody can wake it.
const DEAF_SLEEP: Duration = Duration::from_millis(1);

/// Threads that sleep at once without more eventfds being made.
const BEDS: usize = 2;

fn bed() -> Option<Arc<OwnedFd>> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok().map(Arc::new)
}

/// The waiter of a UDP link: CLOCK_MONOTONIC, and ppoll on the socket, and on those of other links that
/// share its address.
///
/// Each sleeping thread has an eventfd of its own: of one that all share, the first thread to wake
/// would have to take the mark away, and the others would sleep on.
pub(super) struct UdpWaiter {
    /// The ways in beside the socket.
    sides: Arc<SideBell>,
    /// Readable when other links have something to say.
    events: Option<Arc<OwnedFd>>,
    /// It was, and nobody has looked since.
    called: AtomicBool,
    sleepers: Mutex<Sleepers>,
    /// Where processors are few.
    patience: Option<Patience>,
}

/// Where datagrams come from.
#[derive(Clone, Default)]
pub(super) struct Sources {
    /// The socket that has the port.
    pub(super) socket: Option<Arc<UdpSocket>>,
    /// The ring that another link puts them into; it rings by way of the events.
    pub(super) bell: Option<Arc<Bell>>,
}

struct Sleepers {
    /// Somebody called `wake` while nobody slept.
    pending: bool,
    sources: Sources,
    /// Calls of `wake`.
    wakes: u64,
    asleep: Vec<Arc<OwnedFd>>,
    spare: Vec<Arc<OwnedFd>>,
}

impl UdpWaiter {
    pub(super) fn new(sources: Sources, sides: Arc<SideBell>, events: Option<Arc<OwnedFd>>) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        // Made now, for the one or two threads that mostly sleep; more are made when they come.
        let mut sleepers = Sleepers {
            pending: false,
            sources,
            wakes: 0,
            asleep: Vec::with_capacity(BEDS),
            spare: Vec::with_capacity(BEDS),
        };
        sleepers.spare.extend((0..BEDS).filter_map(|_| bed()));
        let called = AtomicBool::new(false);
        UdpWaiter {
            sides,
            events,
            called,
            sleepers: Mutex::new(sleepers),
            patience: (processors <= 2).then(Patience::new),
        }
    }

    /// From now on, datagrams come from elsewhere.
    pub(super) fn listen_to(&self, sources: Sources) {
        let before = std::mem::replace(&mut self.sleepers().sources, sources);
        drop(before);
        self.rouse();
    }

    /// Ends the sleep of those who sleep now: what they sleep on has changed, or somebody else has taken
    /// away what would have woken them.
    pub(super) fn rouse(&self) {
        self.sleepers().call();
    }

    /// Whether a sleep ended because other links have something to say, since this was last asked.
    #[inline]
    pub(super) fn take_called(&self) -> bool {
        self.called.load(Ordering::Relaxed) && self.called.swap(false, Ordering::Relaxed)
    }

    fn sleepers(&self) -> MutexGuard<'_, Sleepers> {
        // What it guards is right at every step, so a panic elsewhere poisons nothing.
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lies down, in a bed if there is one: `None` if a `wake` came before, that nobody heard or, given what `wakes`
    /// said, that this thread has not heard.
    fn lie_down(&self, since: Option<u64>) -> Option<(Option<Arc<OwnedFd>>, Sources)> {
        let mut sleepers = self.sleepers();
        let unheard = match since {
            Some(wakes) => wakes != sleepers.wakes,
            None => std::mem::take(&mut sleepers.pending),
        };
        if unheard {
            return None;
        }
        let bed = sleepers.spare.pop().or_else(bed);
        if let Some(bed) = &bed {
            sleepers.asleep.push(Arc::clone(bed));
        }
        Some((bed, sleepers.sources.clone()))
    }

    fn get_up(&self, bed: Arc<OwnedFd>) {
        let mut sleepers = self.sleepers();
        sleepers.asleep.retain(|other| !Arc::ptr_eq(other, &bed));
        // Under the lock, so no `wake` comes between, and the next sleeper finds it clear.
        let _ = rustix::io::read(&*bed, &mut [0_u8; 8]);
        sleepers.spare.push(bed);
    }

    fn sleep(&self, since: Option<u64>, deadline: Option<Time>) {
        let mut limit = deadline.map(|deadline| deadline.since(self.now()));
        if limit == Some(Duration::ZERO) {
            return;
        }
        let Some((bed, sources)) = self.lie_down(since) else { return };
        if bed.is_none() {
            limit = Some(limit.map_or(DEAF_SLEEP, |limit| limit.min(DEAF_SLEEP)));
        }
        let timeout = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        if sources.bell.as_ref().is_none_or(|bell| bell.arm()) {
            let socket = sources.socket.as_ref().map(|socket| socket.as_fd());
            let (events, bed) =
                (self.events.as_ref().map(|fd| fd.as_fd()), bed.as_ref().map(|fd| fd.as_fd()));
            let [_, sides, called, _] = poll_any(
                [socket, self.sides.epoll.as_ref().map(|fd| fd.as_fd()), events, bed],
                timeout.as_ref(),
            );
            if sides {
                self.sides.ring();
            }
            if called {
                self.called.store(true, Ordering::Relaxed);
            }
        }
        if let Some(bed) = bed {
            self.get_up(bed);
        }
    }
}

impl Sleepers {
    fn call(&self) {
        for bed in &self.asleep {
            // It fails only if the counter is full: then the thread is as good as awake.
            let _ = rustix::io::write(&**bed, &1_u64.to_ne_bytes());
        }
    }
}

/// Polls those that there are for input; says which have some. Whatever ends it, a signal or an error
/// included, is an early return.
fn poll_any(fds: [Option<BorrowedFd<'_>>; 4], timeout: Option<&Timespec>) -> [bool; 4] {
    let Some(some) = fds.into_iter().flatten().next() else {
        let _ = poll(&mut [], timeout);
        return [false; 4];
    };
    // One is polled twice in place of one that is not there.
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd.unwrap_or(some), PollFlags::IN));
    let _ = poll(&mut polled, timeout);
    std::array::from_fn(|i| fds[i].is_some() && !polled[i].revents().is_empty())
}

impl Waiter for UdpWaiter {
    fn now(&self) -> Time {
        let now = clock_gettime(ClockId::Monotonic);
        Time::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    fn wait(&self, deadline: Option<Time>) {
        self.sleep(None, deadline);
    }

    fn wakes(&self) -> u64 {
        self.sleepers().wakes
    }

    fn wait_since(&self, wakes: u64, deadline: Option<Time>) {
        self.sleep(Some(wakes), deadline);
    }

    fn wake(&self) {
        let mut sleepers = self.sleepers();
        sleepers.wakes += 1;
        if sleepers.asleep.is_empty() {
            sleepers.pending = true;
        }
        sleepers.call();
    }

    fn relax(&self) {
        match &self.patience {
            Some(patience) => patience.relax(|| self.now()),
            None => std::hint::spin_loop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    fn waiter() -> Arc<UdpWaiter> {
        let socket = Some(Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap()));
        let sides = Arc::new(SideBell::new());
        Arc::new(UdpWaiter::new(Sources { socket, bell: None }, sides, None))
    }

    fn asleep(waiter: &UdpWaiter) -> usize {
        waiter.sleepers().asleep.len()
    }

    #[test]
    fn one_wake_ends_every_sleep() {
        let waiter = waiter();
        for _ in 0..20 {
            let (done, wakened) = mpsc::channel();
            for _ in 0..4 {
                let (waiter, done) = (Arc::clone(&waiter), done.clone());
                thread::spawn(move || {
                    waiter.wait(None);
                    done.send(()).unwrap();
                });
            }
            while asleep(&waiter) < 4 {
                thread::yield_now();
            }
            assert!(wakened.try_recv().is_err());
            waiter.wake();
            for _ in 0..4 {
                wakened.recv_timeout(Duration::from_secs(10)).unwrap();
            }
        }
        assert_eq!(waiter.sleepers().spare.len(), 4, "beds are used again");
    }

    #[test]
    fn a_wake_that_nobody_heard_ends_the_next_sleep_and_only_that() {
        let waiter = waiter();
        waiter.wake();
        waiter.wake();
        waiter.wait(None);
        let start = Instant::now();
        waiter.wait(Some(waiter.now() + Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(19), "{:?}", start.elapsed());
    }

    #[test]
    fn a_wake_between_the_last_look_and_the_sleep_is_heard_by_all_who_looked() {
        let waiter = waiter();
        let sleeper = Arc::clone(&waiter);
        let asleep_already = thread::spawn(move || sleeper.wait(None));
        while asleep(&waiter) < 1 {
            thread::yield_now();
        }
        let looked = [waiter.wakes(), waiter.wakes()];
        waiter.wake();
        asleep_already.join().unwrap();
        for wakes in looked {
            waiter.wait_since(wakes, None);
        }
    }

    #[test]
    fn a_datagram_ends_a_sleep() {
        let waiter = waiter();
        let socket = waiter.sleepers().sources.socket.clone().unwrap();
        let address = socket.local_addr().unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", address).unwrap();
        waiter.wait(None);
        assert_eq!(asleep(&waiter), 0);
    }
}
