//! MLXD_CHECK: ranks compare their calls before they make them, by an exchange.

use super::Mpi;
use super::collectives::meet;
use super::waiting::Way;
use crate::call::{Call, HEADER_BYTES, Header};
use crate::dtype::Dtype;
use crate::error::{Result, fail};

impl Mpi {
    /// Fails where another rank of the group called something else: all ranks meet here at each
    /// collective, whatever it is.
    pub(super) fn agree(&self, call: Call, way: Way) -> Result<()> {
        let ours = Header { call, before: None };
        // On the heap, and left there if a bounded wait fails: MPI may still be at work on it.
        let own = Box::new(ours.encode());
        let mut all = vec![[0u8; HEADER_BYTES]; self.ranks.len()];
        let bytes = self.runtime.library.abi.datatype(Dtype::Uint8);
        let (input, output) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
        let count = HEADER_BYTES as i32;
        let outcome = meet!(
            self,
            way,
            "MPI_Allgather",
            allgather,
            iallgather(input, count, bytes, output, count, bytes, self.comm)
        );
        if let Err(e) = outcome {
            std::mem::forget((own, all));
            return Err(e);
        }
        for (peer, theirs) in all.iter().enumerate() {
            match Header::decode(theirs) {
                Some(theirs) if theirs == ours => {}
                Some(theirs) => return Err(ours.mismatch(self.rank, peer, &theirs)),
                None => fail!(
                    Mismatch,
                    "rank {peer} sent no call, but something else: is MLXD_CHECK set on all ranks?"
                ),
            }
        }
        Ok(())
    }
}
