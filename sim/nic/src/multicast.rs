//! Multicast groups, and the queue pairs that are attached to them.

use std::net::IpAddr;

use crate::attributes::NicConfig;
use crate::error::NicError;
use crate::link::Link;

/// Which queue pairs hear which groups.
#[derive(Debug)]
pub(crate) struct Groups {
    groups: Vec<(IpAddr, Vec<u32>)>,
    max_groups: u32,
    max_members: u32,
}

impl Groups {
    pub(crate) fn new(config: &NicConfig) -> Self {
        let (max_groups, max_members) = (config.max_mcast_grp, config.max_mcast_qp_attach);
        Groups { groups: Vec::new(), max_groups, max_members }
    }

    fn members(&self, group: IpAddr) -> &[u32] {
        self.groups.iter().find(|(own, _)| *own == group).map_or(&[], |(_, members)| members)
    }

    /// Whether somebody hears a group.
    pub(crate) fn has(&self, group: IpAddr) -> bool {
        !self.members(group).is_empty()
    }

    /// The `nth` queue pair that hears a group.
    pub(crate) fn member(&self, group: IpAddr, nth: usize) -> Option<u32> {
        self.members(group).get(nth).copied()
    }

    /// Attaches a queue pair (IBA 10.5.2). To attach it twice is to attach it once.
    pub(crate) fn attach(&mut self, link: &mut dyn Link, group: IpAddr, qpn: u32) -> Result<(), NicError> {
        if let Some((_, members)) = self.groups.iter_mut().find(|(own, _)| *own == group) {
            if members.contains(&qpn) {
                return Ok(());
            }
            if members.len() >= self.max_members as usize {
                let object = "queue pair of a multicast group";
                return Err(NicError::Exhausted { object, limit: self.max_members });
            }
            members.push(qpn);
            return Ok(());
        }
        if self.groups.len() >= self.max_groups as usize {
            return Err(NicError::Exhausted { object: "multicast group", limit: self.max_groups });
        }
        link.join(group).map_err(NicError::system("joining a multicast group"))?;
        self.groups.push((group, vec![qpn]));
        Ok(())
    }

    /// Detaches a queue pair; says whether it was attached.
    pub(crate) fn detach(&mut self, link: &mut dyn Link, group: IpAddr, qpn: u32) -> bool {
        let Some(at) = self.groups.iter().position(|(own, _)| *own == group) else { return false };
        let members = &mut self.groups[at].1;
        let before = members.len();
        members.retain(|member| *member != qpn);
        let was = members.len() < before;
        if members.is_empty() {
            self.groups.swap_remove(at);
            link.leave(group);
        }
        was
    }

    /// Detaches a queue pair from all groups.
    pub(crate) fn forget(&mut self, link: &mut dyn Link, qpn: u32) {
        let groups: Vec<IpAddr> = self.groups.iter().map(|(group, _)| *group).collect();
        for group in groups {
            self.detach(link, group, qpn);
        }
    }
}
