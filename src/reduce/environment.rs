//! The processor's floating-point settings while the library computes: every rank gets the same bytes
//! only if all round alike and treat subnormal numbers alike, whatever the caller's thread has set.

/// Round to nearest, subnormals kept, no traps, until it is dropped; then as before.
#[derive(Debug)]
pub struct Environment {
    before: u64,
}

impl Environment {
    /// Takes over this thread.
    pub fn standard() -> Environment {
        let before = control();
        if before != STANDARD {
            set_control(STANDARD);
        }
        Environment { before }
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        if self.before != STANDARD {
            set_control(self.before);
        }
    }
}

/// MXCSR: all exceptions masked, nothing else.
#[cfg(target_arch = "x86_64")]
const STANDARD: u64 = 0x1f80;
/// FPCR, or no such register.
#[cfg(not(target_arch = "x86_64"))]
const STANDARD: u64 = 0;

/// The control register, without the flags of exceptions that have happened.
#[cfg(target_arch = "x86_64")]
fn control() -> u64 {
    let mut register = 0u32;
    // SAFETY: stmxcsr writes 4 bytes at the address, which `register` has.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut register, options(nostack)) };
    u64::from(register & !0x3f)
}

#[cfg(target_arch = "x86_64")]
fn set_control(value: u64) {
    let register = value as u32;
    // SAFETY: ldmxcsr reads 4 bytes at the address; only bits that stmxcsr gave, or the default, are
    // set. Code in between sees another environment only in the kernels, which are meant to.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &register, options(nostack, readonly)) };
}

#[cfg(target_arch = "aarch64")]
fn control() -> u64 {
    let register: u64;
    // SAFETY: reading FPCR has no other effect.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) register, options(nomem, nostack)) };
    register
}

#[cfg(target_arch = "aarch64")]
fn set_control(value: u64) {
    // SAFETY: only a value that FPCR had, or its default, is set.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) value, options(nomem, nostack)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn control() -> u64 {
    STANDARD
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn set_control(_value: u64) {}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::reduce::{Reduction, kernel};

    #[test]
    fn subnormals_are_kept_whatever_the_thread_has_set() {
        // Flush to zero, denormals are zero: as programs built with -ffast-math start.
        let fast = STANDARD | 0x8040;
        let (a, mut out) = ([0x0010_0000u32; 64], [0u32; 64]);
        let sum = kernel(Reduction::Sum, Dtype::Float32);
        set_control(fast);
        let environment = Environment::standard();
        // SAFETY: both arrays have 64 elements of 4 bytes.
        unsafe { sum(out.as_mut_ptr().cast(), a.as_ptr().cast(), a.as_ptr().cast(), 64) };
        drop(environment);
        let after = control();
        set_control(STANDARD);
        assert_eq!(out, [0x0020_0000; 64]);
        assert_eq!(after, fast);
    }
}
