//! Shared objects opened at run time, and their versioned symbols.

use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;

use thiserror::Error;

/// Why a library of the system cannot be used, and what mends it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub(crate) enum Unavailable {
    /// The dynamic linker cannot load the library.
    #[error("{library} cannot be loaded ({reason}); on Debian and Ubuntu, install {package}")]
    Library {
        /// The shared object that was asked for.
        library: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// What `dlerror` said.
        reason: String,
    },
    /// The library is there, but an entry point that Anyverbs needs is not.
    #[error("{library} lacks {symbol}@{version} ({reason}); on Debian and Ubuntu, update {package}")]
    Symbol {
        /// The shared object that was opened.
        library: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// The function that was looked up.
        symbol: &'static str,
        /// The symbol version that was asked for.
        version: &'static str,
        /// What `dlerror` said.
        reason: String,
    },
    /// The library is there, but the kernel knows no RDMA devices at all.
    #[error(
        "{library} works, but the kernel has no RDMA devices; on the host, as root, `modprobe ib_uverbs`"
    )]
    Kernel {
        /// The shared object that was opened.
        library: &'static str,
    },
    /// A call into the library failed.
    #[error("{call} of {library} failed: {reason}")]
    Call {
        /// The shared object that was called.
        library: &'static str,
        /// The function that failed.
        call: &'static str,
        /// The library's own words.
        reason: String,
    },
}

/// A shared object, and the Debian package to name when it is not there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) soname: &'static str,
    pub(super) package: &'static str,
}

/// An open shared object. It stays open until the process ends: providers leave threads and exit handlers
/// behind that `dlclose` would pull the code from under.
#[derive(Debug)]
pub(super) struct Library {
    source: Source,
    handle: NonNull<c_void>,
}

impl Library {
    /// Opens a shared object by the dynamic linker's search rules, all of its own symbols bound at once.
    pub(super) fn open(source: Source) -> Result<Library, Unavailable> {
        let missing =
            |reason| Unavailable::Library { library: source.soname, package: source.package, reason };
        let name = CString::new(source.soname).map_err(|error| missing(error.to_string()))?;
        // SAFETY: `name` is a NUL-terminated string that outlives the call. Initialisers of the named system
        // library run here; they are what a program linked to it would run before main.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        match NonNull::new(handle) {
            Some(handle) => Ok(Library { source, handle }),
            None => Err(missing(last_error())),
        }
    }

    /// The address of `symbol` at `version`. A version names one ABI for good, whichever release is
    /// installed; the default version of a newer release may have larger structures.
    pub(super) fn symbol(
        &self,
        symbol: &'static CStr,
        version: &'static CStr,
    ) -> Result<NonNull<c_void>, Unavailable> {
        // SAFETY: the handle came from dlopen and is never closed, and both strings are NUL-terminated.
        #[cfg(target_env = "gnu")]
        let address = unsafe { libc::dlvsym(self.handle.as_ptr(), symbol.as_ptr(), version.as_ptr()) };
        // SAFETY: as above. This C library has no symbol versions, so the symbol has one ABI only.
        #[cfg(not(target_env = "gnu"))]
        let address = unsafe { libc::dlsym(self.handle.as_ptr(), symbol.as_ptr()) };
        NonNull::new(address).ok_or_else(|| Unavailable::Symbol {
            library: self.source.soname,
            package: self.source.package,
            symbol: symbol.to_str().unwrap_or("(symbol)"),
            version: version.to_str().unwrap_or("(version)"),
            reason: last_error(),
        })
    }
}

/// The dynamic linker's last error on this thread.
fn last_error() -> String {
    // SAFETY: dlerror takes nothing; glibc and musl keep its result for each thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return String::from("no reason given");
    }
    // SAFETY: a result that is not NULL is a NUL-terminated string, valid until this thread's next dl call,
    // and it is copied before that.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Declares a table of a library's functions, with `load()` to resolve all of them.
///
/// Each type is checked by the compiler against the declaration that bindgen took from the C header.
macro_rules! symbol_table {
    (
        $(#[$attribute:meta])*
        $table:ident, declared in $bindings:ident {
            $( $name:ident: $type:ty = $version:literal, )*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy)]
        struct $table {
            $( $name: $type, )*
        }

        // Never called, so nothing has to be linked: these only make the compiler compare the two types.
        $( const _: $type = $bindings::$name; )*

        impl $table {
            /// Resolves every function of the table, or names the first that is not there.
            fn load(library: &$crate::sys::library::Library) -> Result<$table, $crate::sys::Unavailable> {
                Ok($table {
                    $( $name: {
                        let name: &'static std::ffi::CStr =
                            const { $crate::sys::library::c_name(concat!(stringify!($name), "\0")) };
                        let address = library.symbol(name, $version)?;
                        // SAFETY: the address is the function of this name at this symbol version. Its type
                        // is the header's (checked above), and a symbol version's ABI never changes.
                        unsafe { std::mem::transmute::<*mut std::ffi::c_void, $type>(address.as_ptr()) }
                    }, )*
                })
            }
        }
    };
}
pub(super) use symbol_table;

/// `text`, which ends in NUL, as a C string; for use in constants.
pub(super) const fn c_name(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a symbol's name has a NUL at its end and nowhere else"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// glibc itself: there wherever these tests run.
    const LIBC: Source = Source { soname: "libc.so.6", package: "libc6" };

    #[test]
    fn a_missing_library_is_named_with_its_package() {
        let source = Source { soname: "libanyverbs-absent.so.9", package: "libabsent9" };
        let error = Library::open(source).expect_err("no such library");
        let Unavailable::Library { library, package, ref reason } = error else {
            panic!("wrong error: {error:?}");
        };
        assert_eq!((library, package), ("libanyverbs-absent.so.9", "libabsent9"));
        assert!(reason.contains("libanyverbs-absent.so.9"), "dlerror's text: {reason}");
        assert!(error.to_string().contains("install libabsent9"), "{error}");
    }

    #[test]
    fn a_name_with_a_nul_is_an_error() {
        let source = Source { soname: "lib\0c.so.6", package: "libc6" };
        assert!(matches!(Library::open(source), Err(Unavailable::Library { .. })));
    }

    #[test]
    #[cfg(all(target_env = "gnu", target_arch = "x86_64"))]
    fn symbols_are_found_by_version() {
        let libc = Library::open(LIBC).expect("glibc");
        // memcpy changed its promise once, and so has two addresses.
        let old = libc.symbol(c"memcpy", c"GLIBC_2.2.5").expect("the first memcpy");
        let new = libc.symbol(c"memcpy", c"GLIBC_2.14").expect("today's memcpy");
        assert_ne!(old, new);
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn a_missing_version_is_named() {
        let libc = Library::open(LIBC).expect("glibc");
        let error = libc.symbol(c"memcpy", c"GLIBC_99.9").expect_err("no such version");
        let Unavailable::Symbol { symbol, version, ref reason, .. } = error else {
            panic!("wrong error: {error:?}");
        };
        assert_eq!((symbol, version), ("memcpy", "GLIBC_99.9"));
        assert!(reason.contains("GLIBC_99.9"), "dlerror's text: {reason}");
    }
}
