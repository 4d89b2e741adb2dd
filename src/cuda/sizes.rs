//! Sizes that the backend's operations use, and that [`super::room`] counts before they run.

use super::kernels::SPLIT_LEN;

/// Activations of a batch: so many that a weight is used for thousands of tokens each time it is dequantized or sent.
pub(super) const BATCH_BYTES_MAX: usize = 4 << 30;
pub(super) const BATCH_TOKENS_MAX: usize = 16_384;

/// The stride of `n_cols` halves that kernels read sixteen bytes at a time.
pub(super) fn operand_ld(n_cols: usize) -> usize {
    n_cols.next_multiple_of(8)
}

/// What a run of a matrix's rows takes as halves, at most.
pub(super) const HALVES_BYTES_MAX: u64 = 256 << 20;

/// Runs are multiples of the largest tile.
const HALVES_ROWS: usize = 256;

/// Bytes of a run of a matrix's rows as halves, where it is as short as can be.
pub(super) fn halves_bytes_min(n_rows: usize, n_cols: usize) -> u64 {
    halves_bytes(n_rows, n_cols, 0)
}

/// The same, where there is room for long ones.
pub(super) fn halves_bytes_max(n_rows: usize, n_cols: usize) -> u64 {
    halves_bytes(n_rows, n_cols, HALVES_BYTES_MAX)
}

fn halves_bytes(n_rows: usize, n_cols: usize, bytes_max: u64) -> u64 {
    let k = operand_ld(n_cols);
    (run_rows(k, bytes_max).min(n_rows) as u64).saturating_mul(k as u64 * 2)
}

/// Rows that become halves together: whole tiles, at least one.
pub(super) fn run_rows(n_cols: usize, bytes_max: u64) -> usize {
    let rows = usize::try_from(bytes_max).unwrap_or(usize::MAX) / (2 * n_cols.max(1));
    (rows / HALVES_ROWS).max(1) * HALVES_ROWS
}

/// What a run of logits takes at most.
const LOGITS_BYTES_MAX: u64 = 1 << 30;

/// Rows of a run at most: as many as make products take ten times as long as dequantizing the output matrix for each run.
const RUN_ROWS_MAX: usize = 2048;
/// Runs are whole tiles of products, where there is room.
const RUN_ROWS: usize = 128;
/// Where there is less: no fewer are worth the trouble, and what is kept for each row stays aligned.
pub(super) const RUN_ROWS_MIN: usize = 16;

/// Products are stored in pairs, so a vocabulary with an odd number of tokens has a gap behind each row.
pub(super) fn logits_ld(n_vocab: usize) -> usize {
    n_vocab.next_multiple_of(4)
}

/// Rows of a run, where `n_models` need logits for each.
pub(super) fn rows_of_run(n_vocab: usize, n_models: usize, longest_free_bytes: u64) -> usize {
    let bytes_max = LOGITS_BYTES_MAX.min(longest_free_bytes / 2) / n_models as u64;
    let rows = bytes_max / (logits_ld(n_vocab) as u64 * 4);
    let rows = usize::try_from(rows).unwrap_or(usize::MAX).min(RUN_ROWS_MAX);
    let unit = if rows < RUN_ROWS { RUN_ROWS_MIN } else { RUN_ROWS };
    (rows / unit).max(1) * unit
}

/// Bytes of the logits of so many rows, or of a run of them, where there is room for a long one.
pub(super) fn logits_bytes(n_vocab: usize, n_rows: usize) -> u64 {
    let n_rows = rows_of_run(n_vocab, 1, u64::MAX).min(n_rows.max(1));
    (n_rows as u64).saturating_mul(logits_ld(n_vocab) as u64 * 4)
}

/// Bytes of sums over every column, at most.
pub(super) fn sums_bytes(n_cols: usize) -> u64 {
    (SUM_CHUNKS_MAX as u64 + 1).saturating_mul(n_cols as u64 * 8)
}

/// Runs of rows that sums over columns are cut into, at most.
pub(super) const SUM_CHUNKS_MAX: usize = 256;

/// Queries of a sequence, at most, that look at splits of its keys.
pub(super) const SPLIT_QUERIES_MAX: usize = 16;

/// Bytes that attention to so many keys needs where they are split, at most.
pub(super) fn splits_bytes_max(n_keys: usize, n_head: usize, head_dim: usize) -> u64 {
    let n_rows = n_keys.div_ceil(SPLIT_LEN).saturating_mul(SPLIT_QUERIES_MAX);
    (n_rows as u64).saturating_mul((n_head * (head_dim + 2)) as u64 * 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_that_does_not_fit_as_halves_is_taken_in_whole_tiles() {
        assert_eq!(run_rows(4096, 256 << 20), 32_768);
        assert_eq!(run_rows(4096, 3 << 20), 256);
        assert_eq!(run_rows(1 << 20, 1), 256);
        assert_eq!(run_rows(5120, 100 << 20), 10_240);
    }
}
