//! Who is in the groups that a split makes, and in which order.

use super::{Backend, Collective, Limits, Operation};
use crate::call::Verb;
use crate::control::{Member, Seat};
use crate::dtype::Dtype;
use crate::error::{Result, fail};

/// One rank's new group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Per rank of the new group its rank in the old one; the first leads.
    pub ranks: Vec<usize>,
    /// What the leader counts its splits by: it never gives the same number twice.
    pub number: u32,
}

impl Part {
    /// A number that no other group of the world has, when `world_ranks` are the old group's.
    pub fn id(&self, world_ranks: &[usize]) -> u64 {
        let leader = self.ranks.first().map_or(0, |rank| world_ranks[*rank]);
        (leader as u64) << 32 | u64::from(self.number)
    }
}

/// This rank's part in the group that a split makes of `of`, which all of them agree on, and which the
/// control plane knows from then on; `None` for colour -1.
pub fn enter(
    backend: &dyn Backend,
    world: &Seat,
    of: &Member,
    (color, key): (i32, i32),
    sequence: u64,
    limits: Limits,
) -> Result<Option<Member>> {
    let number = world.next_group_number();
    let Some(part) = agree(backend, color, key, number, sequence, limits)? else {
        return Ok(None);
    };
    let ranks: Vec<usize> = part.ranks.iter().map(|rank| of.ranks[*rank]).collect();
    let id = part.id(&of.ranks);
    let member = Member::new(id, of.group, ranks.clone())
        .inspect_err(|cause| world.fail_unmade(id, &ranks, cause))?;
    world.enter(member.clone());
    Ok(Some(member))
}

/// Tells all ranks of the group this rank's colour and key, by a gather that takes the split's
/// place among the collectives: its new group, `None` for colour -1.
pub fn agree(
    backend: &dyn Backend,
    color: i32,
    key: i32,
    number: u32,
    sequence: u64,
    limits: Limits,
) -> Result<Option<Part>> {
    let own: [i32; 3] = [color, key, number as i32];
    let mut all = vec![[0i32; 3]; backend.size()];
    let collective = Collective {
        verb: Verb::Split,
        dtype: Dtype::Int32,
        count: own.len(),
        root: -1,
        input: own.as_ptr().cast(),
        output: all.as_mut_ptr().cast(),
    };
    let operation = Operation::Collective { sequence, collective };
    // SAFETY: `own` has 3 elements and `all` 3 for each rank; both live until it has run.
    unsafe { backend.run(&operation, limits)? };
    let Some(ranks) = group_of(color, &all) else {
        return Ok(None);
    };
    let Some(&leader) = ranks.first() else {
        fail!(Internal, "a group without ranks");
    };
    Ok(Some(Part { number: all[leader][2] as u32, ranks }))
}

/// The ranks that gave `color`, ordered by key, then by rank; a negative key counts as the rank.
/// `None` for colour -1. `all` has each rank's colour and key.
fn group_of(color: i32, all: &[[i32; 3]]) -> Option<Vec<usize>> {
    if color < 0 {
        return None;
    }
    let mut ranks: Vec<usize> = (0..all.len()).filter(|rank| all[*rank][0] == color).collect();
    let key = |rank: usize| if all[rank][1] < 0 { rank as i64 } else { all[rank][1].into() };
    ranks.sort_by_key(|rank| (key(*rank), *rank));
    Some(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_ordered_by_key_then_rank() {
        let all = [[0, 5, 1], [1, 0, 1], [0, 5, 1], [0, -1, 1], [-1, 0, 1], [0, 0, 1]];
        assert_eq!(group_of(0, &all), Some(vec![5, 3, 0, 2]));
        assert_eq!(group_of(1, &all), Some(vec![1]));
        assert_eq!(group_of(-1, &all), None);
    }
}
