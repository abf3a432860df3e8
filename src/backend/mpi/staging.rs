//! Memory of ours that MPI works on where the caller's will not do: MPI may write to it for as long as
//! it likes.

use crate::error::{Error, Result, Status};

/// A piece of memory, aligned for every type; what is in it is anybody's guess.
#[derive(Debug, Default)]
pub struct Staging(Vec<u128>);

impl Staging {
    /// Room for so many bytes, at one place until this is dropped or asked again.
    pub fn room(&mut self, bytes: usize) -> Result<*mut u8> {
        self.0.try_reserve(bytes.div_ceil(size_of::<u128>())).map_err(|_| {
            Error::new(Status::System, format!("no memory for {bytes} bytes beside the buffers"))
        })?;
        Ok(self.0.as_mut_ptr().cast())
    }
}
