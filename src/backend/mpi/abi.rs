//! What an MPI's binary interface fixes: its handles and constants, which differ between families.
//!
//! - **Open MPI** 4 and 5: a handle is a pointer; those that are there from the start are the
//!   addresses of symbols.
//! - **MPICH**, Intel MPI, MVAPICH: a handle is an `int` with a fixed value.
//! - The **standard** of MPI 5 (`libmpi_abi`): a handle is a pointer with a fixed value.
//!
//! Here every handle is as wide as a pointer. Passed by value, the System V and AAPCS64 conventions
//! give each argument a register or 8 bytes of stack of its own, of which a callee that takes an
//! `int` reads the lower half. Written through a pointer, an `int` lands in the lower half of a word
//! that was zero before: little endian only.

use std::ffi::{CStr, c_int, c_void};
use std::fmt;

use crate::dtype::Dtype;

#[cfg(not(all(target_endian = "little", target_pointer_width = "64")))]
compile_error!("handles of MPICH are taken for the lower half of a 64-bit word");

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(transparent)]
        pub struct $name(pub usize);
    )*};
}

handles! {
    /// `MPI_Comm`
    Comm
    /// `MPI_Datatype`
    Datatype
    /// `MPI_Op`
    Op
    /// `MPI_Request`
    Request
    /// `MPI_Errhandler`
    Errhandler
}

/// `MPI_Status`, of which only the tag is read here, the rest by `MPI_Get_count`. 64 bytes: the
/// families' own have 20 to 32.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub struct MessageStatus(pub [c_int; 16]);

/// `MPI_User_function`
pub type UserFunction = unsafe extern "C" fn(
    input: *const c_void,
    in_out: *mut c_void,
    count: *const c_int,
    datatype: *const Datatype,
);

/// `MPI_SUCCESS`, the same in all families.
pub const SUCCESS: c_int = 0;
/// `MPI_UNDEFINED`, likewise.
pub const UNDEFINED: c_int = -32766;
/// `MPI_MAX_ERROR_STRING` and `MPI_MAX_LIBRARY_VERSION_STRING` of the family that has the longest.
pub const TEXT_BYTES: usize = 8192;

/// Libraries with one binary interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Open MPI.
    OpenMpi,
    /// MPICH, Intel MPI, MVAPICH.
    Mpich,
    /// Any that keeps to the standard of MPI 5.
    Standard,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 3] = [Family::OpenMpi, Family::Mpich, Family::Standard];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::OpenMpi => "Open MPI",
            Family::Mpich => "MPICH",
            Family::Standard => "the MPI 5 standard",
        })
    }
}

/// The constants of one library.
#[derive(Clone, Debug)]
pub struct Abi {
    /// Whose they are.
    pub family: Family,
    /// `MPI_COMM_WORLD`
    pub comm_world: Comm,
    /// `MPI_ERRORS_RETURN`
    pub errors_return: Errhandler,
    /// `MPI_SUM`
    pub sum: Op,
    /// The type of the same size for each [`Dtype`], by number: arithmetic on those that MPI lacks
    /// is ours.
    pub datatypes: [Datatype; 14],
    /// `MPI_THREAD_MULTIPLE`: any thread at any time.
    pub thread_multiple: c_int,
    /// `MPI_ANY_SOURCE`
    pub any_source: c_int,
    /// `MPI_ANY_TAG`
    pub any_tag: c_int,
    /// `MPI_ERR_TRUNCATE`: a message is longer than its receive.
    pub err_truncate: c_int,
    /// `MPI_IN_PLACE`
    pub in_place: usize,
    /// `MPI_STATUS_IGNORE`
    pub status_ignore: usize,
    /// Which `int` of an `MPI_Status` is `MPI_TAG`.
    pub status_tag: usize,
}

/// The symbols of Open MPI's datatypes, in the order of [`Dtype`].
const OPEN_MPI_DATATYPES: [&CStr; 14] = [
    c"ompi_mpi_uint8_t",
    c"ompi_mpi_int8_t",
    c"ompi_mpi_int16_t",
    c"ompi_mpi_int32_t",
    c"ompi_mpi_int64_t",
    c"ompi_mpi_uint8_t",
    c"ompi_mpi_uint16_t",
    c"ompi_mpi_uint32_t",
    c"ompi_mpi_uint64_t",
    c"ompi_mpi_uint16_t",
    c"ompi_mpi_uint16_t",
    c"ompi_mpi_float",
    c"ompi_mpi_double",
    c"ompi_mpi_c_float_complex",
];

impl Abi {
    /// Open MPI's; `find` gives the address of a symbol, or what to say if it is missing.
    pub fn open_mpi<E>(find: impl Fn(&CStr) -> Result<usize, E>) -> Result<Abi, E> {
        let mut datatypes = [Datatype(0); 14];
        for (datatype, symbol) in datatypes.iter_mut().zip(OPEN_MPI_DATATYPES) {
            *datatype = Datatype(find(symbol)?);
        }
        Ok(Abi {
            family: Family::OpenMpi,
            comm_world: Comm(find(c"ompi_mpi_comm_world")?),
            errors_return: Errhandler(find(c"ompi_mpi_errors_return")?),
            sum: Op(find(c"ompi_mpi_op_sum")?),
            datatypes,
            thread_multiple: 3,
            any_source: -1,
            any_tag: -1,
            err_truncate: 15,
            in_place: 1,
            status_ignore: 0,
            status_tag: 1,
        })
    }

    /// MPICH's.
    pub fn mpich() -> Abi {
        Abi {
            family: Family::Mpich,
            comm_world: Comm(0x4400_0000),
            errors_return: Errhandler(0x5400_0001),
            sum: Op(0x5800_0003),
            datatypes: [
                0x4c00_013b, // MPI_UINT8_T for bool
                0x4c00_0137, // MPI_INT8_T ...
                0x4c00_0238,
                0x4c00_0439,
                0x4c00_083a,
                0x4c00_013b, // MPI_UINT8_T ...
                0x4c00_023c,
                0x4c00_043d,
                0x4c00_083e,
                0x4c00_023c, // MPI_UINT16_T for float16
                0x4c00_023c, // and bfloat16
                0x4c00_040a, // MPI_FLOAT
                0x4c00_080b, // MPI_DOUBLE
                0x4c00_0840, // MPI_C_FLOAT_COMPLEX
            ]
            .map(Datatype),
            thread_multiple: 3,
            any_source: -2,
            any_tag: -1,
            err_truncate: 14,
            in_place: usize::MAX, // -1
            status_ignore: 1,
            status_tag: 3,
        }
    }

    /// The standard's.
    pub fn standard() -> Abi {
        Abi {
            family: Family::Standard,
            comm_world: Comm(0x101),
            errors_return: Errhandler(0x143),
            sum: Op(0x21),
            datatypes: [
                0x241, // MPI_UINT8_T for bool
                0x240, // MPI_INT8_T ...
                0x248, 0x250, 0x258, 0x241, // MPI_UINT8_T ...
                0x249, 0x251, 0x259, 0x249, // MPI_UINT16_T for float16
                0x249, // and bfloat16
                0x210, // MPI_FLOAT
                0x214, // MPI_DOUBLE
                0x212, // MPI_C_FLOAT_COMPLEX
            ]
            .map(Datatype),
            thread_multiple: 4096,
            any_source: -1,
            any_tag: -2,
            err_truncate: 15,
            in_place: 1,
            status_ignore: 0,
            status_tag: 1,
        }
    }

    /// The type that stands for elements of this kind.
    pub fn datatype(&self, dtype: Dtype) -> Datatype {
        self.datatypes[dtype as usize]
    }
}
