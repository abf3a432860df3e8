//! Memory of an operation: aligned or not, with guards around it, and what must be in it at the end.

use std::sync::Arc;

use crate::random::Random;
use crate::values::Values;

/// Bytes before and after, at least, that nobody may touch.
const GUARD: usize = 64;
/// What is there, and in outputs before the operation.
const UNTOUCHED: u8 = 0xa5;

/// Elements in a row.
#[derive(Clone)]
pub struct Run {
    /// Where, in elements of the area.
    pub at: usize,
    pub count: usize,
    pub values: Arc<Values>,
    /// Which of the values comes first.
    pub first: usize,
}

/// An input, an output, or both.
pub struct Area {
    name: &'static str,
    memory: Vec<u8>,
    /// Where it begins in `memory`, and its bytes.
    start: usize,
    length: usize,
    element: usize,
    /// What must be in it; there may be others.
    runs: Vec<Run>,
}

impl Area {
    /// Room for so many elements of so many bytes.
    pub fn new(name: &'static str, count: usize, element: usize, random: &mut Random) -> Area {
        let length = count * element;
        let memory = vec![UNTOUCHED; length + 2 * GUARD + 128];
        let to_line = 64 - memory.as_ptr() as usize % 64;
        let beyond = if random.one_in(2) { random.below(64) } else { 0 };
        Area { name, memory, start: GUARD + to_line + beyond, length, element, runs: Vec::new() }
    }

    /// Writes these elements, which must still be there at the end unless others are expected.
    pub fn with(mut self, run: Run) -> Area {
        let bytes = self.start + run.at * self.element..;
        run.values.write(run.first, &mut self.memory[bytes][..run.count * self.element]);
        self.expect(vec![run])
    }

    /// With these elements at the end.
    pub fn expect(mut self, runs: Vec<Run>) -> Area {
        self.runs = runs;
        self
    }

    /// Where an element is; NULL in an area without any.
    pub fn at(&mut self, index: usize) -> *mut u8 {
        match self.length {
            0 => std::ptr::null_mut(),
            _ => self.memory.as_mut_ptr().wrapping_add(self.start + index * self.element),
        }
    }

    /// Whether it is only read.
    pub fn is_input(&self) -> bool {
        self.name == "input"
    }

    /// Whether nothing around it was touched.
    pub fn check_guards(&self) -> Result<(), String> {
        let (before, rest) = self.memory.split_at(self.start);
        let touched = before.iter().chain(&rest[self.length..]).any(|byte| *byte != UNTOUCHED);
        if touched { Err(format!("{}: bytes around it were written", self.name)) } else { Ok(()) }
    }

    /// Whether all is as expected.
    pub fn check(&self) -> Result<(), String> {
        self.check_guards()?;
        for Run { at, count, values, first } in &self.runs {
            let bytes = &self.memory[self.start + at * self.element..][..count * self.element];
            values
                .compare(*first, bytes)
                .map_err(|e| format!("{} from {at} on: {e}", self.name))?;
        }
        Ok(())
    }

    /// All its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.length]
    }
}
