//! The one error type, sorted by who can act.
//!
//! Everything a file or a user can cause is a value of [`Error`]; a panic is always our own mistake. Each variant says where
//! (path, byte offset, tensor, field), what was expected and what was found. Text that came from a file is escaped here, when the
//! error is displayed, so that no message can drive the terminal it is printed on.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What every fallible function of the library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call could not be carried out.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: the machine, a disk or a permission is at fault.
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// What was being done, as a verb: `open`, `read`, `sync`.
        op: &'static str,
        /// The reason the system gave.
        source: io::Error,
    },
    /// A file breaks its own format's rules: whoever made the file can act.
    Malformed {
        /// The offending file.
        path: PathBuf,
        /// Where in the file.
        place: Place,
        /// Which rule is broken, as a stable name.
        fault: Fault,
        /// What was expected and what was found.
        detail: String,
    },
    /// The file or the request is sound, but this version cannot do it.
    Unsupported {
        /// What is not supported.
        what: String,
        /// What would work instead.
        hint: String,
    },
    /// A documented limit is exceeded.
    Limit {
        /// The file concerned.
        path: PathBuf,
        /// Which limit, and how to raise it.
        what: String,
        /// The bound.
        limit: u64,
        /// What the file asks for.
        found: u64,
    },
    /// The caller's combination of arguments makes no sense, or would destroy something.
    Usage(String),
    /// The output does not fit on its disk.
    NoSpace {
        /// The output that was to be written.
        path: PathBuf,
        /// Bytes that the output needs.
        need_bytes: u64,
        /// Bytes that the file system has free, where it says.
        have_bytes: Option<u64>,
    },
    /// An input file changed while it was read, so the result would mix two versions.
    InputChanged {
        /// The input file.
        path: PathBuf,
        /// What differs.
        detail: String,
    },
    /// No GPU can be used, or it cannot do what was asked: missing, too old, too small, lost.
    Gpu {
        /// What is missing or failed.
        what: String,
        /// What to do.
        hint: String,
    },
    /// The caller asked to stop.
    Interrupted,
    /// A broken invariant of this library, caught before it could do harm.
    Internal(String),
}

/// Where in a file a fault lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A byte offset from the start of the file.
    Byte(u64),
    /// A tensor, by the name it has in the file.
    Tensor(String),
    /// One weight of a tensor, row-major.
    Weight {
        /// The tensor's name.
        tensor: String,
        /// Row index, all leading dimensions flattened.
        row: u64,
        /// Column index.
        column: u64,
    },
    /// A metadata key or a JSON field.
    Field(String),
    /// A line of a text, the first is 1.
    Line(u64),
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The rule that a file breaks. The names are stable: scripts may match on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Fault { $($(#[$doc])* $name),* }

        impl Fault {
            /// The stable name, which the program gives with `--json` and `--verbose`.
            pub fn name(self) -> &'static str {
                match self { $(Fault::$name => stringify!($name)),* }
            }
        }
    };
}

faults! {
    /// The file ends inside the item at this place.
    Truncated,
    /// Not a GGUF file at all.
    NotGguf,
    /// A big-endian GGUF file.
    BigEndian,
    /// A GGUF version other than 2 and 3.
    UnsupportedVersion,
    /// A declared count needs more bytes than the file has.
    CountExceedsFile,
    /// A declared length needs more bytes than the file has.
    LengthExceedsFile,
    /// The header declares more or fewer items than there are.
    UnreadHeader,
    /// The file holds no tensors.
    NoTensors,
    /// A metadata key of length zero.
    EmptyKey,
    /// A metadata key beyond 65535 bytes.
    KeyTooLong,
    /// A metadata key that is not printable UTF-8.
    InvalidKey,
    /// The same key twice.
    DuplicateKey,
    /// A value type id that GGUF does not define.
    UnknownValueType,
    /// A bool other than 0 and 1.
    InvalidBool,
    /// An array inside an array.
    NestedArray,
    /// `general.alignment` is not a u32.
    AlignmentType,
    /// `general.alignment` is not a power of two.
    AlignmentNotPowerOfTwo,
    /// `general.alignment` beyond 64 KiB.
    AlignmentTooLarge,
    /// An empty tensor name.
    EmptyName,
    /// A tensor name beyond 63 bytes.
    NameTooLong,
    /// A tensor name that is not UTF-8 or contains NUL.
    InvalidName,
    /// The same tensor name twice.
    DuplicateTensor,
    /// More dimensions than the format allows.
    TooManyDims,
    /// A dimension of zero where weights are needed.
    ZeroDim,
    /// A dimension beyond 2^63 - 1.
    DimTooLarge,
    /// The product of the dimensions overflows.
    ShapeOverflow,
    /// The size in bytes overflows.
    SizeOverflow,
    /// Tensor data lies outside the file.
    DataPastEof,
    /// A tensor type that ggml has removed.
    RemovedType,
    /// A tensor type id that ggml does not define.
    UnknownType,
    /// A row that is not a whole number of blocks.
    RowNotBlockMultiple,
    /// A tensor offset that is not a multiple of the alignment.
    MisalignedOffset,
    /// A tensor offset that is not where the preceding tensors end.
    OffsetMismatch,
    /// A split key of the wrong type.
    SplitKeyType,
    /// A shard whose name is not `-00001-of-0000N`.
    SplitName,
    /// A shard that is not the first, or out of order.
    SplitOrder,
    /// A shard that does not exist.
    ShardMissing,
    /// A shard that belongs to another model.
    ShardMismatch,
    /// A metadata value of the wrong type.
    ValueType,
    /// A hyperparameter outside its possible range.
    HparamRange,
    /// A tensor that the architecture needs is missing.
    MissingTensor,
    /// A tensor that no rule of the architecture maps.
    UnmappedTensor,
    /// A tensor whose shape contradicts the hyperparameters.
    ShapeMismatch,
    /// The vocabulary contradicts itself.
    TokenizerInvalid,
    /// A table of normalisation rules that leads outside itself or in circles.
    CharsmapInvalid,
    /// A special token id outside the vocabulary.
    SpecialIdRange,
    /// The same token text twice.
    DuplicateToken,
    /// A merge that does not name two known tokens.
    MergeInvalid,
    /// A token id outside the bound of a dense table.
    TokenIdRange,
    /// A protobuf message that cannot be parsed.
    ProtobufInvalid,
    /// A text that is not UTF-8.
    NotUtf8,
    /// A chat template that is missing or cannot be rendered.
    ChatTemplate,
    /// A text without a character.
    EmptyText,
    /// A text too short to measure a model on.
    TextTooShort,
    /// Models with different vocabularies where they must be the same.
    VocabularyMismatch,
    /// NaN or infinity among weights or scales.
    NonFinite,
    /// A finite weight that the target format cannot hold.
    ScaleOverflow,
    /// A safetensors file below 8 bytes.
    HeaderTooSmall,
    /// A safetensors header beyond the limit.
    HeaderTooLarge,
    /// A safetensors header length beyond the file.
    HeaderLength,
    /// A safetensors header that does not start with `{`.
    HeaderStart,
    /// Invalid JSON.
    Json,
    /// JSON nested too deep.
    JsonDepth,
    /// Data offsets that are not two ordered unsigned integers.
    OffsetInvalid,
    /// Bytes of the file that no tensor covers.
    NotCovered,
    /// Shape times element size differs from the byte range.
    SizeMismatch,
    /// A sub-byte dtype that does not fill whole bytes.
    SubByte,
    /// A dtype that safetensors does not define.
    UnknownDtype,
    /// An index entry that is not a plain file name inside the folder.
    ShardName,
    /// A file that the folder must have is missing.
    MissingFile,
    /// A symbolic link that leads out of the model folder.
    OutsideFolder,
    /// An input that is not a regular file.
    NotRegularFile,
    /// The index and the shards disagree.
    IndexMismatch,
    /// More than one candidate for the same thing.
    Ambiguous,
    /// A field of config.json that is missing or has an impossible value.
    ConfigField,
    /// A file of another format, recognised by its first bytes.
    UnsupportedFormat,
    /// What is no rule in a list of types.
    TypeRule,
    /// An importance matrix that breaks its format's rules.
    ImatrixInvalid,
    /// NaN, infinity or a negative number in an importance matrix.
    ImatrixValue,
    /// An importance matrix whose entry has another length than the tensor.
    ImatrixLength,
    /// A checkpoint of calibration that breaks its format's rules.
    CheckpointInvalid,
}

impl Error {
    /// An [`Error::Io`] with its path and operation.
    pub fn io(path: impl Into<PathBuf>, op: &'static str, source: io::Error) -> Error {
        Error::Io { path: path.into(), op, source }
    }

    /// An [`Error::Malformed`].
    pub fn malformed(path: impl AsRef<Path>, place: Place, fault: Fault, detail: impl Into<String>) -> Error {
        Error::Malformed { path: path.as_ref().to_owned(), place, fault, detail: detail.into() }
    }

    /// An [`Error::Unsupported`]: `what` cannot be done, `hint` says what would work.
    pub fn unsupported(what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Unsupported { what: what.into(), hint: hint.into() }
    }

    /// The rule that a file breaks, where that is what is wrong.
    pub fn fault(&self) -> Option<Fault> {
        if let Error::Malformed { fault, .. } = self { Some(*fault) } else { None }
    }

    /// The file or directory concerned, where it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Io { path, .. }
            | Error::Malformed { path, .. }
            | Error::Limit { path, .. }
            | Error::NoSpace { path, .. }
            | Error::InputChanged { path, .. } => Some(path),
            _ => None,
        }
    }

    /// An [`Error::Usage`].
    pub fn usage(what: impl Into<String>) -> Error {
        Error::Usage(what.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { path, op, .. } => write!(f, "{}: cannot {op}", shown(path)),
            Error::Malformed { path, place, detail, .. } => {
                write!(f, "{}: ", shown(path))?;
                match place {
                    Place::File => {}
                    Place::Byte(offset) => write!(f, "byte {offset}: ")?,
                    Place::Tensor(name) => write!(f, "{}: ", Escaped(name))?,
                    Place::Weight { tensor, row, column } => write!(f, "{}: row {row}, column {column}: ", Escaped(tensor))?,
                    Place::Field(name) => write!(f, "{}: ", Escaped(name))?,
                    Place::Line(number) => write!(f, "line {number}: ")?,
                }
                Escaped(detail).fmt(f)
            }
            Error::Unsupported { what, hint } | Error::Gpu { what, hint } => {
                write!(f, "{}; ", Escaped(what))?;
                escape(hint, HINT_CHARS_MAX, f)
            }
            Error::Limit { path, what, limit, found } => {
                write!(f, "{}: {}: {found} is over the limit of {limit}", shown(path), Escaped(what))
            }
            Error::Usage(what) => write!(f, "{}", Escaped(what)),
            Error::NoSpace { path, need_bytes, have_bytes } => {
                write!(f, "{}: no space: {need_bytes} bytes are needed", shown(path))?;
                match have_bytes {
                    Some(have) => write!(f, ", {have} are free"),
                    None => Ok(()),
                }
            }
            Error::InputChanged { path, detail } => {
                write!(f, "{}: changed while it was read: {}", shown(path), Escaped(detail))
            }
            Error::Interrupted => write!(f, "interrupted"),
            Error::Internal(what) => write!(f, "internal error: {}; please report this", Escaped(what)),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Displays untrusted text with every control, bidirectional and line-separating character escaped, cut at a fixed length
/// so that no file can flood a terminal.
pub struct Escaped<'a>(pub &'a str);

/// Characters of one escaped text that are displayed at most.
const ESCAPED_CHARS_MAX: usize = 400;
/// The same of a hint, which may list all that would work.
const HINT_CHARS_MAX: usize = 1200;

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(self.0, ESCAPED_CHARS_MAX, f)
    }
}

fn escape(text: &str, chars_max: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (shown, c) in text.chars().enumerate() {
        if shown == chars_max {
            return write!(f, "…");
        }
        if is_harmless(c) { write!(f, "{c}")? } else { write!(f, "{}", c.escape_default())? }
    }
    Ok(())
}

/// False for characters that move the cursor, change its colour, reorder text or hide it.
pub fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A path as it may be printed.
fn shown(path: &Path) -> String {
    Escaped(&path.to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_drive_the_terminal() {
        let error = Error::malformed("a\u{1b}[2J.gguf", Place::Field("k\u{7}\u{202e}\r\n".into()), Fault::InvalidKey, "x\u{9b}y");
        let text = error.to_string();
        assert!(text.chars().all(is_harmless), "{text:?}");
        assert!(!text.contains("InvalidKey") && error.fault() == Some(Fault::InvalidKey));
    }
}
