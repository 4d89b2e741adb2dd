//! The forward pass, written once for every backend.
//!
//! ```text
//! x = embed(tokens)
//! for each layer, for each of its steps:  x += after(block(before(x)))      attention, a delta net, a network, experts, an input of the layer
//! norm(x) -> output
//! ```
//!
//! Which steps a layer has, and how they are computed, is the family's description ([`crate::arch::describe`]); a block is a file in
//! `block/`.
//!
//! Evaluation takes thousands of tokens of many sequences through one layer before it goes on to the next, so that every weight is read
//! and dequantized once for all of them, and keys and values exist for one layer at a time. Generation takes a few tokens at a time and
//! keeps the keys and values, or the state, of all layers in a [`Cache`]. Both run the same function for a layer.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::backend::{Backend, DeltaShape, Output, Places, Recurrent, Span};
use super::block::{Block, Keys};
use super::catalog::Slice;
use super::layer::{Layer, Step};
use super::matrix::Matrix;
use super::needs::{Needs, Residency};
use super::pass::{LinearOf, NormOf, Observer, Pass, Running, all};
use super::weights::{Plan, ReadLayer};
use crate::arch::describe::Positions;
use crate::arch::{Hparams, LayerHparams, Rope};
use crate::error::{Error, Result};
use crate::gguf::Model;
use crate::matmul::Accumulate;
use crate::names;

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
    /// What layers get of tokens.
    per_layer_embd: Option<B::Weight>,
    /// Angles of all positions below `n_ctx`, for every way in which layers rotate.
    rope_tables: Vec<(Rope, B::Rows)>,
    /// Empty where layers are streamed.
    layers: Vec<LayerOf<B>>,
}

pub(super) type LayerOf<B> = Layer<<B as Backend>::Weight, <B as Backend>::Rows>;
pub(super) type StepOf<B> = Step<<B as Backend>::Weight, <B as Backend>::Rows>;

/// Tokens of several sequences, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'t> {
    /// All tokens.
    pub tokens: &'t [u32],
    /// Where each sequence lies among them. Every sequence starts at position 0.
    pub sequences: &'t [Range<usize>],
}

impl Batch<'_> {
    /// Of every token, in its sequence.
    fn positions(&self) -> Vec<u32> {
        let mut positions = vec![0; self.tokens.len()];
        for sequence in self.sequences {
            for (position, at) in positions[sequence.clone()].iter_mut().zip(0..) {
                *position = at;
            }
        }
        positions
    }
}

/// What all layers keep of the tokens that a sequence has so far.
pub struct Cache<B: Backend> {
    layers: Vec<Kept<B>>,
    len: usize,
}

/// What one layer keeps.
pub(super) enum Kept<B: Backend> {
    /// Keys and values of all tokens: `[n_ctx, n_head_kv * head_dim]`.
    KeysValues([B::Rows; 2]),
    /// Of each sequence a state of one size, and the last tokens.
    Recurrent(Vec<Recurrent<B::Rows>>),
    /// Nothing: it uses the keys and values of another layer.
    Nothing,
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
    ///
    /// # Errors
    /// `Unsupported` where layers have a state: what it was before, it does not know.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len < self.len && self.layers.iter().any(|kept| matches!(kept, Kept::Recurrent(_))) {
            return Err(Error::unsupported(
                "forgetting the last tokens of a model whose layers have a state",
                "begin a new sequence",
            ));
        }
        self.len = self.len.min(len);
        Ok(())
    }
}

/// What layers keep, and keys and values that others use, while a pass goes through the layers.
pub(super) struct KeyStore<'c, B: Backend> {
    /// What each layer keeps of all tokens so far.
    cache: Option<&'c mut [Kept<B>]>,
    /// Those that were made in this pass and are used by later layers, where none are kept.
    made: BTreeMap<usize, [B::Rows; 2]>,
}

impl<B: Backend> std::default::Default for KeyStore<'_, B> {
    fn default() -> Self {
        KeyStore { cache: None, made: BTreeMap::new() }
    }
}

impl<'c, B: Backend> KeyStore<'c, B> {
    /// With what each layer keeps of all tokens so far.
    pub fn over(cache: &'c mut [Kept<B>]) -> Self {
        KeyStore { cache: Some(cache), made: BTreeMap::new() }
    }

    /// What layer `index` reads, which may use those of another.
    fn of(&mut self, index: usize, other: Option<usize>) -> Result<Keys<'_, B>> {
        let missing = || Error::Internal(format!("layer {index} has no keys"));
        match (&mut self.cache, other) {
            (None, None) => Ok(Keys::Own),
            (None, Some(other)) => self.made.get(&other).map(Keys::Of).ok_or_else(missing),
            (Some(cache), None) => match &mut cache[index] {
                Kept::KeysValues(pair) => Ok(Keys::Kept(pair)),
                Kept::Recurrent(_) | Kept::Nothing => Err(missing()),
            },
            (Some(cache), Some(other)) => match &cache[other] {
                Kept::KeysValues(pair) => Ok(Keys::Of(pair)),
                Kept::Recurrent(_) | Kept::Nothing => Err(missing()),
            },
        }
    }

    /// What layer `index`, which has a state, keeps of every sequence; `None` where sequences begin in this pass.
    fn recurrent(&mut self, index: usize) -> Option<&mut [Recurrent<B::Rows>]> {
        match self.cache.as_mut().map(|cache| &mut cache[index]) {
            Some(Kept::Recurrent(kept)) => Some(kept),
            _ => None,
        }
    }
}

impl<'a, B: Backend> Network<'a, B> {
    /// Prepares a model for sequences of up to `n_ctx` tokens.
    ///
    /// # Errors
    /// Everything that [`Hparams::read`] refuses; tensors that are missing, misshapen or left over; norms that are not finite; `Usage`
    /// for a context of no tokens; no memory.
    pub fn open(backend: &'a B, model: &'a Model, n_ctx: usize, residency: Residency) -> Result<Network<'a, B>> {
        Network::open_as(backend, model, Hparams::read(model)?, n_ctx, residency)
    }

    /// The same with hyperparameters that are read already: those of a family that only the caller knows ([`Hparams::read_as`]).
    ///
    /// # Errors
    /// As [`Network::open`].
    pub fn open_as(
        backend: &'a B,
        model: &'a Model,
        hparams: Hparams,
        n_ctx: usize,
        residency: Residency,
    ) -> Result<Network<'a, B>> {
        model.check_has_weights()?;
        let plan = Plan::new(model, &hparams)?;
        backend.check(&Needs::planned(&hparams, &plan, n_ctx))?;
        if n_ctx == 0 {
            return Err(Error::usage("a context of no tokens"));
        }
        if hparams.family.embedding.positions.is_some() && n_ctx > hparams.n_ctx_train {
            let known = hparams.n_ctx_train;
            return Err(Error::usage(format!("a context of {n_ctx} tokens; this model has learned {known} positions")));
        }
        let rope_tables = rope_tables(backend, &hparams, &plan, n_ctx)?;
        let upload = |slice: Slice| backend.upload(&plan.vector(&slice)?, hparams.n_embd);
        let mut network = Network {
            backend,
            n_ctx,
            token_embd: backend.weight(plan.matrix(&plan.token_embd))?,
            output: plan.output.as_ref().map(|slice| backend.weight(plan.matrix(slice))).transpose()?,
            output_norm: plan.output_norm.clone().try_map(&mut { upload })?,
            per_layer_embd: plan.per_layer_embd.as_ref().map(|slice| backend.weight(plan.matrix(slice))).transpose()?,
            position_embd: plan.position_embd.as_ref().map(|slice| backend.weight(plan.matrix(slice))).transpose()?,
            rope_tables,
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

    /// What turns normalised states into scores of the vocabulary.
    pub fn output(&self) -> Output<'_, B::Weight> {
        let weight = self.output.as_ref().unwrap_or(&self.token_embd);
        Output { weight, scale: 1.0 / self.hparams.logit_scale, softcap: self.hparams.logit_softcap }
    }

    /// The name of the tensor that [`Network::output`] is.
    pub fn output_name(&self) -> &'static str {
        if self.output.is_some() { names::OUTPUT } else { names::TOKEN_EMBD }
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
        let (mut x, pass) = self.begin(batch)?;
        let mut keys = KeyStore::default();
        self.for_each_layer(|index, layer| {
            self.layer(index, layer, &mut x, &pass, &mut keys, observer)?;
            observer.layer_done(index + 1, self.hparams.layers.len())
        })?;
        Ok(x)
    }

    /// The states of whole sequences before the first layer.
    pub(super) fn begin(&self, batch: Batch<'_>) -> Result<(B::Rows, Pass<B>)> {
        self.check_tokens(batch.tokens)?;
        batch.sequences.iter().try_for_each(|sequence| self.check_length(sequence.len()))?;
        let positions = batch.positions();
        let spans: Vec<_> = batch.sequences.iter().map(|rows| Span { q: rows.clone(), kv: rows.clone() }).collect();
        let places = self.backend.begin(&Places { positions: &positions, spans: &spans, kept_from: None, kept_step: 1 })?;
        let x = self.embed(batch.tokens, &positions)?;
        let pass = self.pass(batch.tokens, &x, places)?;
        Ok((x, pass))
    }

    /// What blocks have to know of tokens whose states before the first layer are `x`.
    pub(super) fn pass(&self, tokens: &[u32], x: &B::Rows, places: B::Pass) -> Result<Pass<B>> {
        let first = self.per_layer_embd.as_ref().map(|_| self.backend.operand(x)).transpose()?;
        Ok(Pass { n_rows: tokens.len(), places, tokens: tokens.to_vec(), first })
    }

    /// The same states with another table of embeddings.
    pub(super) fn embedded(&self, batch: Batch<'_>, table: &B::Weight) -> Result<B::Rows> {
        self.embed_from(table, batch.tokens, &batch.positions())
    }

    /// Where its weights are.
    pub(super) fn plan(&self) -> &Plan<'a> {
        &self.plan
    }

    /// Room for what one sequence keeps, of up to [`Network::n_ctx`] tokens.
    ///
    /// # Errors
    /// No memory.
    pub fn cache(&self) -> Result<Cache<B>> {
        Ok(Cache { layers: self.kept(1)?, len: 0 })
    }

    /// Room for what each layer keeps of so many sequences: keys and values of one after the other.
    pub(super) fn kept(&self, n_sequences: usize) -> Result<Vec<Kept<B>>> {
        let of_layer = |layer: &LayerHparams| {
            if layer.keys_of.is_some() {
                return Ok(Kept::Nothing);
            }
            let (Some(sizes), Some(delta)) = (layer.delta, layer.layer.delta()) else {
                let (n_rows, n_cols) = (n_sequences.saturating_mul(self.n_ctx), layer.n_head_kv * layer.key_dim);
                let rows = || self.backend.kept_rows(n_rows, n_cols);
                return Ok(Kept::KeysValues([rows()?, rows()?]));
            };
            let shape = DeltaShape { sizes, sharing: delta.sharing, norm_eps: self.hparams.norm_eps };
            (0..n_sequences).map(|_| self.backend.recurrent(&shape)).collect::<Result<_>>().map(Kept::Recurrent)
        };
        self.hparams.layers.iter().map(of_layer).collect()
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
            let places =
                self.backend.begin(&Places { positions: &positions, spans: &spans, kept_from: Some(cache.len), kept_step: 1 })?;
            let mut x = self.embed(tokens, &positions)?;
            let pass = self.pass(tokens, &x, places)?;
            let mut keys = KeyStore::over(&mut cache.layers);
            self.for_each_layer(|index, layer| self.layer(index, layer, &mut x, &pass, &mut keys, &mut ()))?;
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
        self.running().norm(&chosen, &self.output_norm)
    }

    pub(super) fn embed(&self, tokens: &[u32], positions: &[u32]) -> Result<B::Rows> {
        self.embed_from(&self.token_embd, tokens, positions)
    }

    fn embed_from(&self, table: &B::Weight, tokens: &[u32], positions: &[u32]) -> Result<B::Rows> {
        let backend = self.backend;
        let mut x = backend.embed(table, tokens)?;
        if self.hparams.embedding_scale != 1.0 {
            x = backend.scaled(&x, self.hparams.embedding_scale)?;
        }
        if let Some(table) = &self.position_embd {
            backend.add(&backend.embed(table, positions)?, &mut x)?;
        }
        Ok(x)
    }

    /// What blocks are computed with.
    fn running(&self) -> Running<'_, B> {
        Running {
            backend: self.backend,
            hparams: &self.hparams,
            per_layer_embd: self.per_layer_embd.as_ref(),
            rope_tables: &self.rope_tables,
        }
    }

    pub(super) fn layer(
        &self,
        index: usize,
        layer: &LayerOf<B>,
        x: &mut B::Rows,
        pass: &Pass<B>,
        keys: &mut KeyStore<'_, B>,
        observer: &mut dyn Observer<B>,
    ) -> Result<()> {
        layer.steps.iter().try_for_each(|step| self.step(index, step, x, pass, keys, observer))
    }

    /// One step of layer `index`.
    pub(super) fn step(
        &self,
        index: usize,
        step: &StepOf<B>,
        x: &mut B::Rows,
        pass: &Pass<B>,
        keys: &mut KeyStore<'_, B>,
        observer: &mut dyn Observer<B>,
    ) -> Result<()> {
        let Step { before, block, after } = step;
        let (running, n_rows) = (self.running(), pass.n_rows);
        if let Block::Scale(factor) = block {
            return self.scale(factor.as_ref(), x);
        }
        let h = match before {
            Some(before) => running.norm(x, before)?,
            None => self.backend.operand(x)?,
        };
        match block {
            Block::Attention(attention) => {
                let keys_of = self.hparams.layers[index].keys_of;
                let (attended, made) = running.attend(index, attention, h, pass, keys.of(index, keys_of)?, observer)?;
                let is_used_again = self.hparams.layers.iter().any(|layer| layer.keys_of == Some(index));
                keys.made.extend(made.filter(|_| is_used_again).map(|made| (index, made)));
                self.add_result(&attention.out, &attended, after, x, n_rows)
            }
            Block::Delta(delta) => {
                let result = running.recur(index, delta, h, pass, keys.recurrent(index), observer)?;
                self.add_result(&delta.out, &result, after, x, n_rows)
            }
            Block::Network(network) => {
                let inner = running.inner(network, h, n_rows, observer)?;
                self.add_result(&network.down, &inner, after, x, n_rows)
            }
            Block::Experts(experts) => {
                let before = before.as_ref().ok_or_else(|| Error::Internal("experts without a norm before".to_owned()))?;
                // Experts add one after the other; each reads what was there before.
                let states = self.backend.select(x, &all(n_rows))?;
                running.mix((experts, before), h, (&states, x), n_rows, observer)
            }
            Block::Both(both) => {
                let out = running.side_by_side(both, h, x, n_rows, observer)?;
                self.add_rows(out, after, x)
            }
            Block::PerLayer(per_layer) => {
                let inner = running.gated_input(index, per_layer, h, pass, observer)?;
                self.add_result(&per_layer.proj, &inner, after, x, n_rows)
            }
            Block::Scale(_) => Ok(()),
        }
    }

    /// Multiplies the stream with a number.
    fn scale(&self, factor: Option<&B::Rows>, x: &mut B::Rows) -> Result<()> {
        if let Some(factor) = factor {
            let factor = self.backend.download(factor)?;
            *x = self.backend.scaled(x, factor[0])?;
        }
        Ok(())
    }

    /// Adds a product to `x`, normalised and scaled where the family does that.
    fn add_result(
        &self,
        linear: &LinearOf<B>,
        h: &B::Operand,
        after: &Option<B::Rows>,
        x: &mut B::Rows,
        n_rows: usize,
    ) -> Result<()> {
        let scale = self.hparams.residual_scale;
        if after.is_none() && scale == 1.0 {
            return self.add_linear(linear, h, x);
        }
        let out = self.running().linear(linear, h, n_rows)?;
        self.add_rows(out, after, x)
    }

    /// Adds what a step makes to `x`, normalised and scaled where the family does that.
    fn add_rows(&self, mut out: B::Rows, after: &Option<B::Rows>, x: &mut B::Rows) -> Result<()> {
        let scale = self.hparams.residual_scale;
        if let Some(gain) = after {
            self.backend.rms_norm_heads(&mut out, gain, self.hparams.norm_eps)?;
        }
        if scale != 1.0 {
            out = self.backend.scaled(&out, scale)?;
        }
        self.backend.add(&out, x)
    }

    fn add_linear(&self, linear: &LinearOf<B>, x: &B::Operand, out: &mut B::Rows) -> Result<()> {
        self.backend.matmul(x, &linear.weight, Accumulate::Add, out)?;
        self.running().add_bias(linear, out)
    }

    pub(super) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
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

    pub(super) fn hand_over(&self, layer: ReadLayer<'_>) -> Result<LayerOf<B>> {
        layer.try_map(|matrix| self.backend.weight(matrix), |vector| self.backend.upload(&vector, vector.len()))
    }

    /// Calls `run` with every layer in order. A layer that is streamed is brought while the one before it is computed.
    pub(super) fn for_each_layer(&self, mut run: impl FnMut(usize, &LayerOf<B>) -> Result<()>) -> Result<()> {
        if !self.layers.is_empty() {
            return self.layers.iter().enumerate().try_for_each(|(index, layer)| run(index, layer));
        }
        let mut run_streamed = |index, layer: ReadLayer<'a>| run(index, &self.hand_over(layer)?);
        if self.backend.computes_meanwhile() {
            (0..self.plan.layers.len()).try_for_each(|index| run_streamed(index, self.plan.layer(index)?))?;
        } else {
            self.read_ahead(run_streamed)?;
        }
        self.plan.check_unchanged()
    }

    /// Calls `run` with every layer in order, as read by another thread meanwhile; where there is none, by this one.
    fn read_ahead(&self, mut run: impl FnMut(usize, ReadLayer<'a>) -> Result<()>) -> Result<()> {
        thread::scope(|scope| {
            // No room in the channel: one layer is computed, one is held out by the reader.
            let (sender, receiver) = sync_channel(0);
            let plan = &self.plan;
            let read = move || {
                for index in 0..plan.layers.len() {
                    let layer = plan.layer(index).and_then(|layer| layer.try_map(Matrix::read, Ok));
                    let failed = layer.is_err();
                    // The other side hangs up when it fails.
                    if sender.send(layer).is_err() || failed {
                        return;
                    }
                }
            };
            let reader = thread::Builder::new().name("layer reader".to_owned());
            match reader.spawn_scoped(scope, read) {
                Ok(_) => receiver.into_iter().enumerate().try_for_each(|(index, layer)| run(index, layer?)),
                Err(_) => (0..plan.layers.len()).try_for_each(|index| run(index, plan.layer(index)?)),
            }
        })
    }
}

/// A table for every way in which layers rotate. The file's factors are those of the model's own base, not of windows.
fn rope_tables<B: Backend>(backend: &B, hparams: &Hparams, plan: &Plan<'_>, n_ctx: usize) -> Result<Vec<(Rope, B::Rows)>> {
    let factors = plan.rope_factors(hparams, n_ctx)?;
    let mut tables: Vec<(Rope, B::Rows)> = Vec::new();
    for layer in &hparams.layers {
        let Some(rope) = layer.rope.filter(|rope| tables.iter().all(|(known, _)| known != rope)) else { continue };
        let is_local = layer.attention().is_some_and(|attention| matches!(attention.positions, Positions::LocalRope(_)));
        let factors = factors.as_deref().filter(|_| !is_local);
        tables.push((rope, backend.upload(&super::rope::table(&rope, n_ctx, factors)?, rope.n_rot)?));
    }
    Ok(tables)
}
