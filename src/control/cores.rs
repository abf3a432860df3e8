//! Which cores the ranks of a machine may use, and whether each has one of its own.

use rustix::thread::{CpuSet, sched_getaffinity};

/// The cores that this thread may use, as in `0-3,7`; empty where that is not known.
pub fn here() -> String {
    let Ok(set) = sched_getaffinity(None) else {
        return String::new();
    };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect();
    let span = |run: &[usize]| match run {
        [first, .., last] => format!("{first}-{last}"),
        run => run.iter().map(usize::to_string).collect(),
    };
    let spans: Vec<String> = cores.chunk_by(|a, b| a + 1 == *b).map(span).collect();
    spans.join(",")
}

/// Whether each core is in a list as [`here`] makes it; false for those that cannot be read.
fn read(list: &str) -> Vec<bool> {
    let mut found = vec![false; CpuSet::MAX_CPU];
    for span in list.split(',') {
        let (first, last) = span.split_once('-').unwrap_or((span, span));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            found.iter_mut().take(last.saturating_add(1)).skip(first).for_each(|core| *core = true);
        }
    }
    found
}

/// Whether each rank of this machine has a core of its own. `lists` has the cores that each of them may
/// use, `own` those of this rank, and `available` is how many it may keep busy at once: fewer than its
/// cores where its share of time is limited.
pub fn suffice(lists: &[&str], own: &str, available: usize) -> bool {
    let count = |cores: &[bool]| cores.iter().filter(|core| **core).count();
    let mut all = vec![false; CpuSet::MAX_CPU];
    for list in lists {
        all.iter_mut().zip(read(list)).for_each(|(core, more)| *core |= more);
    }
    // Where this rank's cores are not known, nothing says that `available` is all that there are.
    let limited = available < count(&read(own)) || own.is_empty();
    lists.len() <= if limited { available } else { count(&all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(list: &str) -> Vec<usize> {
        read(list).iter().enumerate().filter(|(_, is)| **is).map(|(core, _)| core).collect()
    }

    #[test]
    fn a_list_names_cores() {
        assert_eq!(listed("0-3,7"), [0, 1, 2, 3, 7]);
        assert_eq!(listed("5"), [5]);
        assert_eq!(listed("3-1,x,-,4-,,1023-99999999999999,18446744073709551615"), [1023]);
        assert!(listed("").is_empty());
        let here = here();
        assert_eq!(listed(&here).len(), sched_getaffinity(None).unwrap().count() as usize);
    }

    #[test]
    fn ranks_bound_to_a_core_each_have_enough() {
        // Nobody is bound.
        assert!(suffice(&["0-1"; 2], "0-1", 2) && !suffice(&["0-1"; 3], "0-1", 2));
        // Each has a core: what this rank may use is not what counts.
        assert!(suffice(&["0", "1"], "1", 1) && suffice(&["0", "1", "2-3"], "0", 1));
        // Both have the same one.
        assert!(!suffice(&["1", "1"], "1", 1) && !suffice(&["0", "1", "1"], "1", 1));
        assert!(suffice(&["0"], "0", 1));
    }

    #[test]
    fn a_limit_on_time_counts_instead() {
        assert!(!suffice(&["0-7"; 3], "0-7", 2) && suffice(&["0-7"; 2], "0-7", 2));
        assert!(!suffice(&["0-3", "4-7"], "0-3", 1));
    }

    #[test]
    fn what_is_not_known_is_no_core() {
        assert!(suffice(&["", "", ""], "", 3) && !suffice(&["", "", ""], "", 2));
        assert!(!suffice(&["0", ""], "0", 1) && suffice(&["0-1", ""], "0-1", 2));
    }
}
