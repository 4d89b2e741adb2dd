//! Attention, and what makes products its queries, keys and values.

use super::{Argument, Launch, Memory, Scaled, View, internal, number};
use crate::error::{Error, Result};

/// Heads side by side in the rows of keys and values, and of queries, and how they attend.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct AttentionForm {
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    /// Of the scores.
    pub scale: f32,
    /// Keys that a query sees, itself included.
    pub window: Option<usize>,
    /// Bound of the scores.
    pub cap: Option<f32>,
}

/// Queries, keys or values, and what becomes of them.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct HeadRows {
    /// f32 `[n_rows, n_heads * head_dim]`.
    pub x: View,
    /// `[n_heads * head_dim]`.
    pub bias: Option<Memory>,
    /// `[head_dim]`.
    pub gain: Option<Memory>,
    pub rotates: bool,
    pub out: Scaled,
}

/// What all of them have in common.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct HeadForm {
    pub head_dim: usize,
    pub eps: f32,
    pub turn: Option<Turn>,
}

/// What turns heads.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Turn {
    /// f32 `[n_positions, n_rot / 2, 2]`: cosine and sine of every pair.
    pub angles: Memory,
    pub n_positions: usize,
    /// i32, one for each row, which the caller has checked.
    pub positions: Memory,
    /// Leading dimensions of a head that are turned.
    pub n_rot: usize,
    /// True where pairs are half of `n_rot` apart, false where they are neighbours.
    pub is_neox: bool,
}

/// Kinds of heads that one launch takes, and heads of a row that it normalises.
const KINDS_MAX: usize = 3;
const NORMS_MAX: usize = 1024;

/// The entries of `attn.cu` by the widest head: dynamic shared bytes.
const ENTRIES: &[(usize, u32)] = &[(64, 46_080), (80, 56_320), (96, 66_560), (128, 87_040), (256, 101_376)];
/// Those of `attn_split.cu`.
const SPLIT_ENTRIES: &[(usize, u32)] = &[(64, 41_472), (96, 58_880), (128, 76_288), (256, 77_312), (512, 84_480)];

/// Queries of a block.
const QUERIES: u64 = 64;
/// Queries of a block of `attn_split.cu`, times the heads that share a key head.
const SPLIT_ROWS: u64 = 16;

/// Keys of a split. Fixed, as the order of sums depends on it.
pub(in crate::cuda) const SPLIT_LEN: usize = 256;

/// Heads of a row that splits are merged of as halves.
const MERGED_HEADS_MAX: usize = 1024;

/// The entry for heads of that width, and its dynamic shared bytes.
fn entry(entries: &[(usize, u32)], head_dim: usize) -> Option<(usize, u32)> {
    entries.iter().find(|(widest, _)| head_dim <= *widest).copied()
}

/// True where heads of that width can be rotated and attended to.
pub(in crate::cuda) fn has_heads(head_dim: usize) -> bool {
    head_dim.is_multiple_of(8) && entry(SPLIT_ENTRIES, head_dim).is_some()
}

/// True where a row can have so many of them, normalised and merged.
pub(in crate::cuda) fn has_heads_in_a_row(n_heads: usize) -> bool {
    n_heads <= NORMS_MAX && n_heads <= MERGED_HEADS_MAX
}

fn check_width(head_dim: usize) -> Result<()> {
    if has_heads(head_dim) {
        return Ok(());
    }
    Err(Error::unsupported(
        format!("attention heads of {head_dim} on a GPU"),
        "multiples of 8 up to 512 are possible; use --device cpu",
    ))
}

/// Heads of the same rows as halves with a power of two for each row: with a bias, normalised and turned.
pub(in crate::cuda) fn heads(kinds: &[HeadRows], form: HeadForm) -> Result<Launch> {
    let HeadForm { head_dim, eps, turn } = form;
    check_width(head_dim)?;
    let n_rows = kinds.first().map_or(0, |kind| kind.x.n_rows);
    if kinds.len() > KINDS_MAX || kinds.iter().any(|kind| kind.x.n_rows != n_rows) {
        return Err(internal(format!("{} kinds of heads", kinds.len())));
    }
    let null = Argument::Pointer(0);
    let (angles, positions, n_rot, is_neox) = match turn {
        None => (null, null, 0, false),
        Some(turn) => {
            if !turn.n_rot.is_multiple_of(2) || turn.n_rot > head_dim {
                return Err(internal(format!("{} of {head_dim} dimensions to turn", turn.n_rot)));
            }
            let elements = turn.n_positions.checked_mul(turn.n_rot).ok_or_else(|| internal("too many angles"))?;
            let angles = turn.angles.holds(elements, 4, "angles")?;
            (angles, turn.positions.holds(n_rows, 4, "positions")?, turn.n_rot, turn.is_neox)
        }
    };
    let mut arguments = Vec::new();
    for kind in kinds {
        let n_rot = if kind.rotates { n_rot } else { 0 };
        arguments.extend(kind.arguments(head_dim, n_rot)?);
    }
    for _ in kinds.len()..KINDS_MAX {
        arguments.extend([null; 5].into_iter().chain([Argument::U32(0); 4]));
    }
    arguments.extend([number(head_dim)?, Argument::F32(eps), angles, positions, Argument::U32(is_neox.into())]);
    Launch::shaped("heads_f16", [n_rows as u64, kinds.len() as u64, 1], 256, 0, arguments)
}

impl HeadRows {
    fn arguments(self, head_dim: usize, n_rot: usize) -> Result<[Argument; 9]> {
        let HeadRows { x, bias, gain, out: Scaled { values: out, row_scale }, .. } = self;
        x.same_shape(out, "heads")?;
        let n_heads = x.n_cols / head_dim.max(1);
        if n_heads * head_dim != x.n_cols {
            return Err(internal(format!("rows of {} with heads of {head_dim}", x.n_cols)));
        }
        if gain.is_some() && n_heads > NORMS_MAX {
            let what = format!("norms of {n_heads} heads on a GPU");
            return Err(Error::unsupported(what, format!("up to {NORMS_MAX} are possible; use --device cpu")));
        }
        let optional = |memory: Option<Memory>, n, what| memory.map_or(Ok(Argument::Pointer(0)), |memory| memory.holds(n, 4, what));
        let [x_at, ld_x] = x.floats("heads")?;
        let [out_at, ld_out] = out.halves("heads as halves")?;
        let (bias, gain) = (optional(bias, x.n_cols, "bias of heads")?, optional(gain, head_dim, "gain of heads")?);
        Ok([x_at, bias, gain, out_at, scales(row_scale, x.n_rows)?, ld_x, ld_out, number(n_heads)?, number(n_rot)?])
    }
}

/// The powers of two of rows, which heads always have; a cache's from any row on.
fn scales(row_scale: Option<Memory>, n_rows: usize) -> Result<Argument> {
    row_scale.ok_or_else(|| internal("heads without scales"))?.holds_aligned(n_rows, 4, 4, "scales of heads")
}

/// Where the sequences lie, in device memory and in short.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Sequences {
    /// u32 `[n, 4]`: first row of queries and their number, first row of keys and their number. The caller has checked that they lie
    /// in the matrices, and that there are at least as many keys as queries.
    pub spans: Memory,
    pub n: usize,
    /// Most queries of one sequence.
    pub longest: usize,
}

/// What a launch of either kernel multiplies.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Attended {
    pub q: Scaled,
    pub k: Scaled,
    pub v: Scaled,
    pub sequences: Sequences,
    pub form: AttentionForm,
}

/// Room for what splits have of each row.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Parts {
    /// f32 `[n_splits * n_rows, n_head * head_dim]`.
    pub out: View,
    /// f32 `[n_splits, n_rows, n_head, 2]`.
    pub state: Memory,
    pub n_splits: usize,
}

/// Causal attention over sequences: `out` is f32 `[n_rows of q, n_head * head_dim]`.
pub(in crate::cuda) fn attention(attended: Attended, out: View) -> Result<Launch> {
    let AttentionForm { n_head, n_head_kv, head_dim, .. } = attended.form;
    attended.q.values.same_shape(out, "queries and results")?;
    let mut arguments = attended.arguments(out)?;
    let Sequences { n, longest, .. } = attended.sequences;
    let Some((widest, shared_bytes)) = entry(ENTRIES, head_dim) else {
        // Heads too wide for it go the way of few queries, in one split.
        let (widest, shared_bytes) = entry(SPLIT_ENTRIES, head_dim).ok_or_else(|| internal("a checked width"))?;
        arguments.extend([Argument::Pointer(0), Argument::U32(1), Argument::U32(0), number(out.n_rows)?]);
        let rows = (longest * (n_head / n_head_kv)) as u64;
        let grid = [rows.div_ceil(SPLIT_ROWS), n_head_kv as u64, n as u64];
        return Launch::shaped(format!("attn_split_{widest}"), grid, 128, shared_bytes, arguments);
    };
    let grid = [(longest as u64).div_ceil(QUERIES), n_head as u64, n as u64];
    Launch::shaped(format!("attn_{widest}"), grid, 128, shared_bytes, arguments)
}

/// The same, split by split.
pub(in crate::cuda) fn attention_of_splits(attended: Attended, parts: Parts) -> Result<Launch> {
    let AttentionForm { n_head, n_head_kv, head_dim, .. } = attended.form;
    let (n_rows, n_splits) = (attended.q.values.n_rows, parts.n_splits);
    let out = parts.check(n_rows, attended.form)?;
    let mut arguments = attended.arguments(out)?;
    let (widest, shared_bytes) = entry(SPLIT_ENTRIES, head_dim).ok_or_else(|| internal("a checked width"))?;
    arguments.extend([parts.state(n_rows, n_head)?, number(n_splits)?, number(SPLIT_LEN)?, number(n_rows)?]);
    let rows = (attended.sequences.longest * (n_head / n_head_kv)) as u64;
    let grid = [rows.div_ceil(SPLIT_ROWS) * n_splits as u64, n_head_kv as u64, attended.sequences.n as u64];
    Launch::shaped(format!("attn_split_{widest}"), grid, 128, shared_bytes, arguments)
}

/// What all splits have of each row, as halves.
pub(in crate::cuda) fn merge_f16(parts: Parts, form: AttentionForm, out: Scaled) -> Result<Launch> {
    let Scaled { values: out, row_scale } = out;
    let view = parts.check(out.n_rows, form)?;
    if form.n_head > MERGED_HEADS_MAX {
        return Err(Error::unsupported(
            format!("attention with {} heads on a GPU", form.n_head),
            format!("up to {MERGED_HEADS_MAX} are possible; use --device cpu"),
        ));
    }
    let [out_at, ld_out] = out.halves("attention's result")?;
    let mut arguments = parts.arguments(view, out.n_rows, form)?;
    arguments.extend([out_at, ld_out, scales(row_scale, out.n_rows)?]);
    Launch::shaped("attn_merge_f16", [out.n_rows as u64, 1, 1], 512, 0, arguments)
}

/// The same in f32, with more blocks.
pub(in crate::cuda) fn merge_f32(parts: Parts, form: AttentionForm, out: View) -> Result<Launch> {
    let view = parts.check(out.n_rows, form)?;
    if out.ld != out.n_cols || out.n_cols != view.n_cols {
        return Err(internal("merged rows with gaps"));
    }
    let mut arguments = parts.arguments(view, out.n_rows, form)?;
    arguments.push(out.floats("attention's result")?[0]);
    Launch::shaped("attn_merge_f32", [out.n_rows as u64, form.n_head as u64, 1], 128, 0, arguments)
}

impl Parts {
    /// Results of all splits, if there is room for them.
    fn check(self, n_rows: usize, form: AttentionForm) -> Result<View> {
        let out = self.out;
        if self.n_splits == 0
            || out.n_rows != self.n_splits * n_rows
            || out.n_cols != form.n_head * form.head_dim
            || out.ld != out.n_cols
        {
            return Err(internal(format!("{} splits of {n_rows} rows in [{}, {}]", self.n_splits, out.n_rows, out.n_cols)));
        }
        Ok(out)
    }

    fn state(self, n_rows: usize, n_head: usize) -> Result<Argument> {
        let elements = [self.n_splits, n_rows, n_head].iter().try_fold(2usize, |product, &n| product.checked_mul(n));
        self.state.holds(elements.ok_or_else(|| internal("too many splits"))?, 4, "state of splits")
    }

    fn arguments(self, out: View, n_rows: usize, form: AttentionForm) -> Result<Vec<Argument>> {
        let [out_at, _] = out.floats("results of splits")?;
        let sizes = [number(self.n_splits)?, number(n_rows)?, number(form.n_head)?, number(form.head_dim)?];
        Ok([out_at, self.state(n_rows, form.n_head)?].into_iter().chain(sizes).collect())
    }
}

impl Attended {
    /// The arguments that both kernels have.
    fn arguments(self, out: View) -> Result<Vec<Argument>> {
        let Attended { q, k, v, sequences, form } = self;
        let AttentionForm { n_head, n_head_kv, head_dim, scale, window, cap } = form;
        let [q_scale, k_scale, v_scale] = [q, k, v].map(|rows| scales(rows.row_scale, rows.values.n_rows));
        let [q, k, v] = [q, k, v].map(|rows| rows.values);
        k.same_shape(v, "keys and values")?;
        let widths = [n_head, n_head_kv].map(|n| n * head_dim);
        if n_head_kv == 0 || !n_head.is_multiple_of(n_head_kv) || [q.n_cols, k.n_cols] != widths || out.n_cols != q.n_cols {
            return Err(internal(format!("attention of {n_head} heads over {n_head_kv} of {head_dim}")));
        }
        check_width(head_dim)?;
        let [q_at, ld_q] = q.halves("queries")?;
        let [k_at, ld_kv] = k.halves("keys")?;
        let [v_at, ld_v] = v.halves("values")?;
        if ld_kv != ld_v || !out.ld.is_multiple_of(2) {
            return Err(internal("strides of an attention"));
        }
        let [out_at, ld_out] = out.floats("attention's result")?;
        let spans = sequences.n.checked_mul(4).ok_or_else(|| internal("too many sequences"))?;
        // No context is as long as a window that does not fit.
        let window = window.map_or(0, |window| u32::try_from(window).unwrap_or(0));
        Ok(vec![
            q_at,
            k_at,
            v_at,
            q_scale?,
            k_scale?,
            v_scale?,
            out_at,
            sequences.spans.holds(spans, 4, "sequences")?,
            number(n_head)?,
            number(n_head_kv)?,
            number(head_dim)?,
            ld_q,
            ld_kv,
            ld_out,
            Argument::F32(scale),
            Argument::U32(window),
            Argument::F32(cap.unwrap_or(0.0)),
        ])
    }
}
