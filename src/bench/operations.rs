//! The operations of a forward pass except linear layers, each alone with cold caches, at a model's sizes.

use std::time::Instant;

use super::{Samples, cold, copies};
use crate::backend::Backend;
use crate::config::{DeltaNet, ModelConfig};
use crate::family::{Activation, QkNorms};
use crate::ops::*;
use crate::pq::Rotation;
use crate::{Error, Result};

/// The rows of one sequence that operations run on: `rows` rows, the last at `position`.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub rows: usize,
    pub position: usize,
}

/// Time of one operation, and the bytes that it must read and write.
#[derive(Clone, Debug)]
pub struct Timing {
    pub name: &'static str,
    pub samples: Samples,
    pub bytes: usize,
}

/// Times every operation of a model of this configuration except linear layers.
///
/// # Errors
/// A position before the last of the rows; a device that fails.
pub async fn operations<B: Backend>(
    backend: &B,
    config: &ModelConfig,
    case: Case,
    repeat: usize,
) -> Result<Vec<Timing>> {
    if case.rows == 0 || case.rows > case.position + 1 {
        let found = format!("{} rows up to position {}", case.rows, case.position);
        return Err(Error::mismatch("rows", "1 to the number of positions", found));
    }
    let bench = Bench { backend, config, case, repeat };
    let mut all = vec![bench.rms_norm().await?, bench.glu().await?, bench.gather_rows().await?];
    all.extend(bench.rope_cache_and_attention().await?);
    if let Some(net) = &config.delta_net {
        all.extend(bench.delta_net(net).await?);
    }
    all.push(bench.argmax().await?);
    Ok(all)
}

struct Bench<'a, B: Backend> {
    backend: &'a B,
    config: &'a ModelConfig,
    case: Case,
    repeat: usize,
}

impl<B: Backend> Bench<'_, B> {
    /// A buffer of values between -1 and 1.
    fn values(&self, count: usize) -> Result<B::Buffer> {
        let value = |i: usize| ((i * 7919 % 1009) as f32 / 504.0 - 1.0).to_bits();
        self.backend.upload(&(0..count).map(value).collect::<Vec<_>>())
    }

    fn words(&self, words: &[usize]) -> Result<B::Buffer> {
        self.backend.upload(&words.iter().map(|word| *word as u32).collect::<Vec<_>>())
    }

    /// Inputs of `words` words with outputs of `out` words: enough pairs to stay cold.
    fn pairs(&self, words: usize, out: usize) -> Result<Vec<(B::Buffer, B::Buffer)>> {
        (0..copies((words + out) * 4)).map(|_| Ok((self.values(words)?, self.backend.alloc(out)?))).collect()
    }

    fn rows(&self) -> u32 {
        self.case.rows as u32
    }

    fn rotate(dim: usize) -> u32 {
        Rotation::for_dim(dim).map_or(0, |rotation| rotation.block as u32)
    }

    /// Times operations of one kind, each of which must read and write `words` words.
    async fn timed<'s>(
        &self,
        words: usize,
        ops: impl Iterator<Item = Op<'s, B::Buffer, B::Weight>>,
    ) -> Result<Timing>
    where
        B: 's,
    {
        let ops: Vec<_> = ops.collect();
        let samples = cold(self.backend, &ops, self.repeat).await?;
        Ok(Timing { name: ops[0].name(), samples, bytes: words * 4 })
    }

    async fn rms_norm(&self) -> Result<Timing> {
        let dim = self.config.hidden;
        let (words, weight) = (self.case.rows * dim, self.values(dim)?);
        let params = RmsNormParams {
            rows: self.rows(),
            dim: dim as u32,
            eps: self.config.norm_eps,
            weight_offset: self.config.family.norm_offset,
            rotate: Self::rotate(dim),
        };
        let (pairs, weight) = (self.pairs(words, words)?, &weight);
        self.timed(
            2 * words + dim,
            pairs.iter().map(|(x, y)| RmsNorm { x, weight, residual: None, y, params }.into()),
        )
        .await
    }

    async fn glu(&self) -> Result<Timing> {
        let dim = self.config.intermediate;
        let words = self.case.rows * dim;
        let gelu = u32::from(self.config.family.activation == Activation::GeluTanh);
        let params = GluParams { rows: self.rows(), dim: dim as u32, rotate: Self::rotate(dim), gelu };
        let pairs = self.pairs(2 * words, words)?;
        self.timed(3 * words, pairs.iter().map(|(x, y)| Glu { x, y, params }.into())).await
    }

    async fn gather_rows(&self) -> Result<Timing> {
        let dim = self.config.hidden;
        let index = self.words(&[self.case.rows - 1])?;
        let params = GatherRowsParams { rows: 1, dim: dim as u32 };
        let (pairs, index) = (self.pairs(self.case.rows * dim, dim)?, &index);
        self.timed(2 * dim, pairs.iter().map(|(x, y)| GatherRows { x, index, y, params }.into())).await
    }

    async fn rope_cache_and_attention(&self) -> Result<[Timing; 2]> {
        let (config, backend, Case { rows, position }) = (self.config, self.backend, self.case);
        let (heads, kv_heads, head_dim) = (config.heads, config.kv_heads, config.head_dim);
        let gated = usize::from(config.family.gated_attention);
        let q_stride = head_dim * (1 + gated);
        let (keys, context) = (kv_heads * head_dim, position + 1);
        let stride = heads * q_stride + 2 * keys;
        let first = context - rows;
        let positions =
            self.words(&(first..context).flat_map(|position| [0, position]).collect::<Vec<_>>())?;
        let segments = self.words(&[0, 0, rows, first])?;
        let inv_freq = backend.upload(bytemuck::cast_slice(&config.ropes[0].inv_freq(context)))?;
        let norms = if config.family.qk_norms == QkNorms::Heads {
            Some((self.values(head_dim)?, self.values(head_dim)?))
        } else {
            None
        };
        let one = (rows * stride + 2 * keys * context + rows * heads * head_dim) * 4;
        let set = |_| {
            let cache = || backend.alloc_cache(keys * context);
            Ok((self.values(rows * stride)?, cache()?, cache()?, backend.alloc(rows * heads * head_dim)?))
        };
        let sets = (0..copies(one)).map(set).collect::<Result<Vec<_>>>()?;
        let [rows_word, heads, kv_heads, head_dim_word, stride_word, q_stride, context_word] =
            [rows, heads, kv_heads, head_dim, stride, q_stride, context].map(|n| n as u32);
        let params = RopeCacheParams {
            rows: rows_word,
            heads,
            kv_heads,
            head_dim: head_dim_word,
            rotary_dim: config.ropes[0].rotary_dim as u32,
            stride: stride_word,
            q_stride,
            k_offset: heads * q_stride,
            v_offset: heads * q_stride + keys as u32,
            context: context_word,
            eps: config.norm_eps,
            weight_offset: config.family.norm_offset,
            amplitude: 1.0,
            query_beta: 0.0,
            query_context: 1.0,
        };
        let queries = heads as usize * head_dim;
        // Queries are written in place, keys and values into the cache, whose elements count as 4 bytes each.
        let words = rows * (2 * queries + 4 * keys);
        let (q_norm, k_norm) = (norms.as_ref().map(|norms| &norms.0), norms.as_ref().map(|norms| &norms.1));
        let (inv_freq, rows) = (&inv_freq, &positions);
        let ops = sets.iter().map(|(qkv, k_cache, v_cache, _)| {
            RopeCache { qkv, q_norm, k_norm, inv_freq, rows, k_cache, v_cache, params }.into()
        });
        let rope_cache = self.timed(words, ops).await?;
        let params = AttentionParams {
            rows: rows_word,
            segments: 1,
            heads,
            kv_heads,
            head_dim: head_dim_word,
            stride: stride_word,
            q_stride,
            context: context_word,
            window: 0,
            scale: config.score_scale,
            gated: gated as u32,
            rotate: Self::rotate(queries),
        };
        let words = self.case.rows * queries * (2 + gated) + 2 * keys * context;
        let segments = &segments;
        let ops = sets.iter().map(|(qkv, k_cache, v_cache, y)| {
            Attention { qkv, k_cache, v_cache, rows, segments, y, params }.into()
        });
        Ok([rope_cache, self.timed(words, ops).await?])
    }

    async fn delta_net(&self, net: &DeltaNet) -> Result<[Timing; 3]> {
        let (backend, rows) = (self.backend, self.case.rows);
        let (channels, values) = (net.channels(), net.values());
        let stride = channels + values + 2 * net.value_heads;
        let segments = &self.words(&[0, 0, rows, self.case.position + 1 - rows])?;
        let (window, matrices) = (channels * (net.conv_kernel - 1), values * net.key_dim);
        let [rows_word, channels_word, stride_word] = [rows, channels, stride].map(|n| n as u32);

        let weight = &self.values(channels * net.conv_kernel)?;
        let params = CausalConvParams {
            rows: rows_word,
            segments: 1,
            channels: channels_word,
            kernel: net.conv_kernel as u32,
            stride: stride_word,
        };
        let sets = (self.pairs(rows * stride, rows * channels)?.into_iter())
            .map(|(x, y)| Ok((x, y, backend.alloc(window)?)))
            .collect::<Result<Vec<_>>>()?;
        let words = 2 * rows * channels + 2 * window + channels * net.conv_kernel;
        let ops =
            sets.iter().map(|(x, y, state)| CausalConv { x, weight, segments, state, y, params }.into());
        let conv = self.timed(words, ops).await?;

        let (a_log, dt_bias) = (&self.values(net.value_heads)?, &self.values(net.value_heads)?);
        let proj = &self.values(rows * stride)?;
        let b_offset = channels + values;
        let params = DeltaRuleParams {
            rows: rows_word,
            segments: 1,
            key_heads: net.key_heads as u32,
            value_heads: net.value_heads as u32,
            key_dim: net.key_dim as u32,
            value_dim: net.value_dim as u32,
            stride: stride_word,
            a_offset: (b_offset + net.value_heads) as u32,
            b_offset: b_offset as u32,
        };
        let sets = (self.pairs(rows * channels, rows * values)?.into_iter())
            .map(|(x, y)| Ok((x, y, backend.alloc(matrices)?)))
            .collect::<Result<Vec<_>>>()?;
        let words = rows * (channels + values + 2 * net.value_heads) + 2 * matrices;
        let ops = sets.iter().map(|(qkv, y, state)| {
            DeltaRule { qkv, proj, a_log, dt_bias, segments, state, y, params }.into()
        });
        let delta = self.timed(words, ops).await?;

        let weight = &self.values(net.value_dim)?;
        let params = GatedNormParams {
            rows: rows_word,
            heads: net.value_heads as u32,
            dim: net.value_dim as u32,
            stride: stride_word,
            offset: channels_word,
            eps: self.config.norm_eps,
            rotate: Self::rotate(values),
        };
        let pairs = self.pairs(rows * values, rows * values)?;
        let ops = pairs.iter().map(|(x, y)| GatedNorm { x, gate: proj, weight, y, params }.into());
        Ok([conv, delta, self.timed(3 * rows * values, ops).await?])
    }

    /// Includes reading the result on the host, which each decode step waits for.
    async fn argmax(&self) -> Result<Timing> {
        let vocab = self.config.vocab;
        let mut runs = Vec::new();
        let rows = (0..copies(vocab * 4)).map(|_| self.values(vocab)).collect::<Result<Vec<_>>>()?;
        for run in 0..self.repeat + 3 {
            let start = Instant::now();
            self.backend.argmax(&rows[run % rows.len()], 1, vocab).await?;
            if run >= 3 {
                runs.push(start.elapsed());
            }
        }
        Ok(Timing { name: "argmax with readback", samples: Samples::new(runs), bytes: vocab * 4 })
    }
}
