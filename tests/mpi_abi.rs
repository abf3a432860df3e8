//! Our declarations of MPI against those of an `mpi.h`, as the crate mpi-sys has them:
//!
//!     MPICC=mpicc.openmpi cargo test --features mpi-sys --test mpi_abi
//!     MPICC=mpicc.mpich CARGO_TARGET_DIR=target/mpich cargo test --features mpi-sys --test mpi_abi
//!
//! A build knows one MPI, so each family has a folder of its own. (mpi-sys does not know MPI_IN_PLACE;
//! in-place operations of the C tests do.)

use std::ffi::CStr;
use std::mem::{offset_of, size_of};

use mlxd::backend::mpi::abi::{self, Abi, Family};
use mlxd::backend::mpi::functions::Functions;
use mlxd::dtype::Dtype;

/// The family whose `mpi.h` this was built with.
fn family() -> Family {
    match size_of::<mpi_sys::MPI_Comm>() {
        4 => Family::Mpich,
        _ => Family::OpenMpi,
    }
}

fn ours() -> Abi {
    let find = |symbol: &CStr| {
        // SAFETY: asks for a symbol of what this test is linked with.
        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) } as usize;
        if address == 0 { Err(format!("no {symbol:?}")) } else { Ok(address) }
    };
    match family() {
        Family::Mpich => Abi::mpich(),
        _ => Abi::open_mpi(find).unwrap(),
    }
}

/// A handle or pointer as a word: zeros above what it has.
fn word<T: Copy>(value: T) -> usize {
    assert!(size_of::<T>() <= size_of::<usize>());
    let mut word = 0usize;
    // SAFETY: a word has room for the value, whose bytes are all initialised.
    unsafe { std::ptr::from_mut(&mut word).cast::<T>().write(value) };
    word
}

#[test]
fn handles_are_theirs() {
    let ours = ours();
    // SAFETY: constants of the library that this test is linked with.
    unsafe {
        assert_eq!(ours.comm_world.0, word(mpi_sys::RSMPI_COMM_WORLD));
        assert_eq!(ours.errors_return.0, word(mpi_sys::RSMPI_ERRORS_RETURN));
        assert_eq!(ours.sum.0, word(mpi_sys::RSMPI_SUM));
        let theirs = [
            (Dtype::Bool, mpi_sys::RSMPI_UINT8_T),
            (Dtype::Int8, mpi_sys::RSMPI_INT8_T),
            (Dtype::Int16, mpi_sys::RSMPI_INT16_T),
            (Dtype::Int32, mpi_sys::RSMPI_INT32_T),
            (Dtype::Int64, mpi_sys::RSMPI_INT64_T),
            (Dtype::Uint8, mpi_sys::RSMPI_UINT8_T),
            (Dtype::Uint16, mpi_sys::RSMPI_UINT16_T),
            (Dtype::Uint32, mpi_sys::RSMPI_UINT32_T),
            (Dtype::Uint64, mpi_sys::RSMPI_UINT64_T),
            (Dtype::Float16, mpi_sys::RSMPI_UINT16_T),
            (Dtype::Bfloat16, mpi_sys::RSMPI_UINT16_T),
            (Dtype::Float32, mpi_sys::RSMPI_FLOAT),
            (Dtype::Float64, mpi_sys::RSMPI_DOUBLE),
            (Dtype::Complex64, mpi_sys::RSMPI_FLOAT_COMPLEX),
        ];
        assert_eq!(theirs.len(), Dtype::ALL.len());
        for (dtype, theirs) in theirs {
            assert_eq!(ours.datatype(dtype).0, word(theirs), "{dtype:?}");
        }
    }
    println!("{}: handles of {} bytes, 17 equal", family(), size_of::<mpi_sys::MPI_Comm>());
}

#[test]
fn numbers_are_theirs() {
    let ours = ours();
    // SAFETY: as above.
    unsafe {
        assert_eq!(ours.thread_multiple, mpi_sys::RSMPI_THREAD_MULTIPLE);
        assert_eq!(ours.any_source, mpi_sys::RSMPI_ANY_SOURCE);
        assert_eq!(ours.any_tag, mpi_sys::RSMPI_ANY_TAG);
        assert_eq!(abi::UNDEFINED, mpi_sys::RSMPI_UNDEFINED);
        assert_eq!(ours.status_ignore, word(mpi_sys::RSMPI_STATUS_IGNORE));
    }
    assert_eq!(i64::from(ours.err_truncate), i64::from(mpi_sys::MPI_ERR_TRUNCATE));
    assert_eq!(i64::from(abi::SUCCESS), i64::from(mpi_sys::MPI_SUCCESS));
    assert_eq!(ours.status_tag * 4, offset_of!(mpi_sys::MPI_Status, MPI_TAG));
    assert!(size_of::<mpi_sys::MPI_Status>() <= size_of::<abi::MessageStatus>());
    assert!(abi::TEXT_BYTES >= mpi_sys::MPI_MAX_ERROR_STRING as usize);
    assert!(abi::TEXT_BYTES >= mpi_sys::MPI_MAX_LIBRARY_VERSION_STRING as usize);
    println!("{}: 11 numbers and sizes equal", family());
}

/// The types of a function's arguments.
trait Arguments {
    fn names() -> Vec<&'static str>;
}

macro_rules! arguments_of {
    ($($argument:ident)*) => {
        impl<R, $($argument),*> Arguments for unsafe extern "C" fn($($argument),*) -> R {
            fn names() -> Vec<&'static str> {
                vec![$(std::any::type_name::<$argument>()),*]
            }
        }
    };
}

arguments_of!();
arguments_of!(A);
arguments_of!(A B);
arguments_of!(A B C);
arguments_of!(A B C D);
arguments_of!(A B C D E);
arguments_of!(A B C D E F);
arguments_of!(A B C D E F G);
arguments_of!(A B C D E F G H);

fn names_of<F: Arguments>(_: F) -> Vec<&'static str> {
    F::names()
}

macro_rules! theirs {
    ($($function:ident($($hole:tt)*))*) => {
        vec![$((
            stringify!($function),
            names_of(mpi_sys::$function as unsafe extern "C" fn($($hole)*) -> _),
        )),*]
    };
}

/// Whether a type of ours is what the crate says in its own words.
fn is_the_same(ours: &str, theirs: &str) -> bool {
    let theirs = theirs.replace("mpi_sys::MPI_Status", "MessageStatus");
    let theirs = theirs.replace("mpi_sys::ompi_status_public_t", "MessageStatus");
    let theirs = theirs.replace("mpi_sys::MPI_", "").replace("core::ffi::c_void", "c_void");
    let theirs = theirs.replace("i32", "c_int").replace("i8", "c_char");
    match ours {
        "UserFunction" => theirs.contains("fn("),
        // The program's arguments, which are not passed.
        "*mut c_void" => theirs.starts_with("*mut "),
        _ => ours == theirs,
    }
}

#[test]
fn signatures_are_theirs() {
    let theirs = theirs! {
        MPI_Init_thread(_, _, _, _)
        MPI_Initialized(_)
        MPI_Finalized(_)
        MPI_Finalize()
        MPI_Query_thread(_)
        MPI_Is_thread_main(_)
        MPI_Get_library_version(_, _)
        MPI_Error_string(_, _, _)
        MPI_Error_class(_, _)
        MPI_Comm_rank(_, _)
        MPI_Comm_size(_, _)
        MPI_Comm_idup(_, _, _)
        MPI_Comm_split(_, _, _, _)
        MPI_Comm_free(_)
        MPI_Comm_set_errhandler(_, _)
        MPI_Op_create(_, _, _)
        MPI_Op_free(_)
        MPI_Allreduce(_, _, _, _, _, _)
        MPI_Iallreduce(_, _, _, _, _, _, _)
        MPI_Reduce(_, _, _, _, _, _, _)
        MPI_Ireduce(_, _, _, _, _, _, _, _)
        MPI_Reduce_scatter_block(_, _, _, _, _, _)
        MPI_Ireduce_scatter_block(_, _, _, _, _, _, _)
        MPI_Allgather(_, _, _, _, _, _, _)
        MPI_Iallgather(_, _, _, _, _, _, _, _)
        MPI_Alltoall(_, _, _, _, _, _, _)
        MPI_Ialltoall(_, _, _, _, _, _, _, _)
        MPI_Bcast(_, _, _, _, _)
        MPI_Ibcast(_, _, _, _, _, _)
        MPI_Barrier(_)
        MPI_Ibarrier(_, _)
        MPI_Send(_, _, _, _, _, _)
        MPI_Isend(_, _, _, _, _, _, _)
        MPI_Recv(_, _, _, _, _, _, _)
        MPI_Irecv(_, _, _, _, _, _, _)
        MPI_Iprobe(_, _, _, _, _)
        MPI_Test(_, _, _)
        MPI_Wait(_, _)
        MPI_Request_free(_)
        MPI_Get_count(_, _, _)
    };
    assert_eq!(Functions::SIGNATURES.len(), theirs.len());
    for ((symbol, ours), (name, theirs)) in Functions::SIGNATURES.iter().zip(&theirs) {
        assert_eq!(symbol, name);
        assert_eq!(ours.len(), theirs.len(), "{symbol}");
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!(is_the_same(ours, theirs), "{symbol}: {ours} is not {theirs}");
        }
    }
    println!("{}: {} signatures equal", family(), theirs.len());
}
