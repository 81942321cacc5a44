//! Unreliable services, UC and UD: what is lost is lost, and nobody is told (IBA 9.8).
//!
//! A sender is done with a message when its last packet has left. A receiver executes messages that
//! arrive whole and in order, and drops the rest without a word:
//!
//! | a packet of UC | state | what happens |
//! |---|---|---|
//! | First or Only | any | a new message begins; one that was in progress is given up |
//! | Middle or Last, the expected PSN | in a message | goes on |
//! | Middle or Last | otherwise | dropped, until the next First or Only |
//!
//! The receive work request of a message that was given up serves the next one.

mod receiver;
mod sender;

pub(crate) use receiver::Receiver;
pub(crate) use sender::Sender;
