//! A Hugging Face model folder: opens and checks everything that can be checked without reading a weight.
//!
//! ```text
//! config.json                          required
//! model.safetensors                    either this,
//! model.safetensors.index.json  \      or these,
//! model-00001-of-0000N.safetensors  }  or the complete shards without an index
//! tokenizer.json, tokenizer.model, tokenizer_config.json, generation_config.json, chat_template.jinja, README.md: as needed
//! ```
//!
//! Tensors are ordered by shard name, then by their own name, whatever order files and headers have them in: the same order that
//! llama.cpp's converter uses.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::card::Card;
use super::config::Config;
use super::index::{INDEX_BYTES_MAX, Index, SHARDS_MAX};
use super::json::{self, Map, Value};
use super::mxfp4;
use super::open::Dir;
use super::safetensors;
use crate::error::{Error, Fault, Place, Result};
use crate::quant::Format;
use crate::source::{InputFile, SourceTensor, TensorSource};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Largest config.json accepted: the largest real ones list the precision of every layer in about 1 MB.
const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Most values of a generation_config.json; real ones have below 100.
const GENERATION_VALUES_MAX: usize = 1 << 12;
/// Largest tokenizer file accepted: the largest real ones, of 260 000 tokens, have about 35 MB.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;
/// Largest of any other small file.
const OTHER_BYTES_MAX: u64 = 16 << 20;
/// Most names read from the folder itself.
const NAMES_MAX: usize = 100_000;

/// An open model folder.
#[derive(Debug)]
pub struct Folder {
    dir: Dir,
    config: Config,
    generation: Option<Map<String, Value>>,
    card: Card,
    files: Vec<InputFile>,
    tensors: Vec<SourceTensor>,
    unreadable: Vec<UnreadableTensor>,
    notes: Vec<String>,
}

/// A tensor in a type that is not converted, such as FP8. It is an error only if the model needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableTensor {
    /// The name in the source file.
    pub name: String,
    /// The type as safetensors names it.
    pub dtype: &'static str,
}

impl TensorSource for Folder {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn files(&self) -> &[InputFile] {
        &self.files
    }
}

impl Folder {
    /// Opens a model folder: parses config.json and every safetensors header.
    ///
    /// # Errors
    /// `Io` when there is nothing at `path`, `Usage` when it is not a folder, `Unsupported` when it holds its weights in another format,
    /// `Malformed` for every rule that a file in it breaks.
    pub fn open(path: impl AsRef<Path>) -> Result<Folder> {
        Folder::open_as(path.as_ref(), None::<fn(&Config, &[&str]) -> Result<()>>)
    }

    /// The same, after `check` has seen config.json and the names of the tensors, as far as they can be told without the shards: those of
    /// the index or of the only file, or none. Whoever cannot use the model says so before a download of it is complete.
    ///
    /// # Errors
    /// As [`Folder::open`]; whatever `check` refuses.
    pub fn open_if(path: impl AsRef<Path>, check: impl FnOnce(&Config, &[&str]) -> Result<()>) -> Result<Folder> {
        Folder::open_as(path.as_ref(), Some(check))
    }

    fn open_as(path: &Path, check: Option<impl FnOnce(&Config, &[&str]) -> Result<()>>) -> Result<Folder> {
        check_is_folder(path)?;
        let dir = Dir::open(path)?;
        let Some(bytes) = read_bounded(&dir, CONFIG, CONFIG_BYTES_MAX)? else {
            return Err(explain_missing_config(&dir));
        };
        let config = Config::parse(path.join(CONFIG), &bytes)?;
        drop(bytes);
        if let Some(check) = check {
            check(&config, &listed_names(&dir).iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        let mut notes = Vec::new();
        let generation = read_generation_config(&dir, &mut notes)?;
        let card = read_card(&dir)?;
        let mut folder = Folder { dir, config, generation, card, files: vec![], tensors: vec![], unreadable: vec![], notes };
        let shards = match find_shards(&folder.dir)? {
            Shards::Listed(index) => {
                let shards = open_shards(&folder.dir, &index.shards)?;
                folder.notes.extend(check_index(&path.join(INDEX), &index, &shards)?);
                shards
            }
            Shards::Named(names) => {
                let shards = open_shards(&folder.dir, &names)?;
                check_unique(&shards)?;
                shards
            }
        };
        folder.take(shards)?;
        Ok(folder)
    }

    /// The parsed config.json.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The parsed generation_config.json, where there is a valid one.
    pub fn generation_config(&self) -> Option<&Map<String, Value>> {
        self.generation.as_ref()
    }

    /// The model card at the top of README.md; empty where there is none.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// The folder, as the caller spelled it.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Tensors that are there but in a type that is not converted.
    pub fn unreadable(&self) -> &[UnreadableTensor] {
        &self.unreadable
    }

    /// Oddities that do not stand in the way: for the user to see.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Reads a small file of the folder whole: `tokenizer.json`, `generation_config.json`. `None` when it is not there.
    ///
    /// # Errors
    /// `Limit` when it is larger than any real one, `NotRegularFile`, `OutsideFolder`, `Io`.
    pub fn read_optional(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let limit = match name {
            "tokenizer.json" | "tokenizer.model" | "vocab.json" | "merges.txt" => TOKENIZER_BYTES_MAX,
            _ => OTHER_BYTES_MAX,
        };
        read_bounded(&self.dir, name, limit)
    }

    /// Reads the small files of a subfolder whose names end with `suffix`, sorted by name: `additional_chat_templates`. None when
    /// there is no such folder.
    ///
    /// # Errors
    /// As [`Folder::read_optional`].
    pub fn read_subfolder(&self, subfolder: &str, suffix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let Some(dir) = self.dir.subfolder(subfolder)? else { return Ok(Vec::new()) };
        let mut names: Vec<String> = names(&dir)?.into_iter().filter(|name| name.ends_with(suffix)).collect();
        names.sort();
        let mut files = Vec::new();
        for name in names {
            if let Some(bytes) = read_bounded(&dir, &name, OTHER_BYTES_MAX)? {
                files.push((name, bytes));
            }
        }
        Ok(files)
    }

    /// The model's name on the hub, as far as the path tells: `org/name` for a folder of the hub's cache
    /// (`models--org--name/snapshots/<revision>`), else the folder's own name.
    pub fn model_id(&self) -> String {
        let real_path = self.dir.real_path();
        let name_of = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let cached = real_path.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent).and_then(name_of);
        if let Some(id) = cached.as_deref().and_then(|name| name.strip_prefix("models--")) {
            return id.replacen("--", "/", 1);
        }
        // The spelled name first: a link `Llama-3-8B -> /data/0123` is there for its name.
        name_of(self.dir.path()).or_else(|| name_of(real_path)).unwrap_or_default()
    }

    /// Adds the tensors of all shards, whose number is known by now.
    fn take(&mut self, shards: Vec<Shard>) -> Result<()> {
        self.take_blocks(&shards)?;
        let is_taken: HashSet<String> = self.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        let is_taken = |name: &str| match name.strip_suffix(mxfp4::SCALES) {
            Some(stem) => is_taken.contains(&format!("{stem}{}", mxfp4::BLOCKS)),
            None => is_taken.contains(name),
        };
        let first = self.tensors.len();
        let entries = || shards.iter().flat_map(|shard| &shard.entries);
        let n_readable = entries().filter(|entry| entry.dtype.format().is_some()).count();
        self.tensors.reserve_exact(n_readable);
        self.unreadable.reserve_exact(entries().count() - n_readable);
        let n_made = self.files.len();
        for (file, shard) in (n_made..).zip(shards) {
            self.files.push(shard.file);
            for entry in shard.entries.into_iter().filter(|entry| entry.dtype.format().is_some() || !is_taken(&entry.name)) {
                match entry.dtype.format() {
                    Some(format) => self.tensors.push(SourceTensor {
                        name: entry.name,
                        format,
                        shape: entry.shape,
                        file,
                        offset_bytes: shard.data_start + entry.begin,
                        size_bytes: entry.end - entry.begin,
                    }),
                    None => self.unreadable.push(UnreadableTensor { name: entry.name, dtype: entry.dtype.name() }),
                }
            }
        }
        self.tensors.rotate_left(first);
        Ok(())
    }

    /// Adds matrices whose codes and scales are tensors of their own, as tensors of blocks that are made when they are read.
    fn take_blocks(&mut self, shards: &[Shard]) -> Result<()> {
        let said = self.config.root_value("quantization_config").and_then(|said| said.get("quant_method"));
        if said.and_then(Value::as_str) != Some(mxfp4::METHOD) {
            return Ok(());
        }
        let (mut blocks, mut n_blocks) = (mxfp4::Blocks::default(), 0_u64);
        for (shard, codes) in shards.iter().flat_map(|shard| shard.entries.iter().map(move |entry| (shard, entry))) {
            let Some(stem) = codes.name.strip_suffix(mxfp4::BLOCKS) else { continue };
            let name = format!("{stem}{}", mxfp4::SCALES);
            let found = shards.iter().find_map(|shard| shard.entry(&name).map(|entry| (shard, entry)));
            let Some((of_scales, scales)) = found.filter(|(_, scales)| mxfp4::is_pair(codes, scales)) else { continue };
            let Some(shape) = mxfp4::shape(&scales.shape) else { continue };
            let bytes = |shard: &Shard, entry: &safetensors::Entry| mxfp4::Bytes {
                file: shard.file.clone(),
                offset_bytes: shard.data_start + entry.begin,
            };
            // Lengths that files have: their sums are far from any end.
            let n = scales.end - scales.begin;
            let (offset_bytes, size_bytes) = blocks.add(n_blocks, n, bytes(shard, codes), bytes(of_scales, scales));
            n_blocks += n;
            let (name, format) = (codes.name.clone(), Format::MXFP4);
            self.tensors.push(SourceTensor { name, format, shape, file: 0, offset_bytes, size_bytes });
        }
        if n_blocks > 0 {
            let size_bytes = mxfp4::Blocks::size_bytes(n_blocks);
            self.files.push(InputFile::made(self.dir.path(), size_bytes, Box::new(blocks))?);
        }
        Ok(())
    }
}

/// An open safetensors file.
struct Shard {
    file: InputFile,
    /// By name.
    entries: Vec<safetensors::Entry>,
    data_start: u64,
}

impl Shard {
    fn has(&self, tensor: &str) -> bool {
        self.entry(tensor).is_some()
    }

    fn entry(&self, tensor: &str) -> Option<&safetensors::Entry> {
        self.entries.binary_search_by(|entry| entry.name.as_str().cmp(tensor)).ok().map(|at| &self.entries[at])
    }
}

fn open_shards(dir: &Dir, names: &[String]) -> Result<Vec<Shard>> {
    // Every shard is looked for before any header is read: a download that stopped early is the most common fault.
    let mut files = Vec::new();
    for name in names {
        files.push(dir.file(name)?.ok_or_else(|| shard_missing(dir, name))?);
    }
    let read = |file: InputFile| safetensors::read(&file).map(|(entries, data_start)| Shard { file, entries, data_start });
    files.into_iter().map(read).collect()
}

fn shard_missing(dir: &Dir, name: &str) -> Error {
    let detail = "no such shard; the download may be incomplete";
    Error::malformed(dir.path().join(name), Place::File, Fault::ShardMissing, detail)
}

/// Tensors must be exactly those that the index lists, each in the shard it says. Returns notes.
fn check_index(path: &Path, index: &Index, shards: &[Shard]) -> Result<Option<String>> {
    let mismatch =
        |name: &str, detail: String| Err(Error::malformed(path, Place::Tensor(name.to_owned()), Fault::IndexMismatch, detail));
    for (number, shard) in shards.iter().enumerate() {
        let found_in = &index.shards[number];
        for entry in &shard.entries {
            match index.shard_of(&entry.name) {
                Some(listed) if listed as usize == number => {}
                Some(listed) => {
                    let listed_in = &index.shards[listed as usize];
                    return mismatch(&entry.name, format!("listed in {listed_in}, found in {found_in}"));
                }
                None => return mismatch(&entry.name, format!("found in {found_in}, not listed")),
            }
        }
    }
    if let Some((name, listed)) = index.tensors.iter().find(|(name, listed)| !shards[*listed as usize].has(name)) {
        return mismatch(name, format!("listed in {}, which does not have it", index.shards[*listed as usize]));
    }
    let data_bytes: u64 = shards.iter().flat_map(|shard| &shard.entries).map(|entry| entry.end - entry.begin).sum();
    // Only a note: old versions of transformers counted shared tensors twice here, and nothing depends on it.
    let wrong = index.total_bytes.filter(|&total| total != data_bytes);
    Ok(wrong.map(|total| format!("{INDEX}: total_size is {total}, the tensors have {data_bytes} bytes")))
}

/// Without an index, nothing else says where a tensor belongs.
fn check_unique(shards: &[Shard]) -> Result<()> {
    let mut names: Vec<(&str, usize)> = Vec::with_capacity(shards.iter().map(|shard| shard.entries.len()).sum());
    for (number, shard) in shards.iter().enumerate() {
        names.extend(shard.entries.iter().map(|entry| (entry.name.as_str(), number)));
    }
    names.sort_unstable();
    let Some(pair) = names.windows(2).find(|pair| pair[0].0 == pair[1].0) else { return Ok(()) };
    let (name, first, second) = (pair[0].0, &shards[pair[0].1], &shards[pair[1].1]);
    let detail = format!("also in {}", first.file.path().display());
    Err(Error::malformed(second.file.path(), Place::Tensor(name.to_owned()), Fault::DuplicateTensor, detail))
}

/// The names of the tensors, where a file that is there lists them all. What is wrong with it is for later.
fn listed_names(dir: &Dir) -> Vec<String> {
    let index = read_bounded(dir, INDEX, INDEX_BYTES_MAX).ok().flatten();
    if let Some(index) = index.and_then(|bytes| Index::parse(&dir.path().join(INDEX), &bytes).ok()) {
        return index.tensors.into_iter().map(|(name, _)| name.into()).collect();
    }
    let single = dir.file(SINGLE).ok().flatten().and_then(|file| safetensors::read(&file).ok());
    single.map_or_else(Vec::new, |(entries, _)| entries.into_iter().map(|entry| entry.name).collect())
}

/// Where the weights are.
enum Shards {
    Listed(Index),
    Named(Vec<String>),
}

fn find_shards(dir: &Dir) -> Result<Shards> {
    let has_single = dir.file(SINGLE)?.is_some();
    let index_path = dir.path().join(INDEX);
    if let Some(bytes) = read_bounded(dir, INDEX, INDEX_BYTES_MAX)? {
        let index = Index::parse(&index_path, &bytes)?;
        if has_single && index.shards != [SINGLE] {
            let detail = format!("both {SINGLE} and an index of other shards are here; remove the one that is not meant");
            return Err(Error::malformed(&index_path, Place::File, Fault::Ambiguous, detail));
        }
        return Ok(Shards::Listed(index));
    }
    let numbered = numbered_shards(dir)?;
    match (has_single, numbered.is_empty()) {
        (true, true) => Ok(Shards::Named(vec![SINGLE.to_owned()])),
        (false, false) => Ok(Shards::Named(numbered)),
        (true, false) => {
            let detail = format!("both {SINGLE} and numbered shards are here; remove those that are not meant");
            Err(Error::malformed(dir.path(), Place::File, Fault::Ambiguous, detail))
        }
        (false, true) => Err(explain_missing_weights(dir)?),
    }
}

/// `model-00001-of-0000N.safetensors`, all N of them, or none.
fn numbered_shards(dir: &Dir) -> Result<Vec<String>> {
    let mut shards: Vec<String> = names(dir)?.into_iter().filter(|name| shard_count(name).is_some()).collect();
    shards.sort_unstable();
    let Some(count) = shards.first().and_then(|name| shard_count(name)) else { return Ok(shards) };
    let missing =
        (1..=count).map(|no| format!("model-{no:05}-of-{count:05}.safetensors")).find(|name| shards.binary_search(name).is_err());
    if let Some(name) = missing {
        return Err(shard_missing(dir, &name));
    }
    if count as usize > SHARDS_MAX {
        let (limit, found) = (SHARDS_MAX as u64, u64::from(count));
        return Err(Error::Limit { path: dir.path().to_owned(), what: "shards".to_owned(), limit, found });
    }
    if shards.len() > count as usize {
        let detail = "numbered shards of more than one set are here; remove those that are not meant";
        return Err(Error::malformed(dir.path(), Place::File, Fault::Ambiguous, detail));
    }
    Ok(shards)
}

/// N of a name `model-00001-of-0000N.safetensors`, if it is one.
fn shard_count(name: &str) -> Option<u32> {
    let (no, count) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let number = |text: &str| if text.len() == 5 { text.parse::<u32>().ok() } else { None };
    number(no)?;
    number(count)
}

/// The names in the folder, as far as they are UTF-8.
fn names(dir: &Dir) -> Result<Vec<String>> {
    let path = dir.path();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, "list", e))? {
        if names.len() == NAMES_MAX {
            let what = "files in the folder".to_owned();
            return Err(Error::Limit { path: path.to_owned(), what, limit: NAMES_MAX as u64, found: NAMES_MAX as u64 + 1 });
        }
        let entry = entry.map_err(|e| Error::io(path, "list", e))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

fn read_bounded(dir: &Dir, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(input) = dir.file(name)? else { return Ok(None) };
    let path = input.path();
    let found = input.size_bytes();
    if found > limit {
        return Err(Error::Limit { path: path.to_owned(), what: "size in bytes".to_owned(), limit, found });
    }
    let mut bytes = Vec::with_capacity(found as usize);
    // `take`: a file that grows meanwhile stays within its limit.
    input.file().take(limit).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    Ok(Some(bytes))
}

/// Invalid ones exist on the hub and hold only advice, so they are noted and passed over.
fn read_generation_config(dir: &Dir, notes: &mut Vec<String>) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = read_bounded(dir, GENERATION_CONFIG, CONFIG_BYTES_MAX)? else { return Ok(None) };
    match json::parse_python_object_up_to(&dir.path().join(GENERATION_CONFIG), &bytes, GENERATION_VALUES_MAX) {
        Ok(generation) => Ok(Some(generation)),
        Err(error) => {
            notes.push(format!("passed over: {error}"));
            Ok(None)
        }
    }
}

fn read_card(dir: &Dir) -> Result<Card> {
    let readme = read_bounded(dir, "README.md", OTHER_BYTES_MAX)?;
    Ok(readme.map(|bytes| Card::parse(&String::from_utf8_lossy(&bytes))).unwrap_or_default())
}

/// Says what to do when the path given is not a folder.
fn check_is_folder(path: &Path) -> Result<()> {
    let shown = path.display();
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) if path.extension().is_some_and(|e| e == "gguf") => {
            Err(Error::usage(format!("{shown} is a GGUF file, not a model folder; `ggforge quantize` takes it")))
        }
        Ok(_) => Err(Error::usage(format!("{shown} is a file; give the folder that holds config.json and the weights"))),
        Err(e) => Err(Error::io(path, "open the folder", e)),
    }
}

fn explain_missing_config(dir: &Dir) -> Error {
    let path = dir.path();
    let names = names(dir).unwrap_or_default();
    let has = |name: &str| names.iter().any(|found| found == name);
    if has("adapter_config.json") {
        return Error::unsupported(format!("{} is a LoRA adapter", path.display()), "merge it into its base model first");
    }
    if has("params.json") {
        let what = format!("{} is in its maker's own layout (params.json)", path.display());
        return Error::unsupported(what, "use the Hugging Face layout of the same model, with config.json");
    }
    if has("snapshots") && has("blobs") {
        let what = format!("{} is a model's place in the cache of the Hugging Face hub", path.display());
        return Error::unsupported(what, "give the folder of one revision below its snapshots/");
    }
    let gguf = names.iter().find(|name| name.ends_with(".gguf"));
    let hint = match (gguf, names.is_empty()) {
        (Some(gguf), _) => format!("{gguf:?} in it is a GGUF file, which `ggforge quantize` takes"),
        (None, true) => "the folder is empty; give the folder that holds config.json and the weights".to_owned(),
        (None, false) => "give the folder that holds config.json and the weights".to_owned(),
    };
    Error::malformed(path.join(CONFIG), Place::File, Fault::MissingFile, format!("no such file; {hint}"))
}

fn explain_missing_weights(dir: &Dir) -> Result<Error> {
    let names = names(dir)?;
    let pickle = |name: &&String| {
        [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end)) && !name.starts_with("training_args")
    };
    if let Some(name) = names.iter().find(pickle) {
        let what =
            format!("{}: weights in PyTorch pickle files ({name:?}), which can run code, are not read", dir.path().display());
        let hint = "download the safetensors revision, or load the model with transformers and save_pretrained() it";
        return Ok(Error::unsupported(what, hint));
    }
    if let Some(name) = names.iter().find(|name| name.starts_with("consolidated") && name.ends_with(".safetensors")) {
        let what = format!("{}: only {name:?}, in its maker's own layout", dir.path().display());
        return Ok(Error::unsupported(what, "download model.safetensors, or its shards, of the same model"));
    }
    let path: PathBuf = dir.path().join(SINGLE);
    let detail = format!("no such file, and neither {INDEX} nor numbered shards; the download may be incomplete");
    Ok(Error::malformed(path, Place::File, Fault::MissingFile, detail))
}
