//! One process of a test: a device, and queue pairs that send without end what can be checked.
//!
//! It is told what to do in lines, and answers in lines:
//!
//! | asked | answered |
//! |---|---|
//! | `pair ID` | `pair ID QPN PSN`: a new queue pair |
//! | `connect ID ADDRESS QPN PSN` | `connect ID` |
//! | `start ID` | `start ID`, and from then on messages |
//! | `count ID` | `count ID SENT RECEIVED`: messages so far |
//! | `stop ID` | `stop ID SENT RECEIVED`, when both sides have sent and received their last |
//! | `drop ID` | `drop ID`: the queue pair is gone |
//! | `role` | `role MEMBERS TAKEOVERS FORWARDED PREFIX` |
//!
//! What goes wrong is told unasked: `error ID WHAT`.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;

use anyverbs_link::udp::{UdpCounters, UdpLink, UdpOptions};
use anyverbs_nic::{
    Access, Block, Cq, Cqe, Mr, Mtu, Nic, NicConfig, Pd, Qp, QpInit, RecvWr, RtrAttributes, RtsAttributes,
    SendOp, SendWr, Sge, WcOpcode, WcStatus,
};

/// Messages of a queue pair in each direction, and the bytes that one has room for.
const SLOTS: usize = 4;
const SLOT: usize = 6 << 10;

/// The immediate value of the last message.
const LAST: u32 = 0x1A57;

struct Device {
    pd: Pd,
    cq: Cq,
    nic: Nic,
    counters: Arc<UdpCounters>,
}

struct Pair {
    qp: Qp,
    block: Arc<Block>,
    mr: Mr,
    posted: u64,
    sent: u64,
    received: u64,
    started: bool,
    stopping: bool,
    last_posted: bool,
    last_received: bool,
    failed: bool,
    told: bool,
}

/// What message `n` that this queue pair receives consists of: both sides know its number.
fn content(receiver: u32, n: u64, bytes: &mut Vec<u8>) {
    let seed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(receiver);
    let len = 1 + (seed >> 40) as usize % (SLOT - 1);
    bytes.clear();
    bytes.extend((0..len).map(|i| (seed >> (i % 8)) as u8 ^ i as u8));
}

impl Device {
    fn open(address: IpAddr) -> Result<Device, String> {
        let link = UdpLink::bind(address, &UdpOptions::default()).map_err(|error| error.to_string())?;
        let counters = link.counters();
        let nic = Nic::open(Box::new(link), NicConfig::default()).map_err(|error| error.to_string())?;
        let pd = nic.alloc_pd().map_err(|error| error.to_string())?;
        let cq = nic.create_cq(4096).map_err(|error| error.to_string())?;
        Ok(Device { pd, cq, nic, counters })
    }

    fn pair(&self) -> Pair {
        let block = Arc::new(Block::new(2 * SLOTS * SLOT).unwrap());
        let mr = self.pd.register(Arc::clone(&block), 0..2 * SLOTS * SLOT, Access::LOCAL_WRITE).unwrap();
        let qp = self
            .pd
            .create_qp(QpInit {
                max_send_wr: SLOTS as u32,
                max_recv_wr: SLOTS as u32,
                ..QpInit::new(&self.cq)
            })
            .unwrap();
        Pair {
            qp,
            block,
            mr,
            posted: 0,
            sent: 0,
            received: 0,
            started: false,
            stopping: false,
            last_posted: false,
            last_received: false,
            failed: false,
            told: false,
        }
    }
}

impl Pair {
    fn connect(&mut self, peer: IpAddr, dest_qpn: u32, rq_psn: u32) {
        self.qp.to_init(Access::LOCAL_WRITE).unwrap();
        for slot in 0..SLOTS {
            self.post_receive(slot);
        }
        let rtr = RtrAttributes {
            peer,
            dest_qpn,
            rq_psn,
            path_mtu: Mtu::B1024,
            max_dest_rd_atomic: 4,
            min_rnr_timer: 1,
        };
        self.qp.to_rtr(rtr).unwrap();
        // Two seconds and more without any progress, eight times: this is no test of speed.
        let sq_psn = self.qp.initial_psn();
        let rts = RtsAttributes { sq_psn, max_rd_atomic: 4, retry_cnt: 7, rnr_retry: 7, timeout: 19 };
        self.qp.to_rts(rts).unwrap();
    }

    fn post_receive(&self, slot: usize) {
        let sge = Sge { addr: ((SLOTS + slot) * SLOT) as u64, len: SLOT as u32, key: self.mr.key() };
        let _ = self.qp.post_recv(&[RecvWr { wr_id: slot as u64, sges: &[sge] }]);
    }

    /// Posts as many messages as there are free slots, if it is connected to `receiver`.
    fn post_sends(&mut self, receiver: u32, bytes: &mut Vec<u8>) {
        while self.started && !self.failed && !self.last_posted && self.posted - self.sent < SLOTS as u64 {
            content(receiver, self.posted, bytes);
            let at = self.posted as usize % SLOTS * SLOT;
            self.block.write(at, bytes).unwrap();
            let sge = Sge { addr: at as u64, len: bytes.len() as u32, key: self.mr.key() };
            let op = if self.stopping { SendOp::SendImm(LAST) } else { SendOp::Send };
            if self.qp.post_send(&[SendWr::new(0, op, &[sge])]).is_err() {
                return;
            }
            self.posted += 1;
            self.last_posted = self.stopping;
        }
    }

    fn complete(&mut self, cqe: &Cqe, bytes: &mut Vec<u8>) -> Result<(), String> {
        if self.failed {
            return Ok(());
        }
        if cqe.status != WcStatus::Success {
            self.failed = true;
            return Err(format!(
                "{:?} {:?} after {} and {}",
                cqe.opcode, cqe.status, self.sent, self.received
            ));
        }
        if cqe.opcode != WcOpcode::Recv {
            self.sent += 1;
            return Ok(());
        }
        content(self.qp.qpn(), self.received, bytes);
        let slot = cqe.wr_id as usize;
        let mut got = vec![0; cqe.byte_len as usize];
        self.block.read((SLOTS + slot) * SLOT, &mut got).unwrap();
        if slot != self.received as usize % SLOTS || got != *bytes {
            self.failed = true;
            return Err(format!("message {} came as something else", self.received));
        }
        self.received += 1;
        self.last_received = cqe.imm == Some(LAST);
        self.post_receive(slot);
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.last_posted && self.last_received && self.sent == self.posted
    }
}

fn number<T: std::str::FromStr>(word: Option<&str>) -> T {
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{word:?} is no number"))
}

/// Queue pairs by the name that they were given, each with the number of the one that it sends to.
type Pairs = BTreeMap<String, (Pair, Option<u32>)>;

fn obey(line: &str, device: &Device, pairs: &mut Pairs) {
    let mut words = line.split_whitespace();
    let (what, id) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match what {
        "pair" => {
            let pair = device.pair();
            println!("pair {id} {} {}", pair.qp.qpn(), pair.qp.initial_psn());
            pairs.insert(id.to_owned(), (pair, None));
        }
        "connect" => {
            let (pair, receiver) = pairs.get_mut(id).unwrap();
            let (peer, qpn, psn) = (number(words.next()), number(words.next()), number(words.next()));
            pair.connect(peer, qpn, psn);
            *receiver = Some(qpn);
            println!("connect {id}");
        }
        "start" => {
            pairs.get_mut(id).unwrap().0.started = true;
            println!("start {id}");
        }
        "count" => {
            let (pair, _) = &pairs[id];
            println!("count {id} {} {}", pair.sent, pair.received);
        }
        "stop" => pairs.get_mut(id).unwrap().0.stopping = true,
        "drop" => {
            pairs.remove(id);
            println!("drop {id}");
        }
        "role" => {
            let counters = &device.counters;
            let prefix = device.nic.link_info().prefix.map_or(0, |prefix| prefix.value);
            let [members, takeovers, forwarded] =
                [counters.members(), counters.takeovers(), counters.forwarded()];
            println!("role {members} {takeovers} {forwarded} {prefix}");
        }
        _ => panic!("{line:?} is no command"),
    }
}

pub(crate) fn run(address: IpAddr) -> ExitCode {
    let device = match Device::open(address) {
        Ok(device) => device,
        Err(error) => {
            println!("failed {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("ready");
    let (heard, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let _ = heard.send(line);
        }
    });
    let mut pairs = Pairs::new();
    let mut bytes = Vec::new();
    let blank = Cqe::EMPTY;
    loop {
        match lines.try_recv() {
            Ok(line) => obey(&line, &device, &mut pairs),
            Err(TryRecvError::Empty) => {}
            // Whoever started this is gone.
            Err(TryRecvError::Disconnected) => return ExitCode::SUCCESS,
        }
        let mut found = [blank; 64];
        let count = device.cq.poll(&mut found);
        for cqe in &found[..count] {
            let Some((id, (pair, _))) = pairs.iter_mut().find(|(_, (pair, _))| pair.qp.qpn() == cqe.qpn)
            else {
                continue;
            };
            if let Err(what) = pair.complete(cqe, &mut bytes) {
                println!("error {id} {what}");
            }
        }
        for (id, (pair, receiver)) in &mut pairs {
            if let Some(receiver) = receiver {
                pair.post_sends(*receiver, &mut bytes);
            }
            if pair.is_done() && !pair.told {
                pair.told = true;
                println!("stop {id} {} {}", pair.sent, pair.received);
            }
        }
        if let Some(error) = device.nic.link_error() {
            println!("failed {error}");
            return ExitCode::FAILURE;
        }
        if count == 0 {
            device.cq.wait(Some(device.nic.waiter().now() + Duration::from_millis(2)));
        }
    }
}
