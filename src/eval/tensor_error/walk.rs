//! The work: every pair of tensors in pieces of fixed size, on all cores, added up in order.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rayon::prelude::*;

use super::pair::Pair;
use super::sums::sums;
use super::{Options, RowError, Sums, Watch};
use crate::error::{Error, Fault, Place, Result};
use crate::rows::{self, Rows};
use crate::simd::Level;
use crate::threads;

/// Weights of a piece: 1 MiB as f32, so that a piece stays in a core's own cache. A multiple of every block, so that a row that is
/// longer can be cut. The figures' last digits depend on it, so it is the same on every machine.
const PIECE_WEIGHTS: u64 = 1 << 18;

/// Rows of a piece, at most: each has sums of its own.
const PIECE_ROWS: u64 = 4096;

/// Pieces that are handed out at once. It bounds what is kept of pieces whose turn to be added has not come.
const PIECES_AT_ONCE: usize = 4096;

/// Some rows of a pair.
#[derive(Debug, Clone)]
struct Piece {
    pair: usize,
    rows: Range<u64>,
}

/// What is known of one tensor of one file.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub sums: Sums,
    pub weighted: Sums,
    pub worst_rows: Vec<RowError>,
}

/// What all workers share.
struct Bench<'a> {
    pairs: &'a [Pair<'a>],
    level: Level,
    worst_rows: usize,
}

/// The working memory of a worker.
#[derive(Debug, Default)]
struct Buffers {
    reader: rows::Buffers,
    base: Vec<f32>,
    other: Vec<f32>,
}

/// Per pair, per file.
pub(super) fn walk(pairs: &[Pair<'_>], options: &Options<'_>, watch: Watch<'_>) -> Result<Vec<Vec<Found>>> {
    let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let pool = threads::pool(options.threads.unwrap_or_else(cores).get());

    let bench = Bench { pairs, level: options.level, worst_rows: options.worst_rows };
    let total_bytes = pairs.iter().map(|pair| bytes_of(pair, 0..pair.n_rows)).sum();
    let done_bytes = AtomicU64::new(0);
    let advanced = |bytes: u64| (watch.progress)(done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes, total_bytes);
    let mut found: Vec<Vec<Found>> = pairs.iter().map(|pair| vec![Found::default(); pair.others.len()]).collect();
    let mut pieces = pairs.iter().enumerate().flat_map(|(index, pair)| pieces_of(index, pair)).peekable();
    while pieces.peek().is_some() {
        let group: Vec<Piece> = pieces.by_ref().take(PIECES_AT_ONCE).collect();
        let measured = pool.install(|| bench.measure_all(&group, watch.stop, &advanced));
        for (piece, measured) in group.iter().zip(measured) {
            for (found, measured) in found[piece.pair].iter_mut().zip(measured?) {
                found.add(measured, options.worst_rows);
            }
        }
    }
    Ok(found)
}

fn pieces_of(index: usize, pair: &Pair<'_>) -> impl Iterator<Item = Piece> + use<> {
    let (n_rows, step) = (pair.n_rows, (PIECE_WEIGHTS / pair.row_len.max(1)).clamp(1, PIECE_ROWS));
    (0..n_rows.div_ceil(step)).map(move |i| Piece { pair: index, rows: i * step..((i + 1) * step).min(n_rows) })
}

impl Found {
    fn add(&mut self, later: Found, worst_rows: usize) {
        self.sums.add(&later.sums);
        self.weighted.add(&later.weighted);
        self.worst_rows.extend(later.worst_rows);
        keep_worst(&mut self.worst_rows, worst_rows);
    }
}

/// Keeps the worst rows; of equals, the first.
fn keep_worst(rows: &mut Vec<RowError>, n: usize) {
    rows.sort_by(|a, b| b.relative_mse.total_cmp(&a.relative_mse).then(a.row.cmp(&b.row)));
    rows.truncate(n);
}

impl Bench<'_> {
    /// Each piece by itself, in order. Whatever the number of threads, the first error is that of the first piece that has one: a
    /// piece is only left out when one before it has failed.
    fn measure_all(&self, pieces: &[Piece], stop: &AtomicBool, advanced: &(dyn Fn(u64) + Sync)) -> Vec<Result<Vec<Found>>> {
        let first_failure = AtomicUsize::new(usize::MAX);
        let measure = |buffers: &mut Buffers, (index, piece): (usize, &Piece)| {
            if stop.load(Ordering::Relaxed) || index > first_failure.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let measured = self.measure(piece, buffers);
            match &measured {
                Ok(_) => advanced(bytes_of(&self.pairs[piece.pair], piece.rows.clone())),
                Err(_) => _ = first_failure.fetch_min(index, Ordering::Relaxed),
            }
            measured
        };
        pieces.par_iter().enumerate().map_init(Buffers::default, measure).collect()
    }

    /// One piece of every file. A row that is longer than a piece is taken in parts.
    fn measure(&self, piece: &Piece, buffers: &mut Buffers) -> Result<Vec<Found>> {
        let pair = &self.pairs[piece.pair];
        let n_rows = (piece.rows.end - piece.rows.start) as usize;
        let mut of_rows = vec![vec![(Sums::default(), Sums::default()); n_rows]; pair.others.len()];
        let step = PIECE_WEIGHTS.min(pair.row_len).max(1);
        for start in (0..pair.row_len).step_by(step as usize) {
            let columns = start..(start + step).min(pair.row_len);
            let Buffers { reader, base, other } = buffers;
            self.read(&pair.base, piece, &columns, reader, base)?;
            for (tensor, of_rows) in pair.others.iter().zip(&mut of_rows) {
                self.read(tensor, piece, &columns, reader, other)?;
                let len = (columns.end - columns.start) as usize;
                let rows = base.chunks_exact(len).zip(other.chunks_exact(len));
                for ((row, (w, q)), (plain, weighted)) in piece.rows.clone().zip(rows).zip(of_rows) {
                    plain.add(&sums(self.level, w, q, None));
                    if let Some(columns) = importance(pair, row, &columns) {
                        weighted.add(&sums(self.level, w, q, Some(columns)));
                    }
                }
            }
        }
        Ok(of_rows.into_iter().map(|of_rows| self.found(piece, &of_rows)).collect())
    }

    fn found(&self, piece: &Piece, of_rows: &[(Sums, Sums)]) -> Found {
        let mut found = Found::default();
        for (row, (plain, weighted)) in piece.rows.clone().zip(of_rows) {
            found.sums.add(plain);
            found.weighted.add(weighted);
            if plain.ee > 0.0 {
                found.worst_rows.push(RowError { row, relative_mse: plain.relative_mse() });
            }
        }
        keep_worst(&mut found.worst_rows, self.worst_rows);
        found
    }

    /// The weights of some columns of the piece's rows.
    fn read(
        &self,
        tensor: &Rows<'_>,
        piece: &Piece,
        columns: &Range<u64>,
        reader: &mut rows::Buffers,
        weights: &mut Vec<f32>,
    ) -> Result<()> {
        let n_columns = columns.end - columns.start;
        weights.resize(((piece.rows.end - piece.rows.start) * n_columns) as usize, 0.0);
        tensor.read(self.level, piece.rows.clone(), columns.clone(), reader, weights)?;
        let Some(at) = weights.iter().position(|weight| !weight.is_finite()) else { return Ok(()) };
        let (row, column) = (piece.rows.start + at as u64 / n_columns, columns.start + at as u64 % n_columns);
        let Some(origin) = tensor.locate(row, column) else {
            return Err(Error::Internal(format!("computed weight {at} is {}", weights[at])));
        };
        let place = Place::Weight { tensor: origin.tensor.name.clone(), row: origin.row, column: origin.column };
        let detail = format!("{} is no number that can be compared", weights[at]);
        Err(Error::malformed(origin.file.path(), place, Fault::NonFinite, detail))
    }
}

/// Bytes of the sources that some rows of all files need.
fn bytes_of(pair: &Pair<'_>, rows: Range<u64>) -> u64 {
    std::iter::once(&pair.base).chain(&pair.others).map(|tensor| tensor.source_bytes(rows.clone())).sum()
}

/// The importance of some columns for a row; `None` where nothing is known of its expert.
fn importance<'a>(pair: &'a Pair<'_>, row: u64, columns: &Range<u64>) -> Option<&'a [f32]> {
    let importance = pair.importance.as_ref()?;
    let expert = (row / (pair.n_rows / importance.n_experts() as u64).max(1)) as usize;
    if importance.without_data().contains(&expert) {
        return None;
    }
    Some(&importance.expert(expert)[columns.start as usize..columns.end as usize])
}
