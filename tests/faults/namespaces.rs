//! Networks of the test's own, whose cables can be pulled: namespaces with a bridge between them.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::matrix::Transport;

/// What the network's names have in them beside this process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Whether this process may make network namespaces; else why not.
pub fn available() -> Result<(), String> {
    let name = format!("mlxd-{}-probe", std::process::id());
    ip(&format!("netns add {name}"))?;
    // To enter one takes more rights than to make one.
    let entered = ip(&format!("-n {name} link set lo up"));
    ip(&format!("netns del {name}"))?;
    entered
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.map_err(|e| format!("ip (of iproute2): {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// The namespaces of one world's ranks, each a host.
pub struct Network {
    /// Host names; removed at the end.
    hosts: Vec<String>,
    /// Where the bridge is.
    switch: String,
    /// Per rank its host.
    host_of: Vec<usize>,
    /// Whose cable is pulled.
    victim: usize,
}

impl Network {
    /// `Shm` is one host with all ranks, `Tcp` a host for each, `Mixed` one for the victim and one for
    /// the others.
    pub fn new(transport: Transport, victim: usize) -> Result<Network, String> {
        let ranks = 0..4;
        let host_of: Vec<usize> = match transport {
            Transport::Shm => ranks.map(|_| 0).collect(),
            Transport::Tcp => ranks.collect(),
            Transport::Mixed => ranks.map(|rank| usize::from(rank == victim)).collect(),
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |part: String| format!("mlxd-{}-{number}-{part}", std::process::id());
        let hosts = (0..=host_of.iter().copied().max().unwrap_or(0)).map(|h| name(h.to_string()));
        // Removed by its drop, however far it is made.
        let network =
            Network { hosts: hosts.collect(), switch: name("switch".into()), host_of, victim };
        let switch = &network.switch;
        ip(&format!("netns add {switch}"))?;
        ip(&format!("-n {switch} link add bridge type bridge"))?;
        ip(&format!("-n {switch} link set bridge up"))?;
        for (number, host) in network.hosts.iter().enumerate() {
            ip(&format!("netns add {host}"))?;
            ip(&format!("-n {host} link set lo up"))?;
            ip(&format!("-n {switch} link add port{number} type veth peer name eth netns {host}"))?;
            ip(&format!("-n {switch} link set port{number} master bridge up"))?;
            ip(&format!("-n {host} addr add {}/24 dev eth", network.host_address(number)))?;
            ip(&format!("-n {host} link set eth up"))?;
        }
        Ok(network)
    }

    fn host_address(&self, host: usize) -> &'static str {
        ["10.77.0.1", "10.77.0.2", "10.77.0.3", "10.77.0.4"][host]
    }

    /// Where a rank is reached.
    pub fn address(&self, rank: usize) -> &'static str {
        match self.hosts.len() {
            1 => "127.0.0.1",
            _ => self.host_address(self.host_of[rank]),
        }
    }

    /// Where a rank runs.
    pub fn namespace(&self, rank: usize) -> &str {
        &self.hosts[self.host_of[rank]]
    }

    /// Pulls the victim's cable; on a single host, the loopback.
    pub fn cut(&self) -> Result<(), String> {
        match self.hosts.len() {
            1 => ip(&format!("-n {} link set lo down", self.hosts[0])),
            _ => ip(&format!("-n {} link set port{} down", self.switch, self.host_of[self.victim])),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.hosts.iter().chain([&self.switch]) {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}
