//! Where threads sleep until the socket has something.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyverbs_nic::Time;
use anyverbs_nic::link::Waiter;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::time::{ClockId, clock_gettime};

use super::patience::Patience;

/// How long a thread sleeps at most that could not get an eventfd, since nobody can wake it.
const DEAF_SLEEP: Duration = Duration::from_millis(1);

/// Threads that sleep at once without more eventfds being made.
const BEDS: usize = 2;

fn bed() -> Option<Arc<OwnedFd>> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok().map(Arc::new)
}

/// The waiter of a UDP link: CLOCK_MONOTONIC, and ppoll on the socket.
///
/// Each sleeping thread has an eventfd of its own: of one that all share, the first thread to wake
/// would have to take the mark away, and the others would sleep on.
pub(super) struct UdpWaiter {
    socket: Arc<UdpSocket>,
    sleepers: Mutex<Sleepers>,
    /// Where processors are few.
    patience: Option<Patience>,
}

struct Sleepers {
    /// Somebody called `wake` while nobody slept.
    pending: bool,
    asleep: Vec<Arc<OwnedFd>>,
    spare: Vec<Arc<OwnedFd>>,
}

impl UdpWaiter {
    pub(super) fn new(socket: Arc<UdpSocket>) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        // Made now, for the one or two threads that mostly sleep; more are made when they come.
        let mut sleepers =
            Sleepers { pending: false, asleep: Vec::with_capacity(BEDS), spare: Vec::with_capacity(BEDS) };
        sleepers.spare.extend((0..BEDS).filter_map(|_| bed()));
        UdpWaiter { socket, sleepers: Mutex::new(sleepers), patience: (processors <= 2).then(Patience::new) }
    }

    fn sleepers(&self) -> MutexGuard<'_, Sleepers> {
        // What it guards is right at every step, so a panic elsewhere poisons nothing.
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lies down: `None` if a `wake` came before.
    fn lie_down(&self) -> Option<Option<Arc<OwnedFd>>> {
        let mut sleepers = self.sleepers();
        if std::mem::take(&mut sleepers.pending) {
            return None;
        }
        let bed = sleepers.spare.pop().or_else(bed);
        if let Some(bed) = &bed {
            sleepers.asleep.push(Arc::clone(bed));
        }
        Some(bed)
    }

    fn get_up(&self, bed: Arc<OwnedFd>) {
        let mut sleepers = self.sleepers();
        sleepers.asleep.retain(|other| !Arc::ptr_eq(other, &bed));
        // Under the lock, so no `wake` comes between, and the next sleeper finds it clear.
        let _ = rustix::io::read(&*bed, &mut [0_u8; 8]);
        sleepers.spare.push(bed);
    }
}

impl Waiter for UdpWaiter {
    fn now(&self) -> Time {
        let now = clock_gettime(ClockId::Monotonic);
        Time::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    fn wait(&self, deadline: Option<Time>) {
        let mut limit = deadline.map(|deadline| deadline.since(self.now()));
        if limit == Some(Duration::ZERO) {
            return;
        }
        let Some(bed) = self.lie_down() else { return };
        if bed.is_none() {
            limit = Some(limit.map_or(DEAF_SLEEP, |limit| limit.min(DEAF_SLEEP)));
        }
        let timeout = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let socket = PollFd::new(&*self.socket, PollFlags::IN);
        // Whatever ends it, a signal or an error included, is an early return.
        match bed {
            Some(bed) => {
                let _ = poll(&mut [socket, PollFd::new(&*bed, PollFlags::IN)], timeout.as_ref());
                self.get_up(bed);
            }
            None => {
                let _ = poll(&mut [socket], timeout.as_ref());
            }
        }
    }

    fn wake(&self) {
        let mut sleepers = self.sleepers();
        if sleepers.asleep.is_empty() {
            sleepers.pending = true;
        }
        for bed in &sleepers.asleep {
            // It fails only if the counter is full: then the thread is as good as awake.
            let _ = rustix::io::write(&**bed, &1_u64.to_ne_bytes());
        }
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
        Arc::new(UdpWaiter::new(Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap())))
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
    fn a_datagram_ends_a_sleep() {
        let waiter = waiter();
        let address = waiter.socket.local_addr().unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", address).unwrap();
        waiter.wait(None);
        assert_eq!(asleep(&waiter), 0);
    }
}
