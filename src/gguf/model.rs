//! A whole model: one file, or all shards of a split set, as a source of tensors.

use std::path::{Path, PathBuf};

use super::keys;
use super::limits::Limits;
use super::read::{File, TensorInfo};
use super::split::ShardName;
use super::value::{Metadata, Value, ValueType};
use super::view::ValueRef;
use crate::error::{Error, Fault, Place, Result};
use crate::source::{InputFile, SourceTensor, TensorSource};

/// A GGUF model with all its shards.
#[derive(Debug, Default)]
pub struct Model {
    inputs: Vec<InputFile>,
    shards: Vec<File<'static>>,
    tensors: Vec<SourceTensor>,
    note: Option<String>,
}

/// How a model becomes one file.
const MENDED: &str = "`ggforge quantize --type COPY` writes it as one file";

/// What the `split.*` keys of one shard say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SplitKeys {
    no: u16,
    count: u16,
    n_tensors: i32,
}

impl SplitKeys {
    /// False for one shard of one, and for a merged model: llama.cpp's gguf-split --merge leaves a count of 0 behind.
    fn is_split(self) -> bool {
        self.no != 0 || self.count > 1
    }
}

impl Model {
    /// Opens a model by its file, or by any one of its shards.
    ///
    /// # Errors
    /// As for [`File::open`], for every shard; and for shards that are missing or do not belong together.
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        Model::open_within(path, &Limits::default())
    }

    /// As [`Model::open`], with other limits.
    ///
    /// # Errors
    /// As for [`Model::open`].
    pub fn open_within(path: impl AsRef<Path>, limits: &Limits) -> Result<Model> {
        Model::open_all(path.as_ref(), limits, File::map)
    }

    /// As [`Model::open`], for those who read weights by position, as every [`TensorSource`] gives them: no file is mapped, so a model may be
    /// larger than the address space allowed, and its [shards](Model::shards) have no bytes of tensors.
    ///
    /// # Errors
    /// As for [`Model::open`].
    pub fn open_unmapped(path: impl AsRef<Path>) -> Result<Model> {
        Model::open_unmapped_within(path, &Limits::default())
    }

    /// As [`Model::open_unmapped`], with other limits.
    ///
    /// # Errors
    /// As for [`Model::open`].
    pub fn open_unmapped_within(path: impl AsRef<Path>, limits: &Limits) -> Result<Model> {
        Model::open_all(path.as_ref(), limits, File::header_of)
    }

    fn open_all(path: &Path, limits: &Limits, read: Reader) -> Result<Model> {
        let mut model = Model::default();
        let opened = Shard::open(path, limits, read)?;
        match split_keys(&opened.file)? {
            Some(keys) if keys.is_split() && opened.file.followed_at(&opened.input)?.is_some() => {
                model.add_joined(opened, keys, limits)?;
            }
            Some(keys) if keys.is_split() && keys.no == 0 && usize::try_from(keys.n_tensors) == Ok(opened.file.n_tensors()) => {
                let SplitKeys { count, .. } = keys;
                model.note = Some(format!(
                    "{}: holds the whole model, but says that it is the first of {count} shards ({}), and llama.cpp looks for the \
                     others; {MENDED}",
                    path.display(),
                    keys::SPLIT_COUNT
                ));
                model.add(opened);
            }
            Some(keys) if keys.is_split() => {
                for index in 0..checked_count(path, keys)? {
                    let shard = Shard::open_sibling(path, keys, index, (limits, read))?;
                    model.check_belongs(&shard.file, index, keys)?;
                    model.add(shard);
                }
                model.check_number_of_tensors(keys)?;
            }
            _ => model.add(opened),
        }
        model.collect_tensors()?;
        Ok(model)
    }

    /// Opens one file by itself to look at its header, even if the data of its tensors is not all there:
    /// [`Warning::CutShort`](super::Warning::CutShort) says so.
    ///
    /// # Errors
    /// As for [`File::open`], but for data that is missing.
    pub fn open_cut(path: impl AsRef<Path>, limits: &Limits) -> Result<Model> {
        let mut model = Model::default();
        model.add(Shard::open(path.as_ref(), limits, File::header_of_cut)?);
        model.collect_tensors()?;
        Ok(model)
    }

    /// Opens one file by itself, even if it is a shard of a larger model.
    ///
    /// # Errors
    /// As for [`File::open`].
    pub fn open_alone(path: impl AsRef<Path>, limits: &Limits) -> Result<Model> {
        let mut model = Model::default();
        model.add(Shard::open(path.as_ref(), limits, File::map)?);
        model.collect_tensors()?;
        Ok(model)
    }

    /// A model of one file that is open already, or that is made while it is read.
    ///
    /// # Errors
    /// As for [`File::open`].
    #[cfg(feature = "convert")]
    pub fn of_input(input: InputFile) -> Result<Model> {
        let mut model = Model::default();
        let file = File::header_of(&input, &Limits::default())?;
        model.add(Shard { input, file });
        model.collect_tensors()?;
        Ok(model)
    }

    /// The files, in the order of their numbers.
    pub fn shards(&self) -> &[File<'static>] {
        &self.shards
    }

    /// What is odd about how the files make up the model, and what mends it: llama.cpp does not read it so.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Every metadata entry of the model, in the order of the file. Of a split model these are the first shard's.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, ValueRef<'_>)> {
        self.shards.first().into_iter().flat_map(File::metadata)
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<ValueRef<'_>> {
        self.shards.first()?.get(key)
    }

    /// A copy of the metadata, to be written into another file: without the `split.*` keys, which describe this set of files.
    pub fn to_metadata(&self) -> Metadata {
        let is_split = |key: &str| [keys::SPLIT_NO, keys::SPLIT_COUNT, keys::SPLIT_TENSORS_COUNT].contains(&key);
        self.metadata().filter(|(key, _)| !is_split(key)).map(|(key, value)| (key.to_owned(), Value::from(value))).collect()
    }

    /// The architecture's name.
    ///
    /// # Errors
    /// `ValueType` where `general.architecture` is missing, or not a string.
    pub fn architecture(&self) -> Result<&str> {
        let text = |key| self.get(key).and_then(ValueRef::as_str);
        text(keys::GENERAL_ARCHITECTURE).ok_or_else(|| no_architecture(self.first_path(), text(keys::GENERAL_TYPE)))
    }

    /// Checks what needs no checking to look at a model, but to use its weights: that there are any.
    ///
    /// # Errors
    /// `NoTensors`, and `ZeroDim` for a tensor without weights.
    pub fn check_has_weights(&self) -> Result<()> {
        if self.tensors.is_empty() {
            return Err(Error::malformed(
                self.first_path(),
                Place::File,
                Fault::NoTensors,
                "the file holds no tensors, only metadata",
            ));
        }
        match self.tensors.iter().find(|tensor| tensor.shape.contains(&0)) {
            None => Ok(()),
            Some(SourceTensor { name, shape, file, .. }) => {
                let path = self.shards.get(*file).map_or(self.first_path(), File::path);
                let detail = format!("shape {shape:?} holds no weights");
                Err(Error::malformed(path, Place::Tensor(name.clone()), Fault::ZeroDim, detail))
            }
        }
    }

    /// Shards that were joined end to end, as `cat` does it: `first`, and the others behind it in the same file.
    fn add_joined(&mut self, first: Shard, keys: SplitKeys, limits: &Limits) -> Result<()> {
        let path = first.input.path().to_owned();
        let mut next = Some(first);
        for index in 0..checked_count(&path, SplitKeys { no: 0, ..keys })? {
            let Some(mut shard) = next else {
                let detail = format!("{index} of {} shards were joined end to end; the others are missing", keys.count);
                return Err(Error::malformed(path, Place::File, Fault::ShardMissing, detail));
            };
            self.check_belongs(&shard.file, index, keys)?;
            next =
                shard.file.followed_at(&shard.input)?.map(|begins_at| Shard::open_within(&path, limits, begins_at)).transpose()?;
            shard.file.end_at_last_tensor();
            self.add(shard);
        }
        self.check_number_of_tensors(keys)?;
        let count = keys.count;
        self.note = Some(format!("{}: {count} shards joined end to end, which llama.cpp does not read; {MENDED}", path.display()));
        Ok(())
    }

    fn add(&mut self, shard: Shard) {
        self.inputs.push(shard.input);
        self.shards.push(shard.file);
    }

    /// The shards of one model agree on their number, on the number of tensors and, where they repeat it, on the architecture.
    fn check_belongs(&self, shard: &File<'_>, index: u16, expected: SplitKeys) -> Result<()> {
        let fault = |key: &str, fault, detail| Err(Error::malformed(shard.path(), Place::Field(key.to_owned()), fault, detail));
        let Some(found) = split_keys(shard)? else {
            return fault(keys::SPLIT_COUNT, Fault::ShardMismatch, "is missing: the file is not part of a split model".to_owned());
        };
        if found.count != expected.count {
            let detail = format!("{}, another shard says {}", found.count, expected.count);
            return fault(keys::SPLIT_COUNT, Fault::ShardMismatch, detail);
        }
        if found.n_tensors != expected.n_tensors {
            let detail = format!("{}, another shard says {}", found.n_tensors, expected.n_tensors);
            return fault(keys::SPLIT_TENSORS_COUNT, Fault::ShardMismatch, detail);
        }
        if found.no != index {
            let detail = format!("{}, but by its name this is shard {index} (counted from 0)", found.no);
            return fault(keys::SPLIT_NO, Fault::SplitOrder, detail);
        }
        let architecture = shard.get(keys::GENERAL_ARCHITECTURE);
        if index > 0 && architecture.is_some() && architecture != self.get(keys::GENERAL_ARCHITECTURE) {
            return fault(keys::GENERAL_ARCHITECTURE, Fault::ShardMismatch, "differs from the first shard's".to_owned());
        }
        Ok(())
    }

    fn n_tensors(&self) -> usize {
        self.shards.iter().map(File::n_tensors).fold(0, usize::saturating_add)
    }

    fn check_number_of_tensors(&self, SplitKeys { n_tensors, .. }: SplitKeys) -> Result<()> {
        if usize::try_from(n_tensors) == Ok(self.n_tensors()) {
            return Ok(());
        }
        let place = Place::Field(keys::SPLIT_TENSORS_COUNT.to_owned());
        let detail = format!("{n_tensors}, but the shards hold {} tensors", self.n_tensors());
        Err(Error::malformed(self.first_path(), place, Fault::ShardMismatch, detail))
    }

    fn first_path(&self) -> &Path {
        self.shards.first().map_or(Path::new(""), File::path)
    }

    fn collect_tensors(&mut self) -> Result<()> {
        let mut tensors = Vec::with_capacity(self.n_tensors());
        for (file, shard) in self.shards.iter().enumerate() {
            tensors.extend(shard.tensors().map(|TensorInfo { name, format, shape, offset_bytes, size_bytes }| SourceTensor {
                name: name.to_owned(),
                format,
                shape,
                file,
                offset_bytes,
                size_bytes,
            }));
        }
        self.tensors = tensors;
        // Within one file names are known to differ.
        match self.shards.len() {
            0 | 1 => Ok(()),
            _ => self.check_names_differ(),
        }
    }

    fn check_names_differ(&self) -> Result<()> {
        let mut by_name: Vec<&SourceTensor> = self.tensors.iter().collect();
        by_name.sort_unstable_by_key(|tensor| (&tensor.name, tensor.file));
        for pair in by_name.windows(2) {
            if let [first, second] = pair
                && first.name == second.name
                && let (Some(here), Some(there)) = (self.shards.get(second.file), self.shards.get(first.file))
            {
                let detail = format!("is also in {}", there.path().display());
                let place = Place::Tensor(second.name.clone());
                return Err(Error::malformed(here.path(), place, Fault::DuplicateTensor, detail));
            }
        }
        Ok(())
    }
}

impl TensorSource for Model {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn files(&self) -> &[InputFile] {
        &self.inputs
    }
}

struct Shard {
    input: InputFile,
    file: File<'static>,
}

/// How a file is opened: mapped, or its header alone.
type Reader = fn(&InputFile, &Limits) -> Result<File<'static>>;

impl Shard {
    fn open(path: &Path, limits: &Limits, read: Reader) -> Result<Shard> {
        let input = InputFile::open(path)?;
        let file = read(&input, limits)?;
        Ok(Shard { input, file })
    }

    /// Opens the shard that begins at byte `begins_at` of a file.
    fn open_within(path: &Path, limits: &Limits, begins_at: u64) -> Result<Shard> {
        let input = InputFile::open(path)?;
        let file = File::header_at(&input, limits, begins_at)?;
        Ok(Shard { input, file })
    }

    /// Opens shard `index` of the set that the file at `path` belongs to.
    fn open_sibling(path: &Path, keys: SplitKeys, index: u16, (limits, read): (&Limits, Reader)) -> Result<Shard> {
        let sibling = sibling_path(path, keys, index)?;
        Shard::open(&sibling, limits, read).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                let (no, count) = (u32::from(index).saturating_add(1), keys.count);
                let detail = format!("shard {no} of {count} does not exist; download it, or run again what was writing the set");
                Error::malformed(sibling, Place::File, Fault::ShardMissing, detail)
            }
            other => other,
        })
    }
}

/// Where shard `index` must be: beside the one that was opened, under the name that follows from its name.
fn sibling_path(path: &Path, keys: SplitKeys, index: u16) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(ShardName::parse);
    match name {
        Some(name) if name.count == keys.count => Ok(path.with_file_name(name.sibling(index).to_string())),
        _ => {
            let SplitKeys { no, count, .. } = keys;
            let expected = format!("…-{:05}-of-{count:05}.gguf", u32::from(no).saturating_add(1));
            let detail = format!("shard {no} (counted from 0) of {count} must be named {expected}");
            Err(Error::malformed(path, Place::File, Fault::SplitName, detail))
        }
    }
}

fn checked_count(path: &Path, keys: SplitKeys) -> Result<u16> {
    let SplitKeys { no, count, .. } = keys;
    if no < count {
        return Ok(count);
    }
    let detail = format!("{no}, but {} says there are {count} shards", keys::SPLIT_COUNT);
    Err(Error::malformed(path, Place::Field(keys::SPLIT_NO.to_owned()), Fault::SplitOrder, detail))
}

/// The `split.*` keys of a file: `None` when it has none.
fn split_keys(file: &File<'_>) -> Result<Option<SplitKeys>> {
    let wrong = |key: &str, expected: ValueType| {
        let found = file.get(key).map_or("missing", |value| value.value_type().name());
        let detail = format!("of type {expected} is required in a split model; it is {found}");
        Error::malformed(file.path(), Place::Field(key.to_owned()), Fault::SplitKeyType, detail)
    };
    if [keys::SPLIT_NO, keys::SPLIT_COUNT, keys::SPLIT_TENSORS_COUNT].iter().all(|key| file.get(key).is_none()) {
        return Ok(None);
    }
    let Some(ValueRef::U16(no)) = file.get(keys::SPLIT_NO) else { return Err(wrong(keys::SPLIT_NO, ValueType::U16)) };
    let Some(ValueRef::U16(count)) = file.get(keys::SPLIT_COUNT) else { return Err(wrong(keys::SPLIT_COUNT, ValueType::U16)) };
    let Some(ValueRef::I32(n_tensors)) = file.get(keys::SPLIT_TENSORS_COUNT) else {
        return Err(wrong(keys::SPLIT_TENSORS_COUNT, ValueType::I32));
    };
    Ok(Some(SplitKeys { no, count, n_tensors }))
}

/// The refusal of a file without an architecture. `kind`: its `general.type`.
pub(crate) fn no_architecture(path: &Path, kind: Option<&str>) -> Error {
    let detail = match kind {
        Some("imatrix") => "missing, since the file is an importance matrix, not a model",
        _ => "a string is required here: what the model is",
    };
    Error::malformed(path, Place::Field(keys::GENERAL_ARCHITECTURE.to_owned()), Fault::ValueType, detail)
}
