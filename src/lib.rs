//! MLX's distributed communication (`mlx.core.distributed`) as a C library.
//!
//! C and C++ programs use `include/mlxd.h`; the modules here are the library's own layers, each of
//! which knows only those below it:
//!
//! | layer | holds |
//! |---|---|
//! | [`capi`] | every exported function: checks pointers, guards against panics, delegates |
//! | [`start`] | which backend a world comes up on: the order of "any" |
//! | [`process`], [`registry`] | what a forked child does not share; backend name -> world |
//! | [`group`], [`order`], [`stream`] | argument checks, order of calls, failed state; queues |
//! | [`recorder`] | the last operations of each group, and the files of those that failed |
//! | [`backend`] | whole operations behind one trait, and its makers |
//! | [`collective`] | algorithms as data, and the one engine that runs them over links |
//! | [`transport`] | links: posted sends and receives to one peer |
//! | [`control`] | rendezvous, liveness, failures, late connections: one thread per process |
//! | [`verbs`] | libibverbs, opened at run time: devices, queue pairs, registered memory |
//! | [`reduce`] | kernels: `out[i] = a[i] op b[i]` |
//! | [`cuda`], [`dynamic`] | the CUDA driver, whose memory a pointer is; libraries opened at run time |
//! | [`config`], [`call`], [`frame`], [`health`], [`wait`], [`thread`], [`per_process`], [`dtype`], [`error`], [`log`] | words that all use |

pub mod backend;
pub mod call;
pub mod capi;
pub mod collective;
pub mod config;
pub mod control;
pub mod cuda;
pub mod dtype;
pub mod dynamic;
pub mod error;
pub mod frame;
pub mod group;
pub mod health;
pub mod log;
pub mod order;
pub mod per_process;
pub mod process;
pub mod recorder;
pub mod reduce;
pub mod registry;
pub mod start;
pub mod stream;
pub mod thread;
pub mod transport;
pub mod verbs;
pub mod wait;
