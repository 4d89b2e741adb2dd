//! Attention, and what makes products its queries, keys and values.

use super::{Argument, Launch, Memory, Scaled, View, internal, number};
use crate::error::{Error, Result};

/// Heads side by side in the rows of keys and values, and of queries.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Heads {
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
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

/// Queries of a block.
const QUERIES: u64 = 64;

/// The entry of `attn.cu` for heads of that width, and its dynamic shared bytes.
fn entry(head_dim: usize) -> Result<(usize, u32)> {
    let entry = ENTRIES.iter().find(|(widest, _)| head_dim <= *widest).filter(|_| head_dim.is_multiple_of(8));
    entry.copied().ok_or_else(|| {
        Error::unsupported(
            format!("attention heads of {head_dim} on a GPU"),
            "multiples of 8 up to 256 are possible; use --device cpu",
        )
    })
}

/// Heads of the same rows as halves with a power of two for each row: with a bias, normalised and turned.
pub(in crate::cuda) fn heads(kinds: &[HeadRows], form: HeadForm) -> Result<Launch> {
    let HeadForm { head_dim, eps, turn } = form;
    entry(head_dim)?;
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

/// Causal attention over sequences: `out` is f32 `[n_rows of q, n_head * head_dim]`.
pub(in crate::cuda) fn attention(
    q: Scaled,
    k: Scaled,
    v: Scaled,
    sequences: Sequences,
    heads: Heads,
    scale: f32,
    out: View,
) -> Result<Launch> {
    let Heads { n_head, n_head_kv, head_dim } = heads;
    let [q_scale, k_scale, v_scale] = [q, k, v].map(|rows| scales(rows.row_scale, rows.values.n_rows));
    let [q, k, v] = [q, k, v].map(|rows| rows.values);
    k.same_shape(v, "keys and values")?;
    q.same_shape(out, "queries and results")?;
    if n_head_kv == 0 || !n_head.is_multiple_of(n_head_kv) || [q.n_cols, k.n_cols] != [n_head, n_head_kv].map(|n| n * head_dim) {
        return Err(internal(format!("attention of {n_head} heads over {n_head_kv} of {head_dim}")));
    }
    let (widest, shared_bytes) = entry(head_dim)?;
    let [q_at, ld_q] = q.halves("queries")?;
    let [k_at, ld_kv] = k.halves("keys")?;
    let [v_at, ld_v] = v.halves("values")?;
    if ld_kv != ld_v || !out.ld.is_multiple_of(2) {
        return Err(internal("strides of an attention"));
    }
    let [out_at, ld_out] = out.floats("attention's result")?;
    let spans = sequences.spans.holds(sequences.n.checked_mul(4).ok_or_else(|| internal("too many sequences"))?, 4, "sequences")?;
    let arguments = vec![
        q_at,
        k_at,
        v_at,
        q_scale?,
        k_scale?,
        v_scale?,
        out_at,
        spans,
        number(n_head)?,
        number(n_head_kv)?,
        number(head_dim)?,
        ld_q,
        ld_kv,
        ld_out,
        Argument::F32(scale),
    ];
    let grid = [(sequences.longest as u64).div_ceil(QUERIES), n_head as u64, sequences.n as u64];
    Launch::shaped(format!("attn_{widest}"), grid, 128, shared_bytes, arguments)
}
