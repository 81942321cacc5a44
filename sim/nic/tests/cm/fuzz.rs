//! Random calls on both sides, over a network that loses, repeats and garbles: nothing panics or hangs, and
//! in the end nothing is left.

use super::*;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

const STEPS: usize = 400;
const SEEDS: u64 = 6;

/// What a program may hold.
#[derive(Default)]
struct Holdings {
    listeners: Vec<Listener>,
    ud_listeners: Vec<UdListener>,
    requests: Vec<ConnectRequest>,
    ud_requests: Vec<UdRequest>,
    connecting: Vec<Connecting>,
    resolving: Vec<Resolving>,
    connections: Vec<Connection>,
    qps: Vec<Qp>,
}

struct Program<'a> {
    side: &'a Side,
    peer: &'a Side,
    holdings: Holdings,
}

fn service(rng: &mut ChaCha20Rng) -> ServiceId {
    match rng.next_u32() % 3 {
        0 => ServiceId(5),
        n => ServiceId::new(PortSpace::Tcp, n as u16),
    }
}

fn pick<T>(rng: &mut ChaCha20Rng, from: &[T]) -> Option<usize> {
    (!from.is_empty()).then(|| rng.next_u32() as usize % from.len())
}

/// Private data, sometimes too much.
fn data(rng: &mut ChaCha20Rng) -> Vec<u8> {
    let max = if rng.next_u32().is_multiple_of(8) { 240 } else { 57 };
    vec![rng.next_u32() as u8; rng.next_u32() as usize % max]
}

impl Program<'_> {
    fn step(&mut self, rng: &mut ChaCha20Rng) {
        let Program { side, peer, holdings } = self;
        let Holdings { listeners, ud_listeners, requests, ud_requests, connecting, .. } = holdings;
        let Holdings { resolving, connections, qps, .. } = holdings;
        let private_data = data(rng);
        match rng.next_u32() % 28 {
            24 | 25 if qps.len() < 40 => qps.push(side.qp()),
            26 => requests.extend(listeners.iter().filter_map(Listener::poll)),
            0 => listeners.extend(side.nic.listen(service(rng), 1 + rng.next_u32() % 4)),
            1 if ud_listeners.len() < 2 => {
                ud_listeners.extend(side.nic.listen_ud(service(rng), 1 + rng.next_u32() % 4))
            }
            2 if listeners.len() > 1 => drop(pick(rng, listeners).map(|n| listeners.swap_remove(n))),
            3 => drop(pick(rng, ud_listeners).map(|n| ud_listeners.swap_remove(n))),
            4 if qps.len() < 40 => qps.push(side.qp()),
            5 if qps.len() > 20 => drop(pick(rng, qps).map(|n| qps.swap_remove(n))),
            6 => {
                if let Some(n) = pick(rng, qps) {
                    qps[n].to_reset();
                    qps[n].to_init(ALL).unwrap();
                }
            }
            7..=10 => {
                let params = ConnectParams::new(peer.address(), service(rng)).private_data(&private_data);
                if let Some(n) = pick(rng, qps) {
                    connecting.extend(side.nic.connect(&qps[n], &params));
                }
            }
            11 => {
                let service = service(rng);
                let params =
                    UdParams { peer: peer.address(), service, private_data: &private_data, source_port: 1 };
                resolving.extend(side.nic.resolve_ud(&params));
            }
            12 => requests.extend(listeners.iter().filter_map(Listener::poll)),
            13 => ud_requests.extend(ud_listeners.iter().filter_map(UdListener::poll)),
            14 | 15 => {
                let accept = AcceptParams { private_data: &private_data, ..AcceptParams::default() };
                // Some once more, which they must survive.
                let answered = requests.len() / 2;
                for request in &mut *requests {
                    let Some(qp) = pick(rng, qps) else { break };
                    connections.extend(request.accept(&qps[qp], &accept));
                }
                requests.truncate(answered);
            }
            16 => {
                if let Some(n) = pick(rng, requests) {
                    let _ = requests[n].reject(RejectReason::CONSUMER, &private_data);
                    requests.swap_remove(n);
                }
            }
            17 => {
                if let Some(n) = pick(rng, ud_requests) {
                    let _ = ud_requests[n].accept(rng.next_u32(), 1, &private_data);
                    ud_requests.swap_remove(n);
                }
            }
            18 | 19 => {
                for n in (0..connecting.len()).rev() {
                    if let Some(outcome) = connecting[n].poll() {
                        connections.extend(outcome);
                        connecting.swap_remove(n);
                    }
                }
            }
            20 if connecting.len() > 8 => drop(pick(rng, connecting).map(|n| connecting.swap_remove(n))),
            21 => drop(pick(rng, resolving).map(|n| resolving.swap_remove(n))),
            22 => {
                if let Some(n) = pick(rng, connections) {
                    let _ = connections[n].disconnect(&private_data);
                    while connections[n].poll().is_some() {}
                }
            }
            23 => drop(pick(rng, connections).map(|n| connections.swap_remove(n))),
            _ => {}
        }
    }

    /// What the peer has sent comes again, as it was or garbled, or as if from somebody else.
    fn replay(&self, rng: &mut ChaCha20Rng) {
        let sent = self.peer.knobs.sent.lock().unwrap();
        let Some(n) = pick(rng, &sent) else { return };
        let (mut datagram, mut source) = (sent[n].clone(), self.peer.address());
        match rng.next_u32() % 4 {
            0 => source = [10, 6, 6, 6].into(),
            1 => {
                let at = rng.next_u32() as usize % datagram.len();
                datagram[at] ^= 1 << (rng.next_u32() % 8);
                let own = self.side.address();
                // The transport must bear it, not only the ICRC.
                tap::seal(source, own, &mut datagram);
            }
            _ => {}
        }
        self.side.knobs.forged.lock().unwrap().push_back((source, datagram));
    }
}

#[test]
fn random_programs_leave_nothing_behind() {
    let cm = CmConfig {
        response_timeout: 12,
        max_retries: 3,
        packet_lifetime: 10,
        service_timeout: 12,
        hold_unclaimed: Duration::from_millis(5),
        retry_refused: Duration::from_millis(3),
    };
    let mut stood = 0;
    for seed in 0..SEEDS {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let config = NicConfig { cm, seed: Some(seed), ..NicConfig::default() };
        let [a, b] = pair_with(config);
        for (side, n) in [(&a, 1), (&b, 2)] {
            let mut loss = ChaCha20Rng::seed_from_u64(seed * 2 + n);
            side.knobs.lose(move |_| loss.next_u32() % 100 < 20 * seed as u32 % 60);
        }
        let mut programs =
            [(&a, &b), (&b, &a)].map(|(side, peer)| Program { side, peer, holdings: Holdings::default() });
        for _ in 0..STEPS {
            for program in &mut programs {
                program.step(&mut rng);
                if rng.next_u32().is_multiple_of(8) {
                    program.replay(&mut rng);
                }
            }
            if rng.next_u32().is_multiple_of(4) {
                std::thread::sleep(Duration::from_millis(1));
            }
            stood += programs[0].holdings.connections.iter().filter(|one| one.is_established()).count();
        }
        for side in [&a, &b] {
            side.knobs.lose_nothing();
        }
        drop(programs);
        a.settles();
        b.settles();
        assert!(a.knobs.services.lock().unwrap().is_empty() && b.knobs.services.lock().unwrap().is_empty());
        // And both still work.
        let listener = b.nic.listen(SERVICE, 1).unwrap();
        let (qa, qb) = (a.qp(), b.qp());
        let _connections = connect(&a, &b, &listener, [&qa, &qb]);
        exchange(&a, &b, [&qa, &qb]);
    }
    assert!(stood > 0, "nothing ever stood");
}
