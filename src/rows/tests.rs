//! Every kind of part against its definition on a small file.

use std::io::Write;

use super::*;

struct Source {
    files: Vec<InputFile>,
    tensors: Vec<SourceTensor>,
}

impl TensorSource for Source {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn files(&self) -> &[InputFile] {
        &self.files
    }
}

/// Tensors of F32 that count up: tensor `t` holds `1000 t + i`.
fn source(shapes: &[&[u64]]) -> (Source, tempfile::NamedTempFile) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut tensors = Vec::new();
    let mut offset_bytes = 0;
    for (t, shape) in shapes.iter().enumerate() {
        let n: u64 = shape.iter().product();
        for i in 0..n {
            file.write_all(&((1000 * t as u64 + i) as f32).to_le_bytes()).unwrap();
        }
        let (name, shape) = (format!("t{t}"), shape.to_vec());
        tensors.push(SourceTensor { name, format: Format::F32, shape, file: 0, offset_bytes, size_bytes: n * 4 });
        offset_bytes += n * 4;
    }
    file.flush().unwrap();
    (Source { files: vec![InputFile::open(file.path()).unwrap()], tensors }, file)
}

/// All rows at once, and the same row by row, column by column.
fn read(shape: &[u64], origin: &Origin, source: &Source) -> Vec<f32> {
    let rows = Rows::new("x", shape, origin, source).unwrap();
    let (n_rows, row_len) = (rows.n_rows(), rows.row_len());
    let mut buffers = Buffers::default();
    let mut all = vec![0.0; (n_rows * row_len) as usize];
    rows.read(Level::detect(), 0..n_rows, 0..row_len, &mut buffers, &mut all).unwrap();
    let mut one = [0.0];
    for row in 0..n_rows {
        for column in 0..row_len {
            rows.read(Level::detect(), row..row + 1, column..column + 1, &mut buffers, &mut one).unwrap();
            assert_eq!(one[0], all[(row * row_len + column) as usize], "row {row}, column {column}");
        }
    }
    if rows.stored().is_some() {
        let mut bytes = vec![0; all.len() * 4];
        rows.read_stored(0..n_rows, 0..row_len, &mut bytes).unwrap();
        let floats: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_eq!(floats, all);
    }
    assert_eq!(rows.source_bytes(0..n_rows), all.len() as u64 * 4);
    all
}

fn part(tensor: usize, n_rows: u64, rows: RowMap) -> Part {
    Part { tensor, n_rows, rows, columns: ColumnMap::Same, edit: Edit::Same }
}

#[test]
fn parts_lie_one_below_the_other() {
    let (source, _file) = source(&[&[2, 3], &[4, 3]]);
    let origin = Origin::Parts(vec![part(1, 2, RowMap::Range { first: 2 }), part(0, 2, RowMap::Range { first: 0 })]);
    let expected = [1006., 1007., 1008., 1009., 1010., 1011., 0., 1., 2., 3., 4., 5.];
    assert_eq!(read(&[4, 3], &origin, &source), expected);
    let rows = Rows::new("x", &[2, 2, 3], &origin, &source).unwrap();
    let place = rows.locate(1, 2).unwrap();
    assert_eq!((place.tensor.name.as_str(), place.row, place.column), ("t1", 3, 2));
    assert_eq!(rows.locate(3, 0).map(|place| (place.tensor.name.as_str(), place.row)), Some(("t0", 1)));
}

#[test]
fn rows_across_several_parts_are_read_in_one_call() {
    let (source, _file) = source(&[&[2, 2], &[2, 2], &[2, 2]]);
    let parts = (0..3).map(|tensor| part(tensor, 2, RowMap::Range { first: 0 })).collect();
    let origin = Origin::Parts(parts);
    let rows = Rows::new("x", &[3, 2, 2], &origin, &source).unwrap();
    let mut out = [0.0; 8];
    rows.read(Level::detect(), 1..5, 0..2, &mut Buffers::default(), &mut out).unwrap();
    assert_eq!(out, [2., 3., 1000., 1001., 1002., 1003., 2000., 2001.]);
    assert_eq!(rows.source_bytes(1..5), 32);
}

#[test]
fn groups_and_rope_and_ones_are_what_they_say() {
    let (source, _file) = source(&[&[2, 4, 2], &[4]]);
    let up = Origin::Parts(vec![part(0, 4, RowMap::Groups { first: 2, len: 2, stride: 4 })]);
    assert_eq!(read(&[2, 2, 2], &up, &source), [4., 5., 6., 7., 12., 13., 14., 15.]);
    let rope = Origin::Parts(vec![part(1, 4, RowMap::RopeHeads { n_head: 1 })]);
    assert_eq!(read(&[4], &rope, &source), [1000., 1002., 1001., 1003.]);
    let gain = Origin::Parts(vec![Part { edit: Edit::AddOne, ..part(1, 1, RowMap::Range { first: 0 }) }]);
    assert_eq!(Rows::new("x", &[4], &gain, &source).unwrap().stored(), None);
    assert_eq!(read(&[4], &gain, &source), [1001., 1002., 1003., 1004.]);
}

#[test]
fn a_transposed_source_is_read_in_strips() {
    for (rows, columns) in [(1, 1), (3, 5), (16, 16), (33, 17), (40, 70)] {
        let (source, _file) = source(&[&[columns, rows]]);
        let origin = Origin::Parts(vec![part(0, rows, RowMap::TRANSPOSED)]);
        let expected: Vec<f32> = (0..rows).flat_map(|r| (0..columns).map(move |c| (c * rows + r) as f32)).collect();
        assert_eq!(read(&[rows, columns], &origin, &source), expected);
        let bound = Rows::new("x", &[rows, columns], &origin, &source).unwrap();
        let place = bound.locate(rows - 1, columns - 1).unwrap();
        assert_eq!((place.row, place.column), (columns - 1, rows - 1));
    }
}

/// Two matrices that are stored transposed, with the columns of two parts in turns; and a vector for each, likewise.
#[test]
fn columns_and_elements_in_turns_are_picked() {
    for (n_rows, n_cols) in [(1, 1), (3, 5), (20, 33)] {
        let (source, _file) = source(&[&[2, n_cols, 2 * n_rows], &[2, 2 * n_rows]]);
        let parts = (0..2).map(|matrix| part(0, n_rows, RowMap::Columns { matrix, first: 1, step: 2 }));
        let element = |e: u64, r: u64, c: u64| ((e * n_cols + c) * 2 * n_rows + 2 * r + 1) as f32;
        let rows = || (0..2).flat_map(|e| (0..n_rows).map(move |r| (e, r)));
        let expected: Vec<f32> = rows().flat_map(|(e, r)| (0..n_cols).map(move |c| element(e, r, c))).collect();
        assert_eq!(read(&[2, n_rows, n_cols], &Origin::Parts(parts.collect()), &source), expected);
        let biases = Origin::Parts(vec![part(1, 2 * n_rows, RowMap::Elements { first: 1, step: 2 })]);
        let expected: Vec<f32> = (0..2 * n_rows).map(|i| (1000 + 2 * i + 1) as f32).collect();
        assert_eq!(biases.rows(&[2, n_rows]), (2 * n_rows, 1));
        assert_eq!(read(&[2, n_rows], &biases, &source), expected);
    }
}

#[test]
fn computed_weights_are_copied() {
    let (source, _file) = source(&[&[1]]);
    let origin = Origin::Computed(vec![1.0, 2.0, 3.0]);
    let rows = Rows::new("x", &[3], &origin, &source).unwrap();
    let mut out = [0.0; 2];
    rows.read(Level::detect(), 0..1, 1..3, &mut Buffers::default(), &mut out).unwrap();
    assert_eq!(out, [2.0, 3.0]);
    assert!(rows.locate(0, 0).is_none() && rows.stored().is_none());
}

#[test]
fn an_origin_of_another_source_is_refused() {
    let (source, _file) = source(&[&[2, 3]]);
    let range = |first| RowMap::Range { first };
    for (shape, parts) in [
        (&[2, 3][..], vec![]),
        (&[2, 3], vec![part(1, 2, range(0))]),
        (&[2, 3], vec![part(0, 2, range(1))]),
        (&[2, 3], vec![part(0, 1, range(0))]),
        (&[3, 3], vec![part(0, 2, range(0))]),
        (&[3, 4], vec![part(0, 3, range(0))]),
        (&[2, 3], vec![part(0, 2, RowMap::TRANSPOSED)]),
        (&[2, 0], vec![part(0, 2, range(0))]),
    ] {
        let origin = Origin::Parts(parts);
        let result = Rows::new("x", shape, &origin, &source);
        assert!(matches!(result, Err(Error::Internal(_))), "{shape:?} {origin:?}");
    }
    let origin = Origin::Computed(vec![0.0]);
    assert!(matches!(Rows::new("x", &[2], &origin, &source), Err(Error::Internal(_))));
}
