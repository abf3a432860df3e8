//! The functions of an MPI library that are used here, found once, when it is opened.

use std::ffi::{c_char, c_int, c_void};

use super::abi::{Comm, Datatype, Errhandler, MessageStatus, Op, Request, UserFunction};
use crate::dynamic::table;

table! {
    /// MPI's functions.
    Functions {
        init_thread = "MPI_Init_thread"(*mut c_int, *mut c_void, c_int, *mut c_int);
        initialized = "MPI_Initialized"(*mut c_int);
        finalized = "MPI_Finalized"(*mut c_int);
        finalize = "MPI_Finalize"();
        query_thread = "MPI_Query_thread"(*mut c_int);
        is_thread_main = "MPI_Is_thread_main"(*mut c_int);
        get_library_version = "MPI_Get_library_version"(*mut c_char, *mut c_int);
        error_string = "MPI_Error_string"(c_int, *mut c_char, *mut c_int);
        error_class = "MPI_Error_class"(c_int, *mut c_int);
        comm_rank = "MPI_Comm_rank"(Comm, *mut c_int);
        comm_size = "MPI_Comm_size"(Comm, *mut c_int);
        comm_idup = "MPI_Comm_idup"(Comm, *mut Comm, *mut Request);
        comm_split = "MPI_Comm_split"(Comm, c_int, c_int, *mut Comm);
        comm_free = "MPI_Comm_free"(*mut Comm);
        comm_set_errhandler = "MPI_Comm_set_errhandler"(Comm, Errhandler);
        op_create = "MPI_Op_create"(UserFunction, c_int, *mut Op);
        op_free = "MPI_Op_free"(*mut Op);
        allreduce = "MPI_Allreduce"(*const c_void, *mut c_void, c_int, Datatype, Op, Comm);
        iallreduce = "MPI_Iallreduce"(
            *const c_void, *mut c_void, c_int, Datatype, Op, Comm, *mut Request
        );
        reduce = "MPI_Reduce"(*const c_void, *mut c_void, c_int, Datatype, Op, c_int, Comm);
        ireduce = "MPI_Ireduce"(
            *const c_void, *mut c_void, c_int, Datatype, Op, c_int, Comm, *mut Request
        );
        reduce_scatter_block = "MPI_Reduce_scatter_block"(
            *const c_void, *mut c_void, c_int, Datatype, Op, Comm
        );
        ireduce_scatter_block = "MPI_Ireduce_scatter_block"(
            *const c_void, *mut c_void, c_int, Datatype, Op, Comm, *mut Request
        );
        allgather = "MPI_Allgather"(
            *const c_void, c_int, Datatype, *mut c_void, c_int, Datatype, Comm
        );
        iallgather = "MPI_Iallgather"(
            *const c_void, c_int, Datatype, *mut c_void, c_int, Datatype, Comm, *mut Request
        );
        alltoall = "MPI_Alltoall"(
            *const c_void, c_int, Datatype, *mut c_void, c_int, Datatype, Comm
        );
        ialltoall = "MPI_Ialltoall"(
            *const c_void, c_int, Datatype, *mut c_void, c_int, Datatype, Comm, *mut Request
        );
        bcast = "MPI_Bcast"(*mut c_void, c_int, Datatype, c_int, Comm);
        ibcast = "MPI_Ibcast"(*mut c_void, c_int, Datatype, c_int, Comm, *mut Request);
        barrier = "MPI_Barrier"(Comm);
        ibarrier = "MPI_Ibarrier"(Comm, *mut Request);
        send = "MPI_Send"(*const c_void, c_int, Datatype, c_int, c_int, Comm);
        isend = "MPI_Isend"(*const c_void, c_int, Datatype, c_int, c_int, Comm, *mut Request);
        recv = "MPI_Recv"(*mut c_void, c_int, Datatype, c_int, c_int, Comm, *mut MessageStatus);
        irecv = "MPI_Irecv"(*mut c_void, c_int, Datatype, c_int, c_int, Comm, *mut Request);
        iprobe = "MPI_Iprobe"(c_int, c_int, Comm, *mut c_int, *mut MessageStatus);
        test = "MPI_Test"(*mut Request, *mut c_int, *mut MessageStatus);
        wait = "MPI_Wait"(*mut Request, *mut MessageStatus);
        request_free = "MPI_Request_free"(*mut Request);
        get_count = "MPI_Get_count"(*const MessageStatus, Datatype, *mut c_int);
    }
}
