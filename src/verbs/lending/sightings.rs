//! What is known of spans that calls have come with: of a fixed number of them, as for the table.

use super::span::{Span, touch};

/// Spans that are remembered.
const REMEMBERED: usize = 32;
/// Calls after which a span is kept, at first: the second one shows that there may be more.
const WORTH_KEEPING: u32 = 2;
/// Uses after which keeping was worth it, though the memory was unmapped then, or others needed the place.
const PAID: u32 = 8;
/// The most calls before a span is kept that was kept in vain.
const MOST_CALLS: u32 = 1024;

/// How often a span was seen.
#[derive(Clone, Default)]
struct Sighting {
    owner: u64,
    span: Span,
    /// In how many calls, the last of which was this one.
    calls: u32,
    call: u64,
    /// After how many it is kept.
    needed: u32,
    /// Whether it cannot be registered, or cannot be kept, and whether it is no file's.
    refused: bool,
    passing: bool,
    checked: bool,
    last: u64,
}

/// What is known of a span that is not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It cannot be registered.
    Refused,
    /// It is not seen often enough to be kept, or cannot be.
    Passing,
    /// It may be kept.
    Returning,
}

/// Those that were seen last.
#[derive(Default)]
pub struct Sightings {
    all: [Sighting; REMEMBERED],
    clock: u64,
}

impl Sightings {
    fn find(&mut self, owner: u64, span: &Span) -> Option<&mut Sighting> {
        self.all.iter_mut().find(|s| s.calls > 0 && s.owner == owner && s.span == *span)
    }

    /// Counts that a call has come with this span, which is not registered: what is known of it.
    pub fn count(&mut self, owner: u64, span: &Span, call: u64) -> Known {
        self.clock += 1;
        let now = self.clock;
        if self.find(owner, span).is_none()
            && let Some(oldest) = self.all.iter_mut().min_by_key(|s| s.last)
        {
            let (span, needed) = (span.clone(), WORTH_KEEPING);
            *oldest = Sighting { owner, span, calls: 1, call, needed, ..Sighting::default() };
        }
        let Some(seen) = self.find(owner, span) else { return Known::Passing };
        seen.last = now;
        if seen.call != call {
            (seen.calls, seen.call) = (seen.calls.saturating_add(1), call);
        }
        match (seen.refused, seen.passing || seen.calls < seen.needed) {
            (true, _) => Known::Refused,
            (_, true) => Known::Passing,
            (_, false) => Known::Returning,
        }
    }

    /// The span cannot be registered; whether that is news.
    pub fn refuse(&mut self, owner: u64, span: &Span) -> bool {
        self.find(owner, span).is_none_or(|seen| !std::mem::replace(&mut seen.refused, true))
    }

    /// Whether the span was found to be no file's.
    pub fn is_checked(&mut self, owner: u64, span: &Span) -> bool {
        self.find(owner, span).is_some_and(|seen| seen.checked)
    }

    /// It was.
    pub fn note_checked(&mut self, owner: u64, span: &Span) {
        if let Some(seen) = self.find(owner, span) {
            seen.checked = true;
        }
    }

    /// The span cannot be kept.
    pub fn let_pass(&mut self, owner: u64, span: &Span) {
        if let Some(seen) = self.find(owner, span) {
            seen.passing = true;
        }
    }

    /// What was kept of this span is kept no more: if it was used too little, it has to be seen more often
    /// before it is kept again.
    pub fn blame(&mut self, span: &Span, uses: u32) {
        for seen in self.all.iter_mut().filter(|seen| touch(&seen.span, span)) {
            let needed = if uses >= PAID { WORTH_KEEPING } else { seen.needed * 2 };
            (seen.calls, seen.needed) = (1, needed.min(MOST_CALLS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_kept_when_it_returns_and_later_if_that_was_in_vain() {
        let (mut all, span) = (Sightings::default(), 0..100);
        assert_eq!(all.count(1, &span, 1), Known::Passing);
        // All links of a call lend the same.
        assert_eq!(all.count(1, &span, 1), Known::Passing);
        assert_eq!(all.count(1, &span, 2), Known::Returning);
        all.blame(&(99..200), PAID - 1);
        let mut known: Vec<Known> = (3..6).map(|call| all.count(1, &span, call)).collect();
        assert_eq!(known, [Known::Passing, Known::Passing, Known::Returning]);
        all.blame(&(100..200), 0);
        all.blame(&span, PAID);
        known = (6..8).map(|call| all.count(1, &span, call)).collect();
        assert_eq!(known, [Known::Returning, Known::Returning]);
    }

    #[test]
    fn what_was_found_out_is_remembered_for_a_while() {
        let (mut all, span) = (Sightings::default(), 0..100);
        all.count(1, &span, 1);
        assert!(!all.is_checked(1, &span) && !all.is_checked(2, &span));
        all.note_checked(1, &span);
        assert!(all.is_checked(1, &span) && !all.is_checked(2, &span));
        all.let_pass(1, &span);
        assert_eq!(all.count(1, &span, 2), Known::Passing);
        assert!(all.refuse(1, &span) && !all.refuse(1, &span));
        assert_eq!(all.count(1, &span, 3), Known::Refused);
        for start in 1..=REMEMBERED {
            all.count(1, &(start..1000), 4);
        }
        assert_eq!(all.count(1, &span, 5), Known::Passing);
        assert_eq!(all.count(1, &span, 6), Known::Returning);
    }
}
