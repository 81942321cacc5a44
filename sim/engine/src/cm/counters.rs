//! What the connection manager saw, counted.

use anyverbs_wire::mad::Attribute;

/// Every message, in the order of the kernel's counters.
const MESSAGES: [Attribute; 11] = [
    Attribute::Req,
    Attribute::Mra,
    Attribute::Rej,
    Attribute::Rep,
    Attribute::Rtu,
    Attribute::Dreq,
    Attribute::Drep,
    Attribute::SidrReq,
    Attribute::SidrRep,
    Attribute::Lap,
    Attribute::Apr,
];

macro_rules! message_names {
    ($group:literal) => {
        [
            concat!($group, "/req"),
            concat!($group, "/mra"),
            concat!($group, "/rej"),
            concat!($group, "/rep"),
            concat!($group, "/rtu"),
            concat!($group, "/dreq"),
            concat!($group, "/drep"),
            concat!($group, "/sidr_req"),
            concat!($group, "/sidr_rep"),
            concat!($group, "/lap"),
            concat!($group, "/apr"),
        ]
    };
}

/// A count for each message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PerMessage([u64; MESSAGES.len()]);

impl PerMessage {
    /// The count of one message.
    pub fn get(&self, message: Attribute) -> u64 {
        self.0[index(message)]
    }

    /// The count of all messages.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(super) fn count(&mut self, message: Attribute) {
        self.0[index(message)] += 1;
    }
}

/// The attribute ids are consecutive, from REQ on.
const fn index(message: Attribute) -> usize {
    (message.value() - Attribute::Req.value()) as usize
}

/// What became of a message that was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It did what it was sent for.
    Handled,
    /// It came again; the answer was repeated if there is one.
    Duplicate,
    /// It changed nothing.
    Dropped(Why),
}

macro_rules! drops {
    ($($(#[$doc:meta])* $variant:ident $field:ident,)*) => {
        /// Why a message was dropped or refused without anybody being told.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Why { $($(#[$doc])* $variant,)* }

        /// Events counted since the connection manager was made.
        ///
        /// Each message received is counted in [`received`](Self::received) and in exactly one of
        /// [`handled`](Self::handled), [`duplicates`](Self::duplicates) and the counters of messages dropped.
        /// A payload that is not a MAD of the connection manager is counted in [`malformed`](Self::malformed)
        /// alone.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            /// Messages sent, repeated ones included (the kernel's `cm_tx_msgs`).
            pub sent: PerMessage,
            /// Messages sent again since no answer came (`cm_tx_retries`).
            pub retried: PerMessage,
            /// Messages received (`cm_rx_msgs`).
            pub received: PerMessage,
            /// Messages received again (`cm_rx_duplicates`).
            pub duplicates: PerMessage,
            /// Messages that did what they were sent for.
            pub handled: u64,
            /// Payloads that are not MADs of the connection manager.
            pub malformed: u64,
            $($(#[$doc])* pub $field: u64,)*
        }

        impl Counters {
            /// Messages dropped, for whatever reason.
            pub fn dropped(&self) -> u64 {
                0 $(+ self.$field)*
            }

            /// Every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                let groups = [
                    (message_names!("cm_tx_msgs"), &self.sent),
                    (message_names!("cm_tx_retries"), &self.retried),
                    (message_names!("cm_rx_msgs"), &self.received),
                    (message_names!("cm_rx_duplicates"), &self.duplicates),
                ];
                let per_message = groups.into_iter().flat_map(|(names, counts)| names.into_iter().zip(counts.0));
                per_message.chain([
                    ("cm_rx_handled", self.handled),
                    ("cm_rx_malformed", self.malformed),
                    $((concat!("cm_rx_", stringify!($field)), self.$field),)*
                ])
            }

            fn drop(&mut self, why: Why) {
                match why { $(Why::$variant => self.$field += 1,)* }
            }
        }
    };
}

drops! {
    /// A field has a value that no sender may use.
    Invalid invalid,
    /// They name no connection of ours.
    UnknownId unknown_id,
    /// They do not come from the peer of the connection that they name.
    WrongSource wrong_source,
    /// They have another transaction id than the exchange that they claim to belong to.
    WrongTransaction wrong_transaction,
    /// The connection is in a state in which they mean nothing.
    OutOfState out_of_state,
    /// Too many a second; see [`Limits::rate`](super::Limits::rate).
    Throttled throttled,
    /// Requests beyond [`Limits::requests`](super::Limits::requests), the source's share of them, or the
    /// listener's backlog.
    OverQuota over_quota,
    /// Requests refused: the table, or the source's share of it, is full.
    NoResources no_resources,
    /// Requests refused: nobody listens.
    NoListener no_listener,
    /// Requests and replies refused: their queue pair is connected to another one of ours.
    Stale stale,
    /// Requests refused: of a service or an MTU that the device does not have, with a communication id that
    /// is in use, or for an alternate path.
    Unacceptable unacceptable,
}

impl Counters {
    pub(super) fn outcome(&mut self, message: Attribute, outcome: Outcome) {
        self.received.count(message);
        match outcome {
            Outcome::Handled => self.handled += 1,
            Outcome::Duplicate => self.duplicates.count(message),
            Outcome::Dropped(why) => self.drop(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_has_its_own_place_and_name() {
        let mut counters = Counters::default();
        for (nth, message) in MESSAGES.into_iter().enumerate() {
            (0..=nth).for_each(|_| counters.received.count(message));
        }
        let counts: Vec<_> = counters.iter().filter(|(name, _)| name.starts_with("cm_rx_msgs/")).collect();
        let names = ["req", "mra", "rej", "rep", "rtu", "dreq", "drep", "sidr_req", "sidr_rep", "lap", "apr"];
        assert_eq!(counts.len(), names.len());
        for ((name, count), expected) in counts.into_iter().zip(names) {
            assert_eq!(name.strip_prefix("cm_rx_msgs/"), Some(expected));
            let message = MESSAGES[names.iter().position(|name| *name == expected).unwrap()];
            assert_eq!(message.to_string().to_lowercase(), expected);
            assert_eq!(counters.received.get(message), count);
        }
    }

    #[test]
    fn every_message_has_one_outcome() {
        let mut counters = Counters::default();
        counters.outcome(Attribute::Req, Outcome::Handled);
        counters.outcome(Attribute::Req, Outcome::Duplicate);
        counters.outcome(Attribute::Rtu, Outcome::Dropped(Why::Stale));
        assert_eq!(counters.received.total(), 3);
        assert_eq!((counters.handled, counters.duplicates.total(), counters.dropped()), (1, 1, 1));
        assert!(counters.iter().any(|counter| counter == ("cm_rx_stale", 1)));
    }
}
