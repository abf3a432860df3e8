//! The devices file of RDMA: by which devices each rank reaches each other, as a JSON matrix.

use std::fmt;
use std::path::Path;

use serde_json::Value;

use super::hostfile::kind;
use crate::error::{Error, Result, Status, fail};

/// How the devices connect the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Every rank to every other.
    Mesh,
    /// Every rank to the two beside it, rank 0 and the last being so too.
    Ring,
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Topology::Mesh => "mesh",
            Topology::Ring => "ring",
        })
    }
}

/// Per rank and peer the names of this rank's devices, one for each wire between the two:
/// `[[null, "mlx5_0"], [["mlx5_0"], null]]`. A device may carry several wires to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices(Vec<Vec<Vec<String>>>);

/// Wires between two ranks: as many as Thunderbolt has ports to spare.
pub const MAX_WIRES: usize = 4;

const EXPECTED: &str = "expected a list of rows, one per rank, each with one entry per rank: \
                        null, \"device\" or [\"device\", ...]";

impl Devices {
    /// Reads and checks a file; errors name it.
    pub fn read(path: &str) -> Result<Devices> {
        let text = std::fs::read_to_string(Path::new(path))
            .map_err(|e| Error::new(Status::Config, format!("cannot read the file: {e}")))?;
        Devices::parse(&text)
    }

    /// Reads and checks its text: a square matrix of well-formed entries, its diagonal empty.
    pub fn parse(text: &str) -> Result<Devices> {
        let json: Value = match serde_json::from_str(text) {
            Ok(json) => json,
            Err(e) => fail!(Config, "not JSON: {e}; {EXPECTED}"),
        };
        let Value::Array(rows) = json else {
            fail!(Config, "{EXPECTED}; found {}", kind(&json));
        };
        let size = rows.len();
        if size == 0 {
            fail!(Config, "no row; {EXPECTED}");
        }
        let mut matrix = Vec::with_capacity(size);
        for (rank, row) in rows.iter().enumerate() {
            let Value::Array(entries) = row else {
                fail!(Config, "row {rank}: {EXPECTED}; found {}", kind(row));
            };
            if entries.len() != size {
                let found = entries.len();
                fail!(
                    Config,
                    "row {rank} has {found} entries, but there are {size} rows: every rank needs a row, \
                     and in it one entry for each rank"
                );
            }
            let names = |(peer, entry)| {
                names(entry).map_err(|e| e.at(format_args!("row {rank}, column {peer}")))
            };
            matrix.push(entries.iter().enumerate().map(names).collect::<Result<Vec<_>>>()?);
            if !matrix[rank][rank].is_empty() {
                fail!(
                    Config,
                    "row {rank}, column {rank} names a device: no rank is its own peer, so null belongs there"
                );
            }
        }
        Ok(Devices(matrix))
    }

    /// Ranks in the world: at least one.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// The devices of rank `from` that lead to rank `to`, one per wire: wire w ends at
    /// `wires(to, from)[w]`.
    pub fn wires(&self, from: usize, to: usize) -> &[String] {
        &self.0[from][to]
    }

    /// What the ranks are to use: a ring where there is one and it is preferred, else a mesh, else a
    /// ring.
    pub fn topology(&self, prefer_ring: bool) -> Result<Topology> {
        let ring = self.check_ring();
        if prefer_ring && ring.is_ok() {
            return Ok(Topology::Ring);
        }
        match (self.check_mesh(), ring) {
            (Ok(()), _) => Ok(Topology::Mesh),
            (Err(_), Ok(())) => Ok(Topology::Ring),
            (Err(mesh), Err(ring)) if mesh == ring => {
                fail!(Config, "neither a mesh nor a ring: {mesh}")
            }
            (Err(mesh), Err(ring)) => fail!(Config, "not a mesh: {mesh}; and not a ring: {ring}"),
        }
    }

    /// The entry that keeps this from being a mesh: all others but the diagonal name devices, and both
    /// ends of a pair as many.
    fn check_mesh(&self) -> std::result::Result<(), String> {
        for rank in 0..self.size() {
            for peer in (0..self.size()).filter(|peer| *peer != rank) {
                self.check_present(rank, peer)?;
                self.check_equal((rank, peer), (peer, rank))?;
            }
        }
        Ok(())
    }

    /// The entry that keeps this from being a ring: all between neighbours name devices, and all as
    /// many.
    fn check_ring(&self) -> std::result::Result<(), String> {
        let size = self.size();
        for rank in 0..size {
            for peer in [(rank + 1) % size, (rank + size - 1) % size] {
                if peer != rank {
                    self.check_present(rank, peer)?;
                    self.check_equal((rank, peer), (0, 1))?;
                }
            }
        }
        Ok(())
    }

    fn check_present(&self, rank: usize, peer: usize) -> std::result::Result<(), String> {
        if self.wires(rank, peer).is_empty() {
            return Err(format!(
                "row {rank}, column {peer} is null: it must name rank {rank}'s device towards rank {peer}"
            ));
        }
        Ok(())
    }

    fn check_equal(
        &self,
        (rank, peer): (usize, usize),
        (other_rank, other_peer): (usize, usize),
    ) -> std::result::Result<(), String> {
        let wires = self.wires(rank, peer).len();
        let others = self.wires(other_rank, other_peer).len();
        // One that names nothing is reported as such.
        if others > 0 && wires != others {
            return Err(format!(
                "row {rank}, column {peer} names {wires} devices, but row {other_rank}, column \
                 {other_peer} names {others}: their numbers must be equal"
            ));
        }
        Ok(())
    }
}

/// What one entry names.
fn names(entry: &Value) -> Result<Vec<String>> {
    let entries = match entry {
        Value::Null => &[],
        Value::String(_) => std::slice::from_ref(entry),
        Value::Array(entries) => entries.as_slice(),
        _ => fail!(Config, r#"expected null, "device" or ["device", ...]; found {}"#, kind(entry)),
    };
    if entries.len() > MAX_WIRES {
        let found = entries.len();
        fail!(Config, "{found} devices: there are at most {MAX_WIRES} wires between two ranks");
    }
    let name = |entry: &Value| match entry {
        Value::String(name) if name.trim().is_empty() => {
            fail!(Config, "a device's name is empty; where there is no device, null belongs")
        }
        Value::String(name) => Ok(name.clone()),
        _ => fail!(Config, "expected the name of a device in the list, found {}", kind(entry)),
    };
    entries.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `names(rank, peer)` gives the number of devices of each entry.
    fn matrix(size: usize, wires: impl Fn(usize, usize) -> usize) -> Devices {
        let entry = |rank, peer| (0..wires(rank, peer)).map(|w| format!("dev{w}")).collect();
        let row = |rank| (0..size).map(|peer| entry(rank, peer)).collect();
        let devices = Devices((0..size).map(row).collect());
        // What was built reads as what is written.
        assert_eq!(Devices::parse(&serde_json::to_string(&devices.0).unwrap()).unwrap(), devices);
        devices
    }

    fn is_beside(rank: usize, peer: usize, size: usize) -> bool {
        rank != peer && ((rank + 1) % size == peer || (peer + 1) % size == rank)
    }

    #[test]
    fn well_formed_matrices_are_read() {
        let text = r#"[[null, "a", ["b", "c"]], ["d", [], []], [["e", "e"], null, null]]"#;
        let devices = Devices::parse(text).unwrap();
        assert_eq!(devices.size(), 3);
        assert_eq!(devices.wires(0, 1), ["a"]);
        assert_eq!(devices.wires(0, 2), ["b", "c"]);
        assert_eq!(devices.wires(2, 0), ["e", "e"]);
        assert!(devices.wires(1, 1).is_empty() && devices.wires(1, 2).is_empty());
    }

    #[test]
    fn a_world_of_one_needs_no_device() {
        for text in ["[[null]]", "[[[]]]", " [ [ null ] ]\n"] {
            let devices = Devices::parse(text).unwrap();
            assert_eq!(devices.size(), 1);
            assert!(devices.topology(false).is_ok() && devices.topology(true).is_ok());
        }
    }

    #[test]
    fn malformed_matrices_say_what_and_where() {
        for (text, why) in [
            ("", "not JSON: EOF"),
            ("rxe0", "not JSON"),
            ("[[null, \"a\"],", "not JSON"),
            ("[[null, \"a\"], [\"a\", null]] []", "not JSON: trailing characters"),
            ("{}", "expected a list of rows, one per rank"),
            ("{}", "found an object"),
            ("null", "found null"),
            ("7", "found a number"),
            ("\"rxe0\"", "found a string"),
            ("[]", "no row"),
            ("[7]", "row 0: expected a list of rows"),
            ("[[null, \"a\"], \"a\"]", "row 1: expected a list of rows"),
            ("[[null, \"a\"], null]", "found null"),
            ("[[]]", "row 0 has 0 entries, but there are 1 rows"),
            ("[[null, \"a\"], [\"a\"]]", "row 1 has 1 entries, but there are 2 rows"),
            ("[[null, \"a\", \"b\"], [\"a\", null]]", "row 0 has 3 entries, but there are 2 rows"),
            ("[[null, 7], [\"a\", null]]", "row 0, column 1: expected null"),
            ("[[null, 7], [\"a\", null]]", "found a number"),
            ("[[null, true], [\"a\", null]]", "found true or false"),
            ("[[null, {\"a\": 1}], [\"a\", null]]", "found an object"),
            ("[[null, [\"a\", null]], [\"a\", null]]", "column 1: expected the name of a device"),
            (
                "[[null, \"a\"], [[[\"a\"]], null]]",
                "row 1, column 0: expected the name of a device",
            ),
            ("[[null, \"\"], [\"a\", null]]", "row 0, column 1: a device's name is empty"),
            ("[[null, \"a\"], [[\" \"], null]]", "row 1, column 0: a device's name is empty"),
            (
                "[[null, [\"a\",\"b\",\"c\",\"d\",\"e\"]], [\"a\", null]]",
                "column 1: 5 devices: there are at most 4",
            ),
            ("[[null, \"a\"], [\"a\", \"a\"]]", "row 1, column 1 names a device"),
        ] {
            let error = Devices::parse(text).unwrap_err();
            assert_eq!(error.status, Status::Config);
            assert!(error.message.contains(why), "{text:?}: {error}");
        }
        // Nested so deep that a parser that recurses would run out of stack.
        let deep = "[".repeat(1 << 20);
        assert!(Devices::parse(&deep).unwrap_err().message.contains("not JSON"));
    }

    #[test]
    fn meshes_and_rings_are_told_apart() {
        for size in 2..=9 {
            for wires in 1..=MAX_WIRES {
                let mesh = matrix(size, |rank, peer| if rank == peer { 0 } else { wires });
                assert_eq!(mesh.topology(false).unwrap(), Topology::Mesh);
                assert_eq!(
                    mesh.topology(true).unwrap(),
                    Topology::Ring,
                    "all neighbours are there"
                );
                let ring =
                    matrix(size, |rank, peer| if is_beside(rank, peer, size) { wires } else { 0 });
                assert_eq!(ring.topology(true).unwrap(), Topology::Ring);
                let whole = if size < 4 { Topology::Mesh } else { Topology::Ring };
                assert_eq!(ring.topology(false).unwrap(), whole);
            }
        }
    }

    #[test]
    fn pairs_of_a_mesh_may_differ_but_not_the_ends_of_one() {
        // Ranks 0 and 2 have two wires, all other pairs one: no ring, but a mesh.
        let pairs = |rank: usize, peer: usize| match (rank, peer) {
            (0, 2) | (2, 0) => 2,
            _ => usize::from(rank != peer),
        };
        let uneven = matrix(3, pairs);
        assert_eq!(uneven.topology(false).unwrap(), Topology::Mesh);
        assert_eq!(uneven.topology(true).unwrap(), Topology::Mesh);
        let broken =
            matrix(3, |rank, peer| pairs(rank, peer) + usize::from((rank, peer) == (0, 2)));
        let error = broken.topology(false).unwrap_err().message;
        let why = "row 0, column 2 names 3 devices, but row 2, column 0 names 2: their numbers must be equal";
        assert!(error.contains(&format!("not a mesh: {why}")), "{error}");
        assert!(
            error.contains("not a ring: row 0, column 2 names 3 devices, but row 0, column 1"),
            "{error}"
        );
    }

    #[test]
    fn every_hole_is_found_and_named() {
        for size in 2..=6 {
            for hole in (0..size * size).map(|at| (at / size, at % size)).filter(|(r, p)| r != p) {
                let devices =
                    matrix(size, |rank, peer| usize::from(rank != peer && (rank, peer) != hole));
                let (rank, peer) = hole;
                if !is_beside(rank, peer, size) {
                    // A ring does without.
                    assert_eq!(devices.topology(false).unwrap(), Topology::Ring);
                    continue;
                }
                for prefer_ring in [false, true] {
                    let error = devices.topology(prefer_ring).unwrap_err();
                    assert_eq!(error.status, Status::Config);
                    let why = format!(
                        "neither a mesh nor a ring: row {rank}, column {peer} is null: it must \
                                       name rank {rank}'s device towards rank {peer}"
                    );
                    assert_eq!(error.message, why);
                }
            }
        }
    }

    #[test]
    fn rings_have_equal_wires_all_the_way_round() {
        let size = 5;
        for odd in (0..size * size).map(|at| (at / size, at % size)) {
            let (rank, peer) = odd;
            if !is_beside(rank, peer, size) {
                continue;
            }
            let devices = matrix(size, |r, p| match is_beside(r, p, size) {
                true if (r, p) == odd => 3,
                true => 2,
                false => 0,
            });
            let error = devices.topology(true).unwrap_err().message;
            assert!(error.contains("not a ring: row "), "{error}");
            assert!(error.contains("devices, but row 0, column 1 names"), "{error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error() {
        for path in ["/no/such/file", "/"] {
            let error = Devices::read(path).unwrap_err();
            assert_eq!(error.status, Status::Config);
            assert!(error.message.contains("cannot read the file"), "{error}");
        }
    }
}
