//! Dequantization, and what happens row by row between products.

use super::{Argument, Launch, Memory, View, internal, number};
use crate::error::{Error, Result};
use crate::model::Gelu;
use crate::quant::Format;

/// `NllRow` of `kernels/nll.cu`: f64 nll, f32 top logit, i32 top.
pub(in crate::cuda) const SCORE_BYTES: usize = 16;
/// `KldRow`: f64 nll of base and test, f64 divergence, i32 tops of base and test.
pub(in crate::cuda) const DIVERGENCE_BYTES: usize = 32;

/// Weights that a warp takes at once, and warps of a block.
const PIECE_LEN: u64 = 1024;
const PIECES_PER_BLOCK: u64 = 8;

/// Which rows of a matrix in blocks, and what they are multiplied with.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Selection {
    /// The matrix, or its rows from some row on.
    pub blocks: Memory,
    pub format: Format,
    /// i32 row numbers, which the caller has checked; `None` for the first of `blocks`.
    pub rows: Option<Memory>,
    /// A power of two.
    pub scale: f32,
}

/// Rows of a matrix in blocks, as halves.
pub(in crate::cuda) fn dequant_f16(from: Selection, out: View) -> Result<Launch> {
    let [to, ld] = out.halves("dequantized halves")?;
    dequant("dequant_f16", from, out, [to, ld])
}

/// True where rows of so many weights can become floats: they are written four at a time.
pub(in crate::cuda) fn has_float_rows(row_len: usize) -> bool {
    row_len.is_multiple_of(4)
}

/// Rows of a matrix in blocks, as floats.
pub(in crate::cuda) fn dequant_f32(from: Selection, out: View) -> Result<Launch> {
    if !has_float_rows(out.ld) {
        return Err(Error::unsupported(
            format!("a row of {} weights on a GPU", out.ld),
            "multiples of 4 are possible; use --device cpu",
        ));
    }
    let [to, ld] = out.floats("dequantized floats")?;
    dequant("dequant_f32", from, out, [to, ld])
}

fn dequant(kernel: &str, from: Selection, out: View, [to, ld]: [Argument; 2]) -> Result<Launch> {
    let row_bytes = from.format.row_bytes(out.n_cols as u64).ok_or_else(|| internal("a row of broken blocks"))?;
    let n_rows = if from.rows.is_some() { 1 } else { out.n_rows };
    let blocks = from.blocks.holds(n_rows, row_bytes as usize, "blocks to dequantize")?;
    let rows = match from.rows {
        Some(rows) => rows.holds(out.n_rows, 4, "row numbers")?,
        None => Argument::Pointer(0),
    };
    let pieces =
        (out.n_cols as u64).div_ceil(PIECE_LEN).checked_mul(out.n_rows as u64).ok_or_else(|| internal("too many weights"))?;
    let arguments = vec![blocks, rows, number(out.n_rows)?, number(out.n_cols)?, Argument::F32(from.scale), to, ld];
    Launch::new(format!("{kernel}_{}", from.format.name()), pieces.div_ceil(PIECES_PER_BLOCK), arguments)
}

/// Rows with a mean of 0 and a variance of 1, times `gain`, plus `bias`, as halves with a power of two for each row.
pub(in crate::cuda) fn layer_norm_f16(
    x: View,
    [gain, bias]: [Memory; 2],
    eps: f32,
    out: View,
    row_scale: Memory,
) -> Result<Launch> {
    x.same_shape(out, "norm")?;
    let [x_at, ld_x] = x.floats("input of a norm")?;
    let [out_at, ld_out] = out.halves("output of a norm")?;
    let arguments = vec![
        x_at,
        ld_x,
        gain.holds(x.n_cols, 4, "gain")?,
        bias.holds(x.n_cols, 4, "bias")?,
        Argument::F32(eps),
        number(x.n_cols)?,
        out_at,
        ld_out,
        row_scale.holds(x.n_rows, 4, "scales of rows")?,
    ];
    Launch::new("layernorm_f16", x.n_rows as u64, arguments)
}

/// `gelu(gate) * up`, or without `up` `gelu(gate)`, as halves with a power of two for each row.
pub(in crate::cuda) fn gelu(form: Gelu, gate: View, up: Option<View>, out: View, row_scale: Memory) -> Result<Launch> {
    gate.same_shape(out, "gate and product")?;
    let [gate_at, ld] = gate.floats("gate")?;
    let mut up_at = Argument::Pointer(0);
    if let Some(up) = up {
        gate.same_shape(up, "gate and up")?;
        let [at, ld_up] = up.floats("up")?;
        if ld_up != ld {
            return Err(internal("gate and up have different strides"));
        }
        up_at = at;
    }
    let [out_at, ld_out] = out.halves("gated rows")?;
    let by_erf = Argument::U32((form == Gelu::Erf).into());
    let scales = row_scale.holds(gate.n_rows, 4, "scales of rows")?;
    let arguments = vec![gate_at, up_at, by_erf, ld, number(gate.n_cols)?, out_at, ld_out, scales];
    Launch::new("gelu_f16", gate.n_rows as u64, arguments)
}

/// `x` becomes `cap * tanh(x * scale / cap)`, or without a cap `x * scale`.
pub(in crate::cuda) fn scale_and_cap(x: View, scale: f32, cap: Option<f32>) -> Result<Launch> {
    let [at, ld] = x.floats("scores")?;
    let arguments = vec![at, ld, number(x.n_cols)?, Argument::F32(scale), Argument::F32(cap.unwrap_or(0.0))];
    Launch::new("cap_rows_f32", x.n_rows as u64, arguments)
}

/// Rows over their root mean square, times `gain`, as halves with a power of two for each row.
pub(in crate::cuda) fn rms_norm_f16(x: View, gain: Memory, eps: f32, out: View, row_scale: Memory) -> Result<Launch> {
    x.same_shape(out, "norm")?;
    let [x_at, ld_x] = x.floats("input of a norm")?;
    let [out_at, ld_out] = out.halves("output of a norm")?;
    let arguments = vec![
        x_at,
        ld_x,
        gain.holds(x.n_cols, 4, "gain")?,
        Argument::F32(eps),
        number(x.n_cols)?,
        out_at,
        ld_out,
        row_scale.holds(x.n_rows, 4, "scales of rows")?,
    ];
    Launch::new("rmsnorm_f16", x.n_rows as u64, arguments)
}

/// The same as floats, in place.
pub(in crate::cuda) fn rms_norm_f32(x: View, gain: Memory, eps: f32) -> Result<Launch> {
    let [at, ld] = x.floats("rows to norm")?;
    let arguments = vec![at, ld, gain.holds(x.n_cols, 4, "gain")?, Argument::F32(eps), number(x.n_cols)?, at, ld];
    Launch::new("rmsnorm_f32", x.n_rows as u64, arguments)
}

/// Rows as halves with a power of two for each.
pub(in crate::cuda) fn rows_f16(x: View, out: View, row_scale: Memory) -> Result<Launch> {
    x.same_shape(out, "halves of rows")?;
    let [x_at, ld_x] = x.floats("rows")?;
    let [out_at, ld_out] = out.halves("halves of rows")?;
    let arguments = vec![x_at, ld_x, number(x.n_cols)?, out_at, ld_out, row_scale.holds(x.n_rows, 4, "scales of rows")?];
    Launch::new("rows_f16", x.n_rows as u64, arguments)
}

/// `silu(gate) * up` as halves with a power of two for each row.
pub(in crate::cuda) fn swiglu(gate: View, up: View, out: View, row_scale: Memory) -> Result<Launch> {
    gate.same_shape(up, "gate and up")?;
    gate.same_shape(out, "gate and its product")?;
    let [gate_at, ld] = gate.floats("gate")?;
    let [up_at, ld_up] = up.floats("up")?;
    if ld != ld_up {
        return Err(internal("gate and up have different strides"));
    }
    let [out_at, ld_out] = out.halves("product of gate and up")?;
    let arguments =
        vec![gate_at, up_at, ld, number(gate.n_cols)?, out_at, ld_out, row_scale.holds(gate.n_rows, 4, "scales of rows")?];
    Launch::new("swiglu_f16", gate.n_rows as u64, arguments)
}

/// `to[rows[i], :] += factors[i] * x[i, :]`: i32 row numbers, which the caller has checked, none twice.
pub(in crate::cuda) fn add_rows(x: View, rows: Memory, factors: Memory, to: View) -> Result<Launch> {
    if x.n_cols != to.n_cols {
        return Err(internal("rows of different lengths are added"));
    }
    let [x_at, ld_x] = x.floats("rows to add")?;
    let [to_at, ld_to] = to.floats("rows to add to")?;
    let (rows, factors) = (rows.holds(x.n_rows, 4, "row numbers")?, factors.holds(x.n_rows, 4, "factors of rows")?);
    let arguments = vec![x_at, ld_x, rows, factors, number(x.n_cols)?, to_at, ld_to];
    Launch::new("add_rows_f32", x.n_rows as u64, arguments)
}

/// `to[i, :] += x[i, :]`.
pub(in crate::cuda) fn add(x: View, to: View) -> Result<Launch> {
    x.same_shape(to, "rows to add to")?;
    let [x_at, ld_x] = x.floats("rows to add")?;
    let [to_at, ld_to] = to.floats("rows to add to")?;
    let null = Argument::Pointer(0);
    let arguments = vec![x_at, ld_x, null, null, number(x.n_cols)?, to_at, ld_to];
    Launch::new("add_rows_f32", x.n_rows as u64, arguments)
}

/// Adds one row to every row.
pub(in crate::cuda) fn add_bias(bias: Memory, to: View) -> Result<Launch> {
    let [to_at, ld_to] = to.floats("rows with a bias")?;
    let null = Argument::Pointer(0);
    let bias = bias.holds(to.n_cols, 4, "bias")?;
    let arguments = vec![bias, Argument::U32(0), null, null, number(to.n_cols)?, to_at, ld_to];
    Launch::new("add_rows_f32", to.n_rows as u64, arguments)
}

/// Sums of squares of every column over `n_chunks` runs of rows: `partial` is f64 `[n_chunks, n_cols]`.
pub(in crate::cuda) fn sum_squares(x: View, row_scale: Memory, n_chunks: usize, partial: Memory) -> Result<Launch> {
    let [at, ld] = x.halves("rows to sum")?;
    let scales = row_scale.holds(x.n_rows, 4, "scales of rows")?;
    let elements = n_chunks.checked_mul(x.n_cols).ok_or_else(|| internal("too many sums"))?;
    let arguments = vec![at, ld, scales, number(x.n_rows)?, number(x.n_cols)?, partial.holds(elements, 8, "partial sums")?];
    Launch::shaped("sum_squares", [(x.n_cols as u64).div_ceil(256), n_chunks as u64, 1], 256, 0, arguments)
}

/// `sums[column] += partial[0, column] + partial[1, column] + ..`, all f64.
pub(in crate::cuda) fn fold_columns(partial: Memory, n_chunks: usize, n_cols: usize, sums: Memory) -> Result<Launch> {
    let elements = n_chunks.checked_mul(n_cols).ok_or_else(|| internal("too many sums"))?;
    let arguments =
        vec![partial.holds(elements, 8, "partial sums")?, number(n_chunks)?, number(n_cols)?, sums.holds(n_cols, 8, "sums")?];
    Launch::new("fold_columns", (n_cols as u64).div_ceil(256), arguments)
}

/// How well each row of logits foretells its target: `out` is `[n_rows]` of [`SCORE_BYTES`].
pub(in crate::cuda) fn scores(logits: View, targets: Memory, out: Memory) -> Result<Launch> {
    let [at, ld] = logits.floats("logits")?;
    let targets = targets.holds(logits.n_rows, 4, "targets")?;
    let arguments = vec![at, ld, number(logits.n_cols)?, targets, out.holds(logits.n_rows, SCORE_BYTES, "scores")?];
    Launch::new("nll_rows", logits.n_rows as u64, arguments)
}

/// How far two rows of logits are apart: `out` is `[n_rows]` of [`DIVERGENCE_BYTES`].
pub(in crate::cuda) fn divergences(base: View, test: View, targets: Memory, out: Memory) -> Result<Launch> {
    base.same_shape(test, "two models' logits")?;
    let [base_at, ld_base] = base.floats("logits")?;
    let [test_at, ld_test] = test.floats("logits")?;
    let targets = targets.holds(base.n_rows, 4, "targets")?;
    let out = out.holds(base.n_rows, DIVERGENCE_BYTES, "divergences")?;
    let arguments = vec![base_at, ld_base, test_at, ld_test, number(base.n_cols)?, targets, out];
    Launch::new("kld_rows", base.n_rows as u64, arguments)
}
