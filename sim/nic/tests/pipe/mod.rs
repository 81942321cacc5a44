//! A link within the process: two ends, two queues, the machine's clock.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, LinkError, LinkInfo, RxBatch, RxEntry, TxBatch, Waiter};

#[derive(Default)]
struct Inbox {
    datagrams: VecDeque<(IpAddr, Vec<u8>)>,
    /// Buffers of datagrams that were received, for those that come.
    spare: Vec<Vec<u8>>,
    groups: Vec<IpAddr>,
    /// How often somebody was to be woken: one wake ends every sleep.
    wakes: u64,
}

impl Inbox {
    /// With room for what is on its way between devices that keep up, so that the pipe itself allocates nothing.
    fn new() -> Self {
        let spare = (0..64).map(|_| Vec::with_capacity(4200)).collect();
        Inbox { datagrams: VecDeque::with_capacity(64), spare, ..Inbox::default() }
    }
}

pub(crate) struct End {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    origin: Instant,
}

impl Waiter for End {
    fn now(&self) -> Time {
        Time::from_nanos(self.origin.elapsed().as_nanos() as u64)
    }

    fn wait(&self, deadline: Option<Time>) {
        self.wait_since(self.wakes(), deadline);
    }

    fn wakes(&self) -> u64 {
        self.inbox.lock().unwrap().wakes
    }

    fn wait_since(&self, wakes: u64, deadline: Option<Time>) {
        let limit = deadline.map_or(Duration::from_secs(3600), |deadline| deadline - self.now());
        let idle = |inbox: &mut Inbox| inbox.datagrams.is_empty() && inbox.wakes == wakes;
        drop(self.arrived.wait_timeout_while(self.inbox.lock().unwrap(), limit, idle));
    }

    fn wake(&self) {
        self.inbox.lock().unwrap().wakes += 1;
        self.arrived.notify_all();
    }

    fn relax(&self) {
        std::thread::yield_now();
    }
}

pub(crate) struct Pipe {
    own: Arc<End>,
    peer: Arc<End>,
    info: LinkInfo,
    peer_address: IpAddr,
}

/// Two ends of a pipe with their addresses.
pub(crate) fn pair() -> [Pipe; 2] {
    let origin = Instant::now();
    let ends =
        [(); 2].map(|()| Arc::new(End { inbox: Mutex::new(Inbox::new()), arrived: Condvar::new(), origin }));
    let address = |n: usize| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n as u8 + 1));
    [0, 1].map(|n| Pipe {
        own: Arc::clone(&ends[n]),
        peer: Arc::clone(&ends[1 - n]),
        info: LinkInfo {
            name: "pipe",
            detail: "two queues".into(),
            address: address(n),
            max_datagram: 4200,
            reliable: true,
            prefix: None,
            warnings: Vec::new(),
        },
        peer_address: address(1 - n),
    })
}

impl Link for Pipe {
    fn info(&self) -> &LinkInfo {
        &self.info
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        self.own.clone()
    }

    fn join(&mut self, group: IpAddr) -> io::Result<()> {
        self.own.inbox.lock().unwrap().groups.push(group);
        Ok(())
    }

    fn leave(&mut self, group: IpAddr) {
        self.own.inbox.lock().unwrap().groups.retain(|own| *own != group);
    }

    fn transmit(&mut self, batch: &mut TxBatch, _now: Time) -> Result<(), LinkError> {
        let mut inbox = self.peer.inbox.lock().unwrap();
        for entry in batch.entries() {
            if entry.destination == self.peer_address || inbox.groups.contains(&entry.destination) {
                let mut datagram = inbox.spare.pop().unwrap_or_default();
                datagram.clear();
                datagram.extend_from_slice(&batch.bytes()[entry.range()]);
                inbox.datagrams.push_back((entry.destination, datagram));
            }
        }
        self.peer.arrived.notify_all();
        batch.consume(batch.len());
        Ok(())
    }

    fn receive(&mut self, batch: &mut RxBatch, _now: Time) -> Result<(), LinkError> {
        let mut inbox = self.own.inbox.lock().unwrap();
        let mut start = 0;
        while let Some((destination, datagram)) = inbox.datagrams.front() {
            let len = datagram.len();
            if batch.room() == 0 || batch.buffer().len() - start < len {
                break;
            }
            batch.buffer()[start..start + len].copy_from_slice(datagram);
            let entry = RxEntry {
                source: self.peer_address,
                destination: *destination,
                source_port: 4791,
                ip_id: None,
                ecn: 0,
                start,
                len,
            };
            assert!(batch.push(entry));
            start += len;
            let datagram = inbox.datagrams.pop_front().unwrap().1;
            inbox.spare.push(datagram);
        }
        Ok(())
    }
}
