//! The forward pass, written once for every backend.
//!
//! ```text
//! x = embed(tokens)
//! for each layer:  h = norm(x);  x += o(attention(rope(q(h)), rope(k(h)), v(h)))
//!                  h = norm(x);  x += down(silu(gate(h)) * up(h)), or what its experts make of it
//! norm(x) -> output
//! ```
//!
//! A family may differ: learned positions instead of rotations, GELU, no gate, norms of what is added, windows ([`super::Family`]).
//!
//! Evaluation takes thousands of tokens of many sequences through one layer before it goes on to the next, so that every weight is read
//! and dequantized once for all of them, and keys and values exist for one layer at a time. Generation takes a few tokens at a time and
//! keeps the keys and values of all layers in a [`Cache`]. Both run the same function for a layer.

mod experts;

use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::backend::{AttentionShape, Backend, HeadForm, Heads, Places, Rotation, Span};
use super::families::Activation;
use super::hparams::{Hparams, LayerHparams};
use super::layer::{Experts, FeedForward, Gated, Layer, Linear, Norm, SharedExpert};
use super::weights::{Plan, ReadLayer, Residency, Slice};
use crate::error::{Error, Result};
use crate::gguf::Model;
use crate::matmul::Accumulate;

/// A model that can be run on a backend.
pub struct Network<'a, B: Backend> {
    backend: &'a B,
    hparams: Hparams,
    plan: Plan<'a>,
    n_ctx: usize,
    token_embd: B::Weight,
    output: Option<B::Weight>,
    output_norm: NormOf<B>,
    /// Vectors of positions, where they are learned.
    position_embd: Option<B::Weight>,
    /// Angles of all positions below `n_ctx`.
    rope_table: B::Rows,
    /// Those of layers with a window.
    local_rope_table: Option<B::Rows>,
    /// Empty where layers are streamed.
    layers: Vec<LayerOf<B>>,
}

type LayerOf<B> = Layer<<B as Backend>::Weight, <B as Backend>::Rows>;
type NormOf<B> = Norm<<B as Backend>::Rows>;
type ExpertsOf<B> = Experts<<B as Backend>::Weight, <B as Backend>::Rows>;
type SharedExpertOf<B> = SharedExpert<<B as Backend>::Weight, <B as Backend>::Rows>;
type GatedOf<B> = Gated<<B as Backend>::Weight, <B as Backend>::Rows>;
type LinearOf<B> = Linear<<B as Backend>::Weight, <B as Backend>::Rows>;

/// Tokens of several sequences, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'t> {
    /// All tokens.
    pub tokens: &'t [u32],
    /// Where each sequence lies among them. Every sequence starts at position 0.
    pub sequences: &'t [Range<usize>],
}

/// Watches a pass: what goes into the products, and how far it has come.
pub trait Observer<B: Backend> {
    /// `x` is about to be multiplied.
    ///
    /// # Errors
    /// An error ends the pass.
    fn operand(&mut self, observed: Observed<'_>, x: &B::Operand) -> Result<()> {
        let _ = (observed, x);
        Ok(())
    }

    /// `done` of `n_layers` layers are done.
    ///
    /// # Errors
    /// An error ends the pass: [`Error::Interrupted`] where the user wants to stop.
    fn layer_done(&mut self, done: usize, n_layers: usize) -> Result<()> {
        let _ = (done, n_layers);
        Ok(())
    }
}

/// What an operand is multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// Names of the tensors.
    pub names: &'a [&'a str],
    /// Rows of the operand.
    pub n_rows: usize,
    /// Which of the matrices that each tensor stacks, and how many these are: 0 and 1 for a plain matrix.
    pub matrix: (usize, usize),
}

/// Nobody watches.
impl<B: Backend> Observer<B> for () {}

/// Keys and values of all tokens that a sequence has so far.
pub struct Cache<B: Backend> {
    /// Keys and values of each layer: `[n_ctx, n_head_kv * head_dim]`.
    layers: Vec<[B::Rows; 2]>,
    len: usize,
}

impl<B: Backend> Cache<B> {
    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

/// What is the same for every layer of a pass.
struct Pass<B: Backend> {
    n_rows: usize,
    places: B::Pass,
}

impl<'a, B: Backend> Network<'a, B> {
    /// Prepares a model for sequences of up to `n_ctx` tokens.
    ///
    /// # Errors
    /// Everything that [`Hparams::read`] refuses; tensors that are missing, misshapen or left over; norms that are not finite; `Usage`
    /// for a context of no tokens; no memory.
    pub fn open(backend: &'a B, model: &'a Model, n_ctx: usize, residency: Residency) -> Result<Network<'a, B>> {
        model.check_has_weights()?;
        let hparams = Hparams::read(model)?;
        backend.check_family(hparams.family)?;
        let plan = Plan::new(model, &hparams)?;
        if n_ctx == 0 {
            return Err(Error::usage("a context of no tokens"));
        }
        if hparams.family.learns_positions && n_ctx > hparams.n_ctx_train {
            let known = hparams.n_ctx_train;
            return Err(Error::usage(format!("a context of {n_ctx} tokens; this model has learned {known} positions")));
        }
        let factors = plan.rope_factors(&hparams, n_ctx)?;
        let table = hparams.rope.table(n_ctx, factors.as_deref());
        let local_table = hparams.local_rope.as_ref().map(|rope| backend.upload(&rope.table(n_ctx, None), rope.n_rot));
        let upload = |slice: Slice| backend.upload(&plan.vector(&slice)?, hparams.n_embd);
        let mut network = Network {
            backend,
            n_ctx,
            token_embd: backend.weight(plan.matrix(&plan.token_embd)?)?,
            output: plan.output.as_ref().map(|slice| backend.weight(plan.matrix(slice)?)).transpose()?,
            output_norm: plan.output_norm.clone().try_map(&mut { upload })?,
            position_embd: plan.position_embd.as_ref().map(|slice| backend.weight(plan.matrix(slice)?)).transpose()?,
            rope_table: backend.upload(&table, hparams.rope.n_rot)?,
            local_rope_table: local_table.transpose()?,
            layers: Vec::new(),
            hparams,
            plan,
        };
        match residency {
            Residency::Streamed => network.check_vectors()?,
            Residency::Resident => {
                let layers = 0..network.hparams.layers.len();
                network.layers = layers.map(|index| network.hand_over(network.plan.layer(index)?)).collect::<Result<_>>()?;
            }
        }
        network.plan.check_unchanged()?;
        Ok(network)
    }

    /// The model's sizes.
    pub fn hparams(&self) -> &Hparams {
        &self.hparams
    }

    /// The machine it runs on.
    pub fn backend(&self) -> &'a B {
        self.backend
    }

    /// Tokens that a sequence may have.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// The matrix that turns normalised states into scores of the vocabulary.
    pub fn output(&self) -> &B::Weight {
        self.output.as_ref().unwrap_or(&self.token_embd)
    }

    /// The name of the tensor that [`Network::output`] is.
    pub fn output_name(&self) -> &'static str {
        if self.output.is_some() { "output.weight" } else { super::weights::TOKEN_EMBD }
    }

    /// The file to name in messages about the model.
    pub fn path(&self) -> &std::path::Path {
        self.plan.path()
    }

    /// Runs whole sequences: the state after the last layer, one row for each token.
    ///
    /// # Errors
    /// `Usage` for tokens that the vocabulary does not have, or sequences longer than the context; what reading weights and the backend
    /// can meet; what the observer returns.
    ///
    /// # Panics
    /// When a sequence lies outside the tokens.
    pub fn evaluate(&self, batch: Batch<'_>, observer: &mut dyn Observer<B>) -> Result<B::Rows> {
        self.check_tokens(batch.tokens)?;
        let mut positions = vec![0; batch.tokens.len()];
        for sequence in batch.sequences {
            self.check_length(sequence.len())?;
            for (position, at) in positions[sequence.clone()].iter_mut().zip(0..) {
                *position = at;
            }
        }
        let spans: Vec<_> = batch.sequences.iter().map(|rows| Span { q: rows.clone(), kv: rows.clone() }).collect();
        let places = self.backend.begin(&Places { positions: &positions, spans: &spans, kept_from: None })?;
        let pass = Pass { n_rows: batch.tokens.len(), places };
        let mut x = self.embed(batch.tokens, &positions)?;
        self.for_each_layer(|index, layer| {
            self.layer(index, layer, &mut x, &pass, None, observer)?;
            observer.layer_done(index + 1, self.hparams.layers.len())
        })?;
        Ok(x)
    }

    /// Room for the keys and values of one sequence of up to [`Network::n_ctx`] tokens.
    ///
    /// # Errors
    /// No memory.
    pub fn cache(&self) -> Result<Cache<B>> {
        let rows = |layer: &LayerHparams| self.backend.kept_rows(self.n_ctx, layer.n_head_kv * self.hparams.head_dim);
        let layers = self.hparams.layers.iter().map(|layer| Ok([rows(layer)?, rows(layer)?]));
        Ok(Cache { layers: layers.collect::<Result<_>>()?, len: 0 })
    }

    /// Runs the next tokens of a sequence: the state after the last layer, one row for each of them.
    ///
    /// # Errors
    /// As [`Network::evaluate`].
    pub fn extend(&self, tokens: &[u32], cache: &mut Cache<B>) -> Result<B::Rows> {
        self.check_tokens(tokens)?;
        let n_kv = cache.len + tokens.len();
        self.check_length(n_kv)?;
        let positions: Vec<u32> = (cache.len as u32..n_kv as u32).collect();
        let spans = [Span { q: 0..tokens.len(), kv: 0..n_kv }];
        self.backend.chain(|| {
            let places = self.backend.begin(&Places { positions: &positions, spans: &spans, kept_from: Some(cache.len) })?;
            let pass = Pass { n_rows: tokens.len(), places };
            let mut x = self.embed(tokens, &positions)?;
            self.for_each_layer(|index, layer| {
                let kept = &mut cache.layers[index];
                self.layer(index, layer, &mut x, &pass, Some(kept), &mut ())
            })?;
            cache.len = n_kv;
            Ok(x)
        })
    }

    /// The states of `rows`, normalised: what [`Backend::logits`], [`Backend::score`] and [`Backend::compare`] multiply with
    /// [`Network::output`].
    ///
    /// # Errors
    /// What the backend can meet.
    pub fn normalised(&self, states: &B::Rows, rows: &[u32]) -> Result<B::Operand> {
        let chosen = self.backend.select(states, rows)?;
        self.norm(&chosen, &self.output_norm)
    }

    fn embed(&self, tokens: &[u32], positions: &[u32]) -> Result<B::Rows> {
        let (backend, n_rows) = (self.backend, tokens.len());
        let mut x = backend.embed(&self.token_embd, tokens)?;
        if self.hparams.family.scales_embedding {
            let n_embd = self.hparams.n_embd;
            let mut scaled = backend.upload(&vec![0.0; n_rows * n_embd], n_embd)?;
            backend.add_rows(&x, &vec![(n_embd as f32).sqrt(); n_rows], &all(n_rows), &mut scaled)?;
            x = scaled;
        }
        if let Some(table) = &self.position_embd {
            backend.add(&backend.embed(table, positions)?, &mut x)?;
        }
        Ok(x)
    }

    fn norm(&self, x: &B::Rows, norm: &NormOf<B>) -> Result<B::Operand> {
        match &norm.bias {
            None => self.backend.rms_norm(x, &norm.gain, self.hparams.norm_eps),
            Some(bias) => self.backend.layer_norm(x, &norm.gain, bias, self.hparams.norm_eps),
        }
    }

    fn layer(
        &self,
        index: usize,
        layer: &LayerOf<B>,
        x: &mut B::Rows,
        pass: &Pass<B>,
        kept: Option<&mut [B::Rows; 2]>,
        observer: &mut dyn Observer<B>,
    ) -> Result<()> {
        let n_rows = pass.n_rows;
        let h = self.norm(x, &layer.attn_norm)?;
        tap(observer, &[&layer.attn_q, &layer.attn_k, &layer.attn_v], n_rows, &h)?;
        let attended = self.attend(index, layer, h, pass, kept)?;
        tap(observer, &[&layer.attn_output], n_rows, &attended)?;
        self.add_result(&layer.attn_output, &attended, &layer.attn_post_norm, x, n_rows)?;
        drop(attended);

        let h = self.norm(x, &layer.ffn_norm)?;
        match &layer.ffn {
            FeedForward::Dense(network) => {
                let inner = self.gated(network, h, n_rows, observer)?;
                self.add_result(&network.down, &inner, &layer.ffn_post_norm, x, n_rows)
            }
            FeedForward::Experts(mixture) => self.mix((index, layer, mixture), h, x, n_rows, observer),
        }
    }

    /// What the heads of a layer see.
    fn attend(
        &self,
        index: usize,
        layer: &LayerOf<B>,
        h: B::Operand,
        pass: &Pass<B>,
        kept: Option<&mut [B::Rows; 2]>,
    ) -> Result<B::Operand> {
        let (backend, shape) = (self.backend, self.attention_shape(index));
        let [mut q, mut k, mut v] = self.products([&layer.attn_q, &layer.attn_k, &layer.attn_v], &h, pass.n_rows)?;
        drop(h);
        let (mut kept_k, mut kept_v) = kept.map(|[k, v]| (k, v)).unzip();
        let mut parts = [
            Heads {
                rows: &mut q,
                n_heads: shape.n_head,
                bias: layer.attn_q.bias.as_ref(),
                gain: layer.attn_q_norm.as_ref(),
                rotates: true,
                kept: None,
            },
            Heads {
                rows: &mut k,
                n_heads: shape.n_head_kv,
                bias: layer.attn_k.bias.as_ref(),
                gain: layer.attn_k_norm.as_ref(),
                rotates: true,
                kept: kept_k.as_deref_mut(),
            },
            Heads {
                rows: &mut v,
                n_heads: shape.n_head_kv,
                bias: layer.attn_v.bias.as_ref(),
                gain: None,
                rotates: false,
                kept: kept_v.as_deref_mut(),
            },
        ];
        let rotation = self.rotation(shape.window.is_some());
        let form = HeadForm { head_dim: shape.head_dim, norm_eps: self.hparams.norm_eps, rotation };
        backend.heads(&mut parts, &form, &pass.places)?;
        let (k, v) = (kept_k.as_deref().unwrap_or(&k), kept_v.as_deref().unwrap_or(&v));
        backend.attention(&q, k, v, &shape, &pass.places)
    }

    /// `silu(gate(h)) * up(h)`, or what the family has instead.
    fn gated(&self, network: &GatedOf<B>, h: B::Operand, n_rows: usize, observer: &mut dyn Observer<B>) -> Result<B::Operand> {
        let linears: Vec<_> = network.gate.iter().chain([&network.up]).collect();
        tap(observer, &linears, n_rows, &h)?;
        let (gate, up) = match &network.gate {
            None => (None, self.linear(&network.up, &h, n_rows)?),
            Some(gate) => {
                let [mut of_gate, mut up] = self.products([gate, &network.up], &h, n_rows)?;
                self.add_bias(gate, &mut of_gate)?;
                self.add_bias(&network.up, &mut up)?;
                (Some(of_gate), up)
            }
        };
        drop(h);
        let inner = match (self.hparams.family.activation, &gate) {
            (Activation::Silu, gate) => self.backend.swiglu(gate.as_ref().expect("SiLU comes with a gate"), &up)?,
            (Activation::Gelu, Some(gate)) => self.backend.gelu(gate, Some(&up))?,
            (Activation::Gelu, None) => self.backend.gelu(&up, None)?,
        };
        tap(observer, &[&network.down], n_rows, &inner)?;
        Ok(inner)
    }

    fn linear(&self, linear: &LinearOf<B>, x: &B::Operand, n_rows: usize) -> Result<B::Rows> {
        let [mut out] = self.products([linear], x, n_rows)?;
        self.add_bias(linear, &mut out)?;
        Ok(out)
    }

    /// Several products, without their biases.
    fn products<const N: usize>(&self, linears: [&LinearOf<B>; N], x: &B::Operand, n_rows: usize) -> Result<[B::Rows; N]> {
        let outs: Vec<_> = linears.iter().map(|linear| self.backend.rows(n_rows, linear.n_out)).collect::<Result<_>>()?;
        let mut outs: [B::Rows; N] = outs.try_into().unwrap_or_else(|_| unreachable!("rows for each"));
        let mut products: Vec<_> = linears.iter().zip(&mut outs).map(|(linear, out)| (&linear.weight, out)).collect();
        self.backend.matmuls(x, &mut products)?;
        Ok(outs)
    }

    fn add_bias(&self, linear: &LinearOf<B>, out: &mut B::Rows) -> Result<()> {
        linear.bias.as_ref().map_or(Ok(()), |bias| self.backend.add_bias(out, bias))
    }

    /// Adds a product to `x`, normalised where the family does that.
    fn add_result(
        &self,
        linear: &LinearOf<B>,
        h: &B::Operand,
        post_norm: &Option<B::Rows>,
        x: &mut B::Rows,
        n_rows: usize,
    ) -> Result<()> {
        let Some(gain) = post_norm else { return self.add_linear(linear, h, x) };
        let mut out = self.linear(linear, h, n_rows)?;
        self.backend.rms_norm_heads(&mut out, gain, self.hparams.norm_eps)?;
        self.backend.add(&out, x)
    }

    fn add_linear(&self, linear: &LinearOf<B>, x: &B::Operand, out: &mut B::Rows) -> Result<()> {
        self.backend.matmul(x, &linear.weight, Accumulate::Add, out)?;
        self.add_bias(linear, out)
    }

    fn attention_shape(&self, index: usize) -> AttentionShape {
        let LayerHparams { n_head, n_head_kv, window, .. } = self.hparams.layers[index];
        let Hparams { head_dim, scale_width, .. } = self.hparams;
        AttentionShape { n_head, n_head_kv, head_dim, scale: (1.0 / (scale_width as f64).sqrt()) as f32, window }
    }

    /// How a layer rotates heads, with a window or without; `None` where positions are learned.
    fn rotation(&self, has_window: bool) -> Option<Rotation<'_, B::Rows>> {
        let table = self.local_rope_table.as_ref().filter(|_| has_window).unwrap_or(&self.rope_table);
        let rotation = Rotation { n_rot: self.hparams.rope.n_rot, layout: self.hparams.rope.layout, table };
        Some(rotation).filter(|_| !self.hparams.family.learns_positions)
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().find(|&&token| token as usize >= self.hparams.n_vocab) {
            None => Ok(()),
            Some(token) => Err(Error::usage(format!("token {token}, but the vocabulary has {} tokens", self.hparams.n_vocab))),
        }
    }

    fn check_length(&self, n_tokens: usize) -> Result<()> {
        if n_tokens <= self.n_ctx {
            return Ok(());
        }
        Err(Error::usage(format!("a sequence of {n_tokens} tokens in a context of {}", self.n_ctx)))
    }

    /// Reads every norm and bias once, so that one that is not finite is refused before hours of work.
    fn check_vectors(&self) -> Result<()> {
        let layers = self.plan.layers.iter();
        layers.cloned().try_for_each(|layer| layer.try_map(|_| Ok(()), |slice| self.plan.vector(&slice).map(drop)).map(drop))
    }

    fn hand_over(&self, layer: ReadLayer) -> Result<LayerOf<B>> {
        layer.try_map(|matrix| self.backend.weight(matrix), |vector| self.backend.upload(&vector, vector.len()))
    }

    /// Calls `run` with every layer in order. A layer that is streamed is read while the one before it is computed.
    fn for_each_layer(&self, mut run: impl FnMut(usize, &LayerOf<B>) -> Result<()>) -> Result<()> {
        if !self.layers.is_empty() {
            return self.layers.iter().enumerate().try_for_each(|(index, layer)| run(index, layer));
        }
        thread::scope(|scope| {
            // No room in the channel: one layer is computed, one is held out by the reader.
            let (sender, receiver) = sync_channel(0);
            let plan = &self.plan;
            let read = move || {
                for index in 0..plan.layers.len() {
                    let layer = plan.layer(index);
                    let failed = layer.is_err();
                    // The other side hangs up when it fails.
                    if sender.send(layer).is_err() || failed {
                        return;
                    }
                }
            };
            let reader = thread::Builder::new().name("layer reader".to_owned());
            reader.spawn_scoped(scope, read).map_err(|e| Error::io("reader thread", "start", e))?;
            receiver.into_iter().enumerate().try_for_each(|(index, layer)| run(index, &self.hand_over(layer?)?))
        })?;
        self.plan.check_unchanged()
    }
}

/// The numbers of all rows.
fn all(n_rows: usize) -> Vec<u32> {
    (0..n_rows as u32).collect()
}

/// Shows the observer an operand with the names of the tensors it is multiplied with, each once.
fn tap<B: Backend>(observer: &mut dyn Observer<B>, linears: &[&LinearOf<B>], n_rows: usize, x: &B::Operand) -> Result<()> {
    let mut names: Vec<&str> = linears.iter().map(|linear| linear.name.as_str()).collect();
    names.dedup();
    observer.operand(Observed { names: &names, n_rows, matrix: (0, 1) }, x)
}
