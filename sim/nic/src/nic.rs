//! The device.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::JoinHandle;

use anyverbs_engine::{Config, Counters, Mtu, Time};
use anyverbs_memory::RegionTable;
use crossbeam_queue::ArrayQueue;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use crate::attributes::{DeviceAttributes, DeviceUsage, NicConfig, PortAttributes};
use crate::completion::{CompletionChannel, Cq};
use crate::core::Core;
use crate::device_memory::Dm;
use crate::error::{NicError, in_range};
use crate::event::AsyncEvent;
use crate::limits::Limits;
use crate::link::{Link, LinkInfo, Progress, Waiter};
use crate::mailbox::Mailbox;
use crate::queue_pair::Qp;
use crate::region::Pd;
use crate::shared_receive::XrcDomain;
use crate::thread;
use crate::token::Token;

/// What all handles, and the progress thread, share.
pub(crate) struct Shared {
    token: Token<Core>,
    /// Queue pairs whose send queue has something new.
    doorbells: ArrayQueue<u32>,
    waiter: Arc<dyn Waiter>,
    link: LinkInfo,
    attributes: DeviceAttributes,
    limits: Limits,
    events: Arc<Mailbox<AsyncEvent>>,
    /// What engines are made with, apart from what a program decides for each.
    engine: Config,
    next_pd: AtomicU32,
    next_cq: AtomicU64,
    next_xrcd: AtomicU32,
    /// Protection domains that exist.
    pds: AtomicU32,
    /// Bytes of device memory that are allocated.
    dm_bytes: AtomicU64,
    /// When a program last polled or posted, in nanoseconds.
    last_poll: AtomicU64,
    /// Program threads in [`Nic::wait_until`]: while there are any, they make progress.
    pub(crate) waiting: AtomicU32,
    /// Threads that sleep in the link's waiter, or are about to.
    sleepers: AtomicU32,
    /// The deadline that sleepers know of, in nanoseconds.
    announced: AtomicU64,
    pub(crate) stop: AtomicBool,
    /// Where the progress thread sleeps while programs make progress themselves.
    pub(crate) bench: Mutex<()>,
    pub(crate) called: Condvar,
}

impl Shared {
    /// One pass of progress, if the token is free.
    pub(crate) fn progress(&self) -> bool {
        self.work(|core| core.pass(|| self.doorbells.pop()))
    }

    /// As [`progress`](Shared::progress), for a program that polls: says whether something arrived.
    pub(crate) fn hear(&self) -> bool {
        let heard = Cell::new(false);
        let worked = self.work(|core| {
            let completed = core.pass(|| self.doorbells.pop());
            heard.set(heard.get() || core.heard());
            self.note_poll_at(core.time());
            completed
        });
        if !worked {
            self.note_poll();
        }
        heard.get()
    }

    /// Sends what was posted, if the token is free; its holder does it otherwise.
    fn send_posted(&self) {
        let worked = self.work(|core| {
            core.send_posted(|| self.doorbells.pop());
            self.note_poll_at(core.time());
            core.take_completed()
        });
        if !worked {
            self.note_poll();
        }
    }

    /// Does some work, which says whether it wrote completions, if the token is free.
    fn work(&self, work: impl Fn(&mut Core) -> bool) -> bool {
        let mut completed = false;
        let mut sooner = false;
        let worked = self.token.try_work(
            |core| {
                completed |= work(core);
                sooner |= self.announce(core.next_deadline());
            },
            || !self.doorbells.is_empty(),
        );
        // A scheduler knows the deadline from what `progress` returned.
        sooner &= self.waiter.wants_progress_thread();
        // There is something for sleepers to poll, or they would sleep too long.
        if (completed || sooner) && self.sleepers.load(Ordering::SeqCst) > 0 {
            self.waiter.wake();
        }
        worked
    }

    /// Notes when there is something to do next; says whether that is sooner than was known. The caller holds the
    /// token: if threads said so after they let go of it, the one that looked first could say it last, and everybody
    /// would sleep past a deadline.
    fn announce(&self, deadline: Option<Time>) -> bool {
        let deadline = deadline.map_or(u64::MAX, Time::as_nanos);
        deadline < self.announced.swap(deadline, Ordering::SeqCst)
    }

    /// Sleeps until the link has something, somebody wakes us, `deadline`, or the next deadline of
    /// the NIC; not at all if `ready` says so once everybody knows that we are going to sleep.
    pub(crate) fn sleep(&self, deadline: Option<Time>, ready: impl Fn() -> bool) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let wakes = self.waiter.wakes();
        if !ready() && self.doorbells.is_empty() {
            let announced = self.announced.load(Ordering::SeqCst);
            let own = (announced != u64::MAX).then(|| Time::from_nanos(announced));
            self.waiter.wait_since(wakes, [own, deadline].into_iter().flatten().min());
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// How long no program has polled or posted.
    pub(crate) fn unpolled(&self) -> std::time::Duration {
        self.waiter.now() - Time::from_nanos(self.last_poll.load(Ordering::Relaxed))
    }

    fn note_poll(&self) {
        self.note_poll_at(self.waiter.now());
    }

    /// The same, for those who know the time: to read the clock is a part of the cost of a poll.
    fn note_poll_at(&self, now: Time) {
        self.last_poll.store(now.as_nanos(), Ordering::Relaxed);
    }
}

impl Progress for Shared {
    fn progress(&self) -> Option<Time> {
        Shared::progress(self);
        match self.announced.load(Ordering::SeqCst) {
            u64::MAX => None,
            deadline => Some(Time::from_nanos(deadline)),
        }
    }
}

struct NicInner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for NicInner {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.get_mut().map(Option::take);
        if let Ok(Some(thread)) = thread {
            self.shared.call_thread();
            self.shared.waiter.wake();
            // The thread holds no `Nic`, so it is never the one that drops the last.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Calls the progress thread off its bench.
    pub(crate) fn call_thread(&self) {
        let _bench = self.bench.lock();
        self.called.notify_all();
    }
}

/// A software NIC (`ibv_context`). Clones are handles to the same device; it closes with the last
/// object that was made from it.
#[derive(Clone)]
pub struct Nic {
    inner: Arc<NicInner>,
}

impl Nic {
    /// Opens a device over a link.
    ///
    /// # Errors
    /// [`NicError::LinkMtu`] for a link whose datagrams are too small, [`NicError::OutOfRange`] for a
    /// configuration without sense, [`NicError::System`] if memory, entropy or a thread cannot be had.
    pub fn open(link: Box<dyn Link>, config: NicConfig) -> Result<Nic, NicError> {
        in_range("max_qp", u64::from(config.max_qp), 1, 1 << 20)?;
        let most = RegionTable::MAX_LIMIT;
        in_range("max_mr", u64::from(config.max_mr), 1, u64::from(most))?;
        in_range("max_mw", u64::from(config.max_mw), 0, u64::from(most - config.max_mr))?;
        in_range("max_pd", u64::from(config.max_pd), 1, u64::from(u32::MAX))?;
        in_range("max_qp_wr", u64::from(config.max_qp_wr), 1, 1 << 20)?;
        in_range("max_cqe", u64::from(config.max_cqe), 1, 1 << 24)?;
        in_range("max_cq", config.max_cq.into(), 1, 1 << 20)?;
        in_range("max_srq", config.max_srq.into(), 1, 1 << 20)?;
        in_range("max_srq_wr", config.max_srq_wr.into(), 1, 1 << 20)?;
        in_range("window", u64::from(config.window), 1, 1 << 16)?;
        in_range("max_early", u64::from(config.max_early), 0, 1 << 20)?;
        config.check_connections()?;
        let info = link.info().clone();
        let attributes = DeviceAttributes::new(&info, &config)
            .ok_or(NicError::LinkMtu { max_datagram: info.max_datagram })?;
        let waiter = link.waiter();
        let core = Core::new(link, random(config.seed)?, &config, &attributes)?;
        let events = Arc::clone(&core.events);
        let shared = Arc::new(Shared {
            token: Token::new(core),
            doorbells: ArrayQueue::new(config.max_qp as usize * 2),
            last_poll: AtomicU64::new(waiter.now().as_nanos()),
            waiter,
            link: info,
            attributes,
            limits: Limits::new(&config),
            events,
            engine: Config {
                window: config.window,
                congestion: config.congestion,
                credits: config.credits,
                recovery: config.recovery,
                ..Config::default()
            },
            next_pd: AtomicU32::new(1),
            next_cq: AtomicU64::new(1),
            next_xrcd: AtomicU32::new(1),
            pds: AtomicU32::new(0),
            dm_bytes: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
            announced: AtomicU64::new(u64::MAX),
            stop: AtomicBool::new(false),
            bench: Mutex::new(()),
            called: Condvar::new(),
        });
        let thread = if shared.waiter.wants_progress_thread() {
            let own = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name("anyverbs-nic".into())
                .spawn(move || thread::run(&own))
                .map_err(NicError::system("starting the progress thread"))?;
            Some(thread)
        } else {
            None
        };
        Ok(Nic { inner: Arc::new(NicInner { shared, thread: Mutex::new(thread) }) })
    }

    fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    /// The limits of the device.
    pub fn attributes(&self) -> &DeviceAttributes {
        &self.shared().attributes
    }

    /// What its port is like (`ibv_query_port`).
    pub fn port(&self) -> PortAttributes {
        let core = self.shared().token.lock();
        let attributes = self.attributes();
        PortAttributes {
            active: core.broken().is_none(),
            max_mtu: Mtu::B4096,
            active_mtu: attributes.path_mtu,
            max_msg_sz: attributes.max_message,
            gid_tbl_len: 1,
            pkey_tbl_len: 1,
            bad_pkey_cntr: core.counters.bad_pkey_cntr,
            qkey_viol_cntr: core.counters.qkey_viol_cntr,
        }
    }

    /// The link that it stands on.
    pub fn link_info(&self) -> &LinkInfo {
        &self.shared().link
    }

    /// Its clock, and where its threads sleep.
    pub fn waiter(&self) -> &Arc<dyn Waiter> {
        &self.shared().waiter
    }

    /// What a scheduler calls instead of the progress thread.
    pub fn progress_handle(&self) -> Weak<dyn Progress> {
        let shared: Weak<Shared> = Arc::downgrade(&self.inner.shared);
        shared
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        let core = self.shared().token.lock();
        Counters { tx_too_large: core.link.too_large(), ..core.counters }
    }

    /// What the link said when it broke; a device whose link is broken sends and receives nothing,
    /// and its queue pairs end by their timeouts.
    pub fn link_error(&self) -> Option<String> {
        self.shared().token.lock().broken().map(ToString::to_string)
    }

    /// Makes progress: sends what was posted, handles what arrived, does what is due. Returns false
    /// if another thread was doing so, and leaves it to that thread.
    pub fn progress(&self) -> bool {
        self.shared().progress()
    }

    /// Makes a protection domain (`ibv_alloc_pd`).
    ///
    /// # Errors
    /// [`NicError::Exhausted`] when there are as many as the device allows, and after 2^32 of them.
    pub fn alloc_pd(&self) -> Result<Pd, NicError> {
        let shared = self.shared();
        let limit = shared.attributes.max_pd;
        let exhausted = |_| NicError::Exhausted { object: "protection domain", limit };
        let one_more = |count: u32| (count < limit).then_some(count + 1);
        shared.pds.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).map_err(exhausted)?;
        // Numbers do not come back: a region of a domain that is gone belongs to no other one.
        let next = |number: u32| number.checked_add(1);
        let number = shared.next_pd.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let number = number.inspect_err(|_| self.free_pd()).map_err(exhausted)?;
        Ok(Pd::new(self.clone(), number))
    }

    /// Allocates device memory (`ibv_alloc_dm`), which regions are then registered over.
    ///
    /// # Errors
    /// [`NicError::OutOfRange`] for no bytes, or more than are left.
    pub fn alloc_dm(&self, len: usize) -> Result<Dm, NicError> {
        let (shared, given) = (self.shared(), len as u64);
        let limit = shared.attributes.max_dm_size;
        let take = |used: u64| used.checked_add(given).filter(|used| given > 0 && *used <= limit);
        shared.dm_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|used| {
            let max = limit - used;
            NicError::OutOfRange { attribute: "length", given, min: 1, max }
        })?;
        // From here on the memory gives its bytes back.
        Dm::new(self.clone(), len)
    }

    /// How many objects there are.
    pub fn usage(&self) -> DeviceUsage {
        let shared = self.shared();
        let limits = &shared.limits;
        let (mr, mw, qp, srq) = {
            let core = shared.token.lock();
            (core.regions.len(), core.regions.windows(), core.qps.len(), core.srqs.len())
        };
        DeviceUsage {
            pd: shared.pds.load(Ordering::Relaxed),
            mr,
            mw,
            dm_bytes: shared.dm_bytes.load(Ordering::Relaxed),
            qp,
            srq,
            cq: limits.cq.used(),
            channel: limits.channel.used(),
            ah: limits.ah.used(),
            xrcd: limits.xrcd.used(),
        }
    }

    /// Makes a completion queue of `depth` entries (`ibv_create_cq`).
    ///
    /// # Errors
    /// [`NicError::OutOfRange`] for a depth outside the device's limits, [`NicError::System`] if
    /// there is no memory for it.
    pub fn create_cq(&self, depth: u32) -> Result<Cq, NicError> {
        self.create_cq_on(depth, None)
    }

    /// The same, with a channel that the queue tells of itself in.
    ///
    /// # Errors
    /// As [`create_cq`](Nic::create_cq); [`NicError::OtherDevice`] for another device's channel.
    pub fn create_cq_on(&self, depth: u32, channel: Option<&CompletionChannel>) -> Result<Cq, NicError> {
        let id = self.shared().next_cq.fetch_add(1, Ordering::Relaxed);
        Cq::create(self, id, depth, channel)
    }

    /// Makes a completion channel (`ibv_create_comp_channel`).
    ///
    /// # Errors
    /// [`NicError::Exhausted`] if there are as many as there may be completion queues.
    pub fn create_comp_channel(&self) -> Result<CompletionChannel, NicError> {
        CompletionChannel::create(self)
    }

    /// Makes a domain for extended reliable connections (`ibv_open_xrcd`).
    ///
    /// # Errors
    /// [`NicError::Exhausted`] beyond the device's limit.
    pub fn open_xrcd(&self) -> Result<XrcDomain, NicError> {
        XrcDomain::open(self, self.shared().next_xrcd.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes the target of an extended reliable connection (`ibv_create_qp_ex` with `IBV_QPT_XRC_RECV`): it receives
    /// for all shared receive queues of its domain.
    ///
    /// # Errors
    /// [`NicError::Exhausted`] if there is no room for another queue pair, [`NicError::OtherDevice`] for another
    /// device's domain.
    pub fn create_xrc_target(&self, domain: &XrcDomain) -> Result<Qp, NicError> {
        if !self.is_same(domain.nic()) {
            return Err(NicError::OtherDevice { object: "XRC domain" });
        }
        Qp::create_xrc_target(domain.clone())
    }

    // ---- For the other objects --------------------------------------------------------------

    pub(crate) fn is_same(&self, other: &Nic) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// A protection domain is gone.
    pub(crate) fn free_pd(&self) {
        self.shared().pds.fetch_sub(1, Ordering::Relaxed);
    }

    /// Device memory is gone.
    pub(crate) fn free_dm(&self, len: usize) {
        self.shared().dm_bytes.fetch_sub(len as u64, Ordering::Relaxed);
    }

    pub(crate) fn engine_config(&self) -> Config {
        self.shared().engine
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared().limits
    }

    pub(crate) fn events(&self) -> &Mailbox<AsyncEvent> {
        &self.shared().events
    }

    /// Lets the progress thread take over at once: the program is about to sleep where the NIC does not see it.
    pub(crate) fn hand_over(&self) {
        let shared = self.shared();
        shared.last_poll.store(0, Ordering::Relaxed);
        if shared.waiter.wants_progress_thread() {
            shared.call_thread();
        }
    }

    /// Does something with the token held, for set-up and teardown.
    pub(crate) fn control<R>(&self, f: impl FnOnce(&mut Core) -> R) -> R {
        let result = f(&mut self.shared().token.lock());
        self.progress();
        result
    }

    pub(crate) fn ring_doorbell(&self, qpn: u32) {
        let shared = self.shared();
        while shared.doorbells.push(qpn).is_err() {
            // Twice as many places as queue pairs: full only of those that are destroyed.
            shared.progress();
        }
        shared.send_posted();
    }

    /// Makes progress for a program that polls; says whether something arrived.
    pub(crate) fn hear(&self) -> bool {
        self.shared().hear()
    }

    pub(crate) fn note_poll(&self) {
        self.shared().note_poll();
    }

    /// Makes progress and sleeps by turns until `ready` or `deadline`; says which.
    pub(crate) fn wait_until(&self, deadline: Option<Time>, ready: impl Fn() -> bool) -> bool {
        let shared = self.shared();
        shared.waiting.fetch_add(1, Ordering::SeqCst);
        let came = loop {
            if ready() {
                break true;
            }
            shared.progress();
            if ready() {
                break true;
            }
            if deadline.is_some_and(|deadline| deadline <= shared.waiter.now()) {
                break false;
            }
            shared.sleep(deadline, &ready);
        };
        shared.note_poll();
        if shared.waiting.fetch_sub(1, Ordering::SeqCst) == 1 && shared.waiter.wants_progress_thread() {
            shared.call_thread();
        }
        came
    }
}

/// The generator that numbers, PSNs and keys are drawn from.
fn random(seed: Option<u64>) -> Result<ChaCha20Rng, NicError> {
    match seed {
        Some(seed) => Ok(ChaCha20Rng::seed_from_u64(seed)),
        None => {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed)
                .map_err(|error| NicError::system("reading the system's entropy")(io::Error::other(error)))?;
            Ok(ChaCha20Rng::from_seed(seed))
        }
    }
}
