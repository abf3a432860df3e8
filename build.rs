//! Gives the shared library its SONAME and keeps it loaded for good.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmlxd.so.{major}");
        // Its threads and exit hooks outlive any dlclose.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
    // The crate ibverbs-sys asks for -libverbs, of which its types need nothing: a linker script that
    // brings in nothing will do, also where there is no such library.
    if std::env::var_os("CARGO_FEATURE_IBVERBS_SYS").is_some()
        && let Some(folder) = std::env::var_os("OUT_DIR")
    {
        let script = Path::new(&folder).join("libibverbs.so");
        std::fs::write(&script, "/* nothing */\n").expect("OUT_DIR can be written");
        println!("cargo::rustc-link-search=native={}", Path::new(&folder).display());
    }
}
