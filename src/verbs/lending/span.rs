//! Spans of memory.

use std::ops::Range;

/// Addresses.
pub type Span = Range<usize>;

/// Whether they share an address.
pub fn touch(a: &Span, b: &Span) -> bool {
    a.start < b.end && b.start < a.end
}

/// Whether all of the inner one is in the outer.
pub fn hold(outer: &Span, inner: &Span) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}
