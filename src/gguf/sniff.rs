//! What a file that is not GGUF is instead, told from its first bytes, and what its owner can do about it.

/// How a file begins, and the message for it.
struct Kind {
    prefix: &'static [u8],
    message: &'static str,
}

const HTML: &str =
    "a web page, not a model: the download link led to a page; on Hugging Face use the /resolve/ link or `hf download`";
const OLD_GGML: &str = "a GGML file from before GGUF: convert the original Hugging Face folder again";
const PICKLE: &str = "a Python pickle (PyTorch checkpoint): convert a folder with safetensors files instead";
const ARCHIVE: &str = "a compressed file: decompress it first";

const KINDS: &[Kind] = &[
    Kind {
        prefix: b"version https://git-lfs",
        message: "a Git LFS pointer, not the model itself: run `git lfs pull` in its repository, or download the file",
    },
    Kind { prefix: b"<!doctype html", message: HTML },
    Kind { prefix: b"<html", message: HTML },
    Kind { prefix: b"<?xml", message: "an XML document, most likely a server's error message: download the file again" },
    Kind {
        prefix: b"PK\x03\x04",
        message: "a zip archive, as PyTorch's .bin and .pt files are: convert a folder with safetensors files instead",
    },
    Kind { prefix: b"\x80\x02", message: PICKLE },
    Kind { prefix: b"\x80\x03", message: PICKLE },
    Kind { prefix: b"\x80\x04", message: PICKLE },
    Kind { prefix: b"\x80\x05", message: PICKLE },
    Kind { prefix: b"lmgg", message: OLD_GGML },
    Kind { prefix: b"fmgg", message: OLD_GGML },
    Kind { prefix: b"tjgg", message: OLD_GGML },
    Kind { prefix: b"algg", message: OLD_GGML },
    Kind { prefix: b"FUGG", message: "the letters of GGUF are reversed: the file was written by a tool that mixed up byte orders" },
    Kind { prefix: b"\x1f\x8b", message: ARCHIVE },
    Kind { prefix: b"\x28\xb5\x2f\xfd", message: ARCHIVE },
    Kind { prefix: b"\xfd7zXZ", message: ARCHIVE },
    Kind { prefix: b"{", message: "a JSON document, not a model" },
    Kind { prefix: &[0; 16], message: "only zeros at the start: the download did not finish" },
];

/// What the bytes are, as a message: `None` when nothing is recognised.
pub(super) fn recognise(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.trim_ascii_start();
    // safetensors: the header's length as u64, then its opening brace.
    if bytes.get(8) == Some(&b'{') && bytes.get(4..8) == Some(&[0; 4]) {
        return Some("a safetensors file: give `ggforge convert` the folder it lies in");
    }
    let matches = |kind: &&Kind| {
        [bytes, text]
            .iter()
            .any(|start| start.get(..kind.prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind.prefix)))
    };
    KINDS.iter().find(matches).map(|kind| kind.message)
}
