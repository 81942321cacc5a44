//! Two devices in one process, a thread each, that send one message back and forth: how long does it take?
//!
//! ```text
//! cargo run --release --example ping_pong -- [DEVICE [BYTES [ROUNDS]]]
//! ```
//! DEVICE is what [`DeviceOptions`] understands: `auto`, `udp-uring`, `udp-sockets`. In two processes it is the same:
//! send [`anyverbs::Endpoint::to_bytes`] over a socket instead of a channel.

use std::env;
use std::error::Error;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyverbs::{Cq, Device, DeviceOptions, Domain, Endpoint, Lease, Pool, Qp, QpOptions, Rc};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let options: DeviceOptions = arguments.next().as_deref().unwrap_or("auto").parse()?;
    let bytes = arguments.next().as_deref().unwrap_or("64").parse()?;
    let rounds = arguments.next().as_deref().unwrap_or("20000").parse()?;

    let (to_pong, from_ping) = channel();
    let (to_ping, from_pong) = channel();
    let pong_options = options.clone();
    let pong = thread::spawn(move || {
        let player = Player::new(&pong_options, bytes, &to_ping, &from_ping)?;
        player.pong(rounds)
    });
    let player = Player::new(&options, bytes, &to_pong, &from_pong)?;
    let attributes = player.device.attributes();
    println!("{} over {} ({})", attributes.provider, attributes.link, attributes.link_detail);
    let mut round_trips = player.ping(rounds)?;
    pong.join().map_err(|_| "the other thread panicked")??;

    round_trips.sort_unstable();
    println!("{rounds} round trips of {bytes} bytes, half of each:");
    for (name, share) in [("min", 0.0), ("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
        let index = (share * (round_trips.len() - 1) as f64) as usize;
        println!("{name:>6} {:>9.2} us", round_trips[index].as_secs_f64() * 1e6 / 2.0);
    }
    Ok(())
}

/// One end of the table.
struct Player {
    qp: Qp<Rc>,
    cq: Cq,
    pool: Pool,
    _domain: Domain,
    device: Device,
}

impl Player {
    fn new(
        options: &DeviceOptions,
        bytes: usize,
        to_peer: &Sender<Endpoint>,
        from_peer: &Receiver<Endpoint>,
    ) -> Result<Player> {
        let device = Device::open(options)?;
        let domain = device.domain()?;
        let cq = device.completion_queue(4)?;
        let pool = domain.pool(2, bytes)?;
        let queues = QpOptions::new().send_depth(2).recv_depth(2);
        let qp = domain.queue_pair::<Rc>(&queues, &cq, &cq)?;
        // The buffer for the first message is there before anybody can send it.
        qp.post_recv(pool.lease().ok_or("the pool is empty")?)?;
        to_peer.send(qp.endpoint())?;
        let qp = qp.connect(&from_peer.recv()?)?;
        Ok(Player { qp, cq, pool, _domain: domain, device })
    }

    /// Sends, and waits for the answer.
    fn ping(&self, rounds: usize) -> Result<Vec<Duration>> {
        let mut ball = self.pool.lease().ok_or("the pool is empty")?;
        let mut round_trips = Vec::with_capacity(rounds);
        for round in 0..rounds {
            ball.fill(round as u8);
            let start = Instant::now();
            self.qp.send(ball)?;
            let (sent, answer) = self.exchange()?;
            round_trips.push(start.elapsed());
            if answer.iter().any(|&byte| byte != round as u8) {
                return Err(format!("round {round} came back changed").into());
            }
            self.qp.post_recv(answer)?;
            ball = sent;
        }
        Ok(round_trips)
    }

    /// Waits, and sends what came back.
    fn pong(&self, rounds: usize) -> Result<()> {
        let mut spare = self.pool.lease();
        for _ in 0..rounds {
            let mut received = None;
            while received.is_none() {
                self.poll(|lease| spare = Some(lease), |lease| received = Some(lease))?;
            }
            // The spare buffer is for the next message, which may come as soon as this one is answered.
            while spare.is_none() {
                self.poll(|lease| spare = Some(lease), drop)?;
            }
            self.qp.post_recv(spare.take().ok_or("no spare buffer")?)?;
            self.qp.send(received.ok_or("nothing received")?)?;
        }
        // The last answer may have to be sent again until it is acknowledged.
        while spare.is_none() {
            self.poll(|lease| spare = Some(lease), drop)?;
        }
        Ok(())
    }

    /// Polls until the send has completed and a message has arrived: both buffers.
    fn exchange(&self) -> Result<(Lease, Lease)> {
        let (mut sent, mut received) = (None, None);
        loop {
            self.poll(|lease| sent = Some(lease), |lease| received = Some(lease))?;
            match (sent.take(), received.take()) {
                (Some(sent), Some(received)) => return Ok((sent, received)),
                (one, other) => (sent, received) = (one, other),
            }
        }
    }

    fn poll(&self, mut sent: impl FnMut(Lease), mut received: impl FnMut(Lease)) -> Result<()> {
        let mut failure = None;
        self.cq.poll(|completion| {
            match (completion.status.is_success(), completion.operation, completion.buffer) {
                (true, anyverbs::Operation::Send, Some(lease)) => sent(lease),
                (true, _, Some(lease)) => received(lease),
                _ => failure = Some(completion.status),
            }
        });
        failure.map_or(Ok(()), |status| Err(status.into()))
    }
}
