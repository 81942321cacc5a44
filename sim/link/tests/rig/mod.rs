//! NICs over UDP links, with memory, and what the tests of several files do with them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyverbs_link::udp::{Io, UdpCounters, UdpLink};
use anyverbs_nic::link::Link;
use anyverbs_nic::*;

use crate::support;

/// How long a test waits for what must come, before it says that it hangs. Far beyond what any loaded machine takes:
/// it decides nothing else.
pub const HANG: Duration = Duration::from_secs(120);

/// A NIC over a UDP link of its own address, with a block of registered memory.
pub struct Host {
    pub nic: Nic,
    pub pd: Pd,
    pub block: Arc<Block>,
    pub mr: Mr,
    pub udp: Arc<UdpCounters>,
}

/// How patient a queue pair is.
#[derive(Clone, Copy)]
pub struct Patience {
    pub timeout: u8,
    pub retry_cnt: u8,
}

/// Enough to outlive any load of the machine.
pub const PATIENT: Patience = Patience { timeout: 18, retry_cnt: 7 };

impl Host {
    pub fn new(config: NicConfig, memory: usize) -> Host {
        Host::over(config, memory, |link| Box::new(link))
    }

    /// The same, with something between the NIC and the link.
    pub fn over(config: NicConfig, memory: usize, wrap: impl FnOnce(UdpLink) -> Box<dyn Link>) -> Host {
        let link = support::udp(Io::Auto);
        let udp = link.counters();
        let nic = Nic::open(wrap(link), config).unwrap();
        let pd = nic.alloc_pd().unwrap();
        let block = Arc::new(Block::new(memory).unwrap());
        let mr = pd.register(Arc::clone(&block), 0..memory, Access::all()).unwrap();
        Host { nic, pd, block, mr, udp }
    }

    pub fn address(&self) -> IpAddr {
        self.nic.attributes().gid
    }

    pub fn sge(&self, at: usize, len: usize) -> Sge {
        Sge { addr: at as u64, len: len as u32, key: self.mr.key() }
    }

    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.block.read(at, &mut bytes).unwrap();
        bytes
    }

    pub fn deadline(&self) -> Option<Time> {
        Some(self.nic.waiter().now() + HANG)
    }

    /// Waits for `n` completions.
    pub fn completions(&self, cq: &Cq, n: usize) -> Vec<Cqe> {
        let deadline = self.deadline();
        let mut got = Vec::new();
        while got.len() < n {
            assert!(cq.wait(deadline), "it hangs: {} of {n} completions came: {got:?}", got.len());
            got.extend(poll(cq));
        }
        got
    }

    /// Waits for `n` completions, all of which succeeded.
    pub fn successes(&self, cq: &Cq, n: usize) -> Vec<Cqe> {
        let got = self.completions(cq, n);
        assert!(got.iter().all(|cqe| cqe.status == WcStatus::Success), "{got:?}");
        got
    }
}

/// What is in a queue now, up to 64 entries.
pub fn poll(cq: &Cq) -> Vec<Cqe> {
    let mut out = [Cqe::EMPTY; 64];
    let n = cq.poll(&mut out);
    out[..n].to_vec()
}

/// Where a queue pair is, for its peer.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    pub address: IpAddr,
    pub qpn: u32,
    pub psn: u32,
}

pub fn endpoint(host: &Host, qp: &Qp) -> Endpoint {
    Endpoint { address: host.address(), qpn: qp.qpn(), psn: qp.initial_psn() }
}

/// Connects one side of a connected type.
pub fn connect_to(qp: &Qp, peer: Endpoint, patience: Patience) {
    qp.to_init(Access::all()).unwrap();
    qp.to_rtr(RtrAttributes {
        peer: peer.address,
        dest_qpn: peer.qpn,
        rq_psn: peer.psn,
        path_mtu: Mtu::B1024,
        max_dest_rd_atomic: 4,
        min_rnr_timer: 1,
    })
    .unwrap();
    let Patience { timeout, retry_cnt } = patience;
    let sq_psn = qp.initial_psn();
    qp.to_rts(RtsAttributes { sq_psn, max_rd_atomic: 4, retry_cnt, rnr_retry: 7, timeout }).unwrap();
}

/// A connected pair of queue pairs of a type, each side completing to its queue.
pub fn pair(qp_type: QpType, a: (&Host, &Cq), b: (&Host, &Cq)) -> [Qp; 2] {
    let [qp_a, qp_b] = [a, b].map(|(host, cq)| {
        let init = QpInit { qp_type, max_send_sge: 4, max_recv_sge: 4, ..QpInit::new(cq) };
        host.pd.create_qp(init).unwrap()
    });
    connect_to(&qp_a, endpoint(b.0, &qp_b), PATIENT);
    connect_to(&qp_b, endpoint(a.0, &qp_a), PATIENT);
    [qp_a, qp_b]
}

/// A datagram queue pair that is ready.
pub fn datagram_qp(host: &Host, cq: &Cq, qkey: u32) -> Qp {
    let init = QpInit { qp_type: QpType::Ud, max_send_sge: 4, max_recv_sge: 4, ..QpInit::new(cq) };
    let qp = host.pd.create_qp(init).unwrap();
    qp.to_init(Access::empty()).unwrap();
    qp.set_qkey(qkey).unwrap();
    qp.to_rtr_datagram().unwrap();
    let sq_psn = qp.initial_psn();
    qp.to_rts(RtsAttributes { sq_psn, max_rd_atomic: 0, retry_cnt: 7, rnr_retry: 7, timeout: 18 }).unwrap();
    qp
}

/// Bytes that say which message they are of: its number in front, and what follows from it behind.
pub fn pattern(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The number of the message that these bytes are; fails if they are none, or not all of it.
pub fn number_of(bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes == pattern(number, bytes.len()), "message {number} is not what was sent: {bytes:?}");
    number
}

/// Whether the long versions of tests were asked for.
pub fn long() -> bool {
    std::env::var_os("ANYVERBS_LONG").is_some_and(|value| value != "0")
}

/// The seed of a test: given, or drawn; printed past the harness, so that a failure can be repeated.
pub fn seed(test: &str) -> u64 {
    use std::io::Write;
    let given = std::env::var("ANYVERBS_SEED").ok().and_then(|text| text.parse().ok());
    let drawn =
        || std::hash::Hasher::finish(&std::hash::BuildHasher::build_hasher(&std::hash::RandomState::new()));
    let seed = given.unwrap_or_else(drawn);
    let _ = writeln!(std::io::stderr(), "{test}: ANYVERBS_SEED={seed}");
    seed
}

/// Descriptors that this process has open.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Threads of this process.
pub fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}
