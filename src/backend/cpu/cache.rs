//! Where keys and values are in the cache.

use crate::ops::{AttentionParams, RopeCacheParams};

/// A cache `[slots, kv_heads, context, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    kv_heads: usize,
    context: usize,
    head_dim: usize,
}

impl Cache {
    /// The first element of the row that a head has for a position; rows of later positions follow.
    pub fn row(self, slot: usize, kv_head: usize, position: usize) -> usize {
        ((slot * self.kv_heads + kv_head) * self.context + position) * self.head_dim
    }
}

impl From<&RopeCacheParams> for Cache {
    fn from(p: &RopeCacheParams) -> Self {
        let [kv_heads, context, head_dim] = [p.kv_heads, p.context, p.head_dim].map(|n| n as usize);
        Self { kv_heads, context, head_dim }
    }
}

impl From<&AttentionParams> for Cache {
    fn from(p: &AttentionParams) -> Self {
        let [kv_heads, context, head_dim] = [p.kv_heads, p.context, p.head_dim].map(|n| n as usize);
        Self { kv_heads, context, head_dim }
    }
}
