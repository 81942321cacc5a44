//! Classic BPF programs that choose which socket a datagram goes to.
//!
//! The ICRC covers the IP identification, which a UDP socket does not show. Senders that use it, such
//! as the kernel's rxe, also send the UDP checksum 0. Where a raw socket is allowed, these datagrams come
//! by way of it, with their IP header; all others come by way of the UDP socket, where the kernel puts
//! neighbours together. The two programs are each other's opposite, so each datagram comes once.

use std::net::Ipv4Addr;

use anyverbs_nic::link::ROCE_PORT;
use libc::sock_filter;

/// IP identifications below this are told from the ICRC itself, at nearly full strength.
pub(super) const KNOWN_IDS: u16 = 128;

/// Loads relative to the IP header, where the program's bytes start behind it.
const IP: u32 = libc::SKF_NET_OFF as u32;

/// Where fields are in an IPv4 header, and in a UDP header.
const ID: u32 = 4;
const FRAGMENT: u32 = 6;
const DESTINATION: u32 = 16;
const PORT: u32 = 2;
const CHECKSUM: u32 = 6;

const HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
/// A load relative to X.
const HALF_AT_X: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
/// X = the length of the IP header whose first byte is there.
const HEADER_TO_X: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
const IF_GE: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const IF_EQ: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// All of a packet.
const ALL: u32 = u32::MAX;

const fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Skips as many statements if the condition holds, or if it does not.
const fn jump(code: u32, k: u32, if_so: u8, if_not: u8) -> sock_filter {
    sock_filter { code: code as u16, jt: if_so, jf: if_not, k }
}

/// Nothing passes.
pub(super) const NOTHING: [sock_filter; 1] = [statement(RETURN, 0)];

/// For the UDP socket, whose program sees a datagram from its UDP header on: all but what the raw
/// socket takes.
pub(super) const NOT_RAW: [sock_filter; 6] = [
    statement(HALF, IP.wrapping_add(ID)),
    jump(IF_GE, KNOWN_IDS as u32, 0, 2),
    statement(HALF, CHECKSUM),
    jump(IF_EQ, 0, 1, 0),
    statement(RETURN, ALL),
    statement(RETURN, 0),
];

/// For the raw socket, whose program sees a packet from its IP header on: datagrams to the RoCE port of
/// `own`, without a checksum and with an identification that is not told from the ICRC.
pub(super) fn raw(own: Ipv4Addr) -> [sock_filter; 13] {
    [
        statement(HALF, ID),
        jump(IF_GE, KNOWN_IDS as u32, 0, 10),
        statement(HALF, FRAGMENT),
        jump(IF_ANY_BIT, 0x1FFF, 8, 0),
        statement(WORD, DESTINATION),
        jump(IF_EQ, own.to_bits(), 0, 6),
        statement(HEADER_TO_X, 0),
        statement(HALF_AT_X, PORT),
        jump(IF_EQ, ROCE_PORT as u32, 0, 3),
        statement(HALF_AT_X, CHECKSUM),
        jump(IF_EQ, 0, 0, 1),
        statement(RETURN, ALL),
        statement(RETURN, 0),
    ]
}
