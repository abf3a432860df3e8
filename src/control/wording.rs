//! How ranks are named in sentences.

/// `rank 3`, `ranks 1, 2`, `ranks 0, 1, 2, 3, 4, 5, 6, 7 and 92 more`.
pub fn ranks(list: &[usize]) -> String {
    let shown: Vec<String> = list.iter().take(8).map(usize::to_string).collect();
    let more = list.len().saturating_sub(8);
    let plural = if list.len() == 1 { "rank" } else { "ranks" };
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{plural} {}{tail}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_listed_for_people() {
        assert_eq!(ranks(&[3]), "rank 3");
        assert_eq!(ranks(&[1, 2]), "ranks 1, 2");
        let many: Vec<usize> = (0..10).collect();
        assert_eq!(ranks(&many), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}
