//! Whose a MAD is, where several connection managers share an address.

use super::{Attribute, HEADER_LEN, Packet, ServiceId};

/// What decides which of the connection managers behind one address a MAD is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// The one that has this service.
    Service(ServiceId),
    /// The one that gave this name to a connection or to a request of its own.
    Name(u32),
    /// The MAD names nothing of its receiver: the one that knows the sender's names.
    Sender,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// What decides whom this MAD is for.
    ///
    /// A REQ or SIDR_REQ asks for a service. All others answer, or follow on, what their receiver has
    /// sent, and carry the receiver's own name for it: the remote communication id (IBA 12.6), or the request
    /// id of a SIDR_REP, which repeats the SIDR_REQ's (IBA 12.11). Only the REJ of one who gives up
    /// waiting for a REP does not know the receiver's name, and has 0 there (IBA 12.6.7); nothing answers a
    /// REJ, so it may be shown to all.
    pub fn route(&self) -> Route {
        match self.attribute {
            Attribute::Req | Attribute::SidrReq => {
                Route::Service(ServiceId(u64::from_be_bytes(self.chunk(HEADER_LEN + 8))))
            }
            Attribute::SidrRep => Route::Name(u32::from_be_bytes(self.chunk(HEADER_LEN))),
            Attribute::Rej
            | Attribute::Rep
            | Attribute::Rtu
            | Attribute::Mra
            | Attribute::Dreq
            | Attribute::Drep
            | Attribute::Lap
            | Attribute::Apr => match u32::from_be_bytes(self.chunk(HEADER_LEN + 4)) {
                0 if self.attribute == Attribute::Rej => Route::Sender,
                name => Route::Name(name),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::req;
    use super::super::{
        ApStatus, Apr, Drep, Dreq, Ece, Lap, Message, Mra, PortSpace, Rej, RejectReason, Rep, Repr, Rtu,
        SidrRep, SidrReq, SidrStatus, Subject,
    };
    use super::*;
    use crate::{Psn, Qpn};

    /// The sender's name, the receiver's, and a number that is neither.
    const THEIRS: u32 = 0x1111_1111;
    const OURS: u32 = 0x2222_2222;
    const SERVICE: ServiceId = ServiceId::new(PortSpace::Tcp, 7471);

    fn route(message: Message) -> Route {
        let mad = Repr { transaction_id: 0x3333_3333_3333_3333, status: 0, message }.emit();
        Packet::new_checked(&mad).expect("well-formed").route()
    }

    fn rej(remote_comm_id: u32, subject: Subject) -> Message {
        Message::Rej(Rej {
            local_comm_id: THEIRS,
            remote_comm_id,
            subject,
            info_len: 0,
            reason: RejectReason::TIMEOUT,
            info: [0x44; 72],
            private_data: [0x44; 148],
        })
    }

    #[test]
    fn requests_go_by_their_service() {
        assert_eq!(route(Message::Req(req())), Route::Service(SERVICE));
        let ask =
            SidrReq { request_id: THEIRS, pkey: 0xFFFF, service_id: SERVICE, private_data: [0x44; 216] };
        assert_eq!(route(Message::SidrReq(ask)), Route::Service(SERVICE));
    }

    #[test]
    fn what_follows_goes_by_the_receivers_name() {
        let (local_comm_id, remote_comm_id) = (THEIRS, OURS);
        let rep = Rep {
            local_comm_id,
            remote_comm_id,
            ece: Ece { vendor_id: 0, options: 0 },
            qkey: 0,
            qpn: Qpn::new(4),
            ee_context: Qpn::new(0),
            starting_psn: Psn::new(5),
            responder_resources: 6,
            initiator_depth: 7,
            target_ack_delay: 0,
            failover: 0,
            flow_control: true,
            rnr_retry_count: 7,
            srq: false,
            ca_guid: 8,
            private_data: [0x44; 196],
        };
        let remote_qpn = Qpn::new(0x55_5555);
        let answers = [
            Message::Rep(rep),
            Message::Rtu(Rtu { local_comm_id, remote_comm_id, private_data: [0x44; 224] }),
            Message::Mra(Mra {
                local_comm_id,
                remote_comm_id,
                subject: Subject::Req,
                service_timeout: 1,
                private_data: [0x44; 222],
            }),
            Message::Dreq(Dreq { local_comm_id, remote_comm_id, remote_qpn, private_data: [0x44; 220] }),
            Message::Drep(Drep { local_comm_id, remote_comm_id, private_data: [0x44; 224] }),
            Message::Lap(Lap {
                local_comm_id,
                remote_comm_id,
                remote_qpn,
                remote_response_timeout: 20,
                path: req().primary,
                private_data: [0x44; 168],
            }),
            Message::Apr(Apr {
                local_comm_id,
                remote_comm_id,
                info_len: 0,
                status: ApStatus::LOADED,
                info: [0x44; 72],
                private_data: [0x44; 148],
            }),
            Message::SidrRep(SidrRep {
                request_id: OURS,
                status: SidrStatus::VALID,
                info_len: 0,
                qpn: Qpn::new(4),
                service_id: SERVICE,
                qkey: 0x4444_4444,
                info: [0x44; 72],
                private_data: [0x44; 136],
            }),
        ];
        for message in answers {
            assert_eq!(route(message), Route::Name(OURS), "{message}");
        }
    }

    #[test]
    fn a_rej_goes_by_the_receivers_name_if_it_has_one() {
        // Of a REQ: the receiver sent it, and its name is in it. The sender may have none yet.
        assert_eq!(route(rej(OURS, Subject::Req)), Route::Name(OURS));
        assert_eq!(route(rej(OURS, Subject::Rep)), Route::Name(OURS));
        // Of one who waited for the REP to a REQ, and never learnt a name.
        assert_eq!(route(rej(0, Subject::Other)), Route::Sender);
        // Nothing else may go to all: several would answer.
        let drep = Drep { local_comm_id: THEIRS, remote_comm_id: 0, private_data: [0; 224] };
        assert_eq!(route(Message::Drep(drep)), Route::Name(0));
    }

    #[test]
    fn every_attribute_has_a_route() {
        for id in 0x10..=0x1A_u8 {
            let mut mad = Repr { transaction_id: 1, status: 0, message: rej(OURS, Subject::Req) }.emit();
            mad[17] = id;
            let packet = Packet::new_checked(&mad).expect("well-formed");
            let by_service = matches!(packet.route(), Route::Service(_));
            assert_eq!(by_service, packet.service_id().is_some(), "{}", packet.attribute());
            let name = packet.remote_comm_id().unwrap_or(THEIRS);
            assert!(by_service || packet.route() == Route::Name(name), "{}", packet.attribute());
        }
    }
}
