//! Who is connected, and how much of the device each address has.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::error::NicError;

/// Addresses with connected queue pairs, each with a small number by which its share is found at once.
#[derive(Debug)]
pub(crate) struct Peers {
    shares: BTreeMap<IpAddr, u32>,
    peers: Vec<Peer>,
    free: Vec<u32>,
    /// Queue pairs that one address may have.
    limit: u32,
    refused: u64,
}

#[derive(Debug)]
struct Peer {
    address: IpAddr,
    queue_pairs: u32,
}

impl Peers {
    pub(crate) fn new(limit: u32) -> Self {
        Peers { shares: BTreeMap::new(), peers: Vec::new(), free: Vec::new(), limit, refused: 0 }
    }

    /// Counts one more queue pair for an address, and gives the number of its share.
    pub(crate) fn enter(&mut self, address: IpAddr) -> Result<u32, NicError> {
        self.check(address)?;
        let share = self.shares.get(&address).copied().unwrap_or_else(|| self.add(address));
        self.peers[share as usize].queue_pairs += 1;
        Ok(share)
    }

    /// Whether an address may have one more.
    pub(crate) fn check(&mut self, address: IpAddr) -> Result<(), NicError> {
        let limit = self.limit;
        let share = self.shares.get(&address);
        if share.map_or(0, |share| self.peers[*share as usize].queue_pairs) >= limit {
            self.refused += 1;
            return Err(NicError::Exhausted { object: "queue pair connected to this peer", limit });
        }
        Ok(())
    }

    /// One queue pair of a share less.
    pub(crate) fn leave(&mut self, share: u32) {
        let Some(peer) = self.peers.get_mut(share as usize) else { return };
        peer.queue_pairs = peer.queue_pairs.saturating_sub(1);
        if peer.queue_pairs == 0 {
            self.shares.remove(&peer.address);
            self.free.push(share);
        }
    }

    /// How often an address wanted more than it may have.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// How many addresses there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.shares.len()
    }

    fn add(&mut self, address: IpAddr) -> u32 {
        let peer = Peer { address, queue_pairs: 0 };
        let share = match self.free.pop() {
            Some(share) => {
                self.peers[share as usize] = peer;
                share
            }
            None => {
                self.peers.push(peer);
                self.peers.len() as u32 - 1
            }
        };
        self.shares.insert(address, share);
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_share_until_it_leaves() {
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let mut peers = Peers::new(2);
        let share = peers.enter(a).unwrap();
        assert_eq!(peers.enter(a).unwrap(), share);
        assert!(matches!(peers.enter(a), Err(NicError::Exhausted { limit: 2, .. })));
        assert_eq!(peers.refused(), 1);
        let other = peers.enter(b).unwrap();
        assert_ne!(share, other);
        peers.leave(share);
        assert_eq!(peers.enter(a).unwrap(), share, "it never left altogether");
        peers.leave(share);
        peers.leave(share);
        assert_eq!(peers.len(), 1);
        assert_eq!(peers.enter(c).unwrap(), share, "a number that is free is used again");
        assert_eq!(peers.enter(b).unwrap(), other);
    }
}
