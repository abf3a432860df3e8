//! Calls of a step: their memory, what must come of them, and the stream they are put on.

use std::sync::Arc;

use mlxd::capi::*;

use crate::area::{Area, Run};
use crate::flight::Flight;
use crate::program::{Action, Step, Verb};
use crate::random::Random;
use crate::rank::Worker;
use crate::values::{Content, Dtype, Values};

impl Worker<'_> {
    /// This rank's part in a step with elements; `own` is its rank in the group.
    pub fn operate(
        &mut self,
        step: &Step,
        group: *mut mlxd_group,
        own: usize,
        random: &mut Random,
    ) {
        match &step.action {
            Action::Collective { .. } => self.collective(step, group, own, random),
            Action::Messages { dtype, from, to, counts } => {
                for (number, count) in counts.iter().enumerate() {
                    let values = self.input(step, number, *dtype, Content::Cargo);
                    if own == *from {
                        self.send(step, group, values, *count, *to, random);
                    } else if own == *to {
                        self.recv(step, group, values, *count, *from, random);
                    }
                }
            }
            Action::Exchange { dtype, to, counts } => {
                let from = to.iter().position(|to| *to == own).unwrap();
                if from == own {
                    return;
                }
                let out = self.input(step, own, *dtype, Content::Cargo);
                let come = self.input(step, from, *dtype, Content::Cargo);
                let (sent, received) = ((out, counts[own], to[own]), (come, counts[from], from));
                self.exchange(step, group, sent, received, random);
            }
            _ => {}
        }
    }

    /// What a rank, or a message, brings to a step.
    fn input(&self, step: &Step, number: usize, dtype: Dtype, content: Content) -> Arc<Values> {
        let of = [self.round.seed, 3, step.number as u64, number as u64];
        Arc::new(Values::input(&of, dtype, content))
    }

    fn flight(&self, step: &Step, areas: Vec<Area>) -> Flight {
        Flight { label: step.to_string(), group: step.group, areas }
    }

    fn collective(&mut self, step: &Step, group: *mut mlxd_group, own: usize, random: &mut Random) {
        let Action::Collective { verb, dtype, count, root, in_place } = step.action else { return };
        let ranks = self.round.program.groups[step.group].len();
        let content = match verb {
            _ if verb.is_sum() => Content::Addends,
            _ if verb.reduces() => Content::Contestants,
            _ => Content::Cargo,
        };
        let input = |rank| self.input(step, rank, dtype, content);
        let inputs: Vec<_> = match verb {
            Verb::Broadcast => vec![input(root); ranks],
            Verb::Barrier => Vec::new(),
            _ => (0..ranks).map(input).collect(),
        };
        let shape = Shape { verb, dtype, count, own, root };
        let (mut areas, [from, into]) = shape.areas(&inputs, in_place, random);
        let (first, last) = (0, areas.len().saturating_sub(1));
        let mut at = |area: usize, index| {
            areas.get_mut(area).map_or(std::ptr::null_mut(), |area| area.at(index))
        };
        let (from, into) = (at(first, from).cast_const(), at(last, into));
        let choice = self.choose(random);
        let call = Call { verb, group, count, dtype: dtype.0, root: root as i32 };
        // SAFETY: the areas have room for what the call reads and writes, and stay where they are
        // until it has ended.
        let status = unsafe { call.run(from, into, self.stream(choice)) };
        let flight = self.flight(step, areas);
        self.called(flight, choice, status);
    }

    fn send(
        &mut self,
        step: &Step,
        group: *mut mlxd_group,
        values: Arc<Values>,
        count: usize,
        to: usize,
        random: &mut Random,
    ) {
        let dtype = values.dtype;
        let run = Run { at: 0, count, values, first: 0 };
        let mut area = Area::new("input", count, dtype.size(), random).with(run);
        let choice = self.choose(random);
        let (from, stream) = (area.at(0).cast_const().cast(), self.stream(choice));
        // SAFETY: the area has `count` elements, and stays where it is until the call has ended.
        let status = unsafe { mlxd_send(group, from, count, dtype.0, to as i32, stream) };
        self.called(self.flight(step, vec![area]), choice, status);
    }

    fn recv(
        &mut self,
        step: &Step,
        group: *mut mlxd_group,
        values: Arc<Values>,
        count: usize,
        from: usize,
        random: &mut Random,
    ) {
        let dtype = values.dtype;
        let run = Run { at: 0, count, values, first: 0 };
        let mut area = Area::new("output", count, dtype.size(), random).expect(vec![run]);
        let choice = self.choose(random);
        let (into, stream) = (area.at(0).cast(), self.stream(choice));
        // SAFETY: as in `send`.
        let status = unsafe { mlxd_recv(group, into, count, dtype.0, from as i32, stream) };
        self.called(self.flight(step, vec![area]), choice, status);
    }

    /// As one call, or as two of which the first is on a stream.
    fn exchange(
        &mut self,
        step: &Step,
        group: *mut mlxd_group,
        (out, out_count, to): (Arc<Values>, usize, usize),
        (come, come_count, from): (Arc<Values>, usize, usize),
        random: &mut Random,
    ) {
        let dtype = out.dtype;
        let out = Run { at: 0, count: out_count, values: out, first: 0 };
        let come = Run { at: 0, count: come_count, values: come, first: 0 };
        let mut input = Area::new("input", out_count, dtype.size(), random).with(out);
        let mut output = Area::new("output", come_count, dtype.size(), random).expect(vec![come]);
        let (source, target) = (input.at(0).cast_const().cast(), output.at(0).cast());
        let (to, from) = (to as i32, from as i32);
        let choice = self.choose(random);
        let stream = self.stream(choice);
        if choice.is_none() || random.one_in(2) {
            // SAFETY: the areas have room, and stay where they are until the call has ended.
            let status = unsafe {
                let (group, number) = (group, dtype.0);
                mlxd_send_recv(
                    group, source, out_count, to, target, come_count, from, number, stream,
                )
            };
            return self.called(self.flight(step, vec![input, output]), choice, status);
        }
        // SAFETY: as above.
        let status = unsafe { mlxd_send(group, source, out_count, dtype.0, to, stream) };
        self.called(self.flight(step, vec![input]), choice, status);
        // SAFETY: as above.
        let status =
            unsafe { mlxd_recv(group, target, come_count, dtype.0, from, std::ptr::null_mut()) };
        self.called(self.flight(step, vec![output]), None, status);
    }
}

/// A collective as one rank sees it.
struct Shape {
    verb: Verb,
    dtype: Dtype,
    count: usize,
    own: usize,
    root: usize,
}

impl Shape {
    /// Its memory, input first, and where in it input and output begin.
    fn areas(
        &self,
        inputs: &[Arc<Values>],
        in_place: bool,
        random: &mut Random,
    ) -> (Vec<Area>, [usize; 2]) {
        let Shape { verb, dtype, count, own, root } = *self;
        let (ranks, size) = (inputs.len(), dtype.size());
        let mut area = |name, count| Area::new(name, count, size, random);
        let Some(values) = inputs.get(own).cloned() else {
            return (Vec::new(), [0, 0]);
        };
        let input = |at| Run { at, count, values, first: 0 };
        let results = self.results(inputs);
        if verb == Verb::Broadcast {
            let buffer = match own == root {
                true => area("input", count).with(input(0)),
                false => area("output", count).expect(results),
            };
            return (vec![buffer], [0, 0]);
        }
        let length = match verb {
            Verb::AllGather => count * ranks,
            Verb::SumScatter if !in_place => count / ranks,
            _ => count,
        };
        if !in_place {
            let output = area("output", length).expect(results);
            return (vec![area("input", count).with(input(0)), output], [0, 0]);
        }
        let buffer = area("buffer", length);
        let block = own * count / ranks;
        match verb {
            Verb::AllGather => {
                (vec![buffer.with(input(own * count)).expect(results)], [own * count, 0])
            }
            Verb::SumScatter => {
                let results = results.into_iter().map(|run| Run { at: block, ..run }).collect();
                (vec![buffer.with(input(0)).expect(results)], [0, block])
            }
            _ => (vec![buffer.with(input(0)).expect(results)], [0, 0]),
        }
    }

    /// What must be in the output.
    fn results(&self, inputs: &[Arc<Values>]) -> Vec<Run> {
        let Shape { verb, count, own, .. } = *self;
        let ranks = inputs.len();
        let reduced = || Arc::new(Values::reduced(verb, inputs));
        let block = count / ranks;
        let from_each = |length: usize, first: usize| {
            let run = |rank| Run {
                at: rank * length,
                count: length,
                values: Arc::clone(&inputs[rank]),
                first,
            };
            (0..ranks).map(run).collect()
        };
        match verb {
            Verb::AllSum | Verb::AllMax | Verb::AllMin => {
                vec![Run { at: 0, count, values: reduced(), first: 0 }]
            }
            Verb::SumScatter => {
                vec![Run { at: 0, count: block, values: reduced(), first: own * block }]
            }
            Verb::AllGather => from_each(count, 0),
            Verb::AllToAll => from_each(block, own * block),
            Verb::Broadcast => {
                vec![Run { at: 0, count, values: Arc::clone(&inputs[0]), first: 0 }]
            }
            Verb::Barrier => Vec::new(),
        }
    }
}

/// A collective as the library is asked for it.
struct Call {
    verb: Verb,
    group: *mut mlxd_group,
    count: usize,
    dtype: mlxd_dtype,
    root: i32,
}

impl Call {
    /// # Safety
    /// As the header says of the function.
    unsafe fn run(&self, from: *const u8, into: *mut u8, stream: *mut mlxd_stream) -> mlxd_status {
        let Call { verb, group, count, dtype, root } = *self;
        let (input, output) = (from.cast(), into.cast());
        // SAFETY: as this function's contract says.
        unsafe {
            match verb {
                Verb::AllSum => mlxd_all_sum(group, input, output, count, dtype, stream),
                Verb::AllMax => mlxd_all_max(group, input, output, count, dtype, stream),
                Verb::AllMin => mlxd_all_min(group, input, output, count, dtype, stream),
                Verb::AllGather => mlxd_all_gather(group, input, output, count, dtype, stream),
                Verb::SumScatter => mlxd_sum_scatter(group, input, output, count, dtype, stream),
                Verb::AllToAll => mlxd_all_to_all(group, input, output, count, dtype, stream),
                Verb::Broadcast => mlxd_broadcast(group, output, count, dtype, root, stream),
                Verb::Barrier => mlxd_barrier(group, stream),
            }
        }
    }
}
