//! What each type of a tensor costs, where types are to be chosen: by how much the scores of held-out text diverge for it.

use std::collections::BTreeMap;

use super::aim::Offer;
use super::choice::Made;
use super::layers::{Pass, whole_matrix};
use super::offers::{Aim, nearest};
use crate::error::Result;
use crate::gguf::Model;
use crate::memory::filled;
use crate::model::{Backend, Blocks, Matrix, StepMatrix};
use crate::names;
use crate::quant::Format;
use crate::source::TensorSource;

impl Pass<'_, '_> {
    /// Every matrix of the layers that is quantized may get any type of its menu, and so may embedding and head where the aim reaches them.
    pub(super) fn offer_types(&mut self, aim: &Aim, model: &Model) {
        let mut matrices: Vec<(usize, usize)> = Vec::new();
        for layer in 0..self.sweep.n_layers() {
            for step in 0..self.sweep.n_steps(layer) {
                matrices.extend(self.sweep.matrices(layer, step).iter().map(|matrix| (matrix.tensor, matrix.n_cols)));
            }
        }
        let tables = [names::TOKEN_EMBD, self.network.output_name()].into_iter().filter(|_| aim.reaches_embedding());
        matrices.extend(tables.filter_map(|name| whole_matrix(model, name)).map(|matrix| (matrix.tensor, matrix.n_cols)));
        for (tensor, n_cols) in matrices {
            let menu = aim.menu.for_rows(n_cols);
            let is_kept = menu.is_empty() || aim.kept.contains(&model.tensors()[tensor].name);
            if let Some(formats) = self.wanted.get_mut(&tensor).filter(|formats| !formats.is_empty() && !is_kept) {
                *formats = menu;
                self.offers.insert(tensor, Vec::new());
            }
        }
    }

    /// What the scores of held-out text are made of before anything is changed.
    fn make_ends(&mut self, layer: usize, step: usize) -> Result<()> {
        if self.ends.is_none() {
            let held_out = self.n_seen..self.batches.len();
            let ends = held_out.map(|index| self.sweep.finish((layer, step), index, self.sweep.states(index)?));
            self.ends = Some(ends.collect::<Result<_>>()?);
        }
        Ok(())
    }

    /// By how much the scores of held-out text diverge when a step is computed with these blocks, in nats over all of its tokens.
    fn divergence(&mut self, layer: usize, step: usize, others: &[(&StepMatrix, Format, &[u8])]) -> Result<f64> {
        let held_out = self.n_seen..self.batches.len();
        self.make_ends(layer, step)?;
        let loaded = self.sweep.load_with(layer, step, others)?;
        let mut sum = 0.0;
        for (index, end) in held_out.zip(self.ends.iter().flatten()) {
            self.check_stop()?;
            let states = self.sweep.run(&loaded, index, &mut ())?;
            let other_end = self.sweep.finish((layer, step + 1), index, states)?;
            let output = self.network.output();
            sum += self.kld(index, (end, output), (&other_end, output))?;
        }
        Ok(sum)
    }

    /// What each type of a step's tensors costs. How much the scores diverge for an error at the step's output is found for each tensor in
    /// the type that most will get; since the divergence grows as the squared error does, it follows for the others.
    pub(super) fn add_offers(
        &mut self,
        layer: usize,
        step: usize,
        matrices: &[StepMatrix],
        made: &BTreeMap<(usize, Format), Vec<Made>>,
    ) -> Result<()> {
        let mut tensors: Vec<usize> = matrices.iter().map(|matrix| matrix.tensor).collect();
        tensors.dedup();
        for tensor in tensors.into_iter().filter(|tensor| self.offers.contains_key(tensor)).collect::<Vec<_>>() {
            let of_tensor: Vec<&StepMatrix> = matrices.iter().filter(|matrix| matrix.tensor == tensor).collect();
            let types = made.iter().filter(|((of, _), parts)| *of == tensor && parts.len() == of_tensor.len());
            let types: Vec<(Format, &Vec<Made>)> = types.map(|((_, format), parts)| (*format, parts)).collect();
            let error = |parts: &[Made]| parts.iter().map(|part| part.choice.error).sum::<f64>();
            let typical = nearest(types.iter().map(|(format, _)| *format), self.typical_bits);
            let Some((format, parts)) = types.iter().find(|(format, _)| Some(*format) == typical) else { continue };
            let of_rows = |part: &Made| of_tensor.iter().copied().find(|matrix| matrix.rows.start == part.first_row);
            let others: Vec<(&StepMatrix, Format, &[u8])> =
                parts.iter().filter_map(|part| Some((of_rows(part)?, *format, &part.blocks[..]))).collect();
            let divergence = self.divergence(layer, step, &others)?;
            let per_error = if error(parts) > 0.0 { divergence / error(parts) } else { 0.0 };
            let offer = |(format, parts): &(Format, &Vec<Made>)| Offer {
                format: *format,
                bytes: parts.iter().map(|part| part.blocks.len() as u64).sum(),
                cost: per_error * error(parts),
            };
            self.add(tensor, types.iter().map(offer).collect());
        }
        Ok(())
    }

    pub(super) fn add(&mut self, tensor: usize, mut offers: Vec<Offer>) {
        offers.sort_by_key(|offer| offer.bytes);
        self.offers.insert(tensor, offers);
    }

    /// By how much the scores of held-out text diverge when its tokens begin as rows of a table with these blocks.
    pub(super) fn embedding_loss(&mut self, matrix: &StepMatrix, format: Format, blocks: &[u8]) -> Result<f64> {
        self.make_ends(self.sweep.n_layers(), 0)?;
        let (n_rows, n_cols) = (matrix.rows.len(), matrix.n_cols);
        let table = self.network.backend().weight(Matrix { format, n_rows, n_cols, blocks: Blocks::Read(blocks.to_vec()) })?;
        let mut sum = 0.0;
        for (index, end) in (self.n_seen..self.batches.len()).zip(self.ends.iter().flatten()) {
            self.check_stop()?;
            let other_end = self.sweep.finish((0, 0), index, self.sweep.begin_with(self.batches[index], &table)?)?;
            let output = self.network.output();
            sum += self.kld(index, (end, output), (&other_end, output))?;
        }
        Ok(sum)
    }

    /// What each type of an embedding costs that is not the head as well. It is rounded as it is without calibration.
    pub(super) fn embedding(&mut self, model: &Model) -> Result<()> {
        let Some(matrix) = whole_matrix(model, names::TOKEN_EMBD).filter(|matrix| self.offers.contains_key(&matrix.tensor)) else {
            return Ok(());
        };
        if self.network.output_name() == names::TOKEN_EMBD {
            return Ok(());
        }
        let weights = self.sweep.weights(&matrix)?;
        let mut offers = Vec::new();
        for format in self.wanted[&matrix.tensor].clone() {
            let Some(row_bytes) = format.row_bytes(matrix.n_cols as u64).filter(|_| !format.needs_importance()) else { continue };
            let mut blocks: Vec<u8> = filled(matrix.rows.len() * row_bytes as usize, 0)?;
            if self.as_ggml(format, &weights, matrix.n_cols, None, &mut blocks) {
                let cost = self.embedding_loss(&matrix, format, &blocks)?;
                offers.push(Offer { format, bytes: blocks.len() as u64, cost });
            }
        }
        self.add(matrix.tensor, offers);
        Ok(())
    }
}
