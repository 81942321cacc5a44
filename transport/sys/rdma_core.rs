//! rdma-core's libibverbs: which RDMA devices the kernel has, and whether this process may open them.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::sync::OnceLock;

use super::bindings::rdma_core as c;
use super::library::{Library, Source, Unavailable, symbol_table};

const LIBRARY: Source = Source { soname: "libibverbs.so.1", package: "libibverbs1 and ibverbs-providers" };

symbol_table! {
    /// The entry points of libibverbs that are not inline in its header.
    Verbs, declared in c {
        ibv_get_device_list: unsafe extern "C" fn(*mut c_int) -> *mut *mut c::ibv_device = c"IBVERBS_1.1",
        ibv_free_device_list: unsafe extern "C" fn(*mut *mut c::ibv_device) = c"IBVERBS_1.1",
        ibv_get_device_name: unsafe extern "C" fn(*mut c::ibv_device) -> *const c_char = c"IBVERBS_1.1",
        ibv_get_device_guid: unsafe extern "C" fn(*mut c::ibv_device) -> c::__be64 = c"IBVERBS_1.1",
        ibv_open_device: unsafe extern "C" fn(*mut c::ibv_device) -> *mut c::ibv_context = c"IBVERBS_1.1",
        ibv_close_device: unsafe extern "C" fn(*mut c::ibv_context) -> c_int = c"IBVERBS_1.1",
    }
}

/// What a device speaks on its wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// InfiniBand, or RoCE.
    InfiniBand,
    /// iWARP.
    Iwarp,
    /// Another one, or one that the library does not name (EFA says so).
    Other,
}

/// One RDMA device that libibverbs lists.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// The kernel's name of it, such as `mlx5_0`.
    pub(crate) name: String,
    /// Its globally unique identifier, in host order.
    pub(crate) guid: u64,
    /// What it speaks.
    pub(crate) transport: Transport,
    /// Whether this process could open it; if not, the system's reason.
    pub(crate) opened: Result<(), io::Error>,
}

/// Every RDMA device that libibverbs lists, each opened once to see whether this process may.
///
/// # Errors
/// [`Unavailable`], when the library or the kernel's part is not there. A machine that has both and no device
/// gives an empty list.
pub(crate) fn list() -> Result<Vec<Candidate>, Unavailable> {
    list_with(verbs()?)
}

/// The symbol table, loaded by the first call that finds the library.
fn verbs() -> Result<&'static Verbs, Unavailable> {
    static VERBS: OnceLock<Verbs> = OnceLock::new();
    if let Some(verbs) = VERBS.get() {
        return Ok(verbs);
    }
    let loaded = Verbs::load(&Library::open(LIBRARY)?)?;
    Ok(VERBS.get_or_init(|| loaded))
}

/// The library's array of devices, given back when dropped.
struct DeviceList<'a> {
    verbs: &'a Verbs,
    first: *mut *mut c::ibv_device,
    count: usize,
}

impl<'a> DeviceList<'a> {
    fn get(verbs: &'a Verbs) -> Result<DeviceList<'a>, Unavailable> {
        let mut count: c_int = 0;
        // SAFETY: the function fills the one int that it is given, which lives here.
        let first = unsafe { (verbs.ibv_get_device_list)(&mut count) };
        if first.is_null() {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                // What it says when /sys/class/infiniband_verbs is not there.
                Some(libc::ENOSYS) => Unavailable::Kernel { library: LIBRARY.soname },
                _ => Unavailable::Call {
                    library: LIBRARY.soname,
                    call: "ibv_get_device_list",
                    reason: error.to_string(),
                },
            });
        }
        Ok(DeviceList { verbs, first, count: usize::try_from(count).unwrap_or(0) })
    }

    fn devices(&self) -> impl Iterator<Item = *mut c::ibv_device> {
        // SAFETY: the library returned an array of `count` pointers (and a NULL behind them), which nobody
        // changes and which stays until `drop`.
        (0..self.count).map(|nth| unsafe { *self.first.add(nth) })
    }
}

impl Drop for DeviceList<'_> {
    fn drop(&mut self) {
        // SAFETY: `first` came from ibv_get_device_list, and is freed here only. No device pointer outlives
        // the list, and every context that was opened has been closed.
        unsafe { (self.verbs.ibv_free_device_list)(self.first) };
    }
}

fn list_with(verbs: &Verbs) -> Result<Vec<Candidate>, Unavailable> {
    let list = DeviceList::get(verbs)?;
    Ok(list.devices().map(|device| candidate(verbs, device)).collect())
}

fn candidate(verbs: &Verbs, device: *mut c::ibv_device) -> Candidate {
    // SAFETY: `device` is an entry of a device list that is not yet freed.
    let (name, guid) = unsafe { ((verbs.ibv_get_device_name)(device), (verbs.ibv_get_device_guid)(device)) };
    let name = if name.is_null() {
        String::new()
    } else {
        // SAFETY: the name is a NUL-terminated array inside the device, which lives as long as the list.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    };
    // SAFETY: as above; the layout is the header's, and these leading fields are the same in every release.
    let transport = match unsafe { (*device).transport_type } {
        c::IBV_TRANSPORT_IB => Transport::InfiniBand,
        c::IBV_TRANSPORT_IWARP => Transport::Iwarp,
        _ => Transport::Other,
    };
    Candidate { name, guid: u64::from_be(guid), transport, opened: try_open(verbs, device) }
}

/// Opens a device and closes it again: the only proof that this process may use it.
fn try_open(verbs: &Verbs, device: *mut c::ibv_device) -> Result<(), io::Error> {
    // SAFETY: `device` is an entry of a device list that is not yet freed.
    let context = unsafe { (verbs.ibv_open_device)(device) };
    if context.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the context was opened above, nothing was made from it, and it is closed this once. What the
    // call returns changes nothing: there is no second way to close it.
    unsafe { (verbs.ibv_close_device)(context) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ptr;

    use super::*;

    // A libibverbs of two devices, of which the second does not open. Its state is the thread's, so that
    // tests may run side by side.
    thread_local! {
        static LISTS: Cell<i32> = const { Cell::new(0) };
        static CONTEXTS: Cell<i32> = const { Cell::new(0) };
    }

    fn set_errno(value: c_int) {
        // SAFETY: glibc's errno is an int of this thread.
        unsafe { *libc::__errno_location() = value };
    }

    fn device(name: &str, transport: c::ibv_transport_type) -> *mut c::ibv_device {
        // SAFETY: the structure is plain integers, arrays and nullable function pointers: zero is a value.
        let mut device: Box<c::ibv_device> = Box::new(unsafe { std::mem::zeroed() });
        device.transport_type = transport;
        for (to, from) in device.name.iter_mut().zip(name.bytes()) {
            *to = from as c_char;
        }
        Box::into_raw(device)
    }

    unsafe extern "C" fn get_list(count: *mut c_int) -> *mut *mut c::ibv_device {
        LISTS.set(LISTS.get() + 1);
        let devices = [device("mlx5_0", c::IBV_TRANSPORT_IB), device("rdmap1", c::IBV_TRANSPORT_UNSPECIFIED)];
        // SAFETY: the caller gives a valid pointer.
        unsafe { *count = 2 };
        Box::into_raw(Box::new(devices)).cast()
    }

    unsafe extern "C" fn free_list(list: *mut *mut c::ibv_device) {
        LISTS.set(LISTS.get() - 1);
        // SAFETY: `list` was boxed by `get_list` with these two devices, and is freed once.
        let devices = unsafe { Box::from_raw(list.cast::<[*mut c::ibv_device; 2]>()) };
        for device in *devices {
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(device) });
        }
    }

    unsafe extern "C" fn name(device: *mut c::ibv_device) -> *const c_char {
        // SAFETY: `device` is one of the list's.
        unsafe { (*device).name.as_ptr() }
    }

    unsafe extern "C" fn guid(_: *mut c::ibv_device) -> c::__be64 {
        0x1122_3344_5566_7788_u64.to_be()
    }

    unsafe extern "C" fn open(device: *mut c::ibv_device) -> *mut c::ibv_context {
        // SAFETY: `device` is one of the list's.
        if unsafe { (*device).transport_type } != c::IBV_TRANSPORT_IB {
            set_errno(libc::EACCES);
            return ptr::null_mut();
        }
        CONTEXTS.set(CONTEXTS.get() + 1);
        ptr::dangling_mut()
    }

    unsafe extern "C" fn close(_: *mut c::ibv_context) -> c_int {
        CONTEXTS.set(CONTEXTS.get() - 1);
        0
    }

    const FAKE: Verbs = Verbs {
        ibv_get_device_list: get_list,
        ibv_free_device_list: free_list,
        ibv_get_device_name: name,
        ibv_get_device_guid: guid,
        ibv_open_device: open,
        ibv_close_device: close,
    };

    #[test]
    fn devices_are_listed_and_everything_is_given_back() {
        let found = list_with(&FAKE).expect("two devices");
        assert_eq!((LISTS.get(), CONTEXTS.get()), (0, 0), "lists and contexts left open");
        let names: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.guid, one.transport)).collect();
        assert_eq!(
            names,
            [
                ("mlx5_0", 0x1122_3344_5566_7788, Transport::InfiniBand),
                ("rdmap1", 0x1122_3344_5566_7788, Transport::Other)
            ]
        );
        assert!(found[0].opened.is_ok());
        let refused = found[1].opened.as_ref().expect_err("not permitted");
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn a_kernel_without_rdma_is_told_from_a_failing_call() {
        unsafe extern "C" fn no_kernel(_: *mut c_int) -> *mut *mut c::ibv_device {
            set_errno(libc::ENOSYS);
            ptr::null_mut()
        }
        unsafe extern "C" fn no_memory(_: *mut c_int) -> *mut *mut c::ibv_device {
            set_errno(libc::ENOMEM);
            ptr::null_mut()
        }
        let error = list_with(&Verbs { ibv_get_device_list: no_kernel, ..FAKE }).expect_err("no kernel part");
        assert_eq!(error, Unavailable::Kernel { library: "libibverbs.so.1" });
        let error = list_with(&Verbs { ibv_get_device_list: no_memory, ..FAKE }).expect_err("no memory");
        assert!(matches!(error, Unavailable::Call { call: "ibv_get_device_list", .. }), "{error:?}");
    }

    #[test]
    fn this_machine_gives_a_list_or_a_reason() {
        match list() {
            Ok(found) => assert!(found.iter().all(|one| !one.name.is_empty())),
            Err(error @ (Unavailable::Library { .. } | Unavailable::Kernel { .. })) => {
                println!("no rdma-core devices: {error}");
            }
            Err(error) => panic!("libibverbs is there and does not work: {error}"),
        }
    }
}
