//! Which IP identifications a peer uses, as far as its datagrams show.
//!
//! The ICRC covers the IP identification, and most links do not show it. That of a sender which leaves it at
//! zero, or numbers the segments of a batch, is told from the ICRC at nearly full strength. Other senders,
//! such as the kernel's rxe, can be checked at 16 bits' strength only: one in 2^16 corrupt datagrams
//! passes. So that is done for peers alone that have shown to need it.

use anyverbs_wire::{Flow, icrc};

/// Datagrams in a row that show it. A peer that does not use identifications, and all whose datagrams
/// arrive corrupt, shows it with a probability of 2^-48; one that does loses two datagrams, which its
/// repetitions make good.
const SHOWN_AFTER: u8 = 3;

/// What the ICRC of a datagram says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It is right.
    Good,
    /// It is wrong for every IP identification that this may be.
    Corrupt,
    /// It is right for an identification that the sender has not shown to use.
    Unproven,
}

/// What is known of the peer of a queue pair.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct PeerIds {
    /// Its last datagrams in a row that were right for an identification of a kind that cannot be told at
    /// full strength.
    run: u8,
}

impl PeerIds {
    /// Checks the ICRC of a datagram, and learns from it. `ip_id`: the identification, if the link saw it.
    pub(crate) fn check(&mut self, flow: &Flow, ip_id: Option<u16>, datagram: &[u8]) -> Verdict {
        if let Some(ip_id) = ip_id {
            let good = icrc::verify_with_id(flow, ip_id, datagram);
            return if good { Verdict::Good } else { Verdict::Corrupt };
        }
        match icrc::verify_any_id(flow, datagram) {
            Some(id) if icrc::is_plain_id(id) => {
                self.forget();
                Verdict::Good
            }
            Some(_) => {
                self.run = self.run.saturating_add(1);
                if self.run >= SHOWN_AFTER { Verdict::Good } else { Verdict::Unproven }
            }
            None => {
                self.forget();
                Verdict::Corrupt
            }
        }
    }

    /// The row ends, unless it was long enough: who uses identifications comes by small ones, too.
    fn forget(&mut self) {
        if self.run < SHOWN_AFTER {
            self.run = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::{Rng, SeedableRng};

    fn flow() -> Flow {
        Flow { source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into(), source_port: 0xC001 }
    }

    /// A datagram with the ICRC for an identification, and something in it.
    fn datagram(id: u16, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let mut datagram = vec![0; 64];
        rng.fill_bytes(&mut datagram);
        let icrc = icrc::compute(&flow(), id, &datagram);
        datagram.extend(icrc);
        datagram
    }

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    #[test]
    fn a_peer_shows_that_it_uses_identifications_and_is_heard_from_then_on() {
        let mut rng = rng(1);
        let mut ids = PeerIds::default();
        for (id, expected) in [
            (4000, Verdict::Unproven),
            (4001, Verdict::Unproven),
            (4002, Verdict::Good),
            (4003, Verdict::Good),
            (5, Verdict::Good),
            (0xFFFF, Verdict::Good),
        ] {
            assert_eq!(ids.check(&flow(), None, &datagram(id, &mut rng)), expected, "{id}");
        }
        // What is corrupt stays so, and takes nothing back.
        let mut corrupt = datagram(4004, &mut rng);
        corrupt[20] ^= 0x10;
        assert_eq!(ids.check(&flow(), None, &corrupt), Verdict::Corrupt);
        assert_eq!(ids.check(&flow(), None, &datagram(4005, &mut rng)), Verdict::Good);
    }

    #[test]
    fn only_datagrams_in_a_row_count() {
        let mut rng = rng(2);
        let mut ids = PeerIds::default();
        for _ in 0..100 {
            for id in [300, 301, 0] {
                let expected = if id == 0 { Verdict::Good } else { Verdict::Unproven };
                assert_eq!(ids.check(&flow(), None, &datagram(id, &mut rng)), expected);
            }
            let mut corrupt = datagram(302, &mut rng);
            corrupt[30] ^= 1;
            assert_eq!(ids.check(&flow(), None, &datagram(300, &mut rng)), Verdict::Unproven);
            assert_eq!(ids.check(&flow(), None, &corrupt), Verdict::Corrupt);
        }
    }

    #[test]
    fn an_identification_that_was_seen_is_checked_at_full_strength() {
        let mut rng = rng(3);
        let mut ids = PeerIds::default();
        let good = datagram(999, &mut rng);
        assert_eq!(ids.check(&flow(), Some(999), &good), Verdict::Good);
        for id in [0, 127, 998, 1000] {
            assert_eq!(ids.check(&flow(), Some(id), &good), Verdict::Corrupt);
        }
        // Nothing was learned that would weaken the check of what comes without.
        assert_eq!(ids, PeerIds::default());
    }

    /// No single wrong bit passes, even from a peer that is checked at 16 bits' strength.
    #[test]
    fn a_single_wrong_bit_is_always_found() {
        let mut rng = rng(4);
        for id in [0, 127, 128, 0xABCD] {
            let good = datagram(id, &mut rng);
            for bit in 0..8 * good.len() {
                // All of the BTH is covered but its fifth byte, which switches may change.
                if bit / 8 == 4 {
                    continue;
                }
                let mut ids = PeerIds { run: SHOWN_AFTER };
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(ids.check(&flow(), None, &bad), Verdict::Corrupt, "id {id} bit {bit}");
            }
        }
    }

    /// Random corruption passes as often as the strength says: 2^-16 from peers that are checked so, and
    /// 2^-25 from others, of which here is none.
    #[test]
    fn random_corruption_passes_as_seldom_as_the_strength_says() {
        let mut rng = rng(5);
        let (mut shown, mut plain) = (0, 0);
        let mut bytes = datagram(0, &mut rng);
        let end = bytes.len() - icrc::LEN;
        const TRIES: u32 = 1 << 19;
        for _ in 0..TRIES {
            rng.fill_bytes(&mut bytes[end..]);
            let mut ids = PeerIds { run: SHOWN_AFTER };
            shown += u32::from(ids.check(&flow(), None, &bytes) == Verdict::Good);
            let mut ids = PeerIds::default();
            plain += u32::from(ids.check(&flow(), None, &bytes) == Verdict::Good);
        }
        // 8 are expected, with a deviation of 3.
        assert!((1..=20).contains(&shown), "{shown} of {TRIES}");
        assert!(plain <= 2, "{plain} of {TRIES}");
    }

    /// However much of a plain peer's traffic is corrupt, it is checked at full strength to the end.
    #[test]
    fn a_plain_peer_is_never_downgraded_by_corruption() {
        let mut rng = rng(6);
        let mut ids = PeerIds::default();
        for n in 0..60_000_u32 {
            let mut bytes = datagram(0, &mut rng);
            if n % 4 != 0 {
                // A burst of wrong bytes.
                let at = (rng.next_u32() % 60) as usize;
                rng.fill_bytes(&mut bytes[at..at + 8]);
                assert_ne!(ids.check(&flow(), None, &bytes), Verdict::Good);
            } else {
                assert_eq!(ids.check(&flow(), None, &bytes), Verdict::Good);
            }
            assert!(ids.run < SHOWN_AFTER);
        }
        // Nor does IPv6, which has no identification.
        let v6 = |n: u16| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n).into();
        let flow = Flow { source: v6(1), destination: v6(2), source_port: 0xC001 };
        for _ in 0..10 {
            assert_eq!(ids.check(&flow, None, &datagram(400, &mut rng)), Verdict::Corrupt);
        }
    }
}
