//! Which memory is registered: a table of fixed size, since whoever has it locked must not allocate.

use std::sync::{Arc, Weak};

use super::sightings::Sightings;
use super::span::{Span, hold, touch};

/// 16 regions at once, in all worlds of a process: with 60 for the buffers of 10 wires, which is all that
/// Thunderbolt's 10 queue pairs make, a process stays within its 100.
pub const PLACES: usize = 16;

/// A registration of a span.
pub struct Region {
    /// What it holds.
    pub span: Span,
    /// What names it in work requests.
    pub lkey: u32,
    /// Undoes it when it is dropped.
    pub registered: Box<dyn Send + Sync>,
}

/// What becomes of a place.
#[derive(Default)]
enum State {
    #[default]
    Free,
    /// Somebody registers it. Whether it is to be kept was settled before the first event that matters.
    Making,
    /// For the call that has it.
    Lent(Weak<Region>),
    /// For calls to come as well; once it is doomed, to be undone.
    Kept(Arc<Region>),
}

/// A place of the table.
#[derive(Default)]
struct Place {
    /// Whose it is: a device's number.
    owner: u64,
    /// What it holds.
    span: Span,
    state: State,
    /// Whether the kernel tells when its memory goes.
    watched: bool,
    /// Whether it has told so.
    doomed: bool,
    /// The call that it was made for.
    call: u64,
    /// How often it was of use, and when last.
    uses: u32,
    last: u64,
}

impl Place {
    fn is_free(&self) -> bool {
        match &self.state {
            State::Free => true,
            State::Lent(region) => region.strong_count() == 0,
            _ => false,
        }
    }

    /// Whether only the table has it.
    fn is_idle(&self) -> bool {
        matches!(&self.state, State::Kept(region) if Arc::strong_count(region) == 1)
    }
}

/// What was taken out of the table, to be dropped once that is unlocked.
#[derive(Default)]
pub struct Removed {
    places: [Place; PLACES],
    count: usize,
}

impl Removed {
    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn add(&mut self, place: Place) {
        self.places[self.count] = place;
        self.count += 1;
    }

    /// The spans of which the kernel was to tell.
    fn watched(&self) -> impl Iterator<Item = Span> {
        self.places[..self.count].iter().filter(|p| p.watched).map(|p| p.span.clone())
    }
}

/// The table.
#[derive(Default)]
pub struct Table {
    places: [Place; PLACES],
    /// What is known of spans that are not here.
    pub sightings: Sightings,
    /// Counts what is done here, to tell what was used last.
    clock: u64,
}

impl Table {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A region of this owner's that holds the span, and whether it is a kept one. What was registered for
    /// a call, and is not watched, serves that call alone: others might hold it for longer than the memory
    /// stays.
    pub fn find(&mut self, owner: u64, span: &Span, call: u64) -> Option<(Arc<Region>, bool)> {
        let now = self.tick();
        for place in self.places.iter_mut() {
            if place.owner != owner || !hold(&place.span, span) {
                continue;
            }
            let found = match &place.state {
                State::Kept(region) if !place.doomed => Some((region.clone(), true)),
                State::Lent(region) if place.call == call => region.upgrade().map(|r| (r, false)),
                _ => None,
            };
            if found.is_some() {
                (place.uses, place.last) = (place.uses.saturating_add(1), now);
                return found;
            }
        }
        None
    }

    /// A place for a span that is to be registered, with as many of those that are kept removed, the one
    /// that was used longest ago first, as there must be fewer for places and `budget` bytes. `None` if
    /// that does not do.
    pub fn reserve(
        &mut self,
        owner: u64,
        span: &Span,
        call: u64,
        watched: bool,
        budget: usize,
        removed: &mut Removed,
    ) -> Option<usize> {
        if span.len() > budget {
            return None;
        }
        let free = loop {
            let used = |p: &Place| if p.is_free() { 0 } else { p.span.len() };
            let pinned: usize = self.places.iter().map(used).sum();
            let free = self.places.iter().position(Place::is_free);
            if let Some(free) = free.filter(|_| pinned + span.len() <= budget) {
                break free;
            }
            let idle = self.places.iter_mut().filter(|p| p.is_idle()).min_by_key(|p| p.last)?;
            let idle = std::mem::take(idle);
            self.sightings.blame(&idle.span, idle.uses);
            removed.add(idle);
        };
        let last = self.tick();
        let (span, state) = (span.clone(), State::Making);
        let place = Place { owner, span, state, watched, doomed: false, call, uses: 1, last };
        let old = std::mem::replace(&mut self.places[free], place);
        // At most one per place: each removed one was its own, and is free since.
        if !matches!(old.state, State::Free) {
            removed.add(old);
        }
        Some(free)
    }

    /// What was reserved was registered, or not; `keep` if it may be kept. True if nobody needs to be told
    /// any more when its memory goes.
    pub fn fill(&mut self, place: usize, made: Option<&Arc<Region>>, keep: bool) -> bool {
        let place = &mut self.places[place];
        place.state = match made {
            None => State::Free,
            Some(region) if keep && !place.doomed => State::Kept(region.clone()),
            Some(region) => State::Lent(Arc::downgrade(region)),
        };
        let kept = matches!(place.state, State::Kept(_));
        std::mem::replace(&mut place.watched, kept) && !kept
    }

    /// The memory of a span has gone, or other memory is there now: whether that leaves something to be
    /// undone. `unmapped` if nothing of it is watched any more.
    pub fn invalidate(&mut self, gone: &Span, unmapped: bool) -> bool {
        let mut invalidated = false;
        for place in self.places.iter_mut().filter(|p| touch(&p.span, gone)) {
            // While it is made it may be newer than what has gone.
            if unmapped && hold(gone, &place.span) && !matches!(place.state, State::Making) {
                place.watched = false;
            }
            if std::mem::replace(&mut place.doomed, true) || !matches!(place.state, State::Kept(_))
            {
                continue;
            }
            invalidated = true;
            let (span, uses) = (place.span.clone(), place.uses);
            self.sightings.blame(&span, uses);
        }
        invalidated
    }

    /// Whether anything that is watched is being registered.
    pub fn is_making(&self) -> bool {
        self.places.iter().any(|place| place.watched && matches!(place.state, State::Making))
    }

    /// Takes out what is to be undone; and all that is kept, of this owner's or, `None`, of any, if `all`.
    pub fn remove(&mut self, all: bool, owner: Option<u64>, removed: &mut Removed) {
        for place in &mut self.places {
            let named = place.doomed || all && owner.is_none_or(|owner| owner == place.owner);
            if named && matches!(place.state, State::Kept(_)) {
                removed.add(std::mem::take(place));
            }
        }
    }

    /// Calls `each` with every part of the spans that were taken out of which the kernel need not tell any
    /// more: pages may be shared with others that are still here.
    pub fn unwatched(&self, removed: &Removed, mut each: impl FnMut(Span)) {
        for span in removed.watched() {
            self.parts_without(span, &mut each);
        }
    }

    /// Calls `each` with every part of the span that no watched place holds.
    pub fn parts_without(&self, span: Span, each: &mut impl FnMut(Span)) {
        let mut at = span.start;
        while at < span.end {
            let watched = || self.places.iter().filter(|p| p.watched && !p.is_free());
            if let Some(cover) = watched().find(|p| p.span.contains(&at)) {
                at = cover.span.end;
                continue;
            }
            let next = watched().map(|p| p.span.start).filter(|start| *start > at).min();
            let end = next.unwrap_or(span.end).min(span.end);
            each(at..end);
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts those that are registered.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A table whose registrations are counted.
    #[derive(Default)]
    struct Trial {
        table: Table,
        registered: Arc<AtomicUsize>,
    }

    impl Trial {
        fn region(&self, span: Span) -> Arc<Region> {
            self.registered.fetch_add(1, Ordering::Relaxed);
            let registered = Box::new(Counted(self.registered.clone()));
            Arc::new(Region { span, lkey: 7, registered })
        }

        /// Registers a span; `None` if there is no place.
        fn make(&mut self, span: Span, call: u64, keep: bool) -> Option<Arc<Region>> {
            let mut removed = Removed::default();
            let place = self.table.reserve(1, &span, call, keep, 1000, &mut removed)?;
            drop(removed);
            let region = self.region(span);
            self.table.fill(place, Some(&region), keep);
            Some(region)
        }

        fn finds(&mut self, span: Span, call: u64) -> bool {
            self.table.find(1, &span, call).is_some()
        }

        fn count(&self) -> usize {
            self.registered.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn kept_ones_are_found_until_their_memory_goes() {
        let mut trial = Trial::default();
        drop(trial.make(100..200, 1, true).unwrap());
        assert!(trial.finds(100..200, 2) && trial.finds(150..160, 3));
        assert!(!trial.finds(99..160, 4) && !trial.finds(150..201, 4));
        assert!(trial.table.find(2, &(100..200), 2).is_none(), "another device's");
        assert!(
            !trial.table.invalidate(&(50..100), false)
                && !trial.table.invalidate(&(200..300), false)
        );
        assert!(trial.finds(100..200, 5));
        assert!(trial.table.invalidate(&(199..300), false));
        assert!(!trial.finds(100..200, 6) && trial.count() == 1);
        let mut removed = Removed::default();
        trial.table.remove(false, None, &mut removed);
        drop(removed);
        assert_eq!(trial.count(), 0);
    }

    #[test]
    fn what_is_lent_serves_its_call_as_long_as_that_has_it() {
        let mut trial = Trial::default();
        let region = trial.make(100..200, 1, false).unwrap();
        assert!(trial.finds(100..200, 1) && !trial.finds(100..200, 2));
        drop(region);
        assert!(!trial.finds(100..200, 1) && trial.count() == 0);
    }

    #[test]
    fn memory_that_goes_while_it_is_registered_is_not_kept() {
        let mut trial = Trial::default();
        let mut removed = Removed::default();
        let place = trial.table.reserve(1, &(0..10), 1, true, 1000, &mut removed).unwrap();
        assert!(!trial.table.invalidate(&(9..10), false));
        let region = trial.region(0..10);
        trial.table.fill(place, Some(&region), true);
        assert!(trial.finds(0..10, 1) && !trial.finds(0..10, 2));
        drop(region);
        assert_eq!(trial.count(), 0);
    }

    #[test]
    fn the_one_used_longest_ago_makes_room() {
        let mut trial = Trial::default();
        let span = |at: usize| at * 10..at * 10 + 10;
        for at in 0..PLACES {
            trial.make(span(at), 1, true).unwrap();
        }
        assert!(trial.finds(span(0), 2));
        trial.make(span(PLACES), 3, true).unwrap();
        assert!(trial.finds(span(0), 4) && !trial.finds(span(1), 4));
        assert_eq!(trial.count(), PLACES);
        // Bytes are counted, too: 1000 in all.
        trial.make(2000..2900, 5, true).unwrap();
        assert!(trial.count() <= 11 && trial.finds(2000..2900, 6));
        assert!(trial.make(5000..6001, 7, true).is_none());
    }

    #[test]
    fn those_in_use_are_not_removed() {
        let mut trial = Trial::default();
        let held: Vec<_> =
            (0..PLACES).map(|at| trial.make(at..at + 1, 1, at % 2 == 0).unwrap()).collect();
        assert!(trial.make(100..101, 2, true).is_none());
        drop(held);
        assert!(trial.make(100..101, 2, true).is_some());
        // What was lent is gone since.
        assert_eq!(trial.count(), PLACES / 2 + 1);
    }

    #[test]
    fn pages_that_others_hold_stay_watched() {
        let mut trial = Trial::default();
        for span in [0..30, 20..50, 70..90] {
            trial.make(span, 1, true).unwrap();
        }
        let mut removed = Removed::default();
        trial.table.invalidate(&(35..36), false);
        trial.table.remove(false, None, &mut removed);
        let mut parts = Vec::new();
        trial.table.unwatched(&removed, |part| parts.push(part));
        assert_eq!(parts.pop(), Some(30..50));
        assert!(parts.is_empty());
        trial.table.parts_without(25..100, &mut |part| parts.push(part));
        assert_eq!(parts, [30..70, 90..100]);
    }
}
