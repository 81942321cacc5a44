//! At the limits of the process: an error that says what could not be done, nothing made by halves, and everything
//! works again when the limit is lifted.
//!
//! Limits are set in a process of its own: this test binary, started again.

mod rig;
mod support;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyverbs_link::udp::{BindError, UdpLink, UdpOptions};
use anyverbs_nic::*;
use rig::{Host, descriptors, pattern, poll, threads};

const ROLE: &str = "ANYVERBS_TEST_LIMITED";

/// Runs `body` in a process of its own: the same test in this binary, which comes here again.
fn in_a_process(test: &str, body: impl FnOnce()) {
    if std::env::var_os(ROLE).is_some() {
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, test)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{}: {}{}", output.status, text[0], text[1]);
    // What was skipped there is skipped here.
    for line in text[1].lines().filter(|line| line.contains("skipped: ")) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// Sets the soft limit of a resource; returns the one before.
fn limit(resource: libc::__rlimit_resource_t, soft: u64) -> u64 {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only read or write the structure that they are given.
    let done = unsafe {
        let got = libc::getrlimit(resource, &raw mut limits);
        let before = limits.rlim_cur;
        limits.rlim_cur = soft.min(limits.rlim_max);
        let set = libc::setrlimit(resource, &raw const limits);
        limits.rlim_cur = before;
        got == 0 && set == 0
    };
    assert!(done, "{}", std::io::Error::last_os_error());
    limits.rlim_cur
}

/// With a limit in place, and then without.
fn limited<R>(resource: libc::__rlimit_resource_t, soft: u64, call: impl FnOnce() -> R) -> R {
    let before = limit(resource, soft);
    let result = call();
    limit(resource, before);
    result
}

/// A device that talks with itself.
struct Echo {
    host: Host,
    qps: [Qp; 2],
    cq: Cq,
}

impl Echo {
    fn new(config: NicConfig) -> Echo {
        let host = Host::new(config, 1 << 16);
        let cq = host.nic.create_cq(64).unwrap();
        let qps = rig::pair(QpType::Rc, (&host, &cq), (&host, &cq));
        Echo { host, qps, cq }
    }

    /// A message from one queue pair to the other.
    fn works(&self, number: u64) {
        let Echo { host, qps, cq } = self;
        host.block.write(0, &pattern(number, 3000)).unwrap();
        qps[1].post_recv(&[RecvWr { wr_id: number, sges: &[host.sge(8192, 4096)] }]).unwrap();
        qps[0].post_send(&[SendWr::new(number, SendOp::Send, &[host.sge(0, 3000)])]).unwrap();
        host.successes(cq, 2);
        assert_eq!(rig::number_of(&host.bytes(8192, 3000)), number);
        assert!(poll(cq).is_empty());
    }
}

/// Opens another device, or says what could not be done.
fn open(config: NicConfig) -> Result<Nic, String> {
    let link = loop {
        let options = UdpOptions::default();
        match UdpLink::bind(support::address(), &options) {
            Ok(link) => break link,
            Err(BindError::InUse { .. }) => {}
            Err(error) => return Err(named(&error.to_string())),
        }
    };
    Nic::open(Box::new(link), config).map_err(|error| system(&error))
}

/// The words of an error that the system caused.
fn system(error: &NicError) -> String {
    assert!(matches!(error, NicError::System { .. }), "{error}");
    named(&error.to_string())
}

/// What went wrong is said in words, with the system's reason behind them.
fn named(message: &str) -> String {
    let (action, reason) = message.split_once(": ").expect("an action, and a reason");
    assert!(action.len() > 10 && !reason.is_empty(), "{message}");
    message.to_owned()
}

/// The limit is on the numbers of descriptors: there may be none that is not below it.
fn lowest_free_descriptor() -> u64 {
    std::fs::File::open("/dev/null").unwrap().as_raw_fd() as u64
}

fn settled_threads() -> usize {
    // A thread is gone a little after it was joined.
    std::thread::sleep(Duration::from_millis(20));
    threads()
}

/// More descriptors than a device takes: its sockets, one for each source port, and what it sleeps on.
const DESCRIPTORS: u64 = 40;

#[test]
fn no_more_descriptors() {
    in_a_process("no_more_descriptors", || {
        let echo = Echo::new(NicConfig::default());
        echo.works(1);
        let channels: Vec<_> = (0..3).map(|_| echo.host.nic.create_comp_channel().unwrap()).collect();
        let (before, threads_before) = (descriptors(), settled_threads());
        let mut failed = Vec::new();
        for more in 0..DESCRIPTORS {
            let soft = lowest_free_descriptor() + more;
            let result = limited(libc::RLIMIT_NOFILE, soft, || {
                let opened = open(NicConfig::default());
                // Whatever there is goes on meanwhile.
                echo.works(soft);
                opened.map(drop)
            });
            assert_eq!(
                (descriptors(), settled_threads()),
                (before, threads_before),
                "{more} more, {result:?}"
            );
            failed.extend(result.err());
        }
        assert!(!failed.is_empty() && failed.len() < DESCRIPTORS as usize, "{failed:?}");

        limited(libc::RLIMIT_NOFILE, lowest_free_descriptor(), || {
            let memory = Block::new(4096).map(|_| ()).expect_err("a memory file is a descriptor");
            assert_eq!(memory.raw_os_error(), Some(libc::EMFILE));
            let error = channels[0].fd().unwrap_err();
            assert!(system(&error).starts_with("making an eventfd: "), "{error}");
            assert!(system(&echo.host.nic.async_fd().unwrap_err()).starts_with("making an eventfd: "));
            // What takes no descriptor can still be had: queues, queue pairs, regions of memory that is there.
            let cq = echo.host.nic.create_cq_on(16, Some(&channels[0])).unwrap();
            let _qp = echo.host.pd.create_qp(QpInit::new(&cq)).unwrap();
            let _mr = echo.host.pd.register(echo.host.block.clone(), 0..4096, Access::empty()).unwrap();
            echo.works(2);
        });
        for channel in &channels {
            channel.fd().unwrap();
        }
        echo.host.nic.async_fd().unwrap();
        open(NicConfig::default()).unwrap();
        echo.works(3);
    });
}

#[test]
fn no_locked_memory() {
    in_a_process("no_locked_memory", || {
        limit(libc::RLIMIT_MEMLOCK, 0);
        let echo = Echo::new(NicConfig::default());
        let large = std::sync::Arc::new(Block::new(64 << 20).unwrap());
        let mr = echo.host.pd.register(large.clone(), 0..large.len(), Access::all()).unwrap();
        assert_eq!(mr.len(), 64 << 20);
        echo.works(1);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let locked = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
        assert!(locked.ends_with(" 0 kB"), "{locked}");
    });
}

/// Bytes of address space that this process has.
fn address_space() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 4096
}

/// Small allocations find room in what the process has already: only what is asked of the system is refused.
fn keep_room_for_small_things() {
    let pieces: Vec<Vec<u8>> = (0..4096).map(|_| Vec::with_capacity(1024)).collect();
    // What lies at the end of the heap keeps the system from getting it back.
    std::mem::forget(Vec::<u8>::with_capacity(1024));
    drop(pieces);
}

#[test]
fn no_more_address_space() {
    in_a_process("no_more_address_space", || {
        let config = NicConfig { max_qp: 8, max_cq: 8, max_srq: 4, max_mr: 8, ..NicConfig::default() };
        let echo = Echo::new(config);
        echo.works(1);
        keep_room_for_small_things();
        let (pd, nic) = (&echo.host.pd, &echo.host.nic);
        let large =
            QpInit { max_send_wr: 16384, max_recv_wr: 16384, max_send_sge: 32, ..QpInit::new(&echo.cq) };
        let srq = SrqInit { max_wr: 16384, max_sge: 32, limit: 0 };
        type Make<'a> = (&'a str, Box<dyn Fn() -> Result<(), String> + 'a>);
        // Whose tables are too large for room that the process has kept.
        let many = NicConfig { max_qp: 1 << 16, max_mr: 16, ..NicConfig::default() };
        let makes: [Make<'_>; 7] = [
            ("a device for many", Box::new(|| open(many).map(drop))),
            ("a device", Box::new(|| open(NicConfig::default()).map(drop))),
            ("a queue pair", Box::new(|| pd.create_qp(large).map(drop).map_err(|error| system(&error)))),
            (
                "a completion queue",
                Box::new(|| nic.create_cq(1 << 16).map(drop).map_err(|error| system(&error))),
            ),
            ("another depth", Box::new(|| resize(&echo.cq).map_err(|error| system(&error)))),
            (
                "a shared receive queue",
                Box::new(|| pd.create_srq(srq).map(drop).map_err(|error| system(&error))),
            ),
            ("memory", Box::new(|| Block::new(8 << 20).map(drop).map_err(|error| error.to_string()))),
        ];
        for (what, make) in &makes {
            let (before, threads_before) = (descriptors(), settled_threads());
            let mut failed = Vec::new();
            let mut made = false;
            // From nothing to more than it takes, in steps that grow.
            let mut room = 0;
            while !made {
                let result = limited(libc::RLIMIT_AS, address_space() + room, make);
                assert_eq!(
                    (descriptors(), settled_threads()),
                    (before, threads_before),
                    "{what}, {room}: {result:?}"
                );
                echo.works(room);
                made = result.is_ok();
                failed.extend(result.err());
                room += 64 * 1024 + room / 4;
                assert!(room < 1 << 33, "{what}: {failed:?}");
            }
            assert!(!failed.is_empty(), "{what} takes no memory");
            // Each failure was whole: the device has all its places left.
            for _ in 0..3 {
                make().unwrap();
            }
        }
        let more: Vec<Qp> = (0..6).map(|_| pd.create_qp(QpInit::new(&echo.cq)).unwrap()).collect();
        assert!(matches!(pd.create_qp(QpInit::new(&echo.cq)), Err(NicError::Exhausted { .. })));
        drop(more);
        echo.works(2);
    });
}

/// There and back, so that it can be done again.
fn resize(cq: &Cq) -> Result<(), NicError> {
    cq.resize(1 << 16)?;
    cq.resize(64)
}
