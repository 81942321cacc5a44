//! libfabric: which of its providers work here, and over which fabric and domain.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int};
use std::ptr;
use std::sync::OnceLock;

use super::bindings::libfabric as c;
use super::library::{Library, Source, Unavailable, symbol_table};

const LIBRARY: Source = Source { soname: "libfabric.so.1", package: "libfabric1" };

symbol_table! {
    /// The entry points of libfabric that are not inline in its header.
    Fabric, declared in c {
        fi_version: unsafe extern "C" fn() -> u32 = c"FABRIC_1.0",
        fi_strerror: unsafe extern "C" fn(c_int) -> *const c_char = c"FABRIC_1.0",
        fi_getinfo: unsafe extern "C" fn(
            u32, *const c_char, *const c_char, u64, *const c::fi_info, *mut *mut c::fi_info,
        ) -> c_int = c"FABRIC_1.3",
        fi_freeinfo: unsafe extern "C" fn(*mut c::fi_info) = c"FABRIC_1.3",
    }
}

/// The release whose header the bindings are of.
const HEADER: (u32, u32) = (c::FI_MAJOR_VERSION, c::FI_MINOR_VERSION);

/// What kind of endpoint a provider offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Endpoint {
    /// Connected and reliable, as an RC queue pair.
    Message,
    /// Connectionless and reliable.
    ReliableDatagram,
    /// Connectionless and unreliable, as a UD queue pair.
    Datagram,
    /// Another one.
    Other,
}

/// One provider, fabric, domain and kind of endpoint that libfabric offers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate {
    /// The provider's name, layers separated by `;`, such as `verbs;ofi_rxm`.
    pub(crate) provider: String,
    /// The fabric, such as `192.0.2.0/24`.
    pub(crate) fabric: String,
    /// The domain, such as `mlx5_0` or `eth0`.
    pub(crate) domain: String,
    /// What kind of endpoint.
    pub(crate) endpoint: Endpoint,
    /// It can send and receive messages.
    pub(crate) messages: bool,
    /// It can read and write a peer's memory.
    pub(crate) one_sided: bool,
    /// It has atomic operations.
    pub(crate) atomics: bool,
}

/// Everything that libfabric offers on this machine, sorted, each combination once.
///
/// # Errors
/// [`Unavailable`], when the library is not there, is of another major release, or fails. A libfabric without
/// a working provider gives an empty list.
pub(crate) fn list() -> Result<Vec<Candidate>, Unavailable> {
    list_with(fabric()?)
}

/// The symbol table, loaded by the first call that finds the library.
fn fabric() -> Result<&'static Fabric, Unavailable> {
    static FABRIC: OnceLock<Fabric> = OnceLock::new();
    if let Some(fabric) = FABRIC.get() {
        return Ok(fabric);
    }
    let loaded = Fabric::load(&Library::open(LIBRARY)?)?;
    Ok(FABRIC.get_or_init(|| loaded))
}

/// The library's linked list of offers, given back when dropped.
struct InfoList<'a> {
    fabric: &'a Fabric,
    head: *mut c::fi_info,
}

impl<'a> InfoList<'a> {
    /// Asks for everything: no node, no service and no hints.
    fn get(fabric: &'a Fabric) -> Result<InfoList<'a>, Unavailable> {
        // SAFETY: takes nothing, returns a number.
        let packed = unsafe { (fabric.fi_version)() };
        // fi_getinfo refuses a version above its own, and behaves as the version that it is asked for. The
        // packed form is major << 16 | minor, of which the comparison is that of the pair.
        let version = packed.min((HEADER.0 << 16) | HEADER.1);
        let mut head = ptr::null_mut();
        // SAFETY: NULL stands for "any" in the three pointers that are read; the last is filled with a list
        // and lives here. The symbol version fixes the layout of the structures to the header's.
        let status =
            unsafe { (fabric.fi_getinfo)(version, ptr::null(), ptr::null(), 0, ptr::null(), &mut head) };
        if status == 0 {
            return Ok(InfoList { fabric, head });
        }
        // Errors are negated numbers, of which "no data" means that no provider has anything to offer.
        if status.unsigned_abs() == c::FI_ENODATA {
            return Ok(InfoList { fabric, head: ptr::null_mut() });
        }
        // SAFETY: takes any number, and returns NULL or a static string.
        let reason = unsafe { text((fabric.fi_strerror)(status.wrapping_abs())) };
        Err(Unavailable::Call { library: LIBRARY.soname, call: "fi_getinfo", reason })
    }

    fn offers(&self) -> impl Iterator<Item = &c::fi_info> {
        // SAFETY: `head` is NULL or the first of a list that the library made and nobody changes before
        // `drop`; the references do not outlive `self`.
        let first = unsafe { self.head.as_ref() };
        // SAFETY: `next` is NULL or another element of the same list.
        std::iter::successors(first, |offer| unsafe { offer.next.as_ref() })
    }
}

impl Drop for InfoList<'_> {
    fn drop(&mut self) {
        if !self.head.is_null() {
            // SAFETY: the list came from fi_getinfo and is freed here only, with all that hangs on it.
            unsafe { (self.fabric.fi_freeinfo)(self.head) };
        }
    }
}

fn list_with(fabric: &Fabric) -> Result<Vec<Candidate>, Unavailable> {
    let list = InfoList::get(fabric)?;
    // One provider offers a combination several times, with different modes and addresses.
    let found: BTreeSet<Candidate> = list.offers().map(candidate).collect();
    Ok(found.into_iter().collect())
}

fn candidate(offer: &c::fi_info) -> Candidate {
    // SAFETY: each pointer is NULL or to attributes that belong to the offer, with strings that are NULL or
    // NUL-terminated and belong to them.
    unsafe {
        let fabric = offer.fabric_attr.as_ref();
        let domain = offer.domain_attr.as_ref();
        Candidate {
            provider: fabric.map_or_else(String::new, |fabric| text(fabric.prov_name)),
            fabric: fabric.map_or_else(String::new, |fabric| text(fabric.name)),
            domain: domain.map_or_else(String::new, |domain| text(domain.name)),
            endpoint: match offer.ep_attr.as_ref().map_or(c::FI_EP_UNSPEC, |endpoint| endpoint.type_) {
                c::FI_EP_MSG => Endpoint::Message,
                c::FI_EP_RDM => Endpoint::ReliableDatagram,
                c::FI_EP_DGRAM => Endpoint::Datagram,
                _ => Endpoint::Other,
            },
            messages: offer.caps & u64::from(c::FI_MSG) != 0,
            one_sided: offer.caps & u64::from(c::FI_RMA) != 0,
            atomics: offer.caps & u64::from(c::FI_ATOMIC) != 0,
        }
    }
}

/// A copy of a C string; nothing for NULL.
///
/// # Safety
/// `string` is NULL or NUL-terminated.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ffi::CString;

    use super::*;

    // A libfabric that offers the same thing twice, and another without attributes. Its state is the
    // thread's, so that tests may run side by side.
    thread_local! {
        static LISTS: Cell<i32> = const { Cell::new(0) };
        static ASKED: Cell<u32> = const { Cell::new(0) };
    }

    fn zeroed<T>() -> Box<T> {
        // SAFETY: used with the header's structures only, which are integers and nullable pointers.
        Box::new(unsafe { std::mem::zeroed() })
    }

    fn offer(next: *mut c::fi_info) -> *mut c::fi_info {
        let mut fabric: Box<c::fi_fabric_attr> = zeroed();
        fabric.prov_name = CString::from(c"verbs").into_raw();
        fabric.name = CString::from(c"IB-0xfe80").into_raw();
        let mut domain: Box<c::fi_domain_attr> = zeroed();
        domain.name = CString::from(c"mlx5_0").into_raw();
        let mut endpoint: Box<c::fi_ep_attr> = zeroed();
        endpoint.type_ = c::FI_EP_MSG;
        let mut offer: Box<c::fi_info> = zeroed();
        offer.caps = u64::from(c::FI_MSG | c::FI_RMA);
        offer.fabric_attr = Box::into_raw(fabric);
        offer.domain_attr = Box::into_raw(domain);
        offer.ep_attr = Box::into_raw(endpoint);
        offer.next = next;
        Box::into_raw(offer)
    }

    unsafe extern "C" fn getinfo(
        version: u32,
        _: *const c_char,
        _: *const c_char,
        _: u64,
        _: *const c::fi_info,
        info: *mut *mut c::fi_info,
    ) -> c_int {
        ASKED.set(version);
        LISTS.set(LISTS.get() + 1);
        // SAFETY: the caller gives a valid pointer.
        unsafe { *info = offer(offer(Box::into_raw(zeroed()))) };
        0
    }

    unsafe extern "C" fn freeinfo(mut info: *mut c::fi_info) {
        LISTS.set(LISTS.get() - 1);
        while !info.is_null() {
            // SAFETY: all of it was boxed by `getinfo`, and is freed once.
            unsafe {
                let offer = Box::from_raw(info);
                if !offer.fabric_attr.is_null() {
                    let fabric = Box::from_raw(offer.fabric_attr);
                    drop((CString::from_raw(fabric.prov_name), CString::from_raw(fabric.name)));
                    drop(CString::from_raw(Box::from_raw(offer.domain_attr).name));
                    drop(Box::from_raw(offer.ep_attr));
                }
                info = offer.next;
            }
        }
    }

    unsafe extern "C" fn version() -> u32 {
        (2 << 16) | 6
    }

    unsafe extern "C" fn strerror(number: c_int) -> *const c_char {
        assert_eq!(number, libc::ENOSYS);
        c"Function not implemented".as_ptr()
    }

    const FAKE: Fabric =
        Fabric { fi_version: version, fi_strerror: strerror, fi_getinfo: getinfo, fi_freeinfo: freeinfo };

    #[test]
    fn offers_are_listed_once_and_given_back() {
        let found = list_with(&FAKE).expect("offers");
        assert_eq!(LISTS.get(), 0, "lists not freed");
        assert_eq!(ASKED.get(), (HEADER.0 << 16) | HEADER.1, "a newer library is asked for our version");
        let bare = Candidate {
            provider: String::new(),
            fabric: String::new(),
            domain: String::new(),
            endpoint: Endpoint::Other,
            messages: false,
            one_sided: false,
            atomics: false,
        };
        let verbs = Candidate {
            provider: "verbs".into(),
            fabric: "IB-0xfe80".into(),
            domain: "mlx5_0".into(),
            endpoint: Endpoint::Message,
            messages: true,
            one_sided: true,
            ..bare.clone()
        };
        assert_eq!(found, [bare, verbs]);
    }

    #[test]
    fn an_older_library_is_asked_for_its_own_version() {
        unsafe extern "C" fn old() -> u32 {
            (1 << 16) | 11
        }
        list_with(&Fabric { fi_version: old, ..FAKE }).expect("offers");
        assert_eq!(ASKED.get(), (1 << 16) | 11);
    }

    #[test]
    fn no_data_is_an_empty_list_and_other_errors_are_told() {
        unsafe extern "C" fn no_data(
            _: u32,
            _: *const c_char,
            _: *const c_char,
            _: u64,
            _: *const c::fi_info,
            _: *mut *mut c::fi_info,
        ) -> c_int {
            -libc::ENODATA
        }
        unsafe extern "C" fn refused(
            _: u32,
            _: *const c_char,
            _: *const c_char,
            _: u64,
            _: *const c::fi_info,
            _: *mut *mut c::fi_info,
        ) -> c_int {
            -libc::ENOSYS
        }
        assert_eq!(list_with(&Fabric { fi_getinfo: no_data, ..FAKE }), Ok(vec![]));
        let error = list_with(&Fabric { fi_getinfo: refused, ..FAKE }).expect_err("refused");
        assert_eq!(
            error,
            Unavailable::Call {
                library: "libfabric.so.1",
                call: "fi_getinfo",
                reason: "Function not implemented".into()
            }
        );
    }

    #[test]
    fn this_machine_gives_a_list_or_a_reason() {
        match list() {
            Ok(found) => assert!(found.iter().all(|one| !one.provider.is_empty()), "{found:?}"),
            Err(error @ Unavailable::Library { .. }) => println!("no libfabric: {error}"),
            Err(error) => panic!("libfabric is there and does not work: {error}"),
        }
    }
}
