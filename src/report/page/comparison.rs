//! The page of a comparison: how far the predictions of some files are from those of the file they were made from.

use super::super::Table;
use super::{Block, Curve, Curves, Histogram, Histograms, Page, Point, Scatter, Section, short_names};

/// What a comparison found, as far as it is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What was compared, such as the name of the base file.
    pub title: String,
    /// How it was measured: base file, text, chunks and context, scored tokens, and whatever else belongs to the figures.
    pub facts: Vec<(String, String)>,
    /// What a person looks at first, one row per file: the same table that a terminal shows.
    pub figures: Table,
    /// How the divergence is distributed, one row per file.
    pub distribution: Table,
    /// The files, in the order of the tables.
    pub files: Vec<ComparedFile>,
    /// Position within its window of the first scored token: what the first value of `kld_by_position` belongs to.
    pub position_first: u64,
}

/// What a comparison found about one file.
#[derive(Debug, Clone, PartialEq)]
pub struct ComparedFile {
    /// Name of the file; what all names have in common is left out of the plots.
    pub name: String,
    /// Size of the file, all shards together.
    pub size_bytes: u64,
    /// Mean divergence over all scored tokens, in nats.
    pub kld_mean: f64,
    /// Standard error of the mean; 0 where it is not known.
    pub kld_mean_error: f64,
    /// Divergence at every scored token, in any order.
    pub klds: Vec<f32>,
    /// Mean divergence over all windows at each scored position, in order; NaN where none was scored.
    pub kld_by_position: Vec<f64>,
}

impl Comparison {
    /// The page with its table and plots.
    pub fn page(self) -> Page {
        let names = short_names(&self.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>());
        let points = names.iter().zip(&self.files).map(|(name, file)| Point {
            name: name.clone(),
            size_bytes: file.size_bytes,
            value: file.kld_mean,
            error: file.kld_mean_error,
        });
        let scatter = Scatter { x_title: "file size".into(), y_title: "mean KLD, nats".into(), points: points.collect() };

        let (mut histograms, mut curves) = (Vec::new(), Vec::new());
        for (name, file) in names.into_iter().zip(self.files) {
            histograms.push(Histogram { name: name.clone(), values: file.klds });
            curves.push(Curve { name, values: file.kld_by_position });
        }
        let histograms = Histograms { x_title: "KLD, nats".into(), histograms };
        let curves = Curves {
            x_title: "position in the window".into(),
            y_title: "mean KLD, nats".into(),
            x_first: self.position_first,
            curves,
        };
        let section = |title: &str, note: &str, blocks| Section { blocks, ..Section::new(title, note) };
        let mut sections =
            vec![section("Figures", FIGURES_NOTE, vec![Block::Table(self.figures), Block::Table(self.distribution)])];
        // One file alone is neither better nor smaller than another.
        if scatter.points.len() > 1 {
            sections.push(section("Size against divergence", SCATTER_NOTE, vec![Block::Scatter(scatter)]));
        }
        sections.push(section("Divergence token by token", HISTOGRAM_NOTE, vec![Block::Histograms(histograms)]));
        sections.push(section("Divergence along the window", CURVE_NOTE, vec![Block::Curves(curves)]));
        Page { title: self.title, facts: self.facts, sections, made: Vec::new() }
    }
}

const FIGURES_NOTE: &str = "A mean KLD of 0.01 nats means that on text which the base itself would write, a file has a perplexity about 1 % \
     above the base's. For scale: Llama 3 8B on wikitext, by llama.cpp's documentation, has 0.0014 as Q8_0, 0.031 as Q4_K_M and 0.10 as Q3_K_M. \
     ln(PPL ratio) times 100 is by how many per cent perplexity has grown on this text. Perplexities \
     closer than their errors do not tell files apart; their KLDs do.";
const SCATTER_NOTE: &str = "Each file by its size and by the mean Kullback-Leibler divergence of its predictions from the base file's. \
     Lower is closer to the base, farther left is smaller. The dashed line, the Pareto line, joins the files that no other beats; a hollow \
     point is a file that is beaten by another one, which is no larger and closer to the base. Upright lines are standard errors.";
const HISTOGRAM_NOTE: &str = "How many of the scored tokens have which divergence. Two files with the same mean can differ in their \
     right end: few tokens with a large divergence are what a reader notices.";
const CURVE_NOTE: &str = "Mean divergence at each position of the windows of text. A line that rises to the right means that errors \
     build up over the context.";
