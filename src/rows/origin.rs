//! Where the rows of a tensor come from, as data.

/// Where the weights of a tensor to be written come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// Tensors of the source, or rows of them, one below the other.
    Parts(Vec<Part>),
    /// Computed from the configuration, such as `rope_freqs.weight`.
    Computed(Vec<f32>),
}

/// Rows that come from one tensor of the source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Index into the source's tensors.
    pub tensor: usize,
    /// How many rows of the output it is.
    pub n_rows: u64,
    /// Which rows of the tensor these are.
    pub rows: RowMap,
    /// Which columns.
    pub columns: ColumnMap,
    /// What happens to their elements.
    pub edit: Edit,
}

/// The row of the source that an output row is: a pure function of its index `i` within the part, so that rows can be made in any order
/// and a tensor is never held whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowMap {
    /// Row `first + i`.
    Range {
        /// The first.
        first: u64,
    },
    /// Groups of `len` neighbours: row `first + i / len * stride + i % len`. A gate's rows out of experts that are stored gate above up.
    Groups {
        /// The first row of the first group.
        first: u64,
        /// Rows of a group.
        len: u64,
        /// From the first row of a group to that of the next.
        stride: u64,
    },
    /// Llama's q/k rows: Hugging Face keeps the two rotary halves of a head apart, GGUF interleaves them. Row `head*d + 2*i + half` of the
    /// output is row `head*d + half*d/2 + i` of the source, with `d` = rows / `n_head`.
    RopeHeads {
        /// Heads that the rows divide into: `n_head` for q, `n_head_kv` for k.
        n_head: u64,
    },
    /// Groups of `len` neighbours that stand in the source as `[outer, inner, len]` and here as `[inner, outer, len]`, from row `first` on.
    Swapped {
        /// The first row.
        first: u64,
        /// Groups that are the source's outer ones, and here the inner.
        outer: u64,
        /// The others.
        inner: u64,
        /// Rows of a group.
        len: u64,
    },
    /// Column `first + i * step` of one of the matrices of equal shape that the source holds one below the other: of the transpose.
    Columns {
        /// Which of the matrices.
        matrix: u64,
        /// The first column.
        first: u64,
        /// From a column to the next.
        step: u64,
    },
    /// Element `first + i * step`, in the order of the source: each is a row of one.
    Elements {
        /// The first.
        first: u64,
        /// From an element to the next.
        step: u64,
    },
}

impl RowMap {
    /// Every column of the only matrix.
    pub const TRANSPOSED: RowMap = RowMap::Columns { matrix: 0, first: 0, step: 1 };
}

/// The column of the source that an output column is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnMap {
    /// The same.
    Same,
    /// As [`RowMap::Swapped`], from column 0 on.
    Swapped {
        /// The source's outer groups.
        outer: u64,
        /// The inner ones.
        inner: u64,
        /// Columns of a group.
        len: u64,
    },
}

/// Where element `at` of `[inner, outer, len]` stands in `[outer, inner, len]`.
fn swapped(at: u64, [outer, inner, len]: [u64; 3]) -> u64 {
    let (group, within) = (at / len, at % len);
    (group % outer * inner + group / outer) * len + within
}

/// True when so many groups are `n` elements.
fn are(n: u64, [outer, inner, len]: [u64; 3]) -> bool {
    n > 0 && outer.checked_mul(inner).and_then(|groups| groups.checked_mul(len)) == Some(n)
}

/// What happens to elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// Nothing.
    Same,
    /// `x + 1`: gains that are stored less 1.
    AddOne,
    /// `-exp(x)`, correctly rounded but for one in many millions: rates that are stored as logarithms.
    NegExp,
}

impl Origin {
    /// All of one source tensor, as it is. `shape`: row-major.
    pub fn copy(tensor: usize, shape: &[u64]) -> Origin {
        let n_rows = shape.split_last().map_or(1, |(_, leading)| leading.iter().fold(1, |n: u64, &dim| n.saturating_mul(dim)));
        Origin::Parts(vec![Part { tensor, n_rows, rows: RowMap::Range { first: 0 }, columns: ColumnMap::Same, edit: Edit::Same }])
    }

    /// How a tensor of this row-major shape divides into rows: their number, and the weights in each. A vector is one row, unless its
    /// elements are picked: then each is a row of one.
    pub fn rows(&self, shape: &[u64]) -> (u64, u64) {
        let is_picked = match self {
            Origin::Parts(parts) => {
                parts.len() != 1 || !matches!(parts[0].rows, RowMap::Range { first: 0 }) || parts[0].n_rows != 1
            }
            Origin::Computed(_) => false,
        };
        let is_of_elements = match self {
            Origin::Parts(parts) => parts.iter().any(|part| matches!(part.rows, RowMap::Elements { .. })),
            Origin::Computed(_) => false,
        };
        let at = if shape.len() == 1 && is_picked || is_of_elements { shape.len() } else { shape.len().saturating_sub(1) };
        let (leading, rest) = shape.split_at(at);
        let product = |dims: &[u64]| dims.iter().fold(1, |n: u64, &dim| n.saturating_mul(dim));
        (product(leading), product(rest))
    }

    /// The source tensors that it needs, in order.
    pub fn tensors(&self) -> impl Iterator<Item = usize> {
        let parts = match self {
            Origin::Parts(parts) => parts.as_slice(),
            Origin::Computed(_) => &[],
        };
        parts.iter().map(|part| part.tensor)
    }
}

impl Part {
    /// The source row of row `row` of the part; of columns, the source column.
    pub fn source_row(&self, row: u64) -> u64 {
        match self.rows {
            RowMap::Range { first } => first + row,
            RowMap::Groups { first, len, stride } => first + row / len * stride + row % len,
            RowMap::RopeHeads { n_head } => {
                let head_rows = self.n_rows / n_head;
                let (head, within) = (row / head_rows, row % head_rows);
                head * head_rows + (within % 2) * (head_rows / 2) + within / 2
            }
            RowMap::Swapped { first, outer, inner, len } => first + swapped(row, [outer, inner, len]),
            RowMap::Columns { first, step, .. } | RowMap::Elements { first, step } => first + row * step,
        }
    }

    /// The source column of column `column` of the part, where the source does not hold the transpose.
    pub fn source_column(&self, column: u64) -> u64 {
        match self.columns {
            ColumnMap::Same => column,
            ColumnMap::Swapped { outer, inner, len } => swapped(column, [outer, inner, len]),
        }
    }

    /// How many rows from `row` on are neighbours in the source too.
    pub(super) fn run(&self, row: u64) -> u64 {
        match self.rows {
            RowMap::Range { .. } | RowMap::Columns { .. } => self.n_rows - row,
            RowMap::Groups { len, .. } | RowMap::Swapped { len, .. } => (len - row % len).min(self.n_rows - row),
            RowMap::RopeHeads { .. } | RowMap::Elements { .. } => 1,
        }
    }

    /// True when so many rows of the source are enough, of columns so many columns, and its rows are so long; checked arithmetic, for parts
    /// that a stranger's numbers made.
    pub(super) fn fits(&self, n_source_rows: u64, n_columns: u64) -> bool {
        match self.columns {
            ColumnMap::Swapped { .. } if matches!(self.rows, RowMap::Columns { .. }) => return false,
            ColumnMap::Swapped { outer, inner, len } if !are(n_columns, [outer, inner, len]) => return false,
            _ => {}
        }
        let end = match self.rows {
            RowMap::Range { first } => first.checked_add(self.n_rows),
            RowMap::Groups { first, len, stride } if len > 0 && stride >= len && self.n_rows.is_multiple_of(len) => {
                (self.n_rows / len).checked_sub(1).and_then(|last| last.checked_mul(stride)?.checked_add(first)?.checked_add(len))
            }
            RowMap::Groups { .. } => None,
            RowMap::RopeHeads { n_head } => {
                let halves = n_head.checked_mul(2).filter(|halves| *halves > 0 && self.n_rows.is_multiple_of(*halves));
                return halves.is_some() && n_source_rows == self.n_rows;
            }
            RowMap::Swapped { first, outer, inner, len } if are(self.n_rows, [outer, inner, len]) => first.checked_add(self.n_rows),
            RowMap::Swapped { .. } => None,
            RowMap::Columns { first, step, .. } | RowMap::Elements { first, step } => {
                let last = self.n_rows.checked_sub(1).filter(|_| step > 0);
                last.and_then(|last| last.checked_mul(step)?.checked_add(first)?.checked_add(1))
            }
        };
        end.is_some_and(|end| end <= n_source_rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: reshape to [n_head, 2, d/2], swap the last two axes, flatten.
    fn permuted(n_rows: u64, n_head: u64) -> Vec<u64> {
        let half = n_rows / n_head / 2;
        let mut rows = Vec::new();
        for head in 0..n_head {
            for i in 0..half {
                for side in 0..2 {
                    rows.push((head * 2 + side) * half + i);
                }
            }
        }
        rows
    }

    fn part(n_rows: u64, rows: RowMap) -> Part {
        Part { tensor: 0, n_rows, rows, columns: ColumnMap::Same, edit: Edit::Same }
    }

    fn source_rows(part: Part) -> Vec<u64> {
        (0..part.n_rows).map(|row| part.source_row(row)).collect()
    }

    #[test]
    fn a_picked_vector_has_rows_of_one() {
        let rope = Origin::Parts(vec![part(8, RowMap::RopeHeads { n_head: 2 })]);
        let copy = |shape: &[u64]| Origin::copy(0, shape).rows(shape);
        assert_eq!(copy(&[6, 4]), (6, 4));
        assert_eq!(copy(&[2, 3, 4]), (6, 4));
        assert_eq!(copy(&[4]), (1, 4));
        assert_eq!(copy(&[]), (1, 1));
        assert_eq!(rope.rows(&[8, 3]), (8, 3));
        assert_eq!(rope.rows(&[8]), (8, 1));
    }

    #[test]
    fn rope_rows_interleave_the_halves_of_each_head() {
        for (n_head, head_dim) in [(1, 2), (1, 8), (4, 64), (3, 6), (8, 128), (2, 80)] {
            let n_rows = n_head * head_dim;
            let found = source_rows(part(n_rows, RowMap::RopeHeads { n_head }));
            assert_eq!(found, permuted(n_rows, n_head), "{n_head} heads of {head_dim}");
        }
        assert_eq!(source_rows(part(8, RowMap::RopeHeads { n_head: 2 })), [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn groups_skip_what_lies_between() {
        let groups = |n_rows, first, len, stride| part(n_rows, RowMap::Groups { first, len, stride });
        assert_eq!(source_rows(groups(6, 2, 2, 4)), [2, 3, 6, 7, 10, 11]);
        let found: Vec<u64> = (0..6).map(|row| groups(6, 2, 2, 4).run(row)).collect();
        assert_eq!(found, [2, 1, 2, 1, 2, 1]);
    }

    #[test]
    fn no_part_reaches_beyond_its_source() {
        let groups = |n_rows, first, len, stride| part(n_rows, RowMap::Groups { first, len, stride });
        assert!(groups(6, 2, 2, 4).fits(12, 4) && !groups(6, 2, 2, 4).fits(11, 4));
        assert!(!groups(6, 2, 0, 4).fits(99, 4) && !groups(6, 2, 4, 4).fits(99, 4) && !groups(6, 2, 2, 1).fits(99, 4));
        assert!(!groups(4, 0, 2, u64::MAX).fits(u64::MAX, 4) && !groups(0, 0, 2, 2).fits(9, 4));
        assert!(part(4, RowMap::Range { first: 3 }).fits(7, 4) && !part(4, RowMap::Range { first: 3 }).fits(6, 4));
        assert!(!part(4, RowMap::Range { first: u64::MAX }).fits(u64::MAX, 4));
        assert!(part(8, RowMap::RopeHeads { n_head: 2 }).fits(8, 4) && !part(8, RowMap::RopeHeads { n_head: 3 }).fits(8, 4));
        assert!(!part(8, RowMap::RopeHeads { n_head: 0 }).fits(8, 4) && !part(8, RowMap::RopeHeads { n_head: 2 }).fits(9, 4));
        for rows in [|first, step| RowMap::Columns { matrix: 0, first, step }, |first, step| RowMap::Elements { first, step }] {
            assert!(part(8, rows(0, 1)).fits(8, 4) && !part(8, rows(0, 1)).fits(7, 4) && !part(8, rows(0, 0)).fits(8, 4));
            assert!(
                part(4, rows(1, 2)).fits(8, 4) && !part(4, rows(1, 2)).fits(7, 4) && !part(3, rows(1, u64::MAX)).fits(u64::MAX, 4)
            );
        }
    }

    #[test]
    fn swapped_groups_are_a_transpose() {
        let part = Part {
            columns: ColumnMap::Swapped { outer: 2, inner: 3, len: 1 },
            ..part(12, RowMap::Swapped { first: 4, outer: 2, inner: 3, len: 2 })
        };
        assert_eq!(source_rows(part), [4, 5, 10, 11, 6, 7, 12, 13, 8, 9, 14, 15]);
        assert_eq!((0..12).map(|row| part.run(row)).collect::<Vec<_>>(), [2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1]);
        assert_eq!((0..6).map(|column| part.source_column(column)).collect::<Vec<_>>(), [0, 3, 1, 4, 2, 5]);
        assert!(part.fits(16, 6) && !part.fits(15, 6) && !part.fits(16, 7));
        assert!(!Part { rows: RowMap::TRANSPOSED, ..part }.fits(12, 6));
        let huge = RowMap::Swapped { first: 0, outer: u64::MAX, inner: 2, len: 1 };
        assert!(!Part { rows: huge, ..part }.fits(u64::MAX, 6));
        assert!(!Part { n_rows: 0, rows: RowMap::Swapped { first: 0, outer: 0, inner: 1, len: 1 }, ..part }.fits(9, 6));
    }
}
