//! How a datagram travels through a member's ring: what the owner saw of it in the note, and its bytes.

use std::net::{IpAddr, Ipv6Addr};

use anyverbs_memory::Note;
use anyverbs_nic::link::RxEntry;

fn words(ip: IpAddr) -> [u64; 2] {
    let bits = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

fn ip([high, low]: [u64; 2]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low))).to_canonical()
}

pub(super) fn note(entry: &RxEntry) -> Note {
    let [source_high, source_low] = words(entry.source);
    let [destination_high, destination_low] = words(entry.destination);
    let id = entry.ip_id.map_or(0, |id| 1 << 16 | u64::from(id));
    let rest = u64::from(entry.source_port) | u64::from(entry.ecn) << 16 | id << 24;
    [source_high, source_low, destination_high, destination_low, rest]
}

/// The datagram that a note is of; any note is of some.
pub(super) fn entry(note: &Note, start: usize, len: usize) -> RxEntry {
    let [source_high, source_low, destination_high, destination_low, rest] = *note;
    RxEntry {
        source: ip([source_high, source_low]),
        destination: ip([destination_high, destination_low]),
        source_port: rest as u16,
        ip_id: (rest >> 40 & 1 == 1).then_some((rest >> 24) as u16),
        ecn: (rest >> 16) as u8 & 3,
        start,
        len,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_tell_all_of_a_datagram() {
        for (source, destination) in [("10.0.0.1", "10.255.0.2"), ("2001:db8::7", "fe80::1"), ("::1", "::1")]
        {
            for ip_id in [None, Some(0), Some(0xFFFF)] {
                let entry = RxEntry {
                    source: source.parse().unwrap(),
                    destination: destination.parse().unwrap(),
                    source_port: 0xFEDC,
                    ip_id,
                    ecn: 3,
                    start: 5,
                    len: 9,
                };
                assert_eq!(super::entry(&note(&entry), 5, 9), entry);
            }
        }
        assert_eq!(entry(&[u64::MAX; 5], 0, 0).ecn, 3);
    }
}
