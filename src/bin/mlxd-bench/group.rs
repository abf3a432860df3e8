//! The library's C interface, as far as it is needed here, made safe.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::null_mut;

use mlxd::capi::{self, MLXD_FLOAT64, MLXD_INT64, MLXD_OK, mlxd_dtype, mlxd_status};

use crate::operation::{Operation, Shape};

/// The calls that differ in their name only.
type Collective = unsafe extern "C" fn(
    *mut capi::mlxd_group,
    *const c_void,
    *mut c_void,
    usize,
    mlxd_dtype,
    *mut capi::mlxd_stream,
) -> mlxd_status;

/// A world; its ranks say goodbye when it is dropped.
pub struct Group(*mut capi::mlxd_group);

impl Group {
    /// The world of `backend`.
    pub fn init(strict: bool, backend: &str) -> Result<Group, String> {
        let name = CString::new(backend).map_err(|_| "a backend's name has no NUL in it")?;
        // SAFETY: `name` is a C string that lives through the call.
        let group = unsafe { capi::mlxd_init(strict.into(), name.as_ptr()) };
        if group.is_null() { Err(last_error("mlxd_init")) } else { Ok(Group(group)) }
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        // SAFETY: the handle is valid until the drop.
        usize::try_from(unsafe { capi::mlxd_group_rank(self.0) }).unwrap_or(0)
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        // SAFETY: the handle is valid until the drop.
        usize::try_from(unsafe { capi::mlxd_group_size(self.0) }).unwrap_or(1)
    }

    /// The backend that came up.
    pub fn backend(&self) -> String {
        // SAFETY: the handle is valid until the drop; the name is static.
        unsafe { text(capi::mlxd_group_backend(self.0)) }
    }

    /// A number's sum over all ranks.
    pub fn sum(&self, mine: i64) -> Result<i64, String> {
        let mut sum = 0i64;
        let (from, to) = ((&raw const mine).cast(), (&raw mut sum).cast());
        // SAFETY: both are one int64, and the call is done with them when it returns.
        let status = unsafe { capi::mlxd_all_sum(self.0, from, to, 1, MLXD_INT64, null_mut()) };
        succeeded(status, "mlxd_all_sum").map(|()| sum)
    }

    /// Every rank's number, in rank order.
    pub fn gather(&self, mine: f64) -> Result<Vec<f64>, String> {
        let mut all = vec![0f64; self.size()];
        let (from, to) = ((&raw const mine).cast(), all.as_mut_ptr().cast());
        // SAFETY: one float64 and room for one of each rank; done with when the call returns.
        let status =
            unsafe { capi::mlxd_all_gather(self.0, from, to, 1, MLXD_FLOAT64, null_mut()) };
        succeeded(status, "mlxd_all_gather").map(|()| all)
    }

    /// Makes one call of this shape in memory of its layout.
    pub fn call(&self, shape: &Shape, memory: &mut [u8]) -> Result<(), String> {
        let layout = shape.layout();
        assert!(layout.bytes <= memory.len());
        let memory = memory.as_mut_ptr();
        // SAFETY: the layout lies in `memory`.
        let (input, output) = unsafe {
            let input = memory.add(layout.input.start).cast_const().cast();
            (input, memory.add(layout.output.start).cast())
        };
        let (count, dtype, none) = (shape.count(), shape.dtype as i32, null_mut());
        // SAFETY: the layout has room for what a call of this shape reads and writes, and its buffers
        // overlap only as the operation's in-place rule allows. Without a stream the call is done
        // with them when it returns.
        unsafe {
            let (name, collective): (_, Collective) = match shape.operation {
                Operation::AllSum => ("mlxd_all_sum", capi::mlxd_all_sum),
                Operation::AllMax => ("mlxd_all_max", capi::mlxd_all_max),
                Operation::AllMin => ("mlxd_all_min", capi::mlxd_all_min),
                Operation::AllGather => ("mlxd_all_gather", capi::mlxd_all_gather),
                Operation::SumScatter => ("mlxd_sum_scatter", capi::mlxd_sum_scatter),
                Operation::AllToAll => ("mlxd_all_to_all", capi::mlxd_all_to_all),
                Operation::Broadcast => {
                    let root = shape.root as i32;
                    let status = capi::mlxd_broadcast(self.0, output, count, dtype, root, none);
                    return succeeded(status, "mlxd_broadcast");
                }
                Operation::Barrier => {
                    return succeeded(capi::mlxd_barrier(self.0, none), "mlxd_barrier");
                }
                Operation::SendRecv | Operation::PingPong => {
                    return self.message(shape, input, output);
                }
            };
            succeeded(collective(self.0, input, output, count, dtype, none), name)
        }
    }

    /// The operations between two ranks.
    ///
    /// # Safety
    /// As the layout of the shape says, `input` can be read and `output` written, apart from it.
    unsafe fn message(
        &self,
        shape: &Shape,
        input: *const c_void,
        output: *mut c_void,
    ) -> Result<(), String> {
        let (count, dtype, none) = (shape.count(), shape.dtype as i32, null_mut());
        // SAFETY: this function's contract.
        let send = |to| unsafe {
            succeeded(capi::mlxd_send(self.0, input, count, dtype, to, none), "mlxd_send")
        };
        // SAFETY: likewise.
        let recv = |from| unsafe {
            succeeded(capi::mlxd_recv(self.0, output, count, dtype, from, none), "mlxd_recv")
        };
        match (shape.operation, shape.rank) {
            (Operation::PingPong, 0) => send(1).and_then(|()| recv(1)),
            (Operation::PingPong, 1) => recv(0).and_then(|()| send(0)),
            (Operation::PingPong, _) => Ok(()),
            _ => {
                let rank = |by: usize| ((shape.rank + by) % shape.ranks) as i32;
                let (to, from, out) = (rank(1), rank(shape.ranks - 1), output);
                // SAFETY: likewise.
                let status = unsafe {
                    capi::mlxd_send_recv(self.0, input, count, to, out, count, from, dtype, none)
                };
                succeeded(status, "mlxd_send_recv")
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the handle is from mlxd_init and freed once, here.
        unsafe { capi::mlxd_group_free(self.0) }
    }
}

fn succeeded(status: mlxd_status, name: &str) -> Result<(), String> {
    if status == MLXD_OK {
        return Ok(());
    }
    // The message first: asking for the name is a call as well.
    let message = last_error(name);
    // SAFETY: takes any number; the name is static.
    let status = unsafe { text(capi::mlxd_status_name(status)) };
    Err(format!("{message} ({status})"))
}

/// What the failed call `name` said.
fn last_error(name: &str) -> String {
    // SAFETY: the sentence is valid until this thread's next call, and copied before that.
    let message = unsafe { text(capi::mlxd_last_error()) };
    format!("{name} failed: {message}")
}

/// A copy of a C string.
///
/// # Safety
/// `pointer` is NULL or points to a C string.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return "(nothing)".to_owned();
    }
    // SAFETY: not NULL, so a C string by this function's contract.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
