//! What must hold for any input: shared by the fuzz targets and the tests that walk their seeds.

use mlxd::config::{Devices, Topology};
use mlxd::error::Status;

/// A text as a devices file: refused with a reason, or a matrix that is as it says.
pub fn devices(text: &str) {
    let devices = match Devices::parse(text) {
        Ok(devices) => devices,
        Err(e) => {
            assert_eq!(e.status, Status::Config);
            assert!(e.message.contains("expected") || e.message.contains("row"), "{e}");
            return;
        }
    };
    let size = devices.size();
    assert!(size > 0);
    for rank in 0..size {
        assert!(devices.wires(rank, rank).is_empty());
        for peer in 0..size {
            let wires = devices.wires(rank, peer);
            assert!(wires.len() <= 4 && wires.iter().all(|name| !name.trim().is_empty()));
        }
    }
    for prefer_ring in [false, true] {
        match devices.topology(prefer_ring) {
            Ok(Topology::Mesh) => assert!(is_mesh(&devices)),
            Ok(Topology::Ring) => assert!(is_ring(&devices) && (prefer_ring || !is_mesh(&devices))),
            Err(e) => {
                assert!(!is_mesh(&devices) && !is_ring(&devices));
                assert!(e.message.contains("row") && e.message.contains("column"), "{e}");
            }
        }
    }
}

fn is_mesh(devices: &Devices) -> bool {
    let wires = |rank, peer| devices.wires(rank, peer).len();
    (0..devices.size()).all(|rank| {
        (0..rank).all(|peer| wires(rank, peer) > 0 && wires(rank, peer) == wires(peer, rank))
    })
}

fn is_ring(devices: &Devices) -> bool {
    let size = devices.size();
    let wires = |rank: usize, peer: usize| devices.wires(rank % size, peer % size).len();
    let many = wires(0, 1);
    size == 1
        || many > 0
            && (0..size).all(|rank| wires(rank, rank + 1) == many && wires(rank + 1, rank) == many)
}
