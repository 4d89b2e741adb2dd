//! What was found, as tables, as JSON and as a page.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::{FileError, Group, RowError, Sums, TensorError};
use crate::names::Role;
use crate::report::page::{Block, HeatMap, Page, Point, Scatter, Section, short_names};
use crate::report::{Cell, Table};

/// Orders of the tensors in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortBy {
    /// As llama.cpp writes them.
    File,
    /// The largest relative MSE first.
    Mse,
    /// The largest weighted relative MSE first; those without one last.
    Weighted,
    /// The largest error of a weight first.
    Max,
    /// The smallest cosine first.
    Cosine,
    /// The alpha farthest from 1 first.
    Alpha,
    /// The largest tensor first.
    Size,
}

impl SortBy {
    /// Every order.
    pub const ALL: [SortBy; 7] =
        [SortBy::File, SortBy::Mse, SortBy::Weighted, SortBy::Max, SortBy::Cosine, SortBy::Alpha, SortBy::Size];

    /// What an argument calls it.
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// What comes first.
    pub fn about(self) -> &'static str {
        self.words().1
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            SortBy::File => ("file", "As in the file"),
            SortBy::Mse => ("mse", "Largest relative MSE first"),
            SortBy::Weighted => ("weighted", "Largest weighted relative MSE first"),
            SortBy::Max => ("max", "Largest error of one weight first"),
            SortBy::Cosine => ("cosine", "Smallest cosine first"),
            SortBy::Alpha => ("alpha", "Alpha farthest from 1 first"),
            SortBy::Size => ("size", "Largest tensor first"),
        }
    }
}

/// What the columns of figures are called, behind those that say whose they are.
const FIGURES: &[&str] =
    &["weights", "size", "bpw", "relative MSE", "SQNR dB", "max error", "cosine", "alpha", "weighted MSE", "weighted dB"];

fn table_of(whose: &[&'static str]) -> Table {
    Table::new(&[whose, FIGURES].concat())
}

/// One row per file: everything together.
pub fn files_table(files: &[FileError]) -> Table {
    let mut table = table_of(&["file"]);
    for file in files {
        let total = file.total();
        let [weights, _, bits] = amounts(total.n_weights, total.size_bytes, total.bits_per_weight());
        let [mse, sqnr, max, cosine, alpha, weighted_mse, weighted_sqnr] = figures(&total.sums, total.weighted.as_ref());
        let size = Cell::Bytes(file.size_bytes);
        table.push([name(&file.path).into(), weights, size, bits, mse, sqnr, max, cosine, alpha, weighted_mse, weighted_sqnr]);
    }
    table
}

/// One row per role.
pub fn roles_table(file: &FileError) -> Table {
    let mut table = table_of(&["role", "tensors"]);
    for (role, group) in file.roles() {
        let [weights, size, bits] = amounts(group.n_weights, group.size_bytes, group.bits_per_weight());
        let [mse, sqnr, max, cosine, alpha, weighted_mse, weighted_sqnr] = figures(&group.sums, group.weighted.as_ref());
        let tensors = group.n_tensors.into();
        table.push([role.name().into(), tensors, weights, size, bits, mse, sqnr, max, cosine, alpha, weighted_mse, weighted_sqnr]);
    }
    table
}

/// One row per tensor.
pub fn tensors_table(file: &FileError, sort_by: SortBy) -> Table {
    let mut table = table_of(&["tensor", "type"]);
    for tensor in sorted(&file.tensors, sort_by) {
        let [weights, size, bits] = amounts(tensor.n_weights(), tensor.size_bytes, tensor.bits_per_weight());
        let [mse, sqnr, max, cosine, alpha, weighted_mse, weighted_sqnr] = figures(&tensor.sums, tensor.weighted.as_ref());
        let (name, format) = (tensor.name.as_str().into(), tensor.format.name().into());
        table.push([name, format, weights, size, bits, mse, sqnr, max, cosine, alpha, weighted_mse, weighted_sqnr]);
    }
    table
}

/// The worst rows of the whole file, the worst first.
pub fn worst_rows_table(file: &FileError, n: usize) -> Table {
    let mut rows: Vec<(&TensorError, RowError)> =
        file.tensors.iter().flat_map(|tensor| tensor.worst_rows.iter().map(move |row| (tensor, *row))).collect();
    rows.sort_by(|(_, a), (_, b)| b.relative_mse.total_cmp(&a.relative_mse));
    let mut table = Table::new(&["tensor", "type", "row", "relative MSE", "SQNR dB", "times the tensor's"]);
    for (tensor, row) in rows.into_iter().take(n) {
        let times = row.relative_mse / tensor.sums.relative_mse();
        let (row_mse, sqnr) = (Cell::Real(row.relative_mse), Cell::Fixed(-10.0 * row.relative_mse.log10(), 2));
        let (name, format) = (tensor.name.as_str().into(), tensor.format.name().into());
        table.push([name, format, Cell::Count(row.row), row_mse, sqnr, finite(times, |times| Cell::Fixed(times, 1))]);
    }
    table
}

fn amounts(n_weights: u64, size_bytes: u64, bits_per_weight: f64) -> [Cell; 3] {
    [Cell::About(n_weights), Cell::Bytes(size_bytes), Cell::Fixed(bits_per_weight, 2)]
}

fn figures(sums: &Sums, weighted: Option<&Sums>) -> [Cell; 7] {
    [
        Cell::Real(sums.relative_mse()),
        Cell::Fixed(sums.sqnr_db(), 2),
        Cell::Real(sums.max_error),
        finite(sums.cosine(), |cosine| Cell::Fixed(cosine, 6)),
        finite(sums.alpha(), |alpha| Cell::Fixed(alpha, 5)),
        weighted.map_or(Cell::Empty, |sums| Cell::Real(sums.relative_mse())),
        weighted.map_or(Cell::Empty, |sums| Cell::Fixed(sums.sqnr_db(), 2)),
    ]
}

fn finite(value: f64, cell: impl Fn(f64) -> Cell) -> Cell {
    if value.is_finite() { cell(value) } else { Cell::Empty }
}

fn sorted(tensors: &[TensorError], sort_by: SortBy) -> Vec<&TensorError> {
    let mut sorted: Vec<&TensorError> = tensors.iter().collect();
    let key = |tensor: &TensorError| match sort_by {
        SortBy::File => 0.0,
        SortBy::Mse => -tensor.sums.relative_mse(),
        SortBy::Weighted => tensor.weighted.map_or(1.0, |weighted| -weighted.relative_mse()),
        SortBy::Max => -tensor.sums.max_error,
        SortBy::Cosine => tensor.sums.cosine(),
        SortBy::Alpha => -(tensor.sums.alpha() - 1.0).abs(),
        SortBy::Size => -(tensor.size_bytes as f64),
    };
    // Stable, so that equals stay in the order of the file.
    sorted.sort_by(|a, b| key(a).total_cmp(&key(b)));
    sorted
}

/// The last part of a path.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Everything that is known of a file. Figures that are not finite are null.
pub fn file_json(file: &FileError, sort_by: SortBy) -> Json {
    let total = file.total();
    json!({
        "file": file.path.to_string_lossy(),
        "file_bytes": file.size_bytes,
        "total": group_json(&total),
        "roles": file.roles().iter().map(|(role, group)| with(json!({ "role": role.name() }), group_json(group))).collect::<Vec<_>>(),
        "tensors": sorted(&file.tensors, sort_by).into_iter().map(tensor_json).collect::<Vec<_>>(),
    })
}

fn group_json(group: &Group) -> Json {
    let own = json!({
        "n_tensors": group.n_tensors,
        "n_weights": group.n_weights,
        "size_bytes": group.size_bytes,
        "bits_per_weight": group.bits_per_weight(),
    });
    with(with(own, sums_json(&group.sums)), json!({ "weighted": group.weighted.as_ref().map(weighted_json) }))
}

fn tensor_json(tensor: &TensorError) -> Json {
    let own = json!({
        "name": tensor.name,
        "role": tensor.role.name(),
        "block": tensor.block,
        "shape": tensor.shape,
        "base_type": tensor.base_format.name(),
        "type": tensor.format.name(),
        "n_weights": tensor.n_weights(),
        "size_bytes": tensor.size_bytes,
        "bits_per_weight": tensor.bits_per_weight(),
    });
    let row = |row: &RowError| json!({ "row": row.row, "relative_mse": row.relative_mse });
    let more = json!({
        "weighted": tensor.weighted.as_ref().map(weighted_json),
        "worst_rows": tensor.worst_rows.iter().map(row).collect::<Vec<_>>(),
    });
    with(with(own, sums_json(&tensor.sums)), more)
}

fn sums_json(sums: &Sums) -> Json {
    with(weighted_json(sums), json!({ "max_error": sums.max_error }))
}

fn weighted_json(sums: &Sums) -> Json {
    json!({
        "relative_mse": sums.relative_mse(),
        "sqnr_db": sums.sqnr_db(),
        "cosine": sums.cosine(),
        "alpha": sums.alpha(),
    })
}

/// The fields of both objects.
fn with(mut object: Json, more: Json) -> Json {
    if let (Json::Object(fields), Json::Object(more)) = (&mut object, more) {
        fields.extend(more);
    }
    object
}

/// The page of a measurement. `facts` says what was compared and how; `n_worst` is how many rows of each file are listed.
pub fn page(base: &Path, facts: Vec<(String, String)>, files: &[FileError], sort_by: SortBy, n_worst: usize) -> Page {
    let mut sections = vec![Section { blocks: vec![Block::Table(files_table(files))], ..Section::new("Files", FILES_NOTE) }];
    let names = short_names(&files.iter().map(|file| name(&file.path)).collect::<Vec<_>>());
    if files.len() > 1 {
        let points = names.iter().zip(files).map(|(name, file)| {
            let value = file.total().sums.relative_mse();
            Point { name: name.clone(), size_bytes: file.size_bytes, value, error: 0.0 }
        });
        let (x_title, y_title) = ("file size".to_owned(), "relative MSE".to_owned());
        let scatter = Scatter { x_title, y_title, points: points.collect() };
        sections.push(Section { blocks: vec![Block::Scatter(scatter)], ..Section::new("Size against error", SCATTER_NOTE) });
    }
    sections.push(heat_maps(&names, files));
    for (title, table) in [
        ("Roles", &roles_table as &dyn Fn(&FileError) -> Table),
        ("Worst rows", &|file: &FileError| worst_rows_table(file, n_worst)),
    ] {
        let blocks = names.iter().zip(files).map(|(name, file)| (name, table(file))).filter(|(_, table)| !table.is_empty());
        let blocks: Vec<Block> = blocks.map(|(name, table)| Block::Titled(name.clone(), Box::new(Block::Table(table)))).collect();
        if !blocks.is_empty() {
            sections.push(Section { blocks, ..Section::new(title, "") });
        }
    }
    let tensors = |(name, file): (&String, &FileError)| {
        Block::Folded(format!("{name}: {} tensors", file.tensors.len()), tensors_table(file, sort_by))
    };
    sections.push(Section { blocks: names.iter().zip(files).map(tensors).collect(), ..Section::new("Tensors", "") });
    Page { title: format!("Error of the weights, against {}", name(base)), facts, sections, made: Vec::new() }
}

const FILES_NOTE: &str = "All tensors together. Relative MSE is |w - q|\u{b2} / |w|\u{b2}, and SQNR the same in decibels, of which 6 are \
     one bit. An alpha above 1 says that the weights have shrunk by that factor.";
const SCATTER_NOTE: &str = "Lower is closer to the base, farther left is smaller. Errors of weights are not errors of predictions: \
     ggforge compare measures those.";
const HEAT_NOTE: &str = "SQNR in decibels of each layer's tensors, by their role: the stronger the colour, the larger the error. \
     = is no difference at all; the row without a number holds what belongs to no layer. Roles without any error are left out.";

fn heat_maps(names: &[String], files: &[FileError]) -> Section {
    let by_place: Vec<BTreeMap<(Option<u32>, usize), Group>> = files.iter().map(by_place).collect();
    let mut columns: Vec<Role> = files.iter().flat_map(|file| &file.tensors).filter(|t| t.sums.ee > 0.0).map(|t| t.role).collect();
    columns.sort_by_key(|role| *role as usize);
    columns.dedup();
    let mut section = Section::new("Error by layer and role", HEAT_NOTE);
    if columns.is_empty() {
        section.note = "No tensor differs from the base.".to_owned();
        return section;
    }
    // One scale for all files, so that their maps can be compared.
    let decibels = || by_place.iter().flat_map(BTreeMap::values).map(|group| group.sums.sqnr_db()).filter(|db| db.is_finite());
    let hot = (decibels().reduce(f64::min).unwrap_or(0.0) / 5.0).floor() * 5.0;
    let cold = ((decibels().reduce(f64::max).unwrap_or(0.0) / 5.0).ceil() * 5.0).max(hot + 10.0);
    for (name, groups) in names.iter().zip(&by_place) {
        let mut blocks: Vec<Option<u32>> = groups.keys().map(|(block, _)| *block).collect();
        blocks.dedup();
        let cell = |block: &Option<u32>, role: &Role| groups.get(&(*block, *role as usize)).map(|group| group.sums.sqnr_db());
        let map = HeatMap {
            corner: "layer".to_owned(),
            rows: blocks.iter().map(|block| block.map_or_else(|| "\u{2013}".to_owned(), |block| block.to_string())).collect(),
            columns: columns.iter().map(|role| role.name().to_owned()).collect(),
            cells: blocks.iter().flat_map(|block| columns.iter().map(move |role| cell(block, role))).collect(),
            hot,
            cold,
            unit: "dB".to_owned(),
        };
        section.blocks.push(Block::Titled(name.clone(), Box::new(Block::HeatMap(map))));
    }
    section
}

/// The tensors of each layer and role together.
fn by_place(file: &FileError) -> BTreeMap<(Option<u32>, usize), Group> {
    let mut groups: BTreeMap<(Option<u32>, usize), Vec<&TensorError>> = BTreeMap::new();
    for tensor in &file.tensors {
        groups.entry((tensor.block, tensor.role as usize)).or_default().push(tensor);
    }
    groups.into_iter().map(|(place, tensors)| (place, Group::of(tensors))).collect()
}
