//! Attention, and what a pass has to know for it.
//!
//! Whole sequences go through tiles of 64 queries. Few queries, with keys that are kept, have their keys cut into splits of one length,
//! which are merged in the order of keys: sums depend on where keys are, and on no GPU.

use zerocopy::IntoBytes;

use super::{Cuda, Form, Operand, Rows, bytes_of};
use crate::cuda::device::Block;
use crate::cuda::kernels::{self, Attended, AttentionForm, HeadRows, Memory, Parts, SPLIT_LEN, Sequences, Turn, View};
use crate::cuda::sizes::SPLIT_QUERIES_MAX;
use crate::error::{Error, Result};
use crate::model::{AttentionShape, HeadForm, Heads, Places, RopeLayout, Span};

/// Where the rows of a pass stand.
pub struct Pass {
    /// Spans, as kernels read them, and behind them positions.
    block: Block,
    n_rows: usize,
    n_spans: usize,
    /// Behind the last position.
    positions_end: usize,
    /// Rows of queries of the longest span, and of all of them.
    longest: usize,
    n_queries: usize,
    /// Behind the last row of queries, and of keys.
    ends: [usize; 2],
    kept_from: Option<usize>,
}

/// Of a span: four u32.
const SPAN_BYTES: usize = 16;

/// Splits that one block merges for a row: more take it as long as another launch does.
const MERGED_SPLITS_MAX: usize = 32;

impl Pass {
    fn spans(&self) -> Memory {
        self.block.memory()
    }

    fn positions(&self) -> Result<Memory> {
        self.block.memory().from((self.n_spans * SPAN_BYTES) as u64)
    }
}

impl Cuda {
    pub(super) fn begin_pass(&self, places: &Places<'_>) -> Result<Pass> {
        let Places { positions, spans, kept_from, kept_step } = *places;
        if kept_step != 1 {
            return Err(Error::unsupported("several texts at once on a GPU", "use the CPU"));
        }
        assert!(
            spans.iter().all(|span| span.q.len() <= span.kv.len() && span.q.end <= positions.len()),
            "sequences within the rows"
        );
        let numbers = |span: &Span| [span.q.start, span.q.len(), span.kv.start, span.kv.len()].map(u32::try_from);
        let numbers = spans.iter().flat_map(numbers).chain(positions.iter().map(|&position| Ok(position)));
        let numbers: Vec<u32> =
            numbers.collect::<std::result::Result<_, _>>().map_err(|_| Error::Internal("a sequence of 2^32 rows".to_owned()))?;
        let largest = |rows: &mut dyn Iterator<Item = usize>| rows.max().unwrap_or(0);
        Ok(Pass {
            block: self.sent(numbers.as_bytes(), "positions and sequences")?,
            n_rows: positions.len(),
            n_spans: spans.len(),
            positions_end: largest(&mut positions.iter().map(|&position| position as usize + 1)),
            longest: largest(&mut spans.iter().map(|span| span.q.len())),
            n_queries: spans.iter().map(|span| span.q.len()).sum(),
            ends: [largest(&mut spans.iter().map(|span| span.q.end)), largest(&mut spans.iter().map(|span| span.kv.end))],
            kept_from,
        })
    }

    pub(super) fn make_heads(&self, parts: &mut [Heads<'_, Rows>], form: &HeadForm<'_, Rows>, pass: &Pass) -> Result<()> {
        let turn = form.rotation.as_ref().map(|rotation| {
            assert!(pass.positions_end <= rotation.table.n_rows, "angles of every position");
            Ok(Turn {
                angles: self.angles(rotation.table)?,
                n_positions: rotation.table.n_rows,
                positions: pass.positions()?,
                n_rot: rotation.n_rot,
                is_neox: match rotation.layout {
                    RopeLayout::Halves => true,
                    RopeLayout::Neighbours => false,
                },
            })
        });
        let form = kernels::HeadForm { head_dim: form.head_dim, eps: form.norm_eps, turn: turn.transpose()? };
        let mut outs = Vec::new();
        let mut kinds = Vec::new();
        for part in parts.iter() {
            let x = part.rows.floats()?;
            assert_eq!((x.n_rows, x.n_cols), (pass.n_rows, part.n_heads * form.head_dim), "heads of every row");
            let out = match &part.kept {
                Some(kept) => kept.heads()?.rows(pass.kept_from.expect("a pass that keeps"), x.n_rows)?,
                None => {
                    let out = self.new_rows(x.n_rows, x.n_cols, Form::F16)?;
                    let heads = out.heads()?;
                    outs.push(out);
                    heads
                }
            };
            assert_eq!(part.is_normalised, part.gain.is_some(), "a gain for every norm, as was checked");
            let [bias, gain] = [part.bias, part.gain].map(|rows| rows.map(|rows| Ok(rows.floats()?.memory)).transpose());
            kinds.push(HeadRows { x, bias: bias?, gain: gain?, rotates: part.rotates, out });
        }
        self.device.launch(kernels::heads(&kinds, form))?;
        parts.iter_mut().filter(|part| part.kept.is_none()).zip(outs).for_each(|(part, out)| *part.rows = out);
        Ok(())
    }

    /// Causal attention of queries, keys and values.
    pub(super) fn attend(&self, [q, k, v]: [&Rows; 3], shape: &AttentionShape, pass: &Pass) -> Result<Operand> {
        let AttentionShape { n_head, n_head_kv, head_dim, scale, window, softcap } = *shape;
        let [q_end, n_kv] = pass.ends;
        assert!(q_end <= q.n_rows && n_kv <= k.n_rows.min(v.n_rows), "sequences within the rows");
        let attended = Attended {
            q: q.heads()?,
            k: k.heads()?.rows(0, n_kv)?,
            v: v.heads()?.rows(0, n_kv)?,
            sequences: Sequences { spans: pass.spans(), n: pass.n_spans, longest: pass.longest },
            form: AttentionForm { n_head, n_head_kv, head_dim, scale, window, cap: softcap },
        };
        let operand = self.new_operand(q.n_rows, q.n_cols)?;
        if pass.kept_from.is_some() && pass.longest <= SPLIT_QUERIES_MAX && pass.n_queries == q.n_rows {
            self.attend_splits(attended, &operand)?;
            return Ok(operand);
        }
        let out = self.rows_of_f32(q.n_rows, q.n_cols)?;
        if pass.n_queries < q.n_rows {
            self.device.clear(out.block.memory())?;
        }
        if pass.longest > 0 {
            self.device.launch(kernels::attention(attended, out.view()))?;
        }
        self.device.launch(kernels::rows_f16(out.view(), operand.values(), operand.row_scale()?))?;
        Ok(operand)
    }

    /// The same, split by split.
    pub(in crate::cuda) fn attend_splits(&self, attended: Attended, operand: &Operand) -> Result<()> {
        let (q, form) = (attended.q.values, attended.form);
        let n_splits = attended.k.values.n_rows.div_ceil(SPLIT_LEN);
        let room = |n_rows: usize, n_cols: usize| self.device.room(bytes_of(&[n_rows, n_cols, 4])?, "splits of keys");
        let (out, state) = (room(n_splits * q.n_rows, q.n_cols)?, room(n_splits * q.n_rows, 2 * form.n_head)?);
        let out_view = View::dense(out.memory(), n_splits * q.n_rows, q.n_cols);
        let parts = Parts { out: out_view, state: state.memory(), n_splits };
        self.device.launch(kernels::attention_of_splits(attended, parts))?;
        if n_splits <= MERGED_SPLITS_MAX {
            return self.device.launch(kernels::merge_f16(parts, form, operand.scaled()?));
        }
        let merged = self.rows_of_f32(q.n_rows, q.n_cols)?;
        self.device.launch(kernels::merge_f32(parts, form, merged.view()))?;
        self.device.launch(kernels::rows_f16(merged.view(), operand.values(), operand.row_scale()?))
    }

    fn rows_of_f32(&self, n_rows: usize, n_cols: usize) -> Result<Rows> {
        self.new_rows(n_rows, n_cols, Form::F32)
    }
}
