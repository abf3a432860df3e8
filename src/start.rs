//! How a world is started: the order in which "any" tries the backends, and what each needs.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::backend::mpi::{self, Mpi};
use crate::backend::nccl::{self, Nccl};
use crate::backend::{Limits, jaccl, ring};
use crate::config::Settings;
use crate::error::{Error, Result, Status, fail};
use crate::group::Group;
use crate::process::{self, Process};
use crate::recorder::archive::Archive;
use crate::registry::Name;
use crate::verbs::device;
use crate::wait::Deadline;

/// How "any" tries: GPUs first if they are set up, MPI only after what was set up by hand.
const ANY: [Name; 4] = [Name::Nccl, Name::Ring, Name::Mpi, Name::Jaccl];

/// Whether a backend could be started here, if the settings were there.
pub fn is_available(name: Name) -> bool {
    match name {
        Name::Any | Name::Ring => true,
        Name::Mpi => Settings::default().mpi().and_then(|settings| mpi::open(&settings)).is_ok(),
        Name::Nccl => nccl::open(&Settings::default().nccl_library()).is_ok(),
        Name::Jaccl => device::require_any().is_ok(),
    }
}

/// The world on this backend: the one that is there, or a new one.
pub fn init(strict: bool, name: Name, settings: &Settings) -> Result<Arc<Group>> {
    let process = process::current()?;
    // Held during the start: who else asks meanwhile gets the same world.
    let limit = settings.connect_timeout()?.unwrap_or(Duration::MAX);
    let Some(mut worlds) = process.registry.hold(limit) else {
        fail!(
            Timeout,
            "[{name}] init: a start in another thread has not ended in time (MLXD_CONNECT_TIMEOUT_MS)"
        );
    };
    worlds.retain(|_, world| world.upgrade().is_some_and(|world| world.status().is_ok()));
    if let Some(world) = worlds.get(&name).and_then(Weak::upgrade) {
        return Ok(world);
    }
    let (name, world) = start(process, strict, name, settings)?;
    if let Some(name) = name {
        worlds.insert(name, Arc::downgrade(&world));
        worlds.entry(Name::Any).or_insert_with(|| Arc::downgrade(&world));
    }
    Ok(world)
}

/// A new world, whatever there is already.
pub fn start_new(strict: bool, name: Name, settings: &Settings) -> Result<Arc<Group>> {
    Ok(start(process::current()?, strict, name, settings)?.1)
}

/// A started backend's name and world, or a world of one without a name.
fn start(
    process: &Process,
    strict: bool,
    name: Name,
    settings: &Settings,
) -> Result<(Option<Name>, Arc<Group>)> {
    if let Some(level) = settings.log_level() {
        crate::log::enable(&level)?;
    }
    let order: &[Name] = if name == Name::Any { &ANY } else { &[name] };
    let mut reasons = Vec::new();
    let any = name == Name::Any;
    for name in order {
        match attempt(process, *name, any, settings)
            .map_err(|e| e.at(format_args!("[{name}] init")))?
        {
            Attempt::Started(world) => return Ok((Some(*name), process.adopt(world))),
            Attempt::Nothing(reason) => reasons.push((*name, reason)),
        }
    }
    let why: Vec<String> =
        reasons.iter().map(|(name, reason)| format!("{name}: {}", reason.message)).collect();
    let why = why.join("; ");
    // The status of the one that could have been started.
    let status = if reasons.iter().any(|(_, reason)| reason.status == Status::Config) {
        Status::Config
    } else {
        Status::Unavailable
    };
    let announced = settings.announced_world();
    if strict {
        let hint = announced.map_or_else(String::new, |variable| {
            format!("; {variable} announces a world, but does not say where its ranks meet")
        });
        return Err(Error::new(status, format!("[{name}] init: no world to start ({why}{hint})")));
    }
    if let Some(variable) = announced {
        fail!(
            Config,
            "[{name}] init: {variable} announces a world of more than one, but no backend could start it ({why})"
        );
    }
    let archive = archive(process, settings);
    Ok((None, process.adopt(Group::alone("none", limits(settings)?, archive)?)))
}

/// What trying to start a backend came to, where nothing was wrong.
enum Attempt {
    Started(Group),
    /// There is nothing to start from, for this reason.
    Nothing(Error),
}

fn attempt(process: &Process, name: Name, any: bool, settings: &Settings) -> Result<Attempt> {
    match name {
        Name::Ring => attempt_ring(process, settings),
        Name::Mpi if any && settings.mpi_launcher().is_none() => {
            let reason = "this process was not started by mpirun, mpiexec or srun";
            Ok(Attempt::Nothing(Error::new(Status::Config, reason)))
        }
        Name::Mpi => attempt_mpi(process, settings),
        Name::Jaccl => attempt_jaccl(process, settings),
        Name::Nccl if any && !settings.is_for_nccl() => {
            let reason = "NCCL_HOST_IP and NCCL_PORT are not set";
            Ok(Attempt::Nothing(Error::new(Status::Config, reason)))
        }
        Name::Nccl => attempt_nccl(process, settings),
        Name::Any => fail!(Internal, "\"any\" stands for the others"),
    }
}

fn attempt_ring(process: &Process, settings: &Settings) -> Result<Attempt> {
    let Some(plan) = settings.ring_start()? else {
        let reason = Settings::ring_start_missing();
        return Ok(Attempt::Nothing(Error::new(Status::Config, reason)));
    };
    let (limits, archive) = (limits(settings)?, archive(process, settings));
    if plan.size == 1 {
        return Ok(Attempt::Started(Group::alone("ring", limits, archive)?));
    }
    let scene = format!("rank {} of {}", plan.rank, plan.size);
    let ring = ring::start(&plan, &process.reactor).map_err(|e| e.at(scene))?;
    Ok(Attempt::Started(Group::new(Box::new(ring), limits, archive)?))
}

fn attempt_mpi(process: &Process, settings: &Settings) -> Result<Attempt> {
    let start = settings.mpi()?;
    let (operation, recv) = settings.mpi_timeouts()?;
    let (limits, archive) = (Limits { operation, recv }, archive(process, settings));
    let deadline = Deadline::after(start.connect_timeout);
    let runtime = match process.mpi.runtime(process.generation, &start, deadline) {
        Err(e) if e.status == Status::Unavailable => return Ok(Attempt::Nothing(e)),
        outcome => outcome?,
    };
    if runtime.size == 1 {
        return Ok(Attempt::Started(Group::alone("mpi", limits, archive)?));
    }
    let scene = format!("rank {} of {}", runtime.rank, runtime.size);
    let mpi = Mpi::start(runtime, &start, limits, deadline).map_err(|e| e.at(scene))?;
    Ok(Attempt::Started(Group::new(Box::new(mpi), limits, archive)?))
}

fn attempt_jaccl(process: &Process, settings: &Settings) -> Result<Attempt> {
    let plan = settings.jaccl_start().and_then(|plan| Ok((plan, limits(settings)?)));
    let (plan, limits) = match plan {
        Ok((Some(plan), limits)) => (plan, limits),
        Ok((None, _)) => {
            let reason = Settings::jaccl_start_missing();
            return Ok(Attempt::Nothing(Error::new(Status::Config, reason)));
        }
        Err(e) => {
            jaccl::decline(settings, &e);
            return Err(e);
        }
    };
    let archive = archive(process, settings);
    if let Err(e) = device::require_any() {
        // The others may have some, and wait for this rank.
        return match jaccl::decline(settings, &e) {
            true => Err(e),
            false => Ok(Attempt::Nothing(e)),
        };
    }
    if plan.size == 1 {
        return Ok(Attempt::Started(Group::alone("jaccl", limits, archive)?));
    }
    let scene = format!("rank {} of {}", plan.rank, plan.size);
    let jaccl = jaccl::start(&plan, &process.reactor, &process.registrations);
    let jaccl = jaccl.map_err(|e| e.at(scene))?;
    Ok(Attempt::Started(Group::new(Box::new(jaccl), limits, archive)?))
}

fn attempt_nccl(process: &Process, settings: &Settings) -> Result<Attempt> {
    let plan = settings.nccl_start()?;
    let library = match nccl::open(&settings.nccl_library()) {
        Err(e) if e.status == Status::Unavailable => return Ok(Attempt::Nothing(e)),
        outcome => outcome?,
    };
    let Some(plan) = plan else {
        let reason = Settings::nccl_start_missing();
        return Ok(Attempt::Nothing(Error::new(Status::Config, reason)));
    };
    let (limits, archive) = (limits(settings)?, archive(process, settings));
    let scene = format!("rank {} of {}", plan.world.rank, plan.world.size);
    if plan.world.size == 1 {
        let device = nccl::start_alone(&library, &plan).map_err(|e| e.at(scene))?;
        let group = Group::alone("nccl", limits, archive)?;
        return Ok(Attempt::Started(group.on_device(device)));
    }
    let nccl = Nccl::start(library, &plan, &process.reactor, &process.wardens);
    // Also after a failure: a thread may be in a call of NCCL's still.
    process.end_before_cuda();
    let nccl = nccl.map_err(|e| e.at(scene))?;
    Ok(Attempt::Started(Group::new(Box::new(nccl), limits, archive)?))
}

fn limits(settings: &Settings) -> Result<Limits> {
    Ok(Limits { operation: settings.timeout()?, recv: settings.recv_timeout()? })
}

/// Where the records of groups that fail go, if that was asked for.
fn archive(process: &Process, settings: &Settings) -> Option<Archive> {
    settings.flight_recorder().map(|folder| Archive::new(folder, process.writing.clone()))
}
