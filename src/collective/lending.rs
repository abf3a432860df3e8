//! Which memory a run of a schedule lends to its links: what it sends from.

use std::sync::atomic::{AtomicU64, Ordering};

use super::schedule::{Buffer, Schedule, Span, Step};
use crate::transport::Lent;

/// 4 KiB: links do better to copy less than they lend.
const WORTH_LENDING: usize = 4 << 10;

/// What a schedule sends from, buffer by buffer, where that is worth lending: elements have `size` bytes, and
/// `place` tells where a span is.
pub fn lent(
    schedule: &Schedule,
    size: usize,
    place: impl Fn(Span) -> *const u8,
) -> impl Iterator<Item = Lent> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut number = None;
    [Buffer::Input, Buffer::Output, Buffer::Scratch].into_iter().filter_map(move |buffer| {
        let (mut start, mut end, mut elements) = (usize::MAX, 0, 0);
        for step in &schedule.steps {
            if let Step::Send { from, .. } = step
                && from.buffer == buffer
                && from.len > 0
            {
                (start, end) = (start.min(from.start), end.max(from.start + from.len));
                elements += from.len;
            }
        }
        if elements * size < WORTH_LENDING {
            return None;
        }
        let from = place(Span { buffer, start, len: end - start });
        let call = *number.get_or_insert_with(|| CALLS.fetch_add(1, Ordering::Relaxed));
        Some(Lent { from, len: (end - start) * size, sent: (elements * size) as u64, call })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_from_is_lent_once() {
        let base = [0u8; 1];
        let span = |buffer, start, len| Span { buffer, start, len };
        let send = |from| Step::Send { to: 1, from };
        let mut schedule = Schedule::default();
        schedule.steps.push(send(span(Buffer::Input, 1000, 500)));
        schedule.steps.push(Step::Recv { from: 1, into: span(Buffer::Output, 0, 9000) });
        schedule.steps.push(send(span(Buffer::Scratch, 0, 1023)));
        schedule.steps.push(send(span(Buffer::Input, 200, 600)));
        schedule.steps.push(send(span(Buffer::Input, 0, 0)));
        let place = |span: Span| base.as_ptr().wrapping_add(span.start * 4);
        let all: Vec<Lent> = lent(&schedule, 4, place).collect();
        assert_eq!(all.len(), 1, "scratch is less than 4 KiB");
        let start = base.as_ptr().wrapping_add(800);
        assert_eq!((all[0].from, all[0].len, all[0].sent), (start, 5200, 4400));
        let again: Vec<Lent> = lent(&schedule, 8, place).collect();
        assert!(again.len() == 2 && again[0].call == again[1].call && again[0].call != all[0].call);
    }
}
