//! What the ring backend starts from: this rank, the size of the world, and where the ranks meet.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{Address, AllGather, Found, Hostfile, Settings, Source, named, parse};
use crate::error::{Result, fail};

/// Where the ranks meet.
#[derive(Clone, Debug)]
pub enum Meeting {
    /// Every rank listens at its own addresses, known to all.
    Hostfile(Vec<Vec<Address>>),
    /// Every rank comes to rank 0, which listens here.
    Coordinator(Address),
    /// As with a coordinator, whose address rank 0 hands out through the caller's all-gather.
    AllGather(AllGather),
}

/// How ranks of one host reach each other; those of several use TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// By shared memory where they can have some, else by TCP.
    #[default]
    Auto,
    /// By TCP.
    Tcp,
    /// By shared memory: all ranks are on one host, or there is no world.
    Shm,
}

impl FromStr for Transport {
    type Err = ();

    fn from_str(name: &str) -> std::result::Result<Transport, ()> {
        named([Transport::Auto, Transport::Tcp, Transport::Shm], name)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Auto => "auto",
            Transport::Tcp => "tcp",
            Transport::Shm => "shm",
        })
    }
}

/// All that a rank needs to know to start.
#[derive(Clone, Debug)]
pub struct RingStart {
    /// This process's rank.
    pub rank: usize,
    /// Ranks in the world.
    pub size: usize,
    /// Where they meet; not used by a world of one.
    pub meeting: Meeting,
    /// What the world is for; the same on all ranks.
    pub backend: &'static str,
    /// Settings of the backend's own that must be the same on all ranks, as `name=value`.
    pub agreed: Vec<String>,
    /// Where to listen, if not at the address given for this rank.
    pub bind: Option<String>,
    /// How it reaches ranks of its host; the same on all ranks.
    pub transport: Transport,
    /// What its host is called, if the caller knows better than the system.
    pub host_id: Option<String>,
    /// Whether what goes over TCP carries checksums; the same on all ranks.
    pub checksums: bool,
    /// What peers must know.
    pub secret: Option<String>,
    /// How long the whole start may take.
    pub connect_timeout: Option<Duration>,
    /// How long a peer may stay silent.
    pub peer_timeout: Option<Duration>,
}

const RANKS: &[&str] = &["MLXD_RANK", "MLX_RANK", "RANK"];

impl Settings {
    /// What to start the ring from; `None` if there is nothing.
    pub fn ring_start(&self) -> Result<Option<RingStart>> {
        let Some((rank, size, meeting)) = self.ring_meeting()? else {
            return Ok(None);
        };
        let transport = match self.find(&["MLXD_TRANSPORT"]) {
            Some(found) => parse::<Transport>(&found, "auto, tcp or shm")?,
            None => Transport::default(),
        };
        Ok(Some(RingStart {
            rank,
            size,
            meeting,
            backend: "ring",
            agreed: Vec::new(),
            bind: self.text("MLXD_BIND"),
            transport,
            checksums: self.switch("MLXD_CHECKSUM")?,
            host_id: self.text("MLXD_HOST_ID"),
            secret: self.secret(),
            connect_timeout: self.connect_timeout()?,
            peer_timeout: self.peer_timeout()?,
        }))
    }

    /// The first source that is there: options before the environment, and in each MLXD's names,
    /// then MLX's, then torchrun's.
    fn ring_meeting(&self) -> Result<Option<(usize, usize, Meeting)>> {
        if let Some(all_gather) = self.all_gather {
            let (rank, size) = self.rank_and_size("the all-gather function")?;
            return Ok(Some((rank, size, Meeting::AllGather(all_gather))));
        }
        for source in [Source::Options, Source::Environment] {
            if let Some(start) = self.coordinator_meeting(source)? {
                return Ok(Some(start));
            }
            if let Some(found) = self.look_up(source, "MLX_HOSTFILE") {
                return self.hostfile_meeting(&found).map(Some);
            }
            if let Some(start) = self.torchrun_meeting(source)? {
                return Ok(Some(start));
            }
        }
        Ok(None)
    }

    /// What to set for a start, in one sentence.
    pub fn ring_start_missing() -> &'static str {
        "there is nothing to start a ring from: set MLX_HOSTFILE and MLX_RANK; or \
         MLXD_COORDINATOR, MLXD_WORLD_SIZE and MLXD_RANK; or MASTER_ADDR, MASTER_PORT, RANK and \
         WORLD_SIZE (mlxd-launch, mlx.launch and torchrun do so)"
    }

    fn hostfile_meeting(&self, found: &Found) -> Result<(usize, usize, Meeting)> {
        let Hostfile(hosts) = Hostfile::read(&found.value)?;
        let size = hosts.len().max(1);
        let Some(rank) = self.find(RANKS) else {
            if size == 1 {
                return Ok((0, 1, Meeting::Hostfile(hosts)));
            }
            fail!(Config, "MLX_RANK is not set, but the hostfile {found} has {size} ranks");
        };
        let rank = rank_within(&rank, size, &format!("the hostfile {:?}", found.value))?;
        Ok((rank, size, Meeting::Hostfile(hosts)))
    }

    pub(super) fn coordinator_meeting(
        &self,
        source: Source,
    ) -> Result<Option<(usize, usize, Meeting)>> {
        let Some(found) = self.look_up(source, "MLXD_COORDINATOR") else { return Ok(None) };
        let (rank, size) = self.rank_and_size("MLXD_COORDINATOR")?;
        match found.value.parse::<Address>() {
            Ok(address) => Ok(Some((rank, size, Meeting::Coordinator(address)))),
            Err(e) => Err(e.at("MLXD_COORDINATOR")),
        }
    }

    pub(super) fn rank_and_size(&self, beside: &str) -> Result<(usize, usize)> {
        let Some(size) = self.find(&["MLXD_WORLD_SIZE", "MLX_WORLD_SIZE", "WORLD_SIZE"]) else {
            fail!(Config, "MLXD_WORLD_SIZE is not set; {beside} needs it and MLXD_RANK");
        };
        let ranks = ["MLXD_RANK", "MLX_RANK", "RANK", "JOB_COMPLETION_INDEX"];
        let Some(rank) = self.find(&ranks) else {
            fail!(Config, "MLXD_RANK is not set; {beside} needs it and MLXD_WORLD_SIZE");
        };
        within(&rank, &size)
    }

    pub(super) fn torchrun_meeting(
        &self,
        source: Source,
    ) -> Result<Option<(usize, usize, Meeting)>> {
        let all = ["MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"].map(|n| self.find(&[n]));
        let [Some(host), Some(port), Some(rank), Some(size)] = all else {
            return Ok(None);
        };
        if self.look_up(source, "MASTER_ADDR").is_none() {
            return Ok(None);
        }
        let (rank, size) = within(&rank, &size)?;
        let port = parse::<u16>(&port, "a port")?;
        // torchrun's own store listens at the port itself; the next one is the workers'.
        let shared = self.text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True");
        let port = if shared { port.checked_add(1) } else { Some(port) };
        let Some(port) = port.filter(|port| *port > 0) else {
            fail!(Config, "MASTER_PORT leaves no port between 1 and 65535 to meet at");
        };
        Ok(Some((rank, size, Meeting::Coordinator(Address::new(host.value, port)))))
    }
}

fn within(rank: &Found, size: &Found) -> Result<(usize, usize)> {
    let ranks = parse::<usize>(size, "a number of ranks, 1 or more")?;
    // Ranks travel as 32-bit numbers.
    if ranks == 0 || i32::try_from(ranks).is_err() {
        fail!(Config, "{size} is not a number of ranks, 1 or more");
    }
    Ok((rank_within(rank, ranks, &size.to_string())?, ranks))
}

pub(super) fn rank_within(rank: &Found, size: usize, world: &str) -> Result<usize> {
    let number = parse::<usize>(rank, "a rank, 0 or more")?;
    if number >= size {
        let last = size - 1;
        fail!(Config, "{rank} is out of range: ranks go from 0 to {last} ({world} has {size})");
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::default();
        for (name, value) in pairs {
            settings.set(name, value).unwrap();
        }
        settings
    }

    #[test]
    fn coordinator_variables() {
        let start = settings(&[
            ("MLXD_COORDINATOR", "10.0.0.1:5000"),
            ("MLXD_WORLD_SIZE", "4"),
            ("MLXD_RANK", "3"),
        ]);
        let start = start.ring_start().unwrap().unwrap();
        assert_eq!((start.rank, start.size), (3, 4));
        assert!(
            matches!(start.meeting, Meeting::Coordinator(a) if a.to_string() == "10.0.0.1:5000")
        );
    }

    #[test]
    fn torchrun_variables() {
        let mut pairs = vec![
            ("MASTER_ADDR", "node"),
            ("MASTER_PORT", "29500"),
            ("RANK", "1"),
            ("WORLD_SIZE", "2"),
        ];
        let port = |pairs: &[(&str, &str)]| match settings(pairs).ring_start().unwrap().unwrap() {
            RingStart { meeting: Meeting::Coordinator(a), .. } => a.port,
            other => panic!("{other:?}"),
        };
        assert_eq!(port(&pairs), 29500);
        pairs.push(("TORCHELASTIC_USE_AGENT_STORE", "True"));
        assert_eq!(port(&pairs), 29501);
    }

    #[test]
    fn transports_and_host_names() {
        let world = [("MLXD_COORDINATOR", "h:1"), ("MLXD_WORLD_SIZE", "2"), ("MLXD_RANK", "1")];
        let start = |more: &[(&str, &str)]| settings(&[&world, more].concat()).ring_start();
        let plain = start(&[]).unwrap().unwrap();
        assert_eq!((plain.transport, plain.host_id), (Transport::Auto, None));
        for (name, transport) in
            [("auto", Transport::Auto), ("tcp", Transport::Tcp), ("shm", Transport::Shm)]
        {
            let named = start(&[("MLXD_TRANSPORT", name)]).unwrap().unwrap();
            assert_eq!((named.transport, named.transport.to_string()), (transport, name.into()));
        }
        let elsewhere = start(&[("MLXD_HOST_ID", "pod 7")]).unwrap().unwrap();
        assert_eq!(elsewhere.host_id.as_deref(), Some("pod 7"));
        let error = start(&[("MLXD_TRANSPORT", "SHM")]).unwrap_err();
        assert_eq!(error.status, Status::Config);
        assert!(
            error.message.contains("MLXD_TRANSPORT=\"SHM\" is not auto, tcp or shm"),
            "{error}"
        );
    }

    #[test]
    fn checksums_are_on_or_off() {
        let world = [("MLXD_COORDINATOR", "h:1"), ("MLXD_WORLD_SIZE", "2"), ("MLXD_RANK", "1")];
        let start =
            |value| settings(&[&world[..], &[("MLXD_CHECKSUM", value)]].concat()).ring_start();
        for (value, on) in [("", false), ("0", false), ("1", true)] {
            assert_eq!(start(value).unwrap().unwrap().checksums, on, "{value:?}");
        }
        let error = start("yes").unwrap_err();
        assert_eq!(error.status, Status::Config);
        assert!(error.message.contains("MLXD_CHECKSUM=\"yes\" is not 1 or 0"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (pairs, why) in [
            (&[("MLXD_COORDINATOR", "h:1"), ("MLXD_WORLD_SIZE", "2")][..], "MLXD_RANK is not set"),
            (&[("MLXD_COORDINATOR", "h:1"), ("MLXD_RANK", "0")][..], "MLXD_WORLD_SIZE is not set"),
            (
                &[("MLXD_COORDINATOR", "h"), ("MLXD_WORLD_SIZE", "2"), ("MLXD_RANK", "0")][..],
                "MLXD_COORDINATOR: \"h\" has no port",
            ),
            (
                &[("MLXD_COORDINATOR", "h:1"), ("MLXD_WORLD_SIZE", "2"), ("MLXD_RANK", "2")][..],
                "MLXD_RANK=\"2\" is out of range: ranks go from 0 to 1",
            ),
            (
                &[("MLXD_COORDINATOR", "h:1"), ("MLXD_WORLD_SIZE", "0"), ("MLXD_RANK", "0")][..],
                "not a number of ranks",
            ),
            (
                &[("MLXD_COORDINATOR", "h:1"), ("MLXD_WORLD_SIZE", "2"), ("MLXD_RANK", "-1")][..],
                "MLXD_RANK=\"-1\" is not a rank",
            ),
            (&[("MLX_HOSTFILE", "/no/such"), ("MLX_RANK", "0")][..], "/no/such"),
        ] {
            let error = settings(pairs).ring_start().unwrap_err();
            assert_eq!(error.status, Status::Config);
            assert!(error.message.contains(why), "{error}");
        }
    }
}
