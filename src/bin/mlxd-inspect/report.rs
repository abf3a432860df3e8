//! What is printed: sentences, or JSON.

use serde_json::json;

use crate::analysis::{Analysis, Cause};
use crate::files::{Case, Found};
use crate::wording::{count, ranks};

/// For people.
pub fn text(cases: &[Case], results: &[Analysis]) -> String {
    let mut text = String::new();
    for (case, result) in cases.iter().zip(results) {
        text.push_str(&title(case));
        text.push('\n');
        for finding in &result.findings {
            text.push_str(&format!("  {}\n", finding.text));
        }
        for cause in &result.causes {
            text.push_str(&format!("  {}\n", failure(cause)));
        }
        if !result.is_problem() {
            let most = case.documents.values().map(|d| d.collectives.called).max();
            let calls = count(most.unwrap_or_default(), "collective");
            text.push_str(&format!("  nothing is wrong; {calls} called\n"));
        }
    }
    text
}

/// `group 0 of world 9c0f5b7a1e2d3c4b (the world, 4 ranks, ring)`
fn title(case: &Case) -> String {
    let Some(document) = case.documents.values().next() else {
        return String::new();
    };
    let (group, world, backend) = (&document.group, &document.world, &document.backend);
    let members = if group == "0" {
        "the world, ".to_owned()
    } else {
        format!("{} of the world, ", ranks(&document.ranks))
    };
    let size = count(case.size as u64, "rank");
    format!("group {group} of world {world} ({members}{size}, {backend}):")
}

/// `rank 1 failed first, and ranks 0, 2: MLXD_ERROR_TIMEOUT: ...`
fn failure(cause: &Cause) -> String {
    let others: Vec<usize> =
        cause.ranks.iter().copied().filter(|rank| Some(*rank) != cause.first).collect();
    let who = match (cause.first, others.is_empty()) {
        (Some(first), true) => format!("rank {first} failed first"),
        (Some(first), false) => format!("rank {first} failed first, then {}", ranks(&others)),
        (None, _) => format!("{} failed", ranks(&others)),
    };
    format!("{who}: {}: {}", cause.status, cause.message)
}

/// For programs.
pub fn json(found: &Found, results: &[Analysis]) -> String {
    let groups: Vec<_> = found
        .cases
        .iter()
        .zip(results)
        .filter_map(|(case, result)| {
            let document = case.documents.values().next()?;
            Some(json!({
                "world": document.world,
                "group": document.group,
                "backend": document.backend,
                "size": case.size,
                "ranks_of_world": document.ranks,
                "files_of_ranks": case.documents.keys().collect::<Vec<_>>(),
                "problem": result.is_problem(),
                "findings": result.findings,
                "causes": result.causes,
            }))
        })
        .collect();
    let skipped: Vec<_> = found
        .skipped
        .iter()
        .map(|(path, reason)| json!({ "path": path.to_string_lossy(), "reason": reason }))
        .collect();
    let problem = results.iter().any(Analysis::is_problem);
    format!("{:#}\n", json!({ "problem": problem, "groups": groups, "skipped": skipped }))
}
