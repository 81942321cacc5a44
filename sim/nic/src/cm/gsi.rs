//! The general services interface, queue pair 1: MADs in and out (IBA 13.5).

use std::net::IpAddr;

use anyverbs_engine::Time;
use anyverbs_wire::mad::{self, QKEY};
use anyverbs_wire::{Bth, Deth, Ext, Flow, Opcode, Operation, Packet, Psn, Qpn, Repr, Service, icrc};

use crate::core::Core;
use crate::link::RxEntry;
use crate::peer_ids::Verdict;

const MAD_OPCODE: Opcode = Opcode::new(Service::Ud, Operation::SendOnly);

/// The bits of a P_Key without that of membership.
const PARTITION: u16 = 0x7fff;

impl Core {
    /// Checks a datagram for one of the two management queue pairs, the cheap checks first. Anybody can
    /// send one, so what fails a check is counted and nothing else.
    pub(crate) fn on_management(
        &mut self,
        entry: &RxEntry,
        datagram: &[u8],
        packet: &Packet<&[u8]>,
        now: Time,
    ) {
        let unicast = entry.destination == self.link.info().address;
        // On Ethernet there is no subnet management, so no queue pair 0 (IBA A16.4.1); and multicast goes
        // to no number but its own.
        if packet.dest_qpn() != Qpn::GSI || !unicast {
            self.counters.rx_unknown_qp += 1;
            return;
        }
        let Ext::Deth(deth) = packet.ext() else {
            self.counters.rx_wrong_service += 1;
            return;
        };
        if packet.opcode() != MAD_OPCODE {
            self.counters.rx_wrong_service += 1;
            return;
        }
        if packet.bth().pkey & PARTITION != PARTITION {
            self.counters.bad_pkey_cntr += 1;
            return;
        }
        // The Q_Key's first bit says that an operating system has sent this, not a program (IBA 10.2.5).
        if deth.qkey != QKEY {
            self.counters.qkey_viol_cntr += 1;
            return;
        }
        if deth.source_qpn != Qpn::GSI {
            self.counters.rx_wrong_source += 1;
            return;
        }
        let flow =
            Flow { source: entry.source, destination: entry.destination, source_port: entry.source_port };
        match self.other_ids.check(&flow, entry.ip_id, datagram) {
            Verdict::Good => {}
            Verdict::Corrupt => return self.counters.rx_icrc_encapsulated += 1,
            Verdict::Unproven => {
                self.link.reveal_ids();
                return self.counters.rx_icrc_unproven_id += 1;
            }
        }
        self.counters.rcvd_pkts += 1;
        self.cm.engine.on_datagram(now, entry.source, packet.payload(), &mut self.cm.actions);
        self.carry_out_cm(now);
    }

    /// Sends a MAD. What finds no room is lost, and repeated like all that is lost.
    pub(super) fn send_mad(&mut self, destination: IpAddr, mad: &mad::Repr, now: Time) {
        if destination.is_ipv4() != self.link.info().address.is_ipv4() || !self.make_room(1, now) {
            return;
        }
        let mut bth = Bth::new(MAD_OPCODE, Qpn::GSI, Psn::new(self.cm.next_psn));
        self.cm.next_psn = self.cm.next_psn.wrapping_add(1);
        bth.pad = 0;
        let deth = Deth { qkey: QKEY, source_qpn: Qpn::GSI };
        let header = Repr { bth, xrc_srqn: None, ext: Ext::Deth(deth) };
        let source_port = self.link.source_port(Qpn::GSI.value());
        let len = header.datagram_len(mad::LEN);
        let Some(datagram) = self.tx.push(destination, source_port, 0, len) else { return };
        let payload_at = header.emit(datagram);
        let icrc_at = payload_at + mad::LEN;
        datagram[payload_at..icrc_at].copy_from_slice(&mad.emit());
        let flow = Flow { source: self.link.info().address, destination, source_port };
        let icrc = icrc::compute(&flow, 0, &datagram[..icrc_at]);
        datagram[icrc_at..].copy_from_slice(&icrc);
        self.counters.sent_pkts += 1;
    }
}
