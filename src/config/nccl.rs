//! What the nccl backend starts from: the ranks and where they meet, as MLX tells it or otherwise, and the
//! library.

use std::time::Duration;

use super::{Address, Meeting, RingStart, Settings, Source, Transport, parse};
use crate::error::{Result, fail};

/// What to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NcclLibrary {
    /// The library's file, if it was named.
    pub file: Option<String>,
}

/// All that a rank needs to know to start.
#[derive(Clone, Debug)]
pub struct NcclStart {
    /// The world's control plane.
    pub world: RingStart,
    /// This rank's number on its machine, if the launcher tells.
    pub local_rank: Option<usize>,
    /// Whether ranks compare their calls.
    pub check: bool,
}

/// 5 minutes, as MLX: the start of a GPU program may take long on some ranks.
const CONNECT_TIMEOUT: u64 = 300_000;

impl Settings {
    /// Which NCCL to open.
    pub fn nccl_library(&self) -> NcclLibrary {
        NcclLibrary { file: self.text("MLXD_NCCL_LIBNAME") }
    }

    /// Whether MLX's variables for nccl are there.
    pub fn is_for_nccl(&self) -> bool {
        self.find(&["NCCL_HOST_IP"]).is_some() && self.find(&["NCCL_PORT"]).is_some()
    }

    /// What to start nccl from; `None` if there is nothing.
    pub fn nccl_start(&self) -> Result<Option<NcclStart>> {
        let Some((rank, size, meeting)) = self.nccl_meeting()? else {
            return Ok(None);
        };
        if let Some(found) = self.variable("NCCL_COMM_ID") {
            fail!(Config, "{found} gives every communicator of NCCL's the same id: unset it");
        }
        let local_rank = match self.variable("LOCAL_RANK") {
            Some(found) => Some(parse::<usize>(&found, "a rank, 0 or more")?),
            None => None,
        };
        let check = self.text("MLXD_CHECK").is_some_and(|value| value != "0");
        let agreed = format!("check={}", if check { "on" } else { "off" });
        let world = RingStart {
            rank,
            size,
            meeting,
            backend: "nccl",
            agreed: vec![agreed],
            bind: self.text("MLXD_BIND"),
            // Data goes through NCCL, which knows by itself what ranks share.
            transport: Transport::Tcp,
            checksums: false,
            host_id: self.text("MLXD_HOST_ID"),
            secret: self.secret(),
            connect_timeout: self.nccl_connect_timeout()?,
            peer_timeout: self.peer_timeout()?,
        };
        Ok(Some(NcclStart { world, local_rank, check }))
    }

    fn nccl_connect_timeout(&self) -> Result<Option<Duration>> {
        match self.find(&["MLXD_CONNECT_TIMEOUT_MS"]) {
            Some(_) => self.connect_timeout(),
            None => self.milliseconds("MLX_NCCL_TIMEOUT", CONNECT_TIMEOUT),
        }
    }

    /// The first source that is there: options before the environment, and in each MLXD's names, then
    /// MLX's, then torchrun's.
    fn nccl_meeting(&self) -> Result<Option<(usize, usize, Meeting)>> {
        if let Some(all_gather) = self.all_gather {
            let (rank, size) = self.rank_and_size("the all-gather function")?;
            return Ok(Some((rank, size, Meeting::AllGather(all_gather))));
        }
        for source in [Source::Options, Source::Environment] {
            if let Some(found) = self.coordinator_meeting(source)? {
                return Ok(Some(found));
            }
            if let Some(found) = self.look_up(source, "NCCL_HOST_IP") {
                let (rank, size) = self.rank_and_size("NCCL_HOST_IP")?;
                let Some(port) = self.find(&["NCCL_PORT"]) else {
                    fail!(Config, "NCCL_PORT is not set; {found} needs it");
                };
                let port = match parse::<u16>(&port, "a port, 1 to 65535")? {
                    0 => fail!(Config, "{port} is not a port, 1 to 65535"),
                    port => port,
                };
                let address = Address::new(found.value, port);
                return Ok(Some((rank, size, Meeting::Coordinator(address))));
            }
            if let Some(start) = self.torchrun_meeting(source)? {
                return Ok(Some(start));
            }
        }
        Ok(None)
    }

    /// What to set for a start, in one sentence.
    pub fn nccl_start_missing() -> &'static str {
        "there is nothing to start nccl from: set NCCL_HOST_IP, NCCL_PORT, MLX_WORLD_SIZE and MLX_RANK; or \
         MLXD_COORDINATOR, MLXD_WORLD_SIZE and MLXD_RANK; or MASTER_ADDR, MASTER_PORT, RANK and \
         WORLD_SIZE (mlx.launch and torchrun do so)"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::default();
        pairs.iter().for_each(|(name, value)| settings.set(name, value).unwrap());
        settings
    }

    const MLX: [(&str, &str); 4] = [
        ("NCCL_HOST_IP", "10.0.0.1"),
        ("NCCL_PORT", "12345"),
        ("MLX_WORLD_SIZE", "4"),
        ("MLX_RANK", "3"),
    ];

    #[test]
    fn mlx_variables() {
        let start = settings(&MLX).nccl_start().unwrap().unwrap().world;
        assert_eq!((start.rank, start.size, start.backend), (3, 4, "nccl"));
        assert_eq!(start.connect_timeout, Some(Duration::from_secs(300)));
        assert!(
            matches!(start.meeting, Meeting::Coordinator(a) if a.to_string() == "10.0.0.1:12345")
        );
        assert!(settings(&MLX).is_for_nccl());
        assert!(!settings(&MLX[1..]).is_for_nccl());
    }

    #[test]
    fn mlxd_comes_before_mlx_before_torchrun() {
        let torchrun = [("MASTER_ADDR", "node"), ("MASTER_PORT", "29500")];
        let more = [("RANK", "1"), ("WORLD_SIZE", "2")];
        let at = |pairs: &[&[(&str, &str)]]| match settings(&pairs.concat())
            .nccl_start()
            .unwrap()
            .unwrap()
            .world
            .meeting
        {
            Meeting::Coordinator(address) => address.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(at(&[&torchrun, &more]), "node:29500");
        assert_eq!(at(&[&torchrun, &more, &MLX]), "10.0.0.1:12345");
        assert_eq!(at(&[&torchrun, &MLX, &[("MLXD_COORDINATOR", "h:1")]]), "h:1");
    }

    #[test]
    fn the_start_has_mlx_limit_unless_ours_is_set() {
        let limit = |pairs: &[(&str, &str)]| {
            let all = [&MLX, pairs].concat();
            settings(&all).nccl_start().unwrap().unwrap().world.connect_timeout
        };
        assert_eq!(limit(&[("MLX_NCCL_TIMEOUT", "1500")]), Some(Duration::from_millis(1500)));
        let both = [("MLX_NCCL_TIMEOUT", "1500"), ("MLXD_CONNECT_TIMEOUT_MS", "70")];
        assert_eq!(limit(&both), Some(Duration::from_millis(70)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(settings(&[]).nccl_start().unwrap().is_none());
        let port = |value| ("NCCL_PORT", value);
        for (pairs, why) in [
            (&[MLX[0], MLX[2], MLX[3]][..], "NCCL_PORT is not set"),
            (&[MLX[0], MLX[1], MLX[2]][..], "MLXD_RANK is not set; NCCL_HOST_IP needs it"),
            (&[MLX[0], port("0"), MLX[2], MLX[3]][..], "NCCL_PORT=\"0\" is not a port"),
            (&[MLX[0], port("70000"), MLX[2], MLX[3]][..], "NCCL_PORT=\"70000\" is not a port"),
            (&[MLX[0], MLX[1], MLX[2], ("MLX_RANK", "4")][..], "is out of range"),
        ] {
            let error = settings(pairs).nccl_start().unwrap_err();
            assert_eq!(error.status, Status::Config);
            assert!(error.message.contains(why), "{error}");
        }
    }
}
