//! A device, opened, and the port of it that is used.

use std::ffi::{CStr, c_int};
use std::path::Path;
use std::ptr::NonNull;

use super::abi::*;
use super::address::{AddressKind, GidEntry, PortAddress, choose_gid, gid_kind, is_own_address};
use super::functions::Functions;
use super::lending::lender::Lender;
use super::library::forks_need_nothing;
use super::open;
use super::partition::{PartitionKey, choose_partition};
use crate::error::{Error, Result, Status, fail};
use crate::per_process::PerProcess;

/// Where the kernel lists the devices that programs may use.
const LISTED: &str = "/sys/class/infiniband_verbs";

/// What the user wants of a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// The port; else the first that is active.
    pub port: Option<u8>,
    /// The place of its address in the table of GIDs; else the best.
    pub gid_index: Option<u32>,
    /// The place of its partition in the table of keys.
    pub pkey_index: u16,
    /// How what is sent is marked.
    pub marks: Marks,
}

/// How what is sent is marked, for the network on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The service level.
    pub service_level: u8,
    /// The traffic class, where packets have a global header.
    pub traffic_class: u8,
}

/// The devices of this host, as libibverbs returns them.
struct List {
    functions: &'static Functions,
    first: *mut *mut ibv_device,
    count: usize,
}

impl List {
    fn get() -> Result<List> {
        let functions = open()?;
        // Where there is none, libibverbs would look for drivers, and complain of some on stderr.
        let there = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name() != "abi_version")
        };
        if !std::fs::read_dir(Path::new(LISTED)).is_ok_and(|mut all| all.any(there)) {
            return Ok(List { functions, first: std::ptr::null_mut(), count: 0 });
        }
        let mut count: c_int = 0;
        // SAFETY: the count is written to an int of ours.
        let first = unsafe { (functions.get_device_list)(&mut count) };
        if first.is_null() {
            let e = std::io::Error::last_os_error();
            // EPERM, ENOSYS: the kernel has no verbs, or does not show them to this process.
            fail!(Unavailable, "ibv_get_device_list: {e}");
        }
        Ok(List { functions, first, count: usize::try_from(count).unwrap_or(0) })
    }

    fn devices(&self) -> impl Iterator<Item = (String, *mut ibv_device)> {
        (0..self.count).map(|at| {
            // SAFETY: the list has so many devices, each with a name, until it is freed.
            unsafe {
                let device = *self.first.add(at);
                let name = CStr::from_ptr((self.functions.get_device_name)(device));
                (name.to_string_lossy().into_owned(), device)
            }
        })
    }
}

impl Drop for List {
    fn drop(&mut self) {
        if !self.first.is_null() {
            // SAFETY: what ibv_get_device_list returned, freed once; opened devices outlive it.
            unsafe { (self.functions.free_device_list)(self.first) };
        }
    }
}

/// The names of the devices that are here.
pub fn names() -> Result<Vec<String>> {
    Ok(List::get()?.devices().map(|(name, _)| name).collect())
}

/// Fails unless the library is here and has a device.
pub fn require_any() -> Result<()> {
    if names()?.is_empty() {
        fail!(
            Unavailable,
            "no RDMA device is here (none in {LISTED}): ibv_devices lists those that are; \
             `rdma link add rxe0 type rxe netdev eth0` makes one in software"
        );
    }
    Ok(())
}

/// An opened device with a protection domain, and the port that is used.
pub struct Device {
    /// Its name.
    pub name: String,
    /// The port's number.
    pub port: u8,
    /// How the port is reached.
    pub address: PortAddress,
    /// The place of its GID in the port's table.
    pub gid_index: u8,
    /// The place of its partition in the port's table of keys.
    pub pkey_index: u16,
    /// The key there.
    pub partition: PartitionKey,
    /// How what is sent is marked.
    pub marks: Marks,
    /// How long packets may be, as `enum ibv_mtu` counts.
    pub mtu: u32,
    /// How many requests a queue takes at most.
    pub max_requests: u32,
    /// How many completions a queue takes at most.
    pub max_completions: u32,
    /// Of how many pieces of memory a message may be made.
    pub max_pieces: u32,
    /// How the caller's memory is registered, if it is.
    pub lender: Option<Lender>,
    pub(super) functions: &'static Functions,
    pub(super) context: NonNull<ibv_context>,
    pub(super) pd: NonNull<ibv_pd>,
}

// SAFETY: verbs may be called from any thread; the rest is plain data.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// An opened device without anything in it.
struct Opened {
    functions: &'static Functions,
    context: NonNull<ibv_context>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once, with nothing left in it.
        unsafe { (self.functions.close_device)(self.context.as_ptr()) };
    }
}

impl Device {
    /// Opens the device of this name, at the port that is wanted.
    pub fn open(name: &str, wanted: Wanted) -> Result<Device> {
        let list = List::get()?;
        let Some((_, device)) = list.devices().find(|(other, _)| other == name) else {
            let known: Vec<String> = list.devices().map(|(name, _)| name).collect();
            let here = match known.is_empty() {
                true => "there is none here".to_owned(),
                false => format!("here are {}", known.join(", ")),
            };
            fail!(Config, "there is no RDMA device {name:?}: {here}");
        };
        let functions = list.functions;
        mind_forks(functions)?;
        // SAFETY: a device of a list that is not freed yet.
        let context = NonNull::new(unsafe { (functions.open_device)(device) });
        let Some(context) = context else {
            let e = std::io::Error::last_os_error();
            fail!(
                Unavailable,
                "cannot open the RDMA device {name}: {e} (its file in /dev/infiniband must be \
                 there, readable and writable)"
            );
        };
        let opened = Opened { functions, context };
        opened.into_device(name, wanted).map_err(|e| e.at(format_args!("RDMA device {name}")))
    }
}

impl Opened {
    fn into_device(self, name: &str, wanted: Wanted) -> Result<Device> {
        let facts = self.facts()?;
        let (port, attributes) = self.choose_port(wanted.port, facts.phys_port_cnt)?;
        let entry = self.choose_address(name, port, &attributes, wanted.gid_index)?;
        let Ok(gid_index) = u8::try_from(entry.index) else {
            fail!(Config, "GID {} has no place in a queue pair's address", entry.index);
        };
        let key = |index| self.partition_key(port, index);
        let partition = choose_partition(port, wanted.pkey_index, attributes.pkey_tbl_len, key)?;
        // SAFETY: the context is open.
        let pd = NonNull::new(unsafe { (self.functions.alloc_pd)(self.context.as_ptr()) });
        let Some(pd) = pd else {
            fail!(Backend, "ibv_alloc_pd: {}", std::io::Error::last_os_error());
        };
        let (functions, context) = (self.functions, self.context);
        // The device closes it from now on.
        std::mem::forget(self);
        Ok(Device {
            name: name.to_owned(),
            port,
            address: PortAddress { kind: entry.kind, lid: attributes.lid, gid: entry.gid },
            gid_index,
            pkey_index: wanted.pkey_index,
            partition,
            marks: wanted.marks,
            mtu: attributes.active_mtu,
            max_requests: u32::try_from(facts.max_qp_wr).unwrap_or(0),
            max_completions: u32::try_from(facts.max_cqe).unwrap_or(0),
            max_pieces: u32::try_from(facts.max_sge).unwrap_or(1),
            lender: None,
            functions,
            context,
            pd,
        })
    }

    fn facts(&self) -> Result<ibv_device_attr> {
        // SAFETY: zeros are valid for every field.
        let mut facts: ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, and the facts are written to memory of ours.
        let code = unsafe { (self.functions.query_device)(self.context.as_ptr(), &mut facts) };
        check("ibv_query_device", code)?;
        Ok(facts)
    }

    fn port(&self, port: u8) -> Result<ibv_port_attr> {
        // Older libraries leave the fields that they do not know.
        // SAFETY: zeros are valid for every field.
        let mut attributes: ibv_port_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, and the attributes are written to memory of ours.
        let code =
            unsafe { (self.functions.query_port)(self.context.as_ptr(), port, &mut attributes) };
        check(&format!("ibv_query_port of port {port}"), code)?;
        Ok(attributes)
    }

    /// The port that is wanted, or the first that is active.
    fn choose_port(&self, wanted: Option<u8>, count: u8) -> Result<(u8, ibv_port_attr)> {
        if let Some(port) = wanted
            && !(1..=count).contains(&port)
        {
            fail!(Config, "MLXD_RDMA_PORT={port}: its ports are 1 to {count}");
        }
        let ports: Vec<u8> = wanted.map_or_else(|| (1..=count).collect(), |port| vec![port]);
        let mut states = Vec::new();
        for port in ports {
            let attributes = self.port(port)?;
            if [IBV_PORT_ACTIVE, IBV_PORT_ACTIVE_DEFER].contains(&attributes.state) {
                return Ok((port, attributes));
            }
            states.push(format!("port {port} is {}", port_state(attributes.state)));
        }
        fail!(
            Unavailable,
            "no port can be used: {}; see that the cable is in and its network interface is up",
            states.join(", ")
        )
    }

    fn partition_key(&self, port: u8, index: u16) -> Option<PartitionKey> {
        let mut key = 0;
        // SAFETY: the context is open, and the key is written to memory of ours.
        let code = unsafe {
            (self.functions.query_pkey)(self.context.as_ptr(), port, index.into(), &mut key)
        };
        // It is in the network's order.
        (code == 0).then(|| PartitionKey(u16::from_be(key)))
    }

    fn choose_address(
        &self,
        name: &str,
        port: u8,
        attributes: &ibv_port_attr,
        wanted: Option<u32>,
    ) -> Result<GidEntry> {
        let length = u32::try_from(attributes.gid_tbl_len).unwrap_or(0);
        let entry = |index: u32| -> Option<GidEntry> {
            let mut gid = ibv_gid::default();
            let at = c_int::try_from(index).ok()?;
            // SAFETY: the context is open, and the GID is written to memory of ours.
            let code =
                unsafe { (self.functions.query_gid)(self.context.as_ptr(), port, at, &mut gid) };
            // Most of a long table is empty, and to ask for the kind takes a file's reading.
            (code == 0 && gid != ibv_gid::default()).then(|| GidEntry {
                index,
                gid,
                kind: gid_kind(name, port, index),
            })
        };
        let is_ethernet = attributes.link_layer == IBV_LINK_LAYER_ETHERNET;
        if let Some(index) = wanted {
            let Some(found) = (index < length).then(|| entry(index)).flatten() else {
                let used: Vec<String> =
                    (0..length).filter_map(&entry).map(|e| e.index.to_string()).collect();
                let used = used.join(", ");
                fail!(Config, "MLXD_RDMA_GID_INDEX={index}: port {port} has GIDs at {used}");
            };
            let kind = if is_ethernet { found.kind } else { AddressKind::Global };
            return Ok(GidEntry { kind, ..found });
        }
        if is_ethernet {
            let all: Vec<GidEntry> = (0..length).filter_map(entry).collect();
            let Some(best) = choose_gid(&all, &is_own_address) else {
                fail!(
                    Unavailable,
                    "port {port} has no address: give its network interface an IP address"
                );
            };
            return Ok(best);
        }
        if attributes.lid == 0 {
            fail!(
                Unavailable,
                "port {port} has no LID: see that a subnet manager runs (opensm), or set \
                 MLXD_RDMA_GID_INDEX where it is reached by its GID alone"
            );
        }
        let own = entry(0).unwrap_or(GidEntry {
            index: 0,
            gid: ibv_gid::default(),
            kind: AddressKind::Lid,
        });
        Ok(GidEntry { kind: AddressKind::Lid, ..own })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // What is kept for calls to come does not hold it.
        if !self.lender.take().is_none_or(Lender::end) {
            log::warn!("{} is not closed: memory is still registered with it", self.name);
            return;
        }
        // SAFETY: allocated and opened by us; whatever else was made in them has held this device.
        unsafe {
            (self.functions.dealloc_pd)(self.pd.as_ptr());
            (self.functions.close_device)(self.context.as_ptr());
        }
    }
}

/// Where the kernel does not do so by itself, a fork would part this process from pages that a device
/// writes to. It has to be asked for before anything is registered.
fn mind_forks(functions: &Functions) -> Result<()> {
    static ASKED: PerProcess<bool> = PerProcess::new(false);
    let mut asked = ASKED.lock("opening its first RDMA device")?;
    // It would take pages of callers' from children, once they are registered.
    if *asked || forks_need_nothing() {
        return Ok(());
    }
    // SAFETY: it takes nothing, and may be called at any time.
    let code = unsafe { (functions.fork_init)() };
    if code != 0 {
        // Memory that the program registered itself came first.
        log::debug!("ibv_fork_init: {}", std::io::Error::from_raw_os_error(code));
    }
    *asked = true;
    Ok(())
}

fn port_state(state: u32) -> String {
    match state {
        IBV_PORT_DOWN => "down".to_owned(),
        IBV_PORT_INIT => "initialising".to_owned(),
        IBV_PORT_ARMED => "armed, but not active".to_owned(),
        other => format!("in state {other}"),
    }
}

/// What the code of a call comes to: 0, or an error number.
pub(super) fn check(what: &str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // Some drivers return -1 and set errno.
    let e = match code {
        ..0 => std::io::Error::last_os_error(),
        code => std::io::Error::from_raw_os_error(code),
    };
    Err(Error::new(Status::Backend, format!("{what}: {e}")))
}
