//! End-to-end credits: not sending what nobody is ready for (IBA 9.7.7.2).

use anyverbs_wire::{Aeth, Syndrome, credit};

const MASK: u32 = 0x00ff_ffff;

/// What the requester knows of the responder's receive queue.
///
/// Messages are numbered from 1 (the send sequence number, SSN). An ACK says how many are complete
/// (MSN) and how many more are welcome; their sum is the limit sequence number (LSN). A request beyond
/// it that takes a receive work request goes out as one packet that asks for an answer, when nothing
/// else is outstanding (C9-157).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Credits {
    last_ssn: u32,
    /// `None`: the responder sets no limit, or has not said anything yet.
    limit: Option<u32>,
}

impl Credits {
    /// Numbers a work request that goes out as `messages` requests; returns the number of the last.
    pub(crate) fn number(&mut self, messages: u32) -> u32 {
        self.last_ssn = self.last_ssn.wrapping_add(messages) & MASK;
        self.last_ssn
    }

    /// Learns from an acknowledgement.
    pub(crate) fn learn(&mut self, aeth: Aeth) {
        if let Syndrome::Ack { credit: code } = aeth.syndrome {
            self.limit = credit::decode(code).map(|credit| aeth.msn.wrapping_add(u32::from(credit)) & MASK);
        }
    }

    /// Whether a receive work request is known to wait for the message with this number.
    pub(crate) fn allow(&self, ssn: u32) -> bool {
        self.limit.is_none_or(|limit| (limit.wrapping_sub(ssn) << 8) as i32 >= 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_what_is_complete_and_what_is_welcome_even_across_the_wrap() {
        let mut credits = Credits { last_ssn: MASK - 2, limit: None };
        let [a, b, c] = [1, 2, 1].map(|messages| credits.number(messages));
        assert_eq!([a, b, c], [MASK - 1, 0, 1]);
        assert!(credits.allow(c), "nothing is known");
        let code = credit::encode(2);
        credits.learn(Aeth { syndrome: Syndrome::Ack { credit: code }, msn: MASK - 1 });
        assert!(credits.allow(MASK) && credits.allow(0) && !credits.allow(1));
        credits.learn(Aeth { syndrome: Syndrome::ACK, msn: 0 });
        assert!(credits.allow(1));
    }
}
