//! A part of one rank: `Group` copies by itself, and takes only the names from here.

use std::sync::Arc;

use super::Shared;
use crate::backend::{Backend, Limits, Operation};
use crate::control::Member;
use crate::error::{Error, Result, fail};
use crate::health::Health;
use crate::recorder::document::Identity;

/// A group of this rank only, made of another.
pub struct Alone {
    pub(super) shared: Arc<Shared>,
    pub(super) member: Member,
}

impl Backend for Alone {
    fn name(&self) -> &'static str {
        "nccl"
    }

    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn identity(&self) -> Identity {
        Identity {
            world: self.shared.world.id,
            group: self.member.group,
            backend: self.name(),
            rank: 0,
            ranks: self.member.ranks.clone(),
        }
    }

    fn health(&self) -> &Health {
        &self.member.health
    }

    fn device(&self) -> Option<i32> {
        Some(self.shared.context.device)
    }

    unsafe fn run(&self, operation: &Operation, _limits: Limits) -> Result<()> {
        fail!(Internal, "{} of one rank", operation.name())
    }

    fn split(&self, _: i32, _: i32, _: u64, _: Limits) -> Result<Option<Box<dyn Backend>>> {
        fail!(Internal, "a split of one rank")
    }

    fn fail(&self, cause: &Error) {
        self.member.health.fail(cause.clone());
    }

    fn leave(&self) {}
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.shared.world.forget(self.member.group);
    }
}
