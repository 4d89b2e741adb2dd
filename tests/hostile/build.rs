//! Builds GGUF files byte by byte, with any lie that one wants to tell.
#![allow(dead_code)] // each test file is its own crate and uses a part

/// Value type ids.
pub const U8: u32 = 0;
pub const I8: u32 = 1;
pub const U16: u32 = 2;
pub const I16: u32 = 3;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;
pub const I64: u32 = 11;
pub const F64: u32 = 12;

/// ggml type ids.
pub mod ggml {
    pub const F32: u32 = 0;
    pub const F16: u32 = 1;
    pub const Q4_0: u32 = 2;
    pub const Q8_0: u32 = 8;
    pub const Q4_K: u32 = 12;
    pub const I8: u32 = 24;
    pub const I64: u32 = 27;
}

/// A u32 as in the file.
pub fn d(value: u32) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// A u64 as in the file.
pub fn q(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// A string as in the file.
pub fn s(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&q(bytes.as_ref().len() as u64), bytes.as_ref()].concat()
}

/// The value of an array: element type, count, elements.
pub fn a(element_type: u32, count: u64, items: &[u8]) -> Vec<u8> {
    [&d(element_type), &q(count), items].concat()
}

/// A tensor info, its dimensions in the order of the file.
pub fn info(name: &[u8], dims: &[u64], ggml_type: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|&dim| q(dim)).collect();
    [&s(name)[..], &d(dims.len() as u32), &dims_bytes, &d(ggml_type), &q(offset)].concat()
}

/// A file under construction.
#[derive(Clone)]
pub struct Gg {
    magic: [u8; 4],
    version: u32,
    n_tensors: Option<u64>,
    n_entries: Option<u64>,
    entries: Vec<Vec<u8>>,
    infos: Vec<Vec<u8>>,
    data: Option<Vec<u8>>,
    alignment: usize,
}

/// An empty file of version 3.
pub fn gg() -> Gg {
    Gg {
        magic: *b"GGUF",
        version: 3,
        n_tensors: None,
        n_entries: None,
        entries: Vec::new(),
        infos: Vec::new(),
        data: None,
        alignment: 32,
    }
}

impl Gg {
    pub fn version(mut self, version: u32) -> Gg {
        self.version = version;
        self
    }

    /// The number of tensors to claim.
    pub fn claim_tensors(mut self, n: u64) -> Gg {
        self.n_tensors = Some(n);
        self
    }

    /// The number of metadata entries to claim.
    pub fn claim_entries(mut self, n: u64) -> Gg {
        self.n_entries = Some(n);
        self
    }

    pub fn kv(self, key: impl AsRef<[u8]>, value_type: u32, value: impl AsRef<[u8]>) -> Gg {
        self.raw_kv([&s(key)[..], &d(value_type), value.as_ref()].concat())
    }

    pub fn raw_kv(mut self, bytes: Vec<u8>) -> Gg {
        self.entries.push(bytes);
        self
    }

    pub fn ti(self, name: impl AsRef<[u8]>, dims: &[u64], ggml_type: u32, offset: u64) -> Gg {
        self.raw_ti(info(name.as_ref(), dims, ggml_type, offset))
    }

    pub fn raw_ti(mut self, bytes: Vec<u8>) -> Gg {
        self.infos.push(bytes);
        self
    }

    /// The tensor data, which starts at a multiple of the alignment.
    pub fn data(mut self, bytes: Vec<u8>) -> Gg {
        self.data = Some(bytes);
        self
    }

    /// How the start of tensor data is aligned; sets no key.
    pub fn align(mut self, alignment: usize) -> Gg {
        self.alignment = alignment;
        self
    }

    /// Where metadata entry `i` starts.
    pub fn entry_at(&self, i: usize) -> u64 {
        24 + self.entries[..i].iter().map(Vec::len).sum::<usize>() as u64
    }

    /// Where tensor info `i` starts.
    pub fn info_at(&self, i: usize) -> u64 {
        self.entry_at(self.entries.len()) + self.infos[..i].iter().map(Vec::len).sum::<usize>() as u64
    }

    /// The header without padding.
    pub fn header(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(d(self.version));
        bytes.extend(q(self.n_tensors.unwrap_or(self.infos.len() as u64)));
        bytes.extend(q(self.n_entries.unwrap_or(self.entries.len() as u64)));
        bytes.extend(self.entries.concat());
        bytes.extend(self.infos.concat());
        bytes
    }

    /// The file: header, and padding and data where data was given.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        if let Some(data) = &self.data {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend(data);
        }
        bytes
    }
}
