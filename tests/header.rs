//! `include/mlxd.h` is what the sources say. `MLXD_BLESS=1 cargo test --test header` rewrites it.

use std::path::Path;

const TOP: &str = "\
/**
 * \\file
 * libmlxd: distributed communication for C and C++ programs.
 *
 * A program calls mlxd_init() for its world and then collectives on it:
 *
 *     mlxd_group *world = mlxd_init(true, NULL);
 *     if (world == NULL) { fprintf(stderr, \"%s\\n\", mlxd_last_error()); return 1; }
 *     mlxd_all_sum(world, input, output, count, MLXD_FLOAT32, NULL);
 *     mlxd_group_free(world);
 *
 * Functions return a status, or a handle that is NULL on failure; mlxd_last_error() then says what
 * was wrong, where, and what would be right. Outputs are written only on success, except that a
 * collective which fails may leave anything in its output. Whatever has a function named _new, _init
 * or _split has one named _free. Nothing here exits, aborts, throws or, unless MLXD_LOG is set,
 * prints. Pointers are checked for NULL; a NULL group never means the world.
 *
 * Each function says which statuses it returns. Beside those, every one that can fail may return
 * MLXD_ERROR_INTERNAL, a bug in this library, and the first call in a process MLXD_ERROR_SYSTEM.
 *
 * Generated from the library's sources: do not edit.
 */";

fn generated() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    config.header = Some(TOP.to_owned());
    let version = |part: &str| match part {
        "MAJOR" => env!("CARGO_PKG_VERSION_MAJOR"),
        "MINOR" => env!("CARGO_PKG_VERSION_MINOR"),
        _ => env!("CARGO_PKG_VERSION_PATCH"),
    };
    let macros: Vec<String> = [
        (
            "MAJOR",
            "The version of this header, first number; mlxd_version() is that of the library.",
        ),
        ("MINOR", "The version of this header, second number."),
        ("PATCH", "The version of this header, third number."),
    ]
    .iter()
    .map(|(part, about)| {
        format!("\n/**\n * {about}\n */\n#define MLXD_VERSION_{part} {}", version(part))
    })
    .collect();
    config.after_includes = Some(macros.join("\n"));
    let mut text = Vec::new();
    // In the order in which a reader of the header wants them.
    let files = ["facts", "start", "group", "collective", "stream", "options", "last_error"];
    let sources = files.iter().map(|file| root.join(format!("src/capi/{file}.rs")));
    sources
        .fold(cbindgen::Builder::new(), cbindgen::Builder::with_src)
        .with_config(config)
        .generate()
        .expect("cbindgen reads the sources")
        .write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_committed_header_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/mlxd.h");
    let fresh = generated();
    if std::env::var_os("MLXD_BLESS").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == fresh,
        "include/mlxd.h is stale: run MLXD_BLESS=1 cargo test --test header and commit it"
    );
}
