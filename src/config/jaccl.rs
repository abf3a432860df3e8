//! What the jaccl backend starts from: this rank, the devices between the ranks, and where they meet.

use super::devices::{Devices, Topology};
use super::rdma::{QueuePairType, Registration};
use super::start::{Meeting, RingStart, Transport, rank_within};
use super::{Address, AllGather, Found, Settings};
use crate::error::{Result, fail};

/// All that a rank needs to know to start.
#[derive(Clone, Debug)]
pub struct JacclStart {
    /// This process's rank.
    pub rank: usize,
    /// Ranks in the world.
    pub size: usize,
    /// How they meet, over TCP.
    pub control: RingStart,
    /// Which devices connect them.
    pub devices: Devices,
    /// What of that is used; it suits `devices`.
    pub topology: Topology,
    /// The service asked for; `None` is the best that the devices have.
    pub queue_pair: Option<QueuePairType>,
    /// The GID asked for, by its place in the port's table.
    pub gid_index: Option<u8>,
    /// The devices' port asked for, from 1.
    pub port: Option<u8>,
    /// Whether the caller's memory is registered.
    pub register: Registration,
    /// The service level of what is sent: which lane of an InfiniBand network it takes, and on RoCE the
    /// priority in Ethernet's header where there is one.
    pub service_level: u8,
    /// The traffic class of what is sent to a GID: on RoCE v2 the IP header's, with its DSCP.
    pub traffic_class: u8,
    /// The partition, by its place in the port's table of keys.
    pub pkey_index: u16,
}

const DEVICES: &[&str] = &["MLX_IBV_DEVICES", "JACCL_IBV_DEVICES"];
const COORDINATORS: &[&str] = &["MLX_JACCL_COORDINATOR", "JACCL_COORDINATOR"];

impl Settings {
    /// What to start jaccl from; `None` if there is nothing.
    pub fn jaccl_start(&self) -> Result<Option<JacclStart>> {
        let Some(file) = self.find(DEVICES) else {
            if let Some(found) = self.find(COORDINATORS) {
                fail!(
                    Config,
                    "{found} is set, but MLX_IBV_DEVICES is not: it names the file with the devices"
                );
            }
            return Ok(None);
        };
        let scene = format!("{} ({:?})", file.name, file.value);
        let devices = Devices::read(&file.value).map_err(|e| e.at(&scene))?;
        let topology = devices.topology(self.prefers_ring()).map_err(|e| e.at(&scene))?;
        let size = devices.size();
        let rank = self.jaccl_rank(size, &scene)?;
        let agreed = vec![
            format!("devices file={:08x}", crc32fast::hash(format!("{devices:?}").as_bytes())),
            format!("topology={topology} (MLX_JACCL_RING)"),
        ];
        Ok(Some(JacclStart {
            rank,
            size,
            control: RingStart { agreed, ..self.control_start(rank, size)? },
            devices,
            topology,
            queue_pair: self.queue_pair()?,
            gid_index: self.gid_index()?,
            port: self.rdma_port()?,
            register: self.registration()?,
            service_level: self.service_level()?,
            traffic_class: self.traffic_class()?,
            pkey_index: self.pkey_index()?,
        }))
    }

    /// The caller's all-gather with this rank and the size of the world, where that much is known: for a
    /// rank that cannot start, to tell the others so.
    pub fn jaccl_all_gather(&self) -> Option<(AllGather, usize, usize)> {
        let file = self.find(DEVICES)?;
        let size = Devices::read(&file.value).ok().filter(|devices| devices.size() > 1)?.size();
        Some((self.all_gather?, self.jaccl_rank(size, &file.value).ok()?, size))
    }

    /// What to set for a start, in one sentence.
    pub fn jaccl_start_missing() -> &'static str {
        "there is nothing to start jaccl from: set MLX_IBV_DEVICES, MLX_JACCL_COORDINATOR and MLX_RANK \
         (mlxd-launch and mlx.launch do so)"
    }

    fn jaccl_rank(&self, size: usize, world: &str) -> Result<usize> {
        let names = ["MLXD_RANK", "MLX_RANK", "JACCL_RANK", "RANK"];
        match self.find(&names) {
            Some(rank) => rank_within(&rank, size, world),
            None if size == 1 => Ok(0),
            None => fail!(Config, "MLX_RANK is not set, but {world} has {size} ranks"),
        }
    }

    /// As the ring's; nothing but the control plane's own goes that way where devices lead.
    fn control_start(&self, rank: usize, size: usize) -> Result<RingStart> {
        let meeting = match (self.all_gather, self.find(COORDINATORS)) {
            (Some(all_gather), _) => Meeting::AllGather(all_gather),
            (None, Some(found)) => Meeting::Coordinator(address(&found)?),
            // Not used by a world of one.
            (None, None) if size == 1 => Meeting::Hostfile(Vec::new()),
            (None, None) => fail!(
                Config,
                "MLX_JACCL_COORDINATOR is not set: it is rank 0's host:port, where all {size} ranks meet"
            ),
        };
        Ok(RingStart {
            backend: "jaccl",
            agreed: Vec::new(),
            rank,
            size,
            meeting,
            bind: self.text("MLXD_BIND"),
            transport: Transport::Tcp,
            checksums: self.switch("MLXD_CHECKSUM")?,
            host_id: self.text("MLXD_HOST_ID"),
            secret: self.secret(),
            connect_timeout: self.connect_timeout()?,
            peer_timeout: self.peer_timeout()?,
        })
    }

    /// As MLX takes it: anything but 0 is yes.
    fn prefers_ring(&self) -> bool {
        self.find(&["MLX_JACCL_RING", "JACCL_RING"]).is_some_and(|found| found.value.trim() != "0")
    }
}

fn address(found: &Found) -> Result<Address> {
    found.value.parse().map_err(|e: crate::error::Error| e.at(found.name))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::error::{Error, Status};

    const MESH: &str = r#"[[null, "a", "a"], ["a", null, "a"], ["a", "a", null]]"#;
    const RING: &str = r#"[[null, "a", null, "b"], ["b", null, "a", null],
                           [null, "b", null, "a"], ["a", null, "b", null]]"#;

    /// A devices file; removed when dropped.
    struct File(PathBuf);

    impl File {
        fn new(text: &str) -> File {
            let name =
                format!("mlxd-devices-{}-{:?}", std::process::id(), std::thread::current().id());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, text).unwrap();
            File(path)
        }

        fn path(&self) -> &str {
            self.0.to_str().unwrap()
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// What a rank that has this devices file and these settings starts from.
    fn start(text: &str, pairs: &[(&str, &str)]) -> Result<Option<JacclStart>> {
        let file = File::new(text);
        let mut settings = Settings::default();
        settings.set("MLX_IBV_DEVICES", file.path())?;
        for (name, value) in pairs {
            settings.set(name, value)?;
        }
        settings
            .jaccl_start()
            .map_err(|e| Error { message: e.message.replace(file.path(), "FILE"), ..e })
    }

    const WORLD: [(&str, &str); 2] = [("MLX_RANK", "2"), ("MLX_JACCL_COORDINATOR", "h:7")];

    fn started(text: &str, more: &[(&str, &str)]) -> JacclStart {
        start(text, &[&WORLD[..], more].concat()).unwrap().unwrap()
    }

    #[test]
    fn as_mlx_sets_it() {
        let mesh = started(MESH, &[]);
        assert_eq!((mesh.rank, mesh.size, mesh.topology), (2, 3, Topology::Mesh));
        assert_eq!((mesh.control.rank, mesh.control.size), (2, 3));
        assert!(matches!(mesh.control.meeting, Meeting::Coordinator(a) if a.to_string() == "h:7"));
        assert_eq!(mesh.control.transport, Transport::Tcp);
        assert_eq!((mesh.queue_pair, mesh.gid_index, mesh.port), (None, None, None));
        assert_eq!(mesh.register, Registration::Auto);
        assert_eq!((mesh.service_level, mesh.traffic_class, mesh.pkey_index), (0, 0, 0));
        assert_eq!(mesh.devices.wires(2, 0), ["a"]);
        assert_eq!(started(RING, &[]).topology, Topology::Ring);
    }

    #[test]
    fn jaccl_s_own_names_work_and_come_last() {
        let file = File::new(MESH);
        let mut settings = Settings::default();
        for (name, value) in [
            ("JACCL_IBV_DEVICES", file.path()),
            ("JACCL_COORDINATOR", "h:7"),
            ("JACCL_RANK", "1"),
            ("JACCL_RING", "1"),
        ] {
            settings.set(name, value).unwrap();
        }
        let own = settings.jaccl_start().unwrap().unwrap();
        assert_eq!((own.rank, own.topology), (1, Topology::Ring));
        for (name, rank) in [("MLX_RANK", "0"), ("MLXD_RANK", "2")] {
            settings.set(name, rank).unwrap();
            let start = settings.jaccl_start().unwrap().unwrap();
            assert_eq!(start.rank.to_string(), rank);
        }
        settings.set("MLX_JACCL_COORDINATOR", "first:9").unwrap();
        let start = settings.jaccl_start().unwrap().unwrap();
        assert!(matches!(start.control.meeting, Meeting::Coordinator(a) if a.host == "first"));
        settings.set("MLX_IBV_DEVICES", "/no/such/file").unwrap();
        let error = settings.jaccl_start().unwrap_err().message;
        assert!(
            error.contains("MLX_IBV_DEVICES (\"/no/such/file\"): cannot read the file"),
            "{error}"
        );
    }

    #[test]
    fn the_ring_is_preferred_by_anything_but_0() {
        for (value, topology) in [
            ("", Topology::Mesh),
            ("0", Topology::Mesh),
            ("1", Topology::Ring),
            ("yes", Topology::Ring),
        ] {
            assert_eq!(started(MESH, &[("MLX_JACCL_RING", value)]).topology, topology, "{value:?}");
        }
    }

    #[test]
    fn what_is_asked_of_verbs_is_read() {
        let asked = started(
            MESH,
            &[
                ("MLXD_RDMA_QP", "uc"),
                ("MLXD_RDMA_GID_INDEX", "0"),
                ("MLXD_RDMA_PORT", "2"),
                ("MLXD_RDMA_REGISTER", "never"),
                ("MLXD_RDMA_SERVICE_LEVEL", "3"),
                ("MLXD_RDMA_TRAFFIC_CLASS", "4"),
                ("MLXD_RDMA_PKEY_INDEX", "5"),
            ],
        );
        assert_eq!(
            (asked.queue_pair, asked.gid_index, asked.port, asked.register),
            (Some(QueuePairType::Uc), Some(0), Some(2), Registration::Never)
        );
        assert_eq!((asked.service_level, asked.traffic_class, asked.pkey_index), (3, 4, 5));
    }

    #[test]
    fn a_world_of_one_needs_neither_rank_nor_coordinator() {
        let alone = start("[[null]]", &[]).unwrap().unwrap();
        assert_eq!((alone.rank, alone.size), (0, 1));
    }

    unsafe extern "C" fn refuse(
        _: *mut std::ffi::c_void,
        _: *const std::ffi::c_void,
        _: *mut std::ffi::c_void,
        _: usize,
    ) -> i32 {
        1
    }

    #[test]
    fn a_caller_s_all_gather_stands_in_for_the_coordinator() {
        let file = File::new(MESH);
        let mut settings = Settings::default();
        settings.set("MLX_IBV_DEVICES", file.path()).unwrap();
        settings.set("MLX_RANK", "0").unwrap();
        let user_data = std::ptr::null_mut();
        settings.set_all_gather(super::super::AllGather { function: refuse, user_data });
        let start = settings.jaccl_start().unwrap().unwrap();
        assert!(matches!(start.control.meeting, Meeting::AllGather(_)));
    }

    #[test]
    fn nothing_to_start_from_is_no_error() {
        assert!(Settings::default().jaccl_start().unwrap().is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (pairs, why) in [
            (&WORLD[1..], "MLX_RANK is not set, but MLX_IBV_DEVICES (\"FILE\") has 3 ranks"),
            (&WORLD[..1], "MLX_JACCL_COORDINATOR is not set"),
            (
                &[WORLD[1], ("MLX_RANK", "3")],
                "MLX_RANK=\"3\" is out of range: ranks go from 0 to 2",
            ),
            (&[WORLD[1], ("MLX_RANK", "one")], "MLX_RANK=\"one\" is not a rank"),
            (
                &[WORLD[0], ("MLX_JACCL_COORDINATOR", "h")],
                "MLX_JACCL_COORDINATOR: \"h\" has no port",
            ),
            (
                &[WORLD[0], ("JACCL_COORDINATOR", "h:0")],
                "JACCL_COORDINATOR: \"h:0\" has no port between",
            ),
            (&[WORLD[0], WORLD[1], ("MLXD_RDMA_QP", "ud")], "MLXD_RDMA_QP=\"ud\" is not rc or uc"),
        ] {
            let error = start(MESH, pairs).unwrap_err();
            assert_eq!(error.status, Status::Config);
            assert!(error.message.contains(why), "{pairs:?}: {error}");
        }
        let error = start(r#"[[null, "a"], [null, null]]"#, &WORLD).unwrap_err().message;
        let why = "MLX_IBV_DEVICES (\"FILE\"): neither a mesh nor a ring: row 1, column 0 is null";
        assert!(error.contains(why), "{error}");
        let error = start("[[null, 1]", &WORLD).unwrap_err().message;
        assert!(error.contains("MLX_IBV_DEVICES (\"FILE\"): not JSON"), "{error}");
    }

    #[test]
    fn a_coordinator_alone_is_half_a_start() {
        let mut settings = Settings::default();
        settings.set("MLX_JACCL_COORDINATOR", "h:7").unwrap();
        let error = settings.jaccl_start().unwrap_err().message;
        assert!(error.contains("is set, but MLX_IBV_DEVICES is not"), "{error}");
    }
}
