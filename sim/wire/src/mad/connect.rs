//! REQ, REP and RTU: the three-way handshake (IBA 12.6.5, 12.6.8, 12.6.9).

use std::fmt;
use std::net::Ipv6Addr;

use super::{BODY_LEN, ServiceId, long, put, qpn, triple, word};
use crate::number::be24;
use crate::{Psn, Qpn, chunk};

/// The transport service that a REQ asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Reliable connection.
    Rc,
    /// Unreliable connection.
    Uc,
    /// Reliable datagram.
    Rd,
    /// The extended transport type says which; XRC has 1 there.
    Extended,
}

impl Transport {
    const fn from_bits(bits: u8) -> Transport {
        match bits & 3 {
            0 => Transport::Rc,
            1 => Transport::Uc,
            2 => Transport::Rd,
            _ => Transport::Extended,
        }
    }

    const fn to_bits(self) -> u8 {
        self as u8
    }
}

/// Enhanced connection establishment: what the device of one end tells the device of the other, if both are
/// of one vendor. All zeros is nothing.
///
/// It travels in bits of REQ and REP that were reserved before, and in the attribute modifier of their MAD
/// header, so that it takes no private data away. It is what `ibv_set_ece` and `rdma_set_local_ece` set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Ece {
    /// Whose options they are: 24 bits. A REP repeats what the REQ has, or has 0.
    pub vendor_id: u32,
    /// What they mean is the vendor's business.
    pub options: u32,
}

/// Request for communication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Req {
    /// The sender's name for the connection.
    pub local_comm_id: u32,
    /// What the sender's device tells the receiver's.
    pub ece: Ece,
    /// The service that is asked for.
    pub service_id: ServiceId,
    /// GUID of the sender's adapter.
    pub ca_guid: u64,
    /// Q_Key; 0 for connected services.
    pub qkey: u32,
    /// The sender's queue pair.
    pub qpn: Qpn,
    /// READs and atomics that the sender accepts at once. For the receiver this limits its initiator depth.
    pub responder_resources: u8,
    /// READs and atomics that the sender wants to have outstanding. For the receiver these are its
    /// responder resources.
    pub initiator_depth: u8,
    /// Time that the receiver has for its response, a code of [`timeout`](super::timeout): five bits.
    pub remote_response_timeout: u8,
    /// Transport service.
    pub transport: Transport,
    /// The sender's hardware does end-to-end flow control.
    pub flow_control: bool,
    /// The first PSN that the sender sends.
    pub starting_psn: Psn,
    /// Time that the sender takes for its responses, a code of [`timeout`](super::timeout): five bits.
    pub local_response_timeout: u8,
    /// The retry count that the receiver shall use: three bits.
    pub retry_count: u8,
    /// Partition key.
    pub pkey: u16,
    /// A code of [`path_mtu`](super::path_mtu): four bits.
    pub path_mtu: u8,
    /// The sender has a reliable datagram channel already.
    pub rdc_exists: bool,
    /// The receiver-not-ready retry count that the receiver shall use: three bits, 7 is without end.
    pub rnr_retry_count: u8,
    /// Times that the sender repeats a message of the connection manager: four bits.
    pub max_cm_retries: u8,
    /// The sender's queue pair is on a shared receive queue.
    pub srq: bool,
    /// Extended transport type: three bits.
    pub extended_transport: u8,
    /// The path.
    pub primary: Path,
    /// The path to fall back to; all zeros for none.
    pub alternate: Path,
    /// For the receiver's consumer.
    pub private_data: [u8; 92],
}

impl Req {
    pub(super) fn parse(body: &[u8; BODY_LEN], attribute_modifier: u32) -> Req {
        Req {
            local_comm_id: word(body, 0),
            ece: Ece { vendor_id: triple(body, 5), options: attribute_modifier },
            service_id: ServiceId(long(body, 8)),
            ca_guid: long(body, 16),
            qkey: word(body, 28),
            qpn: qpn(body, 32),
            responder_resources: body[35],
            initiator_depth: body[39],
            remote_response_timeout: body[43] >> 3,
            transport: Transport::from_bits(body[43] >> 1),
            flow_control: body[43] & 1 != 0,
            starting_psn: Psn::new(triple(body, 44)),
            local_response_timeout: body[47] >> 3,
            retry_count: body[47] & 7,
            pkey: u16::from_be_bytes(chunk(body, 48)),
            path_mtu: body[50] >> 4,
            rdc_exists: body[50] & 8 != 0,
            rnr_retry_count: body[50] & 7,
            max_cm_retries: body[51] >> 4,
            srq: body[51] & 8 != 0,
            extended_transport: body[51] & 7,
            primary: Path::parse(&chunk(body, 52)),
            alternate: Path::parse(&chunk(body, 96)),
            private_data: chunk(body, 140),
        }
    }

    pub(super) fn emit(&self) -> [u8; BODY_LEN] {
        let mut body = [0; BODY_LEN];
        put(&mut body, 0, &self.local_comm_id.to_be_bytes());
        put(&mut body, 5, &be24(self.ece.vendor_id));
        put(&mut body, 8, &self.service_id.0.to_be_bytes());
        put(&mut body, 16, &self.ca_guid.to_be_bytes());
        put(&mut body, 28, &self.qkey.to_be_bytes());
        put(&mut body, 32, &be24(self.qpn.value()));
        body[35] = self.responder_resources;
        body[39] = self.initiator_depth;
        let transport = self.transport.to_bits() << 1;
        body[43] = (self.remote_response_timeout & 0x1F) << 3 | transport | u8::from(self.flow_control);
        put(&mut body, 44, &be24(self.starting_psn.value()));
        body[47] = (self.local_response_timeout & 0x1F) << 3 | self.retry_count & 7;
        put(&mut body, 48, &self.pkey.to_be_bytes());
        body[50] = (self.path_mtu & 0xF) << 4 | u8::from(self.rdc_exists) << 3 | self.rnr_retry_count & 7;
        body[51] = (self.max_cm_retries & 0xF) << 4 | u8::from(self.srq) << 3 | self.extended_transport & 7;
        put(&mut body, 52, &self.primary.emit());
        put(&mut body, 96, &self.alternate.emit());
        put(&mut body, 140, &self.private_data);
        body
    }
}

impl fmt::Display for Req {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "comm {:#010x} service {}", self.local_comm_id, self.service_id)?;
        write!(f, " {:?} qp {} psn {}", self.transport, self.qpn, self.starting_psn)?;
        match super::path_mtu(self.path_mtu) {
            Some(bytes) => write!(f, " mtu {bytes}")?,
            None => write!(f, " mtu code {}", self.path_mtu)?,
        }
        write!(f, " resources {} depth {}", self.responder_resources, self.initiator_depth)?;
        write!(f, " path {} > {}", self.primary.local_gid, self.primary.remote_gid)
    }
}

/// A path of a REQ, as the sender sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The sender's LID; 0xFFFF on Ethernet.
    pub local_lid: u16,
    /// The receiver's LID; 0xFFFF on Ethernet.
    pub remote_lid: u16,
    /// The sender's GID: its IPv6 address, or its IPv4 address mapped.
    pub local_gid: Ipv6Addr,
    /// The receiver's GID.
    pub remote_gid: Ipv6Addr,
    /// Flow label: 20 bits.
    pub flow_label: u32,
    /// Maximum rate, a code: six bits.
    pub packet_rate: u8,
    /// Traffic class.
    pub traffic_class: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Service level: four bits.
    pub service_level: u8,
    /// Both ends are on one subnet, so that packets need no global routing header.
    pub subnet_local: bool,
    /// The acknowledgement timeout that the receiver shall use, a code of [`timeout`](super::timeout): five
    /// bits.
    pub ack_timeout: u8,
}

impl Path {
    const LEN: usize = 44;

    /// No path, all zeros: the alternate path of a connection that has none.
    pub const NONE: Path = Path {
        local_lid: 0,
        remote_lid: 0,
        local_gid: Ipv6Addr::UNSPECIFIED,
        remote_gid: Ipv6Addr::UNSPECIFIED,
        flow_label: 0,
        packet_rate: 0,
        traffic_class: 0,
        hop_limit: 0,
        service_level: 0,
        subnet_local: false,
        ack_timeout: 0,
    };

    fn parse(bytes: &[u8; Path::LEN]) -> Path {
        Path {
            local_lid: u16::from_be_bytes(chunk(bytes, 0)),
            remote_lid: u16::from_be_bytes(chunk(bytes, 2)),
            local_gid: chunk::<16>(bytes, 4).into(),
            remote_gid: chunk::<16>(bytes, 20).into(),
            flow_label: u32::from_be_bytes(chunk(bytes, 36)) >> 12,
            packet_rate: bytes[39] & 0x3F,
            traffic_class: bytes[40],
            hop_limit: bytes[41],
            service_level: bytes[42] >> 4,
            subnet_local: bytes[42] & 8 != 0,
            ack_timeout: bytes[43] >> 3,
        }
    }

    fn emit(&self) -> [u8; Path::LEN] {
        let mut bytes = [0; Path::LEN];
        bytes[0..2].copy_from_slice(&self.local_lid.to_be_bytes());
        bytes[2..4].copy_from_slice(&self.remote_lid.to_be_bytes());
        bytes[4..20].copy_from_slice(&self.local_gid.octets());
        bytes[20..36].copy_from_slice(&self.remote_gid.octets());
        let label_and_rate = self.flow_label << 12 | u32::from(self.packet_rate & 0x3F);
        bytes[36..40].copy_from_slice(&label_and_rate.to_be_bytes());
        bytes[40] = self.traffic_class;
        bytes[41] = self.hop_limit;
        bytes[42] = self.service_level << 4 | u8::from(self.subnet_local) << 3;
        bytes[43] = self.ack_timeout << 3;
        bytes
    }
}

/// Reply to a request: the connection is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rep {
    /// The sender's name for the connection.
    pub local_comm_id: u32,
    /// The name that the REQ gave.
    pub remote_comm_id: u32,
    /// What the sender's device tells the receiver's.
    pub ece: Ece,
    /// Q_Key; 0 for connected services.
    pub qkey: u32,
    /// The sender's queue pair; 0 if it is an XRC target.
    pub qpn: Qpn,
    /// The sender's queue pair if it is an XRC target, which the kernel puts in the place of reliable
    /// datagram's EE context; otherwise 0.
    pub ee_context: Qpn,
    /// The first PSN that the sender sends.
    pub starting_psn: Psn,
    /// READs and atomics that the sender accepts at once.
    pub responder_resources: u8,
    /// READs and atomics that the sender will have outstanding.
    pub initiator_depth: u8,
    /// Delay until the sender's adapter acknowledges, a code of [`timeout`](super::timeout): five bits.
    pub target_ack_delay: u8,
    /// Whether the alternate path was accepted, 0 if so: two bits.
    pub failover: u8,
    /// The sender's hardware does end-to-end flow control.
    pub flow_control: bool,
    /// The receiver-not-ready retry count that the receiver shall use: three bits.
    pub rnr_retry_count: u8,
    /// The sender's queue pair is on a shared receive queue.
    pub srq: bool,
    /// GUID of the sender's adapter.
    pub ca_guid: u64,
    /// For the receiver's consumer.
    pub private_data: [u8; 196],
}

impl Rep {
    pub(super) fn parse(body: &[u8; BODY_LEN], attribute_modifier: u32) -> Rep {
        Rep {
            local_comm_id: word(body, 0),
            remote_comm_id: word(body, 4),
            // One byte behind each of the three numbers.
            ece: Ece {
                vendor_id: u32::from_be_bytes([0, body[15], body[19], body[23]]),
                options: attribute_modifier,
            },
            qkey: word(body, 8),
            qpn: qpn(body, 12),
            ee_context: qpn(body, 16),
            starting_psn: Psn::new(triple(body, 20)),
            responder_resources: body[24],
            initiator_depth: body[25],
            target_ack_delay: body[26] >> 3,
            failover: body[26] >> 1 & 3,
            flow_control: body[26] & 1 != 0,
            rnr_retry_count: body[27] >> 5,
            srq: body[27] & 0x10 != 0,
            ca_guid: long(body, 28),
            private_data: chunk(body, 36),
        }
    }

    pub(super) fn emit(&self) -> [u8; BODY_LEN] {
        let mut body = [0; BODY_LEN];
        put(&mut body, 0, &self.local_comm_id.to_be_bytes());
        put(&mut body, 4, &self.remote_comm_id.to_be_bytes());
        put(&mut body, 8, &self.qkey.to_be_bytes());
        put(&mut body, 12, &be24(self.qpn.value()));
        put(&mut body, 16, &be24(self.ee_context.value()));
        put(&mut body, 20, &be24(self.starting_psn.value()));
        [body[15], body[19], body[23]] = be24(self.ece.vendor_id);
        body[24] = self.responder_resources;
        body[25] = self.initiator_depth;
        body[26] = self.target_ack_delay << 3 | (self.failover & 3) << 1 | u8::from(self.flow_control);
        body[27] = self.rnr_retry_count << 5 | u8::from(self.srq) << 4;
        put(&mut body, 28, &self.ca_guid.to_be_bytes());
        put(&mut body, 36, &self.private_data);
        body
    }
}

impl fmt::Display for Rep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "comm {:#010x} > {:#010x}", self.local_comm_id, self.remote_comm_id)?;
        write!(f, " qp {} psn {}", self.qpn, self.starting_psn)?;
        write!(f, " resources {} depth {}", self.responder_resources, self.initiator_depth)
    }
}

/// Ready to use: the reply has arrived, the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtu {
    /// The sender's name for the connection.
    pub local_comm_id: u32,
    /// The receiver's.
    pub remote_comm_id: u32,
    /// For the receiver's consumer.
    pub private_data: [u8; 224],
}

impl Rtu {
    pub(super) fn parse(body: &[u8; BODY_LEN]) -> Rtu {
        Rtu { local_comm_id: word(body, 0), remote_comm_id: word(body, 4), private_data: chunk(body, 8) }
    }

    pub(super) fn emit(&self) -> [u8; BODY_LEN] {
        let mut body = [0; BODY_LEN];
        put(&mut body, 0, &self.local_comm_id.to_be_bytes());
        put(&mut body, 4, &self.remote_comm_id.to_be_bytes());
        put(&mut body, 8, &self.private_data);
        body
    }
}

impl fmt::Display for Rtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "comm {:#010x} > {:#010x}", self.local_comm_id, self.remote_comm_id)
    }
}
