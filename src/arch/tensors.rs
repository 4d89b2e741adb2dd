//! Every tensor of a model, by walking its family's description: its GGUF name, its shape, and what it is made of.

use super::describe::*;
use super::sizes::{Hparams, LayerHparams};
use crate::names;
use crate::rows::{self, ColumnMap, RowMap};

/// A tensor that a model may have.
#[derive(Debug)]
pub(super) struct Wanted {
    /// GGUF name.
    pub name: String,
    /// Row-major.
    pub shape: Vec<u64>,
    /// Where it comes from.
    pub from: From,
    /// Whether it must be there.
    pub need: Need,
}

/// What a tensor is made of, by names of the source.
#[derive(Debug)]
pub(super) enum From {
    /// One tensor.
    One {
        /// Its names: the first that is there counts.
        names: Vec<String>,
        /// Row-major, but for dimensions of 1 between others.
        shape: Vec<u64>,
        /// Its rows, one part below the other, and how many each has.
        rows: Vec<(RowMap, u64)>,
        columns: ColumnMap,
        edit: rows::Edit,
    },
    /// The matrices of all experts.
    Stack {
        /// A tensor for each.
        each: Each,
        /// One for all, in any of these ways.
        packed: Vec<(Vec<String>, Packed)>,
    },
    /// Elements of one tensor, by its name: every how many, and which of them first.
    Elements { name: String, part: [u32; 2] },
}

/// The names of a tensor for each expert. Their number may be a mere claim, so they are made one by one.
#[derive(Debug)]
pub(super) struct Each {
    /// With `{e}` for the number of the expert.
    template: Option<String>,
    n_experts: u64,
}

impl Each {
    pub fn names(&self) -> impl Iterator<Item = String> {
        let templates = self.template.iter();
        templates.flat_map(|template| (0..self.n_experts).map(|expert| template.replace("{e}", &expert.to_string())))
    }
}

/// All of them.
pub(super) fn wanted(hparams: &Hparams) -> Vec<Wanted> {
    let family = hparams.family;
    let mut list = List { hparams, layer: None, at: String::new(), prefix: String::new(), found: Vec::new() };
    list.weight(&family.embedding.tokens);
    family.embedding.positions.iter().for_each(|positions| list.weight(positions));
    list.norm(&family.output_norm);
    list.linear(&family.output, Need::UnlessTied);
    let of_first = hparams.layers.first().map_or(&[][..], |layer| layer.layer.steps);
    of_first.iter().filter(|step| hparams.has(step)).for_each(|step| list.of_all_layers(step));
    for (index, layer) in hparams.layers.iter().enumerate() {
        list.layer = Some(layer);
        list.at = format!("{}.{index}.", family.source_layers);
        list.prefix = names::in_block(index, "");
        layer.layer.steps.iter().filter(|step| hparams.has(step)).for_each(|step| list.step(step));
    }
    if let Some(drafts) = family.drafts {
        list.drafts(drafts);
    }
    list.found
}

struct List<'a> {
    hparams: &'a Hparams,
    layer: Option<&'a LayerHparams>,
    /// What precedes names of the source.
    at: String,
    /// What precedes GGUF names.
    prefix: String,
    found: Vec<Wanted>,
}

impl List<'_> {
    fn shape(&self, dims: &[Dim]) -> Vec<u64> {
        dims.iter().map(|dim| self.hparams.len(*dim, self.layer) as u64).collect()
    }

    fn one(&mut self, name: &str, names: Vec<String>, shape: &[Dim], (rows, columns, edit): (Rows, Columns, Edit), need: Need) {
        let names = names.into_iter().map(|name| format!("{}{name}", self.at)).collect();
        let (name, shape) = (format!("{}{name}", self.prefix), self.shape(shape));
        let edit = match edit {
            Edit::Same => rows::Edit::Same,
            Edit::AddOne => rows::Edit::AddOne,
            Edit::NegExp => rows::Edit::NegExp,
        };
        let columns = match columns {
            Columns::Same => ColumnMap::Same,
            Columns::ByRank(width) => match self.ranks() {
                None => ColumnMap::Same,
                Some([outer, inner]) => ColumnMap::Swapped { outer, inner, len: self.len(width) },
            },
        };
        let (rows, source_shape) = (self.rows(rows, &shape), self.source_shape(rows, &shape));
        self.found.push(Wanted { name, shape, from: From::One { names, shape: source_shape, rows, columns, edit }, need });
    }

    fn len(&self, dim: Dim) -> u64 {
        self.hparams.len(dim, self.layer) as u64
    }

    /// Key heads, and value heads of each; `None` where value heads have the same place in either order.
    fn ranks(&self) -> Option<[u64; 2]> {
        let delta = self.layer.and_then(|layer| layer.delta)?;
        let ranks = [delta.n_key_heads, delta.heads_per_key()];
        (!ranks.contains(&1)).then_some(ranks.map(|n| n as u64))
    }

    /// What the rows of an output are in the source. `shape`: of the output. Where rows are moved, a vector has rows of one.
    fn rows(&self, rows: Rows, shape: &[u64]) -> Vec<(RowMap, u64)> {
        let n_head = |count: fn(&LayerHparams) -> usize| self.layer.map_or(0, |layer| count(layer) as u64);
        let same = (RowMap::Range { first: 0 }, shape[..shape.len() - 1].iter().product());
        match rows {
            Rows::Same => vec![same],
            Rows::RopeHeads => vec![(RowMap::RopeHeads { n_head: n_head(|layer| layer.n_head) }, shape[0])],
            Rows::RopeHeadsKv => vec![(RowMap::RopeHeads { n_head: n_head(|layer| layer.n_head_kv) }, shape[0])],
            Rows::Transposed => vec![(RowMap::TRANSPOSED, shape[0])],
            Rows::ByKeyHead { heights, take } => {
                let heights: Vec<u64> = heights.iter().map(|dim| self.len(*dim)).collect();
                let (stride, n_key_heads) =
                    (heights.iter().sum(), n_head(|layer| layer.delta.map_or(0, |delta| delta.n_key_heads)));
                let section = |&section: &usize| {
                    let (first, len) = (heights[..section].iter().sum(), heights[section]);
                    (RowMap::Groups { first, len, stride }, len.saturating_mul(n_key_heads))
                };
                take.iter().map(section).collect()
            }
            Rows::ByRank { after, width } => {
                let Some([outer, inner]) = self.ranks() else { return vec![same] };
                let first = after.map_or(0, |dim| self.len(dim));
                let swapped = (RowMap::Swapped { first, outer, inner, len: self.len(width) }, shape[0].saturating_sub(first));
                after.map(|_| (RowMap::Range { first: 0 }, first)).into_iter().chain([swapped]).collect()
            }
        }
    }

    fn source_shape(&self, rows: Rows, shape: &[u64]) -> Vec<u64> {
        match rows {
            Rows::Transposed => shape.iter().rev().copied().collect(),
            Rows::ByKeyHead { heights, .. } => {
                let n_key_heads = self.layer.and_then(|layer| layer.delta).map_or(0, |delta| delta.n_key_heads as u64);
                let stride = heights.iter().fold(0, |sum: u64, dim| sum.saturating_add(self.len(*dim)));
                [&[stride.saturating_mul(n_key_heads)], &shape[1..]].concat()
            }
            _ => shape.to_vec(),
        }
    }

    fn weight(&mut self, weight: &Weight) {
        self.one(weight.name, vec![weight.source.to_owned()], weight.shape, (weight.rows, Columns::Same, weight.edit), weight.need);
    }

    fn norm(&mut self, norm: &Norm) {
        match norm {
            Norm::None | Norm::RmsAlone => {}
            Norm::Rms(gain) => self.weight(gain),
            Norm::Layer(gain, bias) => [gain, bias].into_iter().for_each(|weight| self.weight(weight)),
        }
    }

    fn linear(&mut self, linear: &Linear, need: Need) {
        let named = |end: &str| linear.source.iter().map(|source| format!("{source}.{end}")).collect::<Vec<String>>();
        self.one(
            &format!("{}.weight", linear.name),
            named("weight"),
            &linear.shape,
            (linear.rows, linear.columns, Edit::Same),
            need,
        );
        if linear.bias != Need::Never {
            // A bias stands upright whichever way its matrix lies.
            let rows = if linear.rows == Rows::Transposed { Rows::Same } else { linear.rows };
            self.one(
                &format!("{}.bias", linear.name),
                named("bias"),
                &linear.shape[..1],
                (rows, Columns::Same, Edit::Same),
                linear.bias,
            );
        }
    }

    fn projections<const N: usize>(&mut self, projections: &Projections<N>) {
        match projections {
            Projections::Apart(linears) => linears.iter().for_each(|linear| self.linear(linear, Need::Required)),
            Projections::Fused(linear, _) => self.linear(linear, Need::Required),
        }
    }

    /// What one tensor has for the steps of all layers.
    fn of_all_layers(&mut self, step: &Step) {
        if let Body::PerLayer(per_layer) = &step.body {
            self.weight(&per_layer.table);
            self.linear(&per_layer.model, Need::Required);
            self.norm(&per_layer.norm);
        }
    }

    /// Keys and values, and norms of theirs, which layers that use those of others may have, too.
    fn keys_and_values(&mut self, attention: &Attention) {
        let is_shared = self.layer.is_some_and(|layer| layer.keys_of.is_some());
        let need = |need| if is_shared { Need::IfThere } else { need };
        match &attention.qkv {
            Projections::Apart([q, k, v]) => {
                self.linear(q, Need::Required);
                self.linear(k, need(Need::Required));
                self.linear(v, need(attention.values));
            }
            fused => self.projections(fused),
        }
        self.norm(&attention.q_norm);
        match &attention.k_norm {
            Norm::Rms(gain) if is_shared => {
                self.one(gain.name, vec![gain.source.to_owned()], gain.shape, (gain.rows, Columns::Same, gain.edit), Need::IfThere);
            }
            norm => self.norm(norm),
        }
    }

    fn step(&mut self, step: &Step) {
        self.norm(&step.before);
        match &step.body {
            Body::Attention(attention) => {
                self.keys_and_values(attention);
                attention.sinks.iter().for_each(|sinks| self.weight(sinks));
                self.linear(&attention.out, Need::Required);
            }
            Body::Delta(delta) => self.delta(delta),
            Body::Network(network) => self.network(network),
            Body::Experts(experts) => self.experts(experts),
            Body::Both(both) => {
                self.network(&both.network);
                self.experts(&both.experts);
                [&both.network_norm, &both.experts_before, &both.experts_norm].into_iter().for_each(|norm| self.norm(norm));
            }
            Body::PerLayer(per_layer) => {
                [&per_layer.gate, &per_layer.proj].into_iter().for_each(|linear| self.linear(linear, Need::Required))
            }
            Body::Scale(factor) => self.weight(factor),
        }
        self.norm(&step.after);
    }

    fn delta(&mut self, delta: &DeltaNet) {
        let rates = match &delta.rates {
            Rates::Apart { alpha, beta } => vec![alpha, beta],
            Rates::ByKeyHead(both) => vec![both],
        };
        let linears = [&delta.qkv, &delta.gate].into_iter().chain(rates).chain([&delta.out]);
        linears.for_each(|linear| self.linear(linear, Need::Required));
        [&delta.conv, &delta.dt, &delta.a, &delta.norm].into_iter().for_each(|weight| self.weight(weight));
    }

    fn drafts(&mut self, drafts: &Drafts) {
        let n_layer = self.hparams.layers.len();
        for (index, layer) in self.hparams.drafts.iter().enumerate() {
            self.layer = Some(layer);
            self.prefix = names::in_block(n_layer + index, "");
            if index == 0 {
                self.at = drafts.root.to_owned();
                self.linear(&drafts.joint, Need::Required);
                drafts.norms.iter().for_each(|norm| self.weight(norm));
            }
            self.at = format!("{}{}.{index}.", drafts.root, drafts.source_layers);
            layer.layer.steps.iter().for_each(|step| self.step(step));
        }
    }

    fn network(&mut self, network: &Network) {
        match &network.inner {
            Inner::Gated(both) => self.projections(both),
            Inner::Plain(up) => self.linear(up, Need::Required),
        }
        self.linear(&network.down, Need::Required);
    }

    fn experts(&mut self, experts: &Experts) {
        self.linear(&experts.router, Need::Required);
        experts.router_gain.iter().for_each(|gain| self.weight(gain));
        let stacks = [Some(&experts.gate), experts.up.as_ref(), Some(&experts.down)];
        stacks.into_iter().flatten().for_each(|stack| self.stack(stack));
        experts.scales.iter().for_each(|scales| self.weight(scales));
        if let Some(shared) = &experts.shared {
            self.linear(&shared.weight, Need::Required);
            self.network(&shared.network);
        }
    }

    fn stack(&mut self, stack: &Stack) {
        let [n_rows, n_cols] = stack.shape;
        let shape = self.shape(&[Dim::Experts, n_rows, n_cols]);
        let each = Each { template: stack.each.map(|each| format!("{}{each}.weight", self.at)), n_experts: shape[0] };
        let names = |packed: &Packed| ["", ".weight"].map(|end| format!("{}{}{end}", self.at, packed.name)).to_vec();
        let packed = stack.packed.iter().map(|packed| (names(packed), *packed)).collect();
        let from = From::Stack { each, packed };
        self.found.push(Wanted { name: format!("{}{}", self.prefix, stack.name), shape, from, need: Need::Required });
        if let Some(StackBias { name, source, part }) = stack.bias {
            let from = From::Elements { name: format!("{}{source}", self.at), part };
            let (name, shape) = (format!("{}{name}", self.prefix), self.shape(&[Dim::Experts, n_rows]));
            self.found.push(Wanted { name, shape, from, need: Need::Required });
        }
    }
}
