//! Metadata with the types that a tokenizer needs.

use crate::error::{Error, Fault, Place, Result};
use crate::gguf::{ArrayRef, File, ValueRef, ValueType};

/// The metadata of one file. A key that is absent is `None`; one of another type is an error.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    file: &'a File<'a>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'a File<'a>) -> Fields<'a> {
        Fields { file }
    }

    /// An error about the value of `key`.
    pub(super) fn fault(&self, key: &str, fault: Fault, detail: impl Into<String>) -> Error {
        Error::malformed(self.file.path(), Place::Field(key.to_owned()), fault, detail)
    }

    /// An error about more than is accepted.
    pub(super) fn over_limit(&self, what: &str, limit: usize, found: usize) -> Error {
        Error::Limit { path: self.file.path().to_owned(), what: what.to_owned(), limit: limit as u64, found: found as u64 }
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a UTF-8 string", ValueRef::as_str)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", ValueRef::as_bool)
    }

    pub(super) fn id(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a u32", |value| match value {
            ValueRef::U32(id) => Some(id),
            _ => None,
        })
    }

    /// An array whose elements have one of `types`.
    pub(super) fn array(&self, key: &str, types: &[ValueType]) -> Result<Option<ArrayRef<'a>>> {
        let names: Vec<&str> = types.iter().map(|t| t.name()).collect();
        self.typed(key, &format!("an array of {}", names.join(" or ")), |value| {
            value.as_array().filter(|array| types.contains(&array.element_type()))
        })
    }

    fn typed<T>(&self, key: &str, wanted: &str, convert: impl FnOnce(ValueRef<'a>) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.file.get(key) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.fault(key, Fault::ValueType, format!("{wanted} is needed, found {}", described(value)))),
        }
    }
}

fn described(value: ValueRef) -> String {
    match value {
        ValueRef::Array(array) => format!("an array of {}", array.element_type()),
        ValueRef::String(_) => "a string that is not UTF-8".to_owned(),
        other => format!("a {}", other.value_type()),
    }
}
