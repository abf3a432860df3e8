//! How ranks, operations and times are named.

use mlxd::recorder::document::{Document, Entry, Side};

/// `rank 3`, `ranks 1, 2`, `ranks 0 to 6, 9`.
pub fn ranks(list: &[usize]) -> String {
    let word = if list.len() == 1 { "rank" } else { "ranks" };
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for rank in list {
        match spans.last_mut() {
            Some((_, last)) if *last + 1 == *rank => *last = *rank,
            _ => spans.push((*rank, *rank)),
        }
    }
    let spans: Vec<String> = spans
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first}, {last}"),
            2 => format!("{first}, {}, {last}", first + 1),
            _ => format!("{first} to {last}"),
        })
        .collect();
    format!("{word} {}", spans.join(", "))
}

/// `1 message`, `2 messages`.
pub fn count(number: u64, word: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {word}{plural}")
}

/// `12.3 s`
pub fn seconds(milliseconds: u64) -> String {
    format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100)
}

/// How long an operation has run, or waited for its turn; up to its end, or to the document's time.
pub fn duration(document: &Document, entry: &Entry) -> String {
    let end = entry.ended_ms.unwrap_or(document.written_us / 1000);
    seconds(end.saturating_sub(entry.started_ms.unwrap_or(entry.called_ms)))
}

/// What ranks must agree on: `all_sum of 5 float32`, `broadcast of 5 int8 from root 2`, `barrier`.
pub fn call(entry: &Entry) -> String {
    let mut text = entry.operation.clone();
    if let (Some(count), Some(dtype)) = (entry.count, &entry.dtype) {
        text.push_str(&format!(" of {count} {dtype}"));
    }
    if let Some(root) = entry.root {
        text.push_str(&format!(" from root {root}"));
    }
    text
}

/// `all_sum #41 (1048576 float32)`, `barrier #7`, `recv #3 from rank 0 (9 float32)`.
pub fn operation(entry: &Entry) -> String {
    let sides: Vec<String> = [(&entry.send, true), (&entry.recv, false)]
        .into_iter()
        .filter_map(|(side, sends)| Some(one_side(entry, side.as_ref()?, sends)))
        .collect();
    match (entry.sequence, sides.as_slice()) {
        (_, [side]) => side.clone(),
        (_, [send, recv]) => format!("send_recv ({send}, {recv})"),
        (sequence, _) => {
            let number = sequence.map_or_else(String::new, |number| format!(" #{number}"));
            let mut details: Vec<String> = Vec::new();
            if let (Some(count), Some(dtype)) = (entry.count, &entry.dtype) {
                details.push(format!("{count} {dtype}"));
            }
            details.extend(entry.root.map(|root| format!("root {root}")));
            let details = details.join(", ");
            let details = if details.is_empty() { details } else { format!(" ({details})") };
            format!("{}{number}{details}", entry.operation)
        }
    }
}

/// `send #3 to rank 1 (9 float32)`
pub fn one_side(entry: &Entry, side: &Side, sends: bool) -> String {
    let (verb, way) = if sends { ("send", "to") } else { ("recv", "from") };
    let Side { peer, sequence, count } = side;
    let dtype = entry.dtype.as_deref().unwrap_or("elements");
    format!("{verb} #{sequence} {way} rank {peer} ({count} {dtype})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_listed_for_people() {
        assert_eq!(ranks(&[3]), "rank 3");
        assert_eq!(ranks(&[1, 2]), "ranks 1, 2");
        assert_eq!(ranks(&[0, 1, 2, 5]), "ranks 0, 1, 2, 5");
        assert_eq!(ranks(&[0, 1, 2, 3, 7, 8]), "ranks 0 to 3, 7, 8");
    }

    #[test]
    fn times_have_one_decimal() {
        assert_eq!(seconds(12_345), "12.3 s");
        assert_eq!(seconds(40), "0.0 s");
    }
}
