//! Which processors the two processes of one machine run on.
//!
//! Left alone, both may share one processor for seconds, where each gets its turn only when the other one yields:
//! such a run measures the scheduler. Between machines the system decides.

use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Two processors that this process may use, on different cores if there are two; `None` if there is only one
/// processor.
pub(crate) fn two_processors() -> Option<(usize, usize)> {
    let set = sched_getaffinity(None).ok()?;
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect();
    let &first = allowed.first()?;
    let others = &allowed[1..];
    let core = core_of(first);
    let second = others.iter().find(|&&cpu| core_of(cpu) != core).or(others.first());
    second.map(|&second| (first, second))
}

/// Keeps the calling thread on a processor; threads that exist stay where they are. A system that forbids it
/// measures without.
pub(crate) fn stay_on(cpu: usize) -> bool {
    if cpu >= CpuSet::MAX_CPU {
        return false;
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).is_ok()
}

/// What tells the cores of a machine apart: hyper-threads of one have the same.
fn core_of(cpu: usize) -> Option<(String, String)> {
    let read =
        |file: &str| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{file}")).ok();
    Some((read("physical_package_id")?, read("core_id")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processors_are_two_that_we_may_use() {
        let set = sched_getaffinity(None).expect("it can be asked for");
        match two_processors() {
            Some((a, b)) => assert!(a != b && set.is_set(a) && set.is_set(b)),
            None => assert_eq!(set.count(), 1),
        }
    }

    #[test]
    fn a_thread_stays_where_it_is_told_to() {
        let set = sched_getaffinity(None).expect("it can be asked for");
        let cpu = (0..CpuSet::MAX_CPU).rfind(|&cpu| set.is_set(cpu)).expect("a processor");
        assert!(stay_on(cpu));
        let now = sched_getaffinity(None).expect("it can be asked for");
        assert!(now.is_set(cpu) && now.count() == 1);
        assert!(!stay_on(usize::MAX));
    }
}
