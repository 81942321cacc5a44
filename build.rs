//! Regenerates the C bindings of `transport/sys` into `OUT_DIR` when the feature `bindgen` is on.
//!
//! The crate never compiles what is written here: it compiles the files committed under
//! `transport/sys/bindings`, so that nobody needs clang or the C headers. `ci/bindings-check` builds with the
//! feature and fails when the two differ, or, with `--update`, copies the new ones over the committed ones.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "bindgen")]
    bindings::generate();
}

#[cfg(feature = "bindgen")]
mod bindings {
    use std::env;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// One C library: where its declarations are, and which of them the crate uses.
    struct Source {
        file: &'static str,
        include: &'static str,
        package: &'static str,
        functions: &'static [&'static str],
        constants: &'static [&'static str],
        opaque: &'static [&'static str],
    }

    const SOURCES: [Source; 2] = [
        Source {
            file: "rdma_core.rs",
            include: "infiniband/verbs.h",
            package: "libibverbs-dev",
            functions: &[
                "ibv_get_device_list",
                "ibv_free_device_list",
                "ibv_get_device_name",
                "ibv_get_device_guid",
                "ibv_open_device",
                "ibv_close_device",
            ],
            constants: &[],
            // Handed back to the library, never looked into.
            opaque: &["ibv_context"],
        },
        Source {
            file: "libfabric.rs",
            include: "rdma/fabric.h",
            package: "libfabric-dev",
            functions: &["fi_version", "fi_getinfo", "fi_freeinfo", "fi_dupinfo", "fi_strerror"],
            constants: &[
                "FI_MAJOR_VERSION",
                "FI_MINOR_VERSION",
                "FI_MSG",
                "FI_RMA",
                "FI_ATOMIC",
                "FI_ENODATA",
            ],
            opaque: &["fid_fabric", "fid_nic", "fi_ops"],
        },
    ];

    /// Writes one file a library into `OUT_DIR`.
    pub(super) fn generate() {
        println!("cargo::rerun-if-changed=rustfmt.toml");
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
        for source in &SOURCES {
            let mut builder = bindgen::builder()
                .header_contents("anyverbs.h", &format!("#include <{}>\n", source.include))
                .raw_line("// The declarations that the crate uses, out of the C header; see build.rs.\n")
                .rust_edition(bindgen::RustEdition::Edition2024)
                .rust_target(bindgen::RustTarget::stable(85, 0).expect("a released Rust version"))
                .formatter(bindgen::Formatter::None)
                .generate_comments(false)
                .derive_debug(false)
                .prepend_enum_name(false)
                .default_enum_style(bindgen::EnumVariation::Consts)
                .use_core();
            for name in source.functions {
                builder = builder.allowlist_function(name);
            }
            for name in source.constants {
                builder = builder.allowlist_var(name);
            }
            for name in source.opaque {
                builder = builder.opaque_type(name);
            }
            let bindings = builder.generate().unwrap_or_else(|error| {
                panic!("<{}>: {error}; on Debian, install {}", source.include, source.package)
            });
            let file = out.join(source.file);
            bindings.write_to_file(&file).expect("OUT_DIR takes files");
            format(&file, &root);
        }
    }

    /// Lays `file` out as `cargo fmt` does the committed one.
    fn format(file: &Path, root: &Path) {
        let status = Command::new("rustfmt")
            .args(["--edition", "2024", "--config-path"])
            .args([root, file])
            .status()
            .unwrap_or_else(|error| panic!("rustfmt: {error}; `rustup component add rustfmt` has it"));
        assert!(status.success(), "rustfmt fails on {}", file.display());
    }
}
