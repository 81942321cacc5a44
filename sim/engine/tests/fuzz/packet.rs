//! Datagrams that nearly fit: each field is right by default, and wrong by choice.

use anyverbs_engine::{MESSAGE_MAX, QpType};
use anyverbs_wire::*;

use crate::input::Choices;
use crate::memory::{RKEY, RKEY_READ, SRQN};
use crate::world::World;

/// The key of datagrams that are admitted.
pub(crate) const QKEY: u32 = 0x1111;

/// What the first choice of a packet stands for: every operation, and often what a peer sends most.
fn operation(choices: &mut Choices<'_>) -> Operation {
    use Operation as O;
    const OFTEN: [Operation; 12] = [
        O::SendOnly,
        O::Acknowledge,
        O::SendFirst,
        O::SendLast,
        O::WriteFirst,
        O::WriteMiddle,
        O::WriteOnly,
        O::ReadRequest,
        O::ReadResponseOnly,
        O::ReadResponseFirst,
        O::FetchAdd,
        O::AtomicAcknowledge,
    ];
    let choice = choices.below(48);
    OFTEN.get(choice).copied().unwrap_or(Operation::ALL[choice % Operation::ALL.len()])
}

fn psn(world: &World, choices: &mut Choices<'_>, is_response: bool) -> Psn {
    let sends = &world.sends;
    let right = if is_response { sends.psn(sends.una()) } else { world.requests.expected };
    let near = |choices: &mut Choices<'_>| u32::from(choices.byte() % 16);
    match choices.below(12) {
        0..=3 => right,
        4 | 5 => right.add(near(choices)),
        6 | 7 => right.sub(near(choices)),
        8 if is_response => sends.psn(sends.sent_max).sub(1),
        8 => world.requests.last_read.map_or(right, |(psn, ..)| psn),
        9 => right.add((1 << 23) - 2 + near(choices) % 4),
        10 => right.sub(64 * near(choices)),
        _ => Psn::new(choices.u32()),
    }
}

fn remote(world: &World, choices: &mut Choices<'_>, payload: u32) -> Reth {
    let mtu = world.mtu.bytes();
    let read = world.requests.last_read;
    let (va, len) = match choices.below(16) {
        0..=3 => (0, payload),
        4 | 5 => (64, 3 * mtu),
        6 => (8, 8),
        7 => (0, mtu * (1 + u32::from(choices.byte() % 8)) + u32::from(choices.byte() % 4)),
        8 => (u64::MAX - u64::from(choices.byte()), mtu + 1),
        9 => (1 << 15, MESSAGE_MAX),
        10 => (0, MESSAGE_MAX + 1),
        11 => (u64::from(choices.u32()) << 32, u32::MAX - u32::from(choices.byte())),
        12 => (7, 0),
        13 => read.map_or((0, 0), |(_, va, _, len)| (va, len)),
        14 => read.map_or((0, 0), |(_, va, _, len)| {
            let skipped = u32::from(choices.byte() % 8) * mtu;
            (va.wrapping_add(u64::from(skipped)), len.saturating_sub(skipped))
        }),
        _ => (u64::from(choices.u32()), choices.u32()),
    };
    let rkey = match choices.below(8) {
        7 => RKEY ^ 1 << 31,
        6 => RKEY_READ,
        _ => RKEY,
    };
    Reth { va, rkey, len }
}

fn answer(choices: &mut Choices<'_>) -> Aeth {
    let syndrome = match choices.below(8) {
        0..=2 => Syndrome::ACK,
        3 => Syndrome::Ack { credit: choices.byte() % 32 },
        4 => Syndrome::RnrNak { timer: choices.byte() % 32 },
        5 | 6 => Syndrome::Nak(NakCode::from_u8(choices.byte() % 8)),
        _ => Syndrome::from_u8(choices.byte()),
    };
    Aeth { syndrome, msn: u32::from(choices.byte()) }
}

/// What a peer says that it misses, which need not make sense.
fn missing(choices: &mut Choices<'_>) -> Missing {
    let mut half = || match choices.below(4) {
        0 => choices.u32() as u16,
        _ => u16::from(choices.byte() % 16),
    };
    Missing { seen: half(), gaps: [0; Missing::GAPS].map(|_| Gap { start: half(), len: half() }) }
}

fn payload(world: &World, choices: &mut Choices<'_>, operation: Operation, psn: Psn) -> u32 {
    use Operation as O;
    let mtu = world.mtu.bytes();
    let right = match operation {
        O::SendFirst | O::SendMiddle | O::WriteFirst | O::WriteMiddle => mtu,
        O::ReadRequest | O::FetchAdd | O::CompareSwap | O::Flush | O::Acknowledge | O::AtomicAcknowledge => 0,
        O::AtomicWrite => 8,
        O::SendLast | O::SendLastImm | O::SendLastInvalidate => 1 + u32::from(choices.byte()) % mtu,
        O::WriteLast | O::WriteLastImm => match world.requests.inbound {
            Some(inbound) => inbound.len.saturating_sub(inbound.received).min(mtu),
            None => mtu,
        },
        operation if operation.is_response() => world.sends.response_len(world.mtu, psn),
        _ => u32::from(choices.byte()),
    };
    match choices.below(16) {
        0..=10 => right,
        11 => 0,
        12 => mtu,
        13 => right + 1,
        14 => mtu + 1 + u32::from(choices.byte()),
        _ => u32::from(choices.byte()),
    }
}

/// A datagram for the queue pair, as the next choices say.
pub(crate) fn datagram(world: &World, choices: &mut Choices<'_>) -> Vec<u8> {
    let operation = operation(choices);
    let own = match world.config.qp_type {
        QpType::Rc => Service::Rc,
        QpType::Uc => Service::Uc,
        QpType::Ud => Service::Ud,
        QpType::XrcSend | QpType::XrcRecv => Service::Xrc,
    };
    // One choice for what is rarely wrong, so that most packets are right in most of it.
    let wrong = choices.byte();
    let service = match wrong {
        250.. => choices.pick(&[Service::Rc, Service::Uc, Service::Ud, Service::Xrc, Service::Rd]),
        _ => own,
    };
    // A datagram is a SEND in one packet, or it does not get far.
    let operation = match (service, operation) {
        (Service::Ud, operation) if wrong < 200 => {
            if (operation as u8).is_multiple_of(2) {
                Operation::SendOnly
            } else {
                Operation::SendOnlyImm
            }
        }
        (Service::Uc, operation) if wrong < 200 && operation as u8 > Operation::WriteOnlyImm as u8 => {
            Operation::ALL[operation as usize % 12]
        }
        (_, operation) => operation,
    };
    let opcode = match wrong {
        248 | 249 => Opcode::CNP,
        247 => Opcode::from_value(choices.byte()),
        230..=239 => Opcode::MISSING,
        _ => Opcode::new(service, operation),
    };
    let psn = psn(world, choices, operation.is_response() || opcode == Opcode::MISSING);
    let mut payload = payload(world, choices, operation, psn);
    if opcode == Opcode::CNP || opcode == Opcode::MISSING {
        payload = 0;
    }
    let mut bth = Bth::new(opcode, world.config.qpn, psn);
    bth.pad = anyverbs_wire::pad(payload as usize);
    let flags = choices.byte();
    bth.ack_request = flags & 1 != 0;
    bth.solicited = flags & 2 != 0;
    match wrong {
        246 => bth.pkey = u16::from(choices.byte()),
        245 => bth.pkey = 0x7fff,
        244 => bth.pad ^= 1 + choices.byte() % 3,
        _ => {}
    }
    let deth = |choices: &mut Choices<'_>| Deth {
        qkey: if choices.below(8) == 7 { !QKEY } else { QKEY },
        source_qpn: Qpn::new(u32::from(choices.byte())),
    };
    let atomic = |reth: Reth| AtomicEth { va: reth.va, rkey: reth.rkey, swap_add: 1, compare: 2 };
    let ext = match opcode.layout() {
        None | Some(Layout::None) => Ext::None,
        Some(Layout::Imm) => Ext::Imm(choices.u32()),
        Some(Layout::Ieth) => Ext::Ieth(if choices.below(4) == 3 { RKEY_READ } else { RKEY }),
        Some(Layout::Reth) => Ext::Reth(remote(world, choices, payload)),
        Some(Layout::RethImm) => Ext::RethImm(remote(world, choices, payload), 7),
        Some(Layout::Aeth) => Ext::Aeth(answer(choices)),
        Some(Layout::AtomicAck) => Ext::AtomicAck(answer(choices), 9),
        Some(Layout::Atomic) => Ext::Atomic(atomic(remote(world, choices, payload))),
        Some(Layout::Deth) => Ext::Deth(deth(choices)),
        Some(Layout::DethImm) => Ext::DethImm(deth(choices), 5),
        Some(Layout::Flush) => {
            let bits = choices.byte();
            let word = [0, 0, 0, if bits < 128 { 1 } else { bits }];
            Ext::Flush(Feth::parse(&word), remote(world, choices, payload))
        }
        Some(Layout::AtomicWrite) => Ext::AtomicWrite(remote(world, choices, payload)),
        Some(Layout::Cnp) => Ext::Cnp,
        Some(Layout::Missing) => Ext::Missing(missing(choices)),
    };
    let srqn = if wrong == 243 { Qpn::new(3) } else { SRQN };
    let repr = Repr { bth, xrc_srqn: opcode.has_xrceth().then_some(srqn), ext };
    let mut bytes = vec![0; repr.header_len()];
    repr.emit(&mut bytes);
    bytes.resize(bytes.len() + payload as usize + usize::from(anyverbs_wire::pad(payload as usize)) + 4, 0);
    match wrong {
        242 => bytes[1] |= 1 + choices.byte() % 15,
        241 => bytes.truncate(choices.below(64)),
        240 => {
            let at = choices.below(bytes.len().min(256));
            bytes[at] = choices.byte();
        }
        _ => {}
    }
    bytes
}
