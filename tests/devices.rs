//! Devices files, well-formed and malformed: the seeds of the fuzz target of that name, each called after
//! what it is.

#[path = "../fuzz/check.rs"]
mod check;

use std::path::Path;

use mlxd::config::{Devices, Topology};

#[test]
fn seeds_are_what_their_names_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/devices");
    let mut walked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // Not every malformed file is text.
        let bytes = std::fs::read(&path).unwrap();
        if let Ok(text) = std::str::from_utf8(&bytes) {
            check::devices(text);
        }
        let found = Devices::read(path.to_str().unwrap());
        let topology = found.as_ref().map(|devices| devices.topology(false));
        let kind = match topology {
            Err(_) => "malformed",
            Ok(Err(_)) => "neither",
            Ok(Ok(Topology::Mesh)) => "mesh",
            Ok(Ok(Topology::Ring)) => "ring",
        };
        assert!(name.starts_with(kind), "{name} is {kind}: {found:?}");
        walked += 1;
    }
    assert!(walked >= 40, "{walked} seeds");
    println!("{walked} devices files");
}
