//! The MPI library: where it is looked for, which family it is of, and how it is opened.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Arc;

use super::abi::{Abi, SUCCESS, TEXT_BYTES};
use super::functions::Functions;
use crate::config::MpiSettings;
use crate::dynamic::{self, Handle};
use crate::error::{Error, Result, Status, fail};
use crate::per_process::PerProcess;

/// An opened library; never closed, since MPI leaves threads and exit handlers behind.
#[derive(Debug)]
pub struct Library {
    /// How it was found: a file name.
    pub name: String,
    /// Its own words on what it is, the first line.
    pub version: String,
    /// Its constants.
    pub abi: Abi,
    /// Its functions.
    pub functions: Functions,
}

/// What Open MPI 4 and 5 call their library.
const OPEN_MPI: &CStr = c"libmpi.so.40";
/// As MPICH, Intel MPI and MVAPICH agreed to call it; MPICH under Debian's name, which is there
/// although another one was put in the search path; as the standard of MPI 5 does.
const MPICH: [&CStr; 3] = [c"libmpi.so.12", c"libmpich.so.12", c"libmpi_abi.so.1"];
/// Whatever the system takes for its MPI: there with its development files.
const ANY: &CStr = c"libmpi.so";

/// The library that these settings ask for, opened now or before.
pub fn open(settings: &MpiSettings) -> Result<Arc<Library>> {
    static OPENED: PerProcess<Vec<(Option<String>, Arc<Library>)>> = PerProcess::new(Vec::new());
    let mut opened = OPENED.lock("opening MPI")?;
    if let Some((_, library)) = opened.iter().find(|(name, _)| *name == settings.library) {
        return Ok(library.clone());
    }
    let library = Arc::new(search(settings)?);
    log::info!("mpi: {} ({}), taken for {}", library.name, library.version, library.abi.family);
    opened.push((settings.library.clone(), library.clone()));
    Ok(library)
}

fn search(settings: &MpiSettings) -> Result<Library> {
    if let Some(name) = &settings.library {
        let Ok(file) = CString::new(name.as_str()) else {
            fail!(Config, "MLX_MPI_LIBNAME={name:?} has a NUL in it");
        };
        let Some(handle) = load(&file, 0) else {
            fail!(
                Unavailable,
                "MLX_MPI_LIBNAME={name:?} cannot be opened: {}",
                dynamic::last_error()
            );
        };
        return Library::new(handle, name.clone());
    }
    let names = candidates(settings);
    // An MPI that the program uses itself is the one to use: two in one process do not get along.
    let program = dynamic::program();
    if let Some(handle) = program.filter(|handle| handle.find(c"MPI_Init_thread").is_some()) {
        return Library::new(handle, "the program's own MPI".to_owned());
    }
    for flags in [libc::RTLD_NOLOAD, 0] {
        for name in names {
            if let Some(handle) = load(name, flags) {
                return Library::new(handle, name.to_string_lossy().into_owned());
            }
        }
    }
    let names: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
    fail!(
        Unavailable,
        "no MPI library found: looked for {} in the loader's search path (LD_LIBRARY_PATH, \
         ld.so.cache); install Open MPI or MPICH, or name the file with MLX_MPI_LIBNAME",
        names.join(", ")
    )
}

/// In the order in which to try them: first the family of the launcher that started this process.
fn candidates(settings: &MpiSettings) -> [&'static CStr; 5] {
    let [mpich, debian, standard] = MPICH;
    match settings.launcher.as_ref().is_some_and(|launcher| launcher.is_mpich()) {
        true => [mpich, debian, standard, OPEN_MPI, ANY],
        false => [OPEN_MPI, mpich, debian, standard, ANY],
    }
}

/// Opens a file with these flags beside those that its family needs.
fn load(name: &CStr, flags: c_int) -> Option<Handle> {
    // Open MPI's components look for its symbols in the global scope. MPICH stays out of it, and so
    // do files of unknown family until it is known.
    let handle = dynamic::open(name, flags)?;
    if handle.find(c"ompi_mpi_comm_world").is_some() {
        // Promotes the library that is open already.
        dynamic::open(name, flags | libc::RTLD_GLOBAL);
    }
    Some(handle)
}

impl Library {
    fn new(handle: Handle, name: String) -> Result<Library> {
        let lacks = |symbol: &str| {
            let message = format!("{name} is no MPI that can be used: it lacks {symbol}");
            Error::new(Status::Unavailable, message)
        };
        // SAFETY: MPI fixes what its functions of these names take and return.
        let functions = unsafe { Functions::load(handle) }.map_err(lacks)?;
        let version = version(&functions);
        // First the standard: it may be kept by a library on top of a family's own, whose symbols are found
        // through it.
        let abi = if keeps_to_standard(handle) {
            Abi::standard()
        } else if handle.find(c"ompi_mpi_comm_world").is_some() {
            Abi::open_mpi(|symbol| {
                let address = handle.find(symbol).map(|address| address as usize);
                address.ok_or_else(|| lacks(&symbol.to_string_lossy()))
            })?
        } else if ["MPICH", "Intel(R) MPI", "MVAPICH"].iter().any(|name| version.contains(name)) {
            Abi::mpich()
        } else {
            fail!(
                Unavailable,
                "{name} is an MPI of an unknown kind ({version:?}): known are Open MPI 4 and 5, \
                 MPICH, Intel MPI, MVAPICH, and libraries with the binary interface of MPI 5"
            );
        };
        Ok(Library { name, version, abi, functions })
    }
}

/// The library's own words: `Open MPI v4.1.4, ...`, `MPICH Version: 4.0.2 ...`.
fn version(functions: &Functions) -> String {
    let mut text = vec![0u8; TEXT_BYTES];
    let mut length: c_int = 0;
    // SAFETY: the buffer is as long as MPI asks for; MPI allows this call at any time.
    let code = unsafe { (functions.get_library_version)(text.as_mut_ptr().cast(), &mut length) };
    if code != SUCCESS {
        return String::new();
    }
    text.truncate(usize::try_from(length).unwrap_or(0));
    let text = String::from_utf8_lossy(&text);
    let line = text.trim_end_matches('\0').lines().next().unwrap_or_default();
    line.replace('\t', " ").trim().to_owned()
}

/// Whether the library says that it has the binary interface of MPI 5: MPICH 5 comes with both.
fn keeps_to_standard(handle: Handle) -> bool {
    let Some(address) = handle.find(c"MPI_Abi_get_version") else { return false };
    type AbiGetVersion = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    let (mut major, mut minor): (c_int, c_int) = (-1, -1);
    // SAFETY: MPI 5 declares it so, allows it at any time, and has it give -1 where there is none.
    let code = unsafe {
        std::mem::transmute::<*mut c_void, AbiGetVersion>(address)(&mut major, &mut minor)
    };
    code == SUCCESS && major >= 1
}

impl Library {
    /// An error code in MPI's words.
    pub fn text_of(&self, code: c_int) -> String {
        let mut text = vec![0u8; TEXT_BYTES];
        let mut length: c_int = 0;
        let at: *mut c_char = text.as_mut_ptr().cast();
        // SAFETY: the buffer is longer than MPI_MAX_ERROR_STRING of any family.
        let outcome = unsafe { (self.functions.error_string)(code, at, &mut length) };
        if outcome != SUCCESS {
            return format!("error {code}");
        }
        text.truncate(usize::try_from(length).unwrap_or(0));
        String::from_utf8_lossy(&text).trim_end_matches('\0').trim().to_owned()
    }

    /// What the code of a call comes to.
    pub fn check(&self, what: &str, code: c_int) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        fail!(Backend, "{what}: {}", self.text_of(code))
    }

    /// Whether the code says that a message was longer than its receive.
    pub fn is_truncation(&self, code: c_int) -> bool {
        let mut class: c_int = 0;
        // SAFETY: the class is written to an int of ours.
        let outcome = unsafe { (self.functions.error_class)(code, &mut class) };
        outcome == SUCCESS && class == self.abi.err_truncate
    }
}
