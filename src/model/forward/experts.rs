//! A mixture of experts in place of one feed-forward network.
//!
//! ```text
//! s = router(h)                      a score for every expert
//! w = softmax(s)                     of which the n_used largest count, over their sum where the family wants it
//! x += w[e] * network_e(h)           for each of them
//! x += sigmoid(g(h)) * shared(h)     where one expert works for every token
//! ```
//!
//! The choice is made here and not on the backend: scores are few, and of equal ones the first expert wins everywhere. An expert gets all
//! rows of the batch that chose it at once, so its weights are dequantized once. A token has its experts' results added in the order of
//! their numbers, whatever else is in the batch.

use super::{ExpertsOf, LayerOf, Network, Observed, Observer, SharedExpertOf, all, tap};
use crate::error::Result;
use crate::matmul::Accumulate;
use crate::model::backend::Backend;
use crate::model::layer::Stacked;

/// What one expert has to do.
#[derive(Debug, Clone, Default, PartialEq)]
struct Route {
    /// The rows that it works for, ascending.
    rows: Vec<u32>,
    /// The weight of its result for each of them.
    weights: Vec<f32>,
}

impl<B: Backend> Network<'_, B> {
    /// Adds what the experts of layer `index` make of `x` to it; `h` is `x`, normalised.
    pub(super) fn mix(
        &self,
        (index, layer, mixture): (usize, &LayerOf<B>, &ExpertsOf<B>),
        h: B::Operand,
        x: &mut B::Rows,
        n_rows: usize,
        observer: &mut dyn Observer<B>,
    ) -> Result<()> {
        let backend = self.backend;
        tap(observer, &[&mixture.router], n_rows, &h)?;
        let scores = backend.download(&self.linear(&mixture.router, &h, n_rows)?)?;
        let routes = self.routes(index, &scores);
        // Experts add to `x` one after the other; each reads what it was before.
        let before = backend.select(x, &all(n_rows))?;
        match &mixture.shared {
            Some(shared) => self.add_shared(shared, h, x, n_rows, observer)?,
            None => drop(h),
        }
        for (expert, Route { rows, weights }) in routes.iter().enumerate().filter(|(_, route)| !route.rows.is_empty()) {
            let (n_chosen, matrix) = (rows.len(), (expert, routes.len()));
            let product = |stacked: &Stacked<B::Weight>, x: &B::Operand| {
                let mut out = backend.rows(n_chosen, stacked.n_out)?;
                let weight = &stacked.matrices[expert];
                match n_rows {
                    1 => backend.matmul(x, weight, Accumulate::Store, &mut out)?,
                    _ => backend.matmul_of_batch(x, weight, Accumulate::Store, &mut out)?,
                }
                Ok(out)
            };
            let h = self.norm(&backend.select(&before, rows)?, &layer.ffn_norm)?;
            let names: &[&str] = &[&mixture.gate.name, &mixture.up.name];
            observer.operand(Observed { names, n_rows: n_chosen, matrix }, &h)?;
            let inner = backend.swiglu(&product(&mixture.gate, &h)?, &product(&mixture.up, &h)?)?;
            observer.operand(Observed { names: &[&mixture.down.name], n_rows: n_chosen, matrix }, &inner)?;
            backend.add_rows(&product(&mixture.down, &inner)?, weights, rows, x)?;
        }
        Ok(())
    }

    fn add_shared(
        &self,
        shared: &SharedExpertOf<B>,
        h: B::Operand,
        x: &mut B::Rows,
        n_rows: usize,
        observer: &mut dyn Observer<B>,
    ) -> Result<()> {
        tap(observer, &[&shared.weight], n_rows, &h)?;
        let scores = self.backend.download(&self.linear(&shared.weight, &h, n_rows)?)?;
        let weights: Vec<f32> = scores.iter().map(|&score| (1.0 / (1.0 + libm::exp(-f64::from(score)))) as f32).collect();
        let inner = self.gated(&shared.network, h, n_rows, observer)?;
        let out = self.linear(&shared.network.down, &inner, n_rows)?;
        self.backend.add_rows(&out, &weights, &all(n_rows), x)
    }

    fn routes(&self, index: usize, scores: &[f32]) -> Vec<Route> {
        let sizes = self.hparams.layers[index].experts.expect("a layer of experts has their sizes");
        let family = self.hparams.family.mixture.as_ref().expect("experts come with a way to mix them");
        let weighing = if family.normalises_weights { Weighing::AmongChosen } else { Weighing::AmongAll };
        routes(scores, sizes.n_expert, sizes.n_used, weighing)
    }
}

/// What the weights of experts add up to 1 with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weighing {
    AmongChosen,
    AmongAll,
}

/// The work of every expert. `scores` is `[n_rows, n_expert]`.
fn routes(scores: &[f32], n_expert: usize, n_used: usize, weighing: Weighing) -> Vec<Route> {
    let mut routes = vec![Route::default(); n_expert];
    let mut order: Vec<usize> = Vec::with_capacity(n_expert);
    for (row, scores) in (0..).zip(scores.chunks_exact(n_expert)) {
        order.clear();
        order.extend(0..n_expert);
        order.sort_unstable_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        let max = f64::from(scores[order[0]]);
        let exp = |expert: &usize| libm::exp(f64::from(scores[*expert]) - max);
        let (chosen, others) = order.split_at(n_used);
        let sum = |experts: &[usize]| experts.iter().map(exp).sum::<f64>();
        let total = match weighing {
            // A score that is not a number makes all weights so, chosen or not: broken weights must show.
            Weighing::AmongChosen if others.iter().all(|&expert| !scores[expert].is_nan()) => sum(chosen),
            _ => sum(&order),
        };
        for expert in chosen {
            routes[*expert].rows.push(row);
            routes[*expert].weights.push((exp(expert) / total) as f32);
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(scores: &[f32], n_used: usize, weighing: Weighing) -> Vec<f32> {
        let of_row = |route: &Route| route.weights.first().copied().unwrap_or(0.0);
        routes(scores, scores.len(), n_used, weighing).iter().map(of_row).collect()
    }

    #[test]
    fn the_likeliest_experts_are_chosen_and_of_equals_the_first() {
        let half = [0.5, 0.0, 0.5, 0.0];
        assert_eq!(weights(&[2.0, 1.0, 2.0, 2.0], 2, Weighing::AmongChosen), half);
        assert_eq!(weights(&[7.0; 4], 1, Weighing::AmongChosen), [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(weights(&[0.0; 4], 2, Weighing::AmongAll), [0.25, 0.25, 0.0, 0.0]);
        // e^0, e^1 and e^2 add up to 11.107.
        assert_eq!(weights(&[0.0, 1.0, 2.0], 2, Weighing::AmongAll), [0.0, 0.244_728_48, 0.665_240_94]);
    }

    #[test]
    fn every_expert_knows_its_rows() {
        let found = routes(&[1.0, 0.0, 0.0, 1.0, 3.0, 1.0], 2, 1, Weighing::AmongChosen);
        assert_eq!(found, [(&[0, 2][..]), &[1]].map(|rows| Route { rows: rows.to_vec(), weights: vec![1.0; rows.len()] }));
    }

    #[test]
    fn scores_that_are_not_numbers_show() {
        for broken in [f32::NAN, -f32::NAN, f32::INFINITY] {
            for weighing in [Weighing::AmongChosen, Weighing::AmongAll] {
                let found = routes(&[1.0, broken, 0.5], 3, 1, weighing);
                assert!(found.iter().flat_map(|route| &route.weights).all(|weight| weight.is_nan()), "{broken}: {found:?}");
            }
        }
    }
}
