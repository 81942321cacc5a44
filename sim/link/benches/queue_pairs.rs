//! What a queue pair costs where there are many: latency with one and with a thousand between two processes, and
//! memory.
//!
//! `cargo bench -p anyverbs-link --bench queue_pairs`
//!
//! The other process is this program again. Both have as many connected queue pairs; an 8-byte SEND goes there and
//! back over one of them all the time, or over each in turn. The two are measured by turns, so that whatever else the
//! machine does meets both.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyverbs_link::udp::{UdpLink, UdpOptions};
use anyverbs_nic::{
    Access, Block, Cq, Cqe, DeviceAttributes, Mr, Mtu, Nic, NicConfig, Qp, QpInit, RecvWr, RtrAttributes,
    RtsAttributes, SendOp, SendWr, Sge, WcOpcode, WcStatus,
};

/// Queue pairs on each side.
const MANY: usize = 1000;
/// Receives that wait in each queue.
const RECEIVES: u32 = 4;
/// Messages there and back in a turn, and turns.
const ROUNDS: usize = 5000;
const TURNS: usize = 21;
/// The argument that makes this program the other process.
const CHILD: &str = "--child";

/// A device with its queue pairs.
struct Side {
    nic: Nic,
    cq: Cq,
    qps: Vec<Qp>,
    /// Where all messages go.
    mr: Mr,
}

/// How much memory of this process is resident, in bytes.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

impl Side {
    fn new(address: &str) -> Side {
        let address: IpAddr = address.parse().expect("an address");
        let link = UdpLink::bind(address, &UdpOptions::default()).expect("a link");
        let nic = Nic::open(Box::new(link), NicConfig::default()).expect("a device");
        let pd = nic.alloc_pd().expect("a domain");
        let cq = nic.create_cq(8192).expect("a completion queue");
        let init = QpInit { max_send_wr: 8, max_recv_wr: RECEIVES, max_inline: 8, ..QpInit::new(&cq) };
        let qps = (0..MANY).map(|_| pd.create_qp(init).expect("a queue pair")).collect();
        let block = Arc::new(Block::new(4096).expect("memory"));
        let mr = pd.register(block, 0..4096, Access::LOCAL_WRITE).expect("a region");
        Side { nic, cq, qps, mr }
    }

    fn post_recv(&self, qp: &Qp) {
        let sge = Sge { addr: 0, len: 8, key: self.mr.key() };
        qp.post_recv(&[RecvWr { wr_id: 0, sges: &[sge] }]).expect("room for a receive");
    }

    /// What the other side has to know, in one line.
    fn describe(&self) -> String {
        let DeviceAttributes { gid, .. } = self.nic.attributes();
        let numbers: Vec<String> =
            self.qps.iter().map(|qp| format!("{}:{}", qp.qpn(), qp.initial_psn())).collect();
        format!("{gid} {}\n", numbers.join(" "))
    }

    fn connect(&self, peer: &str) {
        let mut words = peer.split_ascii_whitespace();
        let peer: IpAddr = words.next().and_then(|word| word.parse().ok()).expect("the peer's address");
        for (qp, word) in self.qps.iter().zip(words) {
            let (dest_qpn, rq_psn) = word.split_once(':').expect("a number and a PSN");
            qp.to_init(Access::empty()).expect("Init");
            qp.to_rtr(RtrAttributes {
                peer,
                dest_qpn: dest_qpn.parse().expect("a number"),
                rq_psn: rq_psn.parse().expect("a PSN"),
                path_mtu: Mtu::B1024,
                max_dest_rd_atomic: 1,
                min_rnr_timer: 1,
            })
            .expect("ReadyToReceive");
            let sq_psn = qp.initial_psn();
            let (retry_cnt, rnr_retry, timeout) = (7, 7, 14);
            qp.to_rts(RtsAttributes { sq_psn, max_rd_atomic: 1, retry_cnt, rnr_retry, timeout })
                .expect("ReadyToSend");
            for _ in 0..RECEIVES {
                self.post_recv(qp);
            }
        }
    }

    fn send(&self, nth: usize) {
        // Eight bytes of payload in the queue entry; which queue pair it is in the immediate data.
        let payload = [0x5a; 8];
        let op = SendOp::SendImm(nth as u32);
        let wr = SendWr { signaled: false, inline: Some(&payload), ..SendWr::new(nth as u64, op, &[]) };
        self.qps[nth].post_send(&[wr]).expect("room for a send");
    }

    /// Polls until a message has come; the number of its queue pair.
    fn receive(&self) -> usize {
        let mut out = [Cqe::EMPTY; 1];
        loop {
            if self.cq.poll(&mut out) == 1 {
                let [cqe] = out;
                assert_eq!((cqe.status, cqe.opcode), (WcStatus::Success, WcOpcode::Recv));
                let nth = cqe.imm.expect("immediate data") as usize;
                self.post_recv(&self.qps[nth]);
                return nth;
            }
        }
    }
}

/// The other process: sends back what comes, until it is killed.
fn child() {
    let side = Side::new("127.0.0.2");
    print!("{}", side.describe());
    io::stdout().flush().expect("a parent that reads");
    let mut peer = String::new();
    io::stdin().read_line(&mut peer).expect("a line of the parent");
    side.connect(&peer);
    println!("ready");
    loop {
        side.send(side.receive());
    }
}

/// Half of the round trip, in nanoseconds, over so many queue pairs in turn.
fn one_way(side: &Side, queue_pairs: usize) -> f64 {
    let begin = Instant::now();
    for round in 0..ROUNDS {
        side.send(round % queue_pairs);
        side.receive();
    }
    begin.elapsed().as_nanos() as f64 / ROUNDS as f64 / 2.0
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    if env::args().any(|argument| argument == CHILD) {
        return child();
    }
    let before = resident();
    let side = Side::new("127.0.0.1");
    let program = env::current_exe().expect("the path of this program");
    let mut child = Command::new(program)
        .arg(CHILD)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a second process");
    let mut from = BufReader::new(child.stdout.take().expect("its output"));
    let mut line = String::new();
    from.read_line(&mut line).expect("its description");
    let mut to = child.stdin.take().expect("its input");
    to.write_all(side.describe().as_bytes()).expect("a child that reads");
    side.connect(&line);
    line.clear();
    from.read_line(&mut line).expect("a word that it is ready");
    one_way(&side, MANY);
    let memory = (resident() - before) / MANY as u64;
    let (mut ones, mut manys) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        ones.push(one_way(&side, 1));
        manys.push(one_way(&side, MANY));
    }
    let (one, many) = (median(&mut ones), median(&mut manys));
    println!("queue pairs   8 B SEND one way, us (medians of {TURNS} turns)");
    println!("          1   {:.2}", one / 1000.0);
    println!("{MANY:>11}   {:.2}   {:.2} times that of one", many / 1000.0, many / one);
    println!(
        "memory: {memory} bytes a queue pair, after all were used (8 sends, {RECEIVES} receives, 8 B inline)"
    );
    let _ = child.kill();
    let _ = child.wait();
}
