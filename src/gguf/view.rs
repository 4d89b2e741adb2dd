//! Metadata values as they lie in the file: borrowed, decoded when asked for.

use byteorder::{LittleEndian, ReadBytesExt};

use super::value::{Array, Value, ValueType};

/// One metadata value, borrowed from its file. Strings are bytes: files hold what they like.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum ValueRef<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a [u8]),
    Array(ArrayRef<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of one element type, borrowed from its file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ArrayRef<'a> {
    pub(super) element_type: ValueType,
    pub(super) len: usize,
    pub(super) bytes: &'a [u8],
}

impl<'a> ValueRef<'a> {
    /// The type it is stored as.
    pub fn value_type(self) -> ValueType {
        match self {
            ValueRef::U8(_) => ValueType::U8,
            ValueRef::I8(_) => ValueType::I8,
            ValueRef::U16(_) => ValueType::U16,
            ValueRef::I16(_) => ValueType::I16,
            ValueRef::U32(_) => ValueType::U32,
            ValueRef::I32(_) => ValueType::I32,
            ValueRef::F32(_) => ValueType::F32,
            ValueRef::Bool(_) => ValueType::Bool,
            ValueRef::String(_) => ValueType::String,
            ValueRef::Array(_) => ValueType::Array,
            ValueRef::U64(_) => ValueType::U64,
            ValueRef::I64(_) => ValueType::I64,
            ValueRef::F64(_) => ValueType::F64,
        }
    }

    /// The string, where it is one and UTF-8.
    pub fn as_str(self) -> Option<&'a str> {
        match self {
            ValueRef::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The number, where it is a whole one of any width and not negative.
    pub fn as_u64(self) -> Option<u64> {
        match self {
            ValueRef::U8(x) => Some(u64::from(x)),
            ValueRef::U16(x) => Some(u64::from(x)),
            ValueRef::U32(x) => Some(u64::from(x)),
            ValueRef::U64(x) => Some(x),
            ValueRef::I8(x) => u64::try_from(x).ok(),
            ValueRef::I16(x) => u64::try_from(x).ok(),
            ValueRef::I32(x) => u64::try_from(x).ok(),
            ValueRef::I64(x) => u64::try_from(x).ok(),
            _ => None,
        }
    }

    /// The number, where it is a floating-point one.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            ValueRef::F32(x) => Some(f64::from(x)),
            ValueRef::F64(x) => Some(x),
            _ => None,
        }
    }

    /// The truth value, where it is one.
    pub fn as_bool(self) -> Option<bool> {
        match self {
            ValueRef::Bool(x) => Some(x),
            _ => None,
        }
    }

    /// The array, where it is one.
    pub fn as_array(self) -> Option<ArrayRef<'a>> {
        match self {
            ValueRef::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl<'a> ArrayRef<'a> {
    /// The type of every element.
    pub fn element_type(self) -> ValueType {
        self.element_type
    }

    /// Number of elements.
    pub fn len(self) -> usize {
        self.len
    }

    /// True when there is no element.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The elements in order, decoded as they are reached.
    pub fn iter(self) -> Elements<'a> {
        Elements { element_type: self.element_type, left: self.len, bytes: self.bytes }
    }
}

impl<'a> IntoIterator for ArrayRef<'a> {
    type Item = ValueRef<'a>;
    type IntoIter = Elements<'a>;

    fn into_iter(self) -> Elements<'a> {
        self.iter()
    }
}

/// Iterator over the elements of an [`ArrayRef`].
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    element_type: ValueType,
    left: usize,
    bytes: &'a [u8],
}

impl<'a> Iterator for Elements<'a> {
    type Item = ValueRef<'a>;

    fn next(&mut self) -> Option<ValueRef<'a>> {
        self.left = self.left.checked_sub(1)?;
        decode(self.element_type, &mut self.bytes)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Takes one value off the front of `bytes`; `None` where it is incomplete, a bool that is neither 0 nor 1, or an array.
pub(super) fn decode<'a>(value_type: ValueType, bytes: &mut &'a [u8]) -> Option<ValueRef<'a>> {
    Some(match value_type {
        ValueType::U8 => ValueRef::U8(bytes.read_u8().ok()?),
        ValueType::I8 => ValueRef::I8(bytes.read_i8().ok()?),
        ValueType::U16 => ValueRef::U16(bytes.read_u16::<LittleEndian>().ok()?),
        ValueType::I16 => ValueRef::I16(bytes.read_i16::<LittleEndian>().ok()?),
        ValueType::U32 => ValueRef::U32(bytes.read_u32::<LittleEndian>().ok()?),
        ValueType::I32 => ValueRef::I32(bytes.read_i32::<LittleEndian>().ok()?),
        ValueType::F32 => ValueRef::F32(bytes.read_f32::<LittleEndian>().ok()?),
        ValueType::Bool => match bytes.read_u8().ok()? {
            0 => ValueRef::Bool(false),
            1 => ValueRef::Bool(true),
            _ => return None,
        },
        ValueType::String => {
            let len = usize::try_from(bytes.read_u64::<LittleEndian>().ok()?).ok()?;
            let (string, rest) = bytes.split_at_checked(len)?;
            *bytes = rest;
            ValueRef::String(string)
        }
        ValueType::Array => return None,
        ValueType::U64 => ValueRef::U64(bytes.read_u64::<LittleEndian>().ok()?),
        ValueType::I64 => ValueRef::I64(bytes.read_i64::<LittleEndian>().ok()?),
        ValueType::F64 => ValueRef::F64(bytes.read_f64::<LittleEndian>().ok()?),
    })
}

impl From<ValueRef<'_>> for Value {
    fn from(value: ValueRef<'_>) -> Value {
        match value {
            ValueRef::U8(x) => Value::U8(x),
            ValueRef::I8(x) => Value::I8(x),
            ValueRef::U16(x) => Value::U16(x),
            ValueRef::I16(x) => Value::I16(x),
            ValueRef::U32(x) => Value::U32(x),
            ValueRef::I32(x) => Value::I32(x),
            ValueRef::F32(x) => Value::F32(x),
            ValueRef::Bool(x) => Value::Bool(x),
            ValueRef::String(bytes) => Value::String(bytes.to_vec()),
            ValueRef::Array(array) => Value::Array(array.into()),
            ValueRef::U64(x) => Value::U64(x),
            ValueRef::I64(x) => Value::I64(x),
            ValueRef::F64(x) => Value::F64(x),
        }
    }
}

impl From<ArrayRef<'_>> for Array {
    fn from(array: ArrayRef<'_>) -> Array {
        /// The elements of the one variant that the array's type says they all have.
        macro_rules! collect {
            ($variant:ident) => {
                Array::$variant(
                    array.iter().filter_map(|x| if let ValueRef::$variant(x) = x { Some(x.into()) } else { None }).collect(),
                )
            };
        }
        match array.element_type {
            ValueType::U8 => collect!(U8),
            ValueType::I8 => collect!(I8),
            ValueType::U16 => collect!(U16),
            ValueType::I16 => collect!(I16),
            ValueType::U32 => collect!(U32),
            ValueType::I32 => collect!(I32),
            ValueType::F32 => collect!(F32),
            ValueType::Bool => collect!(Bool),
            ValueType::String => collect!(String),
            ValueType::U64 => collect!(U64),
            ValueType::I64 => collect!(I64),
            ValueType::F64 => collect!(F64),
            // No reader lets a nested array through; an empty one is what remains of it.
            ValueType::Array => Array::U8(Vec::new()),
        }
    }
}
