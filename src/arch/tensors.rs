//! Every tensor of a model, by walking its family's description: its GGUF name, its shape, and what it is made of.

use super::describe::*;
use super::sizes::{Hparams, LayerHparams};
use crate::names;

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
        rows: Rows,
        edit: Edit,
        /// Heads that the rows divide into, where that matters.
        n_head: u64,
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

    fn one(&mut self, name: &str, names: Vec<String>, shape: &[Dim], how: (Rows, Edit), need: Need) {
        let n_head = self.layer.map_or(0, |layer| match how.0 {
            Rows::RopeHeadsKv => layer.n_head_kv as u64,
            _ => layer.n_head as u64,
        });
        let names = names.into_iter().map(|name| format!("{}{name}", self.at)).collect();
        let (name, shape) = (format!("{}{name}", self.prefix), self.shape(shape));
        self.found.push(Wanted { name, shape, from: From::One { names, rows: how.0, edit: how.1, n_head }, need });
    }

    fn weight(&mut self, weight: &Weight) {
        self.one(weight.name, vec![weight.source.to_owned()], weight.shape, (Rows::Same, weight.edit), weight.need);
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
        self.one(&format!("{}.weight", linear.name), named("weight"), &linear.shape, (linear.rows, Edit::Same), need);
        if linear.bias != Need::Never {
            // A bias stands upright whichever way its matrix lies.
            let rows = if linear.rows == Rows::Transposed { Rows::Same } else { linear.rows };
            self.one(&format!("{}.bias", linear.name), named("bias"), &linear.shape[..1], (rows, Edit::Same), linear.bias);
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
                self.one(gain.name, vec![gain.source.to_owned()], gain.shape, (Rows::Same, gain.edit), Need::IfThere);
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
