//! What tensors are offered where types are to be chosen, and what a plan becomes by the choice.

use std::collections::{BTreeMap, BTreeSet};

use super::aim::{Offer, choose};
use crate::error::{Error, Result};
use crate::plan::{Menu, OutputPlan, Plan, PlannedTensor};
use crate::quant::{Format, bits_per_weight};

/// What types are chosen from, and what bounds the choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Aim {
    /// The types.
    pub menu: Menu,
    /// The bound.
    pub bound: Bound,
    /// Tensors that keep the type they have in the plan.
    pub kept: BTreeSet<String>,
}

/// What a choice of types may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// All tensors of the output, in bytes.
    Bytes(u64),
    /// Of the weights of the layers' matrices this share at least gets the smallest type of the menu. All others keep theirs.
    Share(f64),
}

/// A type that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The tensor's name.
    pub name: String,
    /// Its type.
    pub format: Format,
    /// What it takes.
    pub size_bytes: u64,
    /// By how much the scores of held-out text diverge for it alone, in nats a token.
    pub cost: f64,
}

impl Aim {
    /// True where embedding and head are chosen for as well.
    pub(super) fn reaches_embedding(&self) -> bool {
        matches!(self.bound, Bound::Bytes(_))
    }

    /// The bits of a weight that most tensors will have: what they cost is measured there.
    pub(super) fn typical_bits(&self, output: &OutputPlan) -> f64 {
        match self.bound {
            Bound::Bytes(bytes) => bits_per_weight(bytes, output.summary().n_weights),
            Bound::Share(_) => 0.0,
        }
    }
}

/// The format whose weights take most nearly so many bits.
pub(super) fn nearest(formats: impl Iterator<Item = Format>, bits: f64) -> Option<Format> {
    let distance = |format: &Format| (bits_per_weight(format.block_bytes() as u64, format.block_len() as u64) - bits).abs();
    formats.min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// By tensor; empty until its blocks are made.
pub(super) type Offers = BTreeMap<usize, Vec<Offer>>;

fn offered<'o>(planned: &PlannedTensor, offers: &'o Offers) -> Option<(usize, &'o Vec<Offer>)> {
    let tensor = planned.origin.tensors().next()?;
    offers.get(&tensor).map(|list| (tensor, list))
}

/// Bytes of the tensors whose types are not chosen.
fn fixed_bytes(output: &OutputPlan, offers: &Offers) -> u64 {
    let fixed = output.tensors.iter().filter(|planned| offered(planned, offers).is_none());
    fixed.map(|planned| planned.format.tensor_bytes(&planned.shape).unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
}

/// Before the work: what even the smallest types do not fit into.
pub(super) fn refuse_small_budget(
    output: &OutputPlan,
    wanted: &BTreeMap<usize, Vec<Format>>,
    offers: &Offers,
    aim: &Aim,
) -> Result<()> {
    let Bound::Bytes(budget_bytes) = aim.bound else { return Ok(()) };
    let smallest = |planned: &PlannedTensor| {
        let (tensor, _) = offered(planned, offers)?;
        wanted[&tensor].iter().filter_map(|format| format.tensor_bytes(&planned.shape).ok()).min()
    };
    let least = output.tensors.iter().filter_map(smallest).fold(fixed_bytes(output, offers), u64::saturating_add);
    if least <= budget_bytes { Ok(()) } else { Err(too_small(budget_bytes, least)) }
}

fn too_small(budget_bytes: u64, least: u64) -> Error {
    Error::usage(format!("{budget_bytes} bytes for all tensors, but the smallest types take {least}; allow more"))
}

/// Gives every tensor one of its types, within the bound. `n_tokens`: those that the offers' costs are added up over.
///
/// # Errors
/// `Usage` where even the smallest types are more.
pub(super) fn take_offers(plan: &mut Plan, offers: Offers, aim: &Aim, n_tokens: usize) -> Result<Vec<Chosen>> {
    let offers: Offers = offers.into_iter().filter(|(_, list)| !list.is_empty()).collect();
    let output = &mut plan.outputs[0];
    let lists: Vec<Vec<Offer>> = offers.values().cloned().collect();
    let chosen = match aim.bound {
        Bound::Bytes(budget_bytes) => {
            let fixed_bytes = fixed_bytes(output, &offers);
            choose(&lists, budget_bytes.saturating_sub(fixed_bytes)).ok_or_else(|| {
                let smallest = lists.iter().filter_map(|list| list.iter().map(|offer| offer.bytes).min());
                too_small(budget_bytes, fixed_bytes + smallest.sum::<u64>())
            })?
        }
        Bound::Share(share) => {
            let n_weights =
                |list: &Vec<Offer>| list[0].format.block_len() as u64 * (list[0].bytes / list[0].format.block_bytes() as u64);
            let total: u64 = lists.iter().map(n_weights).sum();
            // What counts is how many weights are in the larger type.
            let in_weights = |list: &Vec<Offer>| -> Vec<Offer> {
                let smallest = list[0].format;
                let counted = |offer: &Offer| Offer { bytes: if offer.format == smallest { 0 } else { n_weights(list) }, ..*offer };
                list.iter().map(counted).collect()
            };
            let lists: Vec<Vec<Offer>> = lists.iter().map(in_weights).collect();
            choose(&lists, ((1.0 - share) * total as f64) as u64).unwrap_or_else(|| vec![0; lists.len()])
        }
    };
    let taken: BTreeMap<usize, Offer> = offers.into_iter().zip(chosen).map(|((tensor, list), at)| (tensor, list[at])).collect();
    let mut made = Vec::new();
    for planned in &mut output.tensors {
        let Some(offer) = planned.origin.tensors().next().and_then(|tensor| taken.get(&tensor)) else { continue };
        planned.format = offer.format;
        planned.reason = Some("chosen by what held-out text loses".to_owned());
        let cost = offer.cost / n_tokens.max(1) as f64;
        made.push(Chosen { name: planned.name.clone(), format: offer.format, size_bytes: offer.bytes, cost });
    }
    Ok(made)
}
