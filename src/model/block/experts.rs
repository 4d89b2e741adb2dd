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

use crate::arch::describe::{self, Activation, Weighing};
use crate::error::{Error, Result};
use crate::matmul::Accumulate;
use crate::model::backend::Backend;
use crate::model::block::Network;
use crate::model::block::network::NetworkOf;
use crate::model::catalog::{Catalog, Site, Slice};
use crate::model::linear::{Linear, Stacked};
use crate::model::pass::{NormOf, Observed, Observer, Running, all, tap};

/// Its weights.
#[derive(Debug, Clone)]
pub(in crate::model) struct Experts<M, V> {
    /// Scores every expert.
    pub router: Linear<M, V>,
    /// What states are normalised by to be scored; without it the experts' input is scored.
    pub router_gain: Option<V>,
    pub gate: Stacked<M, V>,
    pub up: Stacked<M, V>,
    pub down: Stacked<M, V>,
    /// Factors on the results.
    pub scales: Option<V>,
    pub shared: Option<Shared<M, V>>,
    pub weighing: Weighing,
    pub activation: Activation,
    /// Experts that one token uses.
    pub n_used: usize,
}

/// An expert that works for every token: `sigmoid(weight(x)) * network(x)`.
#[derive(Debug, Clone)]
pub(in crate::model) struct Shared<M, V> {
    pub weight: Linear<M, V>,
    pub network: Network<M, V>,
}

impl Experts<Slice, Slice> {
    pub fn plan(experts: &describe::Experts, catalog: &mut Catalog<'_>, site: &Site<'_>) -> Result<Self> {
        let apart = site.name("ffn_down.0.weight");
        if catalog.has(&apart) {
            let what = format!("running a model with a tensor for each expert ({apart})");
            return Err(Error::unsupported(what, "convert the original model anew: experts are stacked since April 2024"));
        }
        let sizes = site.layer.and_then(|layer| layer.experts).expect("a layer of experts has their sizes");
        let shared = experts.shared.as_ref().map(|shared| {
            let weight = catalog.linear(&shared.weight, site)?;
            Ok(Shared { weight, network: Network::plan(&shared.network, catalog, site)? })
        });
        let [gate, up] = match &experts.up {
            Some(up) => [catalog.stacked(&experts.gate, sizes.n_expert, site)?, catalog.stacked(up, sizes.n_expert, site)?],
            None => catalog.stacked_halves(&experts.gate, sizes.n_expert, site)?,
        };
        let mut vector = |weight: &Option<describe::Weight>| weight.as_ref().map(|weight| catalog.weight(weight, site)).transpose();
        let (router_gain, scales) = (vector(&experts.router_gain)?, vector(&experts.scales)?);
        Ok(Experts {
            router: catalog.linear(&experts.router, site)?,
            router_gain,
            scales,
            gate,
            up,
            down: catalog.stacked(&experts.down, sizes.n_expert, site)?,
            shared: shared.transpose()?,
            weighing: experts.weighing,
            activation: experts.activation,
            n_used: sizes.n_used,
        })
    }
}

impl<M, V> Experts<M, V> {
    pub fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Experts<M2, V2>> {
        let router = self.router.try_map(matrix, vector)?;
        let mut stacked = |stacked: Stacked<M, V>| stacked.try_map(matrix, vector);
        let (gate, up, down) = (stacked(self.gate)?, stacked(self.up)?, stacked(self.down)?);
        let shared = self.shared.map(|Shared { weight, network }| {
            Ok(Shared { weight: weight.try_map(matrix, vector)?, network: network.try_map(matrix, vector)? })
        });
        let router_gain = self.router_gain.map(&mut *vector).transpose()?;
        let scales = self.scales.map(&mut *vector).transpose()?;
        let Experts { weighing, activation, n_used, .. } = self;
        Ok(Experts { router, router_gain, scales, gate, up, down, shared: shared.transpose()?, weighing, activation, n_used })
    }
}

type ExpertsOf<B> = Experts<<B as Backend>::Weight, <B as Backend>::Rows>;
type SharedOf<B> = Shared<<B as Backend>::Weight, <B as Backend>::Rows>;

/// What one expert has to do.
#[derive(Debug, Clone, Default, PartialEq)]
struct Route {
    /// The rows that it works for, ascending.
    rows: Vec<u32>,
    /// The weight of its result for each of them.
    weights: Vec<f32>,
}

impl<B: Backend> Running<'_, B> {
    /// Adds what the experts make of `x` to `out`; `h` is `x`, normalised by `norm`.
    pub(in crate::model) fn mix(
        &self,
        (experts, norm): (&ExpertsOf<B>, &NormOf<B>),
        h: B::Operand,
        (x, out): (&B::Rows, &mut B::Rows),
        n_rows: usize,
        observer: &mut dyn Observer<B>,
    ) -> Result<()> {
        let backend = self.backend;
        let scores = self.scores(experts, &h, x, n_rows, observer)?;
        let mut routes = routes(&scores, experts.gate.matrices.len(), experts.n_used, experts.weighing);
        if let Some(scales) = &experts.scales {
            let scales = backend.download(scales)?;
            routes.iter_mut().zip(scales).for_each(|(route, scale)| route.weights.iter_mut().for_each(|weight| *weight *= scale));
        }
        match &experts.shared {
            Some(shared) => self.add_shared(shared, h, out, n_rows, observer)?,
            None => drop(h),
        }
        for (expert, Route { rows, weights }) in routes.iter().enumerate().filter(|(_, route)| !route.rows.is_empty()) {
            let (n_chosen, matrix) = (rows.len(), (expert, routes.len()));
            let product = |stacked: &Stacked<B::Weight, B::Rows>, x: &B::Operand| {
                let mut out = backend.rows(n_chosen, stacked.n_out)?;
                let weight = &stacked.matrices[expert];
                match n_rows {
                    1 => backend.matmul(x, weight, Accumulate::Store, &mut out)?,
                    _ => backend.matmul_of_batch(x, weight, Accumulate::Store, &mut out)?,
                }
                if let Some(bias) = stacked.biases.get(expert) {
                    backend.add_bias(&mut out, bias)?;
                }
                Ok(out)
            };
            let h = self.norm(&backend.select(x, rows)?, norm)?;
            let names: &[&str] = &[&experts.gate.name, &experts.up.name];
            let n_names = if experts.gate.name == experts.up.name { 1 } else { 2 };
            observer.operand(Observed { names: &names[..n_names], n_rows: n_chosen, matrix }, &h)?;
            let inner = self.activate(experts.activation, Some(&product(&experts.gate, &h)?), &product(&experts.up, &h)?)?;
            observer.operand(Observed { names: &[&experts.down.name], n_rows: n_chosen, matrix }, &inner)?;
            backend.add_rows(&product(&experts.down, &inner)?, weights, rows, out)?;
        }
        Ok(())
    }

    /// The scores of all experts, `[n_rows, n_expert]`: of their input `h`, or of the states `x` in a norm of their own.
    fn scores(
        &self,
        experts: &ExpertsOf<B>,
        h: &B::Operand,
        x: &B::Rows,
        n_rows: usize,
        observer: &mut dyn Observer<B>,
    ) -> Result<Vec<f32>> {
        let backend = self.backend;
        let Some(gain) = &experts.router_gain else {
            tap(observer, &[&experts.router], n_rows, h)?;
            return backend.download(&self.linear(&experts.router, h, n_rows)?);
        };
        let h = backend.rms_norm(x, gain, self.hparams.norm_eps)?;
        tap(observer, &[&experts.router], n_rows, &h)?;
        let scores = self.linear(&experts.router, &h, n_rows)?;
        backend.download(&backend.scaled(&scores, 1.0 / (self.hparams.n_embd as f32).sqrt())?)
    }

    fn add_shared(
        &self,
        shared: &SharedOf<B>,
        h: B::Operand,
        x: &mut B::Rows,
        n_rows: usize,
        observer: &mut dyn Observer<B>,
    ) -> Result<()> {
        tap(observer, &[&shared.weight], n_rows, &h)?;
        let scores = self.backend.download(&self.linear(&shared.weight, &h, n_rows)?)?;
        let weights: Vec<f32> = scores.iter().map(|&score| (1.0 / (1.0 + libm::exp(-f64::from(score)))) as f32).collect();
        let network: &NetworkOf<B> = &shared.network;
        let inner = self.inner(network, h, n_rows, observer)?;
        let out = self.linear(&network.down, &inner, n_rows)?;
        self.backend.add_rows(&out, &weights, &all(n_rows), x)
    }
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
