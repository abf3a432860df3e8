//! CUDA as far as this library needs it: the driver, opened at run time; whose memory a pointer is; streams,
//! events and copies.
//!
//! Types are `cudarc`'s. Its functions are not used: they end the process by a panic where a symbol is missing,
//! and turn codes into enums, which is undefined behaviour for codes that they do not know.

mod context;
mod copy;
mod driver;
mod event;
mod handle;
mod memory;
mod stream;

pub use context::{Context, Entered};
pub use copy::{catch_up, copy, copy_on};
pub use driver::{Driver, loaded, open, present};
pub use event::{Event, Events};
pub use handle::StreamHandle;
pub use memory::{Kind, device_of, kind_of};
pub use stream::{Pending, Stream, pause};
