//! The other process: it echoes whatever comes.

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyverbs_nic::*;

use crate::PAGE;
use crate::rig::{Endpoint, Host, PATIENT, connect_to, endpoint, poll};

const ROLE: &str = "ANYVERBS_TEST_PEER";

/// Receives that wait on each queue pair.
const WAITING: usize = 4;

/// The process as the survivor has it. It is killed when this is dropped.
pub(crate) struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub(crate) address: IpAddr,
    pub(crate) rkey: u32,
    pub(crate) endpoints: Vec<Endpoint>,
}

impl Peer {
    /// Starts a process that plays the peer in a test, with so many queue pairs.
    pub(crate) fn start(test: &str, qps: usize) -> Peer {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(ROLE, qps.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let address = IpAddr::from([0, 0, 0, 0]);
        let mut peer = Peer { child, stdin, stdout, address, rkey: 0, endpoints: Vec::new() };
        let words = peer.hear();
        peer.address = words[0].parse().unwrap();
        peer.rkey = words[1].parse().unwrap();
        peer.endpoints = endpoints(&words[2..], peer.address);
        peer
    }

    /// The words that the peer says next. The harness says something, too.
    fn hear(&mut self) -> Vec<String> {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "the peer ended");
            if let Some((_, words)) = line.split_once('@') {
                return words.split_whitespace().map(str::to_owned).collect();
            }
        }
    }

    pub(crate) fn connect(&mut self, own: &[Endpoint], address: IpAddr) {
        writeln!(self.stdin, "{address}{}", words(own)).unwrap();
        assert_eq!(self.hear(), ["connected"]);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stop(&mut self) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: a signal to a child of ours that was not waited for, so the number is still its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
    }

    pub(crate) fn close_device(&mut self) {
        writeln!(self.stdin, "close").unwrap();
        assert_eq!(self.hear(), ["closed"]);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Also of one that is stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn words(endpoints: &[Endpoint]) -> String {
    endpoints.iter().map(|end| format!(" {} {}", end.qpn, end.psn)).collect()
}

fn endpoints(words: &[String], address: IpAddr) -> Vec<Endpoint> {
    let numbers: Vec<u32> = words.iter().map(|word| word.parse().unwrap()).collect();
    numbers.chunks_exact(2).map(|pair| Endpoint { address, qpn: pair[0], psn: pair[1] }).collect()
}

/// Whether this process was started as a peer.
pub(crate) fn is_role() -> bool {
    std::env::var_os(ROLE).is_some()
}

/// Plays the peer until the other end of the standard input is closed.
pub(crate) fn play() {
    let qps: usize = std::env::var(ROLE).unwrap().parse().unwrap();
    // The survivor writes to the memory from 0 on what it reads back; echoes are behind that.
    let echoes = 64 * PAGE;
    let host = Host::new(NicConfig::default(), echoes + qps * WAITING * PAGE);
    let cq = host.nic.create_cq(1024).unwrap();
    let qps: Vec<Qp> = (0..qps).map(|_| host.pd.create_qp(QpInit::new(&cq)).unwrap()).collect();
    let own: Vec<Endpoint> = qps.iter().map(|qp| endpoint(&host, qp)).collect();
    println!("@{} {}{}", host.address(), host.mr.key(), words(&own));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let Some(address) = words.first() else { return };
    let slot = |slot: usize, len| host.sge(echoes + slot * PAGE, len);
    for (n, (qp, theirs)) in qps.iter().zip(endpoints(&words[1..], address.parse().unwrap())).enumerate() {
        connect_to(qp, theirs, PATIENT);
        for wr in n * WAITING..(n + 1) * WAITING {
            qp.post_recv(&[RecvWr { wr_id: wr as u64, sges: &[slot(wr, PAGE)] }]).unwrap();
        }
    }
    println!("@connected");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiter = host.nic.waiter();
        scope.spawn(|| {
            let _ = std::io::stdin().read_line(&mut String::new());
            over.store(true, Ordering::Relaxed);
        });
        while !over.load(Ordering::Relaxed) {
            cq.wait(Some(waiter.now() + Duration::from_millis(20)));
            for cqe in poll(&cq) {
                let (wr, len) = (cqe.wr_id as usize, cqe.byte_len as usize);
                let qp = &qps[wr / WAITING];
                // The survivor destroys its side one at a time: what is flushed is over.
                match (cqe.status, cqe.opcode) {
                    (WcStatus::Success, WcOpcode::Recv) => {
                        let _ = qp.post_send(&[SendWr::new(cqe.wr_id, SendOp::Send, &[slot(wr, len)])]);
                    }
                    (WcStatus::Success, _) => {
                        let _ = qp.post_recv(&[RecvWr { wr_id: cqe.wr_id, sges: &[slot(wr, PAGE)] }]);
                    }
                    _ => {}
                }
            }
        }
    });
    drop((qps, cq, host));
    println!("@closed");
    let _ = std::io::stdin().read_line(&mut String::new());
}
