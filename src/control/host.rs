//! Which ranks share a host, and so memory: what each says of its place, and what follows from that.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cores;
use super::handshake;
use super::wording::ranks;
use crate::error::{Result, fail};

/// Most hosts that one sentence names.
const NAMED: usize = 8;

/// Where a rank is, made anew for each start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The same on ranks that run on one kernel, and so on the same cores.
    pub machine: String,
    /// The same on ranks that can hand each other descriptors.
    pub host: String,
    /// Its mailbox's name; `None` for a rank that takes no shared memory.
    pub door: Option<String>,
    /// The cores that it may use, see [`cores`].
    pub cores: String,
}

impl Place {
    /// This process's. A descriptor travels over an abstract Unix socket, whose name counts in one
    /// network namespace only: ranks in different ones are on different hosts.
    pub fn here(host_id: Option<&str>, door: Option<String>) -> Result<Place> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let network = std::fs::read_link("/proc/self/ns/net");
        // What cannot be known matches nobody else's.
        let machine =
            boot.map_or_else(|_| handshake::nonce_text(), |id| Ok(id.trim().to_owned()))?;
        let host = match (host_id, network.as_deref().map(Path::display)) {
            (Some(name), _) => name.to_owned(),
            (None, Ok(network)) => format!("{machine} {network}"),
            (None, Err(_)) => handshake::nonce_text()?,
        };
        Ok(Place { machine, host, door, cores: cores::here() })
    }
}

impl Place {
    /// That of a rank that does not take part.
    pub fn nowhere() -> Place {
        let (machine, host) = (String::new(), String::new());
        Place { machine, host, door: None, cores: String::new() }
    }
}

/// Per rank the number of its host, in the order of the hosts' lowest ranks. Where a rank does not
/// share (`shares`, per rank), each rank of its host counts as a host of its own.
pub fn number(places: &[Place], shares: impl Fn(usize) -> bool) -> Vec<u32> {
    let alone = places.iter().enumerate().filter(|(rank, _)| !shares(*rank));
    let dissolved: HashSet<&str> = alone.map(|(_, place)| &*place.host).collect();
    let mut known: HashMap<&str, u32> = HashMap::new();
    let mut next = 0..;
    let mut mint = || next.next().unwrap_or(u32::MAX);
    let number = |place| {
        let Place { host, .. }: &Place = place;
        match dissolved.contains(&**host) {
            true => mint(),
            false => *known.entry(host).or_insert_with(&mut mint),
        }
    };
    places.iter().map(number).collect()
}

/// Whether each rank of this rank's machine has a core of its own.
pub fn has_core_each(places: &[Place], rank: usize) -> bool {
    let own = &places[rank];
    let here = places.iter().filter(|place| place.machine == own.machine);
    let lists: Vec<&str> = here.map(|place| place.cores.as_str()).collect();
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    cores::suffice(&lists, &own.cores, available)
}

/// Fails unless all ranks are on one host and can be handed shared memory.
pub fn require_one(places: &[Place]) -> Result<()> {
    let mut hosts: Vec<(&str, Vec<usize>)> = Vec::new();
    for (rank, place) in places.iter().enumerate() {
        match hosts.iter_mut().find(|(name, _)| *name == place.host) {
            Some((_, here)) => here.push(rank),
            None => hosts.push((&place.host, vec![rank])),
        }
    }
    if hosts.len() > 1 {
        let mut parts: Vec<String> = hosts
            .iter()
            .take(NAMED)
            .map(|(name, here)| {
                let verb = if here.len() == 1 { "is" } else { "are" };
                format!("{} {verb} on host {name:?}", ranks(here))
            })
            .collect();
        if hosts.len() > NAMED {
            parts.push(format!("others on {} more", hosts.len() - NAMED));
        }
        let last = parts.pop().unwrap_or_default();
        let all = format!("{} and {last}", parts.join(", "));
        fail!(Config, "MLXD_TRANSPORT=shm needs all ranks on one host, but {all}; use auto or tcp");
    }
    let closed = |rank: &usize| places[*rank].door.is_none();
    let closed: Vec<usize> = (0..places.len()).filter(closed).collect();
    if !closed.is_empty() {
        let who = ranks(&closed);
        fail!(Config, "MLXD_TRANSPORT=shm: {who} cannot listen at a Unix socket; use auto or tcp");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(hosts: &[&str]) -> Vec<Place> {
        let place = |host: &&str| Place {
            machine: "m".to_owned(),
            host: (*host).to_owned(),
            door: Some("d".to_owned()),
            cores: String::new(),
        };
        hosts.iter().map(place).collect()
    }

    #[test]
    fn hosts_are_numbered_by_their_lowest_ranks() {
        let all = |_| true;
        assert_eq!(number(&places(&["b", "a", "b", "c", "a"]), all), [0, 1, 0, 2, 1]);
        assert_eq!(number(&places(&["a"; 3]), all), [0, 0, 0]);
        assert_eq!(number(&[], all), [0u32; 0]);
    }

    #[test]
    fn a_host_where_one_cannot_share_is_dissolved() {
        let places = places(&["b", "a", "b", "c", "a"]);
        assert_eq!(number(&places, |rank| rank != 2), [0, 1, 2, 3, 1]);
        assert_eq!(number(&places, |rank| rank != 1), [0, 1, 0, 2, 3]);
        assert_eq!(number(&places, |rank| rank != 3), [0, 1, 0, 2, 1]);
        assert_eq!(number(&places, |_| false), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn only_ranks_of_the_own_machine_need_its_cores() {
        let cores = std::thread::available_parallelism().unwrap().get();
        let mut places = places(&["a"; 2]);
        places.iter_mut().for_each(|place| place.cores = "0".to_owned());
        assert!(!has_core_each(&places, 0) && !has_core_each(&places, 1));
        places[1].machine = "other".to_owned();
        assert!(has_core_each(&places, 0) && has_core_each(&places, 1));
        places[0].cores = format!("0-{cores}");
        places[1] = places[0].clone();
        // A list that names more cores than this thread may keep busy is limited to those.
        assert_eq!(has_core_each(&places, 0), cores >= 2);
    }

    #[test]
    fn several_hosts_are_named() {
        assert_eq!(require_one(&places(&["a"; 3])), Ok(()));
        let said = |hosts: &[&str]| require_one(&places(hosts)).unwrap_err().message;
        assert_eq!(
            said(&["a", "a", "b", "b"]),
            "MLXD_TRANSPORT=shm needs all ranks on one host, but ranks 0, 1 are on host \"a\" and \
             ranks 2, 3 are on host \"b\"; use auto or tcp"
        );
        let three = said(&["a", "b", "c"]);
        assert!(three.contains("\"a\", rank 1 is on host \"b\" and rank 2 is on"), "{three}");
        let many: Vec<String> = (0..11).map(|host| host.to_string()).collect();
        let many = said(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(many.contains("on host \"7\" and others on 3 more;"), "{many}");
        let mut closed = places(&["a"; 3]);
        closed[2].door = None;
        assert!(require_one(&closed).unwrap_err().message.contains("rank 2 cannot listen"));
    }

    #[test]
    fn a_place_is_the_same_for_all_of_a_host() {
        let here = |id| Place::here(id, None).unwrap();
        assert_eq!(here(None), here(None));
        assert_eq!(here(Some("a")).machine, here(None).machine);
        assert_eq!(here(Some("a")).host, "a");
        assert_ne!(here(None).host, here(None).machine);
    }
}
