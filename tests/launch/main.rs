//! `mlxd-launch` with real processes: what ranks are told, their output, and every way to end.
#![cfg(feature = "tools")]

#[path = "../common/scratch.rs"]
mod scratch;

mod ends;
mod run;
mod signals;
mod streams;
mod world;
