//! Messages of 2 GiB: at the smallest path MTU as many packets as half of all PSNs.

mod lean;

use std::io::Write;

use anyverbs_engine::*;
use anyverbs_wire::{Bth, Ext, Opcode, Operation, Psn, Qpn, Repr, Reth, Service};
use lean::{Input, Pair, Side};

/// Every packet of the message, and its bytes as the receiver placed them: without gap, in order.
fn transfer(op: Op, config: Config, mtu: Mtu) -> u64 {
    let mut pair = Pair::new(config, mtu);
    let (mut placed, mut bytes) = (0u64, 0u64);
    pair.run(1, op, MESSAGE_MAX, |_, _, _, actions| {
        for action in actions {
            if let Action::Place { len, .. } = action {
                placed += 1;
                bytes += u64::from(*len);
            }
        }
    });
    assert_eq!(bytes, u64::from(MESSAGE_MAX), "{op:?}");
    placed
}

#[test]
fn two_gibibytes_pass_in_one_message() {
    // In a debug build half a million packets a direction are enough for every day; PSNs wrap at 2^24.
    let long = std::env::var_os("ANYVERBS_LONG").is_some();
    let mtu = if long { Mtu::B256 } else { Mtu::B4096 };
    for op in [Op::Send { imm: None }, Op::Write { va: 0, rkey: 1, imm: None }, Op::Read { va: 0, rkey: 1 }] {
        assert_eq!(transfer(op, Config::default(), mtu), u64::from(MESSAGE_MAX / mtu.bytes()));
    }
}

fn packet(operation: Operation, psn: u32, ext: Ext) -> Input {
    let bth = Bth {
        opcode: Opcode::new(Service::Rc, operation),
        solicited: false,
        migrated: true,
        pad: 0,
        pkey: 0xffff,
        fecn: false,
        becn: false,
        dest_qpn: Qpn::new(3),
        ack_request: true,
        psn: Psn::new(psn),
    };
    Input::Packet { header: Repr::new(bth, ext), payload: 0 }
}

/// Other requesters do not cut READs: one request stands for half of all PSNs.
#[test]
fn one_read_request_may_ask_for_half_of_all_psns() {
    let first = 0x00ff_f000;
    let mut side = Side::new(1, Config::default(), Mtu::B256);
    let reth = |va, len| Ext::Reth(Reth { va, rkey: 1, len });
    let read = packet(Operation::ReadRequest, first, reth(0, MESSAGE_MAX));
    side.feed(Time::ZERO, &read);
    let answers = |side: &Side| -> Vec<(u32, Operation)> {
        let transmits = side.actions.iter().filter_map(|action| match action {
            Action::Transmit(transmit) => Some(transmit.header.bth),
            _ => None,
        });
        transmits.map(|bth| (bth.psn.value(), bth.opcode.operation().expect("known"))).collect()
    };
    assert!(side.feed(Time::ZERO, &Input::Transmit), "more to come");
    assert_eq!(
        answers(&side)[..2],
        [(first, Operation::ReadResponseFirst), (first + 1, Operation::ReadResponseMiddle)]
    );
    // What comes behind it is expected, and its very last packet can be asked for again.
    let behind = (first + (1 << 23)) & 0x00ff_ffff;
    side.feed(Time::ZERO, &packet(Operation::WriteOnly, behind, reth(0, 0)));
    assert_eq!(side.counters.out_of_seq_request + side.counters.duplicate_request, 0);
    let last = packet(Operation::ReadRequest, behind - 1, reth(u64::from(MESSAGE_MAX - 256), 256));
    side.feed(Time::ZERO, &last);
    assert_eq!(side.counters.duplicate_request, 1);
    let beyond = packet(Operation::ReadRequest, behind - 1, reth(u64::from(MESSAGE_MAX - 256), 257));
    side.feed(Time::ZERO, &beyond);
    let (mut all, mut last) = (64, None);
    while side.feed(Time::ZERO, &Input::Transmit) || !side.actions.is_empty() {
        all += side.actions.len() as u64;
        last = answers(&side).last().copied();
        if std::env::var_os("ANYVERBS_LONG").is_none() && all > 1 << 16 {
            writeln!(std::io::stderr(), "skipped: 8 million more responses; set ANYVERBS_LONG").ok();
            return;
        }
    }
    assert_eq!(all, (1 << 23) + 2, "every response, the one that was asked for again, and the ACK");
    assert_eq!(last, Some((behind, Operation::Acknowledge)));
}
