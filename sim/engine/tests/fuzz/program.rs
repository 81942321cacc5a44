//! What an input says: how the queue pair is made, how it comes into a state, and what happens to it there.

use std::num::NonZeroU64;
use std::time::Duration;

use anyverbs_engine::congestion::{Control, DcqcnParameters, DelayParameters};
use anyverbs_engine::*;
use anyverbs_wire::{Feth, Psn, Qpn, Selectivity};

use crate::input::Choices;
use crate::memory::RKEY;
use crate::packet::{self, QKEY};
use crate::world::{Kind, World};

/// Numbers that are given out, and attributes that transitions need.
struct Driver {
    next_slot: u64,
    next_receive: u64,
    psn: Psn,
    rtr: ReadyToReceive,
    rts: ReadyToSend,
}

/// Runs an input to its end. Panics if anything does not hold.
pub(crate) fn run(input: &[u8]) -> World {
    let mut choices = Choices::new(input);
    let (mut world, mut driver) = setup(&mut choices);
    reach(&mut world, &mut driver, choices.byte());
    while !choices.is_empty() {
        step(&mut world, &mut driver, &mut choices);
    }
    world.transmit();
    world.event(Kind::Driver, 0, |qp, cx| qp.enter_error(cx));
    assert!(world.qp.state() == QpState::Reset || world.sends.queue.is_empty(), "not everything was flushed");
    assert!(world.memory.held.is_empty(), "the error state keeps {} buffers", world.memory.held.len());
    world.reset();
    world
}

fn setup(choices: &mut Choices<'_>) -> (World, Driver) {
    let qp_type = match choices.below(10) {
        6 | 7 => QpType::Uc,
        8 => QpType::Ud,
        9 => choices.pick(&[QpType::XrcSend, QpType::XrcRecv]),
        _ => QpType::Rc,
    };
    let limits = choices.byte();
    let congestion = match choices.below(8) {
        6 => Control::Dcqcn(DcqcnParameters::new(NonZeroU64::MIN.saturating_add(100_000_000))),
        7 => Control::Delay(DelayParameters::new(Duration::from_micros(50))),
        _ => Control::Static,
    };
    let config = Config {
        qp_type,
        qpn: Qpn::new(0x42),
        max_send_wr: [8, 1, 2, 4][usize::from(limits & 3)],
        window: [64, 1, 3, 8][usize::from(limits >> 2 & 3)],
        reorder: [16, 0, 1, 4][usize::from(limits >> 4 & 3)],
        recovery: if limits & 64 == 0 { Recovery::Selective } else { Recovery::GoBackN },
        credits: limits & 128 != 0,
        congestion,
        ..Config::default()
    };
    let mtu = if choices.below(8) == 7 { Mtu::B1024 } else { Mtu::B256 };
    let rd_atomic = choices.pick(&[2, 4, 1, 0]);
    let psn = Psn::new(choices.pick(&[0xff_fffe, 0, 0x7f_fffd, 0x80_0000]));
    let mut world = World::new(config, mtu, rd_atomic);
    world.memory.is_shared = qp_type == QpType::XrcRecv;
    world.memory.tells_credits = config.credits;
    let memory = choices.byte();
    world.memory.buffers = [16, 0, 1, 3][usize::from(memory & 3)];
    world.memory.end = if memory & 4 == 0 { 1 << 16 } else { u64::MAX };
    let mut driver = Driver {
        next_slot: 0,
        next_receive: 0,
        psn,
        rtr: ReadyToReceive {
            dest_qpn: Qpn::new(0x43),
            rq_psn: psn,
            path_mtu: mtu,
            max_dest_rd_atomic: rd_atomic,
            min_rnr_timer: memory >> 3,
        },
        rts: ReadyToSend {
            sq_psn: psn,
            max_rd_atomic: rd_atomic,
            retry_cnt: 1,
            rnr_retry: choices.pick(&[1, 0, 7]),
            timeout: choices.pick(&[1, 0, 14]),
        },
    };
    for _ in 0..choices.below(8) {
        post_receive(&mut world, &mut driver, 700);
    }
    (world, driver)
}

/// Brings the queue pair into a state, so that an input need not find the way.
fn reach(world: &mut World, driver: &mut Driver, choice: u8) {
    let steps = [3, 3, 3, 0, 1, 2, 4, 5][usize::from(choice & 7)];
    if steps >= 1 {
        to_init(world);
    }
    if steps >= 2 {
        to_rtr(world, driver);
    }
    if steps >= 3 {
        to_rts(world, driver);
        for kind in 0..usize::from(choice >> 3 & 7) {
            post(world, driver, kind, 5, 0);
        }
        if choice & 64 == 0 {
            world.transmit();
        }
    }
    match steps {
        4 => {
            world.event(Kind::Driver, 0, |qp, cx| qp.to_sqd(cx));
        }
        5 => world.event(Kind::Driver, 0, |qp, cx| qp.enter_error(cx)),
        _ => {}
    }
}

fn to_init(world: &mut World) {
    world.event(Kind::Driver, 0, |qp, _| qp.to_init());
    world.qp.set_qkey(QKEY);
}

fn to_rtr(world: &mut World, driver: &Driver) {
    if world.event(Kind::Driver, 0, |qp, _| qp.to_rtr(&driver.rtr)) {
        world.requests.expected = driver.psn;
    }
}

fn to_rts(world: &mut World, driver: &Driver) {
    if world.event(Kind::Driver, 0, |qp, _| qp.to_rts(&driver.rts)) {
        world.sends.base = driver.psn;
    }
}

fn post_receive(world: &mut World, driver: &mut Driver, capacity: u64) {
    world.memory.posted.push_back((driver.next_receive, capacity));
    driver.next_receive += 1;
    world.event(Kind::Driver, 0, |qp, cx| qp.flush_receives(cx));
}

fn post(world: &mut World, driver: &mut Driver, kind: usize, len: usize, flags: u8) {
    let mtu = world.mtu.bytes();
    let lens = [0, 1, mtu - 1, mtu, mtu + 1, 3 * mtu + 7, 70 * mtu, MESSAGE_MAX, MESSAGE_MAX + 1];
    let len = lens[len % lens.len()];
    let va = if flags & 4 == 0 { 0 } else { u64::MAX - 7 };
    let (rkey, imm) = (RKEY, (flags & 8 != 0).then_some(1));
    let feth = Feth { placement: Feth::GLOBAL, selectivity: Selectivity::Range };
    let (op, len) = match kind % 8 {
        0 => (Op::Send { imm }, len),
        1 => (Op::Read { va, rkey }, len),
        2 => (Op::FetchAdd { va, rkey, add: 1 }, 8),
        3 => (Op::Write { va, rkey, imm }, len),
        4 => (Op::Flush { va, rkey, feth }, len),
        5 => (Op::AtomicWrite { va, rkey }, 8),
        6 => (Op::CompareSwap { va, rkey, compare: 1, swap: 2 }, 8),
        _ => (Op::SendInvalidate { rkey }, len),
    };
    let destination = match world.config.qp_type {
        QpType::Ud => Destination::Datagram { qpn: Qpn::new(5), qkey: 6 },
        QpType::XrcSend => Destination::SharedReceive(Qpn::new(8)),
        _ => Destination::Connected,
    };
    let (signaled, fence) = (flags & 1 == 0, flags & 2 != 0);
    let slot = driver.next_slot;
    driver.next_slot += 1;
    world.post_send(SendRequest { slot, op, len, signaled, solicited: fence, fence, destination });
}

fn step(world: &mut World, driver: &mut Driver, choices: &mut Choices<'_>) {
    match choices.below(32) {
        0..=14 => {
            let datagram = packet::datagram(world, choices);
            world.datagram(&datagram, 0);
        }
        15 => {
            let datagram = packet::datagram(world, choices);
            world.datagram(&datagram, 3);
        }
        16..=18 => world.transmit(),
        19 => world.wait(Duration::from_micros(50)),
        20 => world.wait(Duration::from_secs(1)),
        21 | 22 => {
            let (kind, len, flags) = (choices.below(8), choices.below(16), choices.byte());
            post(world, driver, kind, len, flags);
        }
        23 => {
            let capacity = choices.pick(&[700, 0, 39, 40, 256, 1 << 32]);
            post_receive(world, driver, capacity);
        }
        24 => to_init(world),
        25 => to_rtr(world, driver),
        26 => to_rts(world, driver),
        27 => {
            world.event(Kind::Driver, 0, |qp, cx| qp.to_sqd(cx));
        }
        28 => {
            world.event(Kind::Driver, 0, |qp, _| qp.resume());
        }
        29 => match choices.below(4) {
            0 => world.memory.is_revoked ^= true,
            1 => world.memory.denies_use ^= true,
            _ => world.memory.buffers = choices.below(8),
        },
        30 => match choices.below(4) {
            0 => world.reset(),
            1 => world.event(Kind::Driver, 0, |qp, cx| qp.enter_error(cx)),
            _ => {}
        },
        _ => fail(world, choices),
    }
}

/// The memory of a work request turns out to be unusable.
fn fail(world: &mut World, choices: &mut Choices<'_>) {
    let (status, slot) = (Status::LocalProtectionError, world.sends.queue.front().map(|p| p.request.slot));
    match choices.below(4) {
        0 => {
            if let Some(slot) = slot {
                world.event(Kind::Driver, 0, |qp, cx| qp.local_error(cx, slot, status));
            }
        }
        1 => {
            if let Some(slot) = world.memory.taken.front().map(|taken| taken.slot) {
                world.event(Kind::Driver, 0, |qp, cx| qp.receive_error(cx, slot, status));
            }
        }
        _ => {}
    }
}
