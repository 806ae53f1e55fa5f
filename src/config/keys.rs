//! Keys of config.json, read with errors that name them.

use serde_json::Value;

use crate::{Error, Result};

/// No size in a config may exceed this: the products of a few of them still fit in 64 bits, and a buffer that they
/// size is refused before it is allocated.
const MAX_SIZE: u64 = 1 << 24;

/// The keys of one JSON object, with errors that name them.
#[derive(Clone)]
pub(super) struct Keys<'a> {
    file: &'a str,
    value: Value,
}

impl<'a> Keys<'a> {
    pub fn parse(file: &'a str, text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|e| Error::invalid(file, e))?;
        if !value.is_object() {
            return Err(Error::mismatch(file, "a JSON object", value));
        }
        Ok(Self { file, value })
    }

    /// These keys, and `defaults` (a JSON object) for those that are absent: a key that is null stays without value.
    pub fn or_defaults(mut self, defaults: &str) -> Result<Self> {
        let Self { value: Value::Object(defaults), .. } = Self::parse("defaults", defaults)? else {
            return Ok(self);
        };
        if let Value::Object(own) = &mut self.value {
            for (key, value) in defaults {
                own.entry(key).or_insert(value);
            }
        }
        Ok(self)
    }

    /// A key's value, if it is there and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|v| !v.is_null())
    }

    pub fn is_empty(&self) -> bool {
        self.value.as_object().is_none_or(serde_json::Map::is_empty)
    }

    pub fn object(&self, key: &str) -> Option<Self> {
        let value = self.get(key).filter(|v| v.is_object())?.clone();
        Some(Self { file: self.file, value })
    }

    pub fn mismatch(&self, key: &str, expected: impl ToString) -> Error {
        let found = self.get(key).map_or("nothing".into(), Value::to_string);
        Error::mismatch(format!("{}: {key}", self.file), expected, found)
    }

    /// A size that must be there, from 1 to 2^24.
    pub fn size(&self, key: &str) -> Result<usize> {
        let size = self.get(key).and_then(Value::as_u64).filter(|n| (1..=MAX_SIZE).contains(n));
        size.map(|n| n as usize).ok_or_else(|| self.mismatch(key, "a whole number from 1 to 2^24"))
    }

    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.size(key) } else { Ok(default) }
    }

    /// A size, or nothing where the key is absent or null.
    pub fn size_if(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|_| self.size(key)).transpose()
    }

    /// A whole number that must be there.
    pub fn count(&self, key: &str) -> Result<u64> {
        self.get(key).and_then(Value::as_u64).ok_or_else(|| self.mismatch(key, "a whole number"))
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    /// A positive number that must be there.
    pub fn positive(&self, key: &str) -> Result<f64> {
        let number = self.get(key).and_then(Value::as_f64).filter(|n| n.is_finite() && *n > 0.0);
        number.ok_or_else(|| self.mismatch(key, "a positive number"))
    }

    /// A list of such numbers.
    pub fn positives(&self, key: &str, count: usize) -> Result<Vec<f64>> {
        let numbers = |list: &Vec<Value>| list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
        let list = self.get(key).and_then(Value::as_array).and_then(numbers);
        let list = list.filter(|list| list.len() == count && list.iter().all(|n| n.is_finite() && *n > 0.0));
        list.ok_or_else(|| self.mismatch(key, format!("{count} positive numbers")))
    }

    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.mismatch(key, "a number"))
    }

    pub fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Token ids below `vocab`, from a number, a list or nothing.
    pub fn token_ids(&self, key: &str, vocab: usize) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().filter(|id| *id < vocab as u64).map(|id| id as u32);
        let ids = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(one) => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.mismatch(key, format!("token ids below the vocabulary of {vocab}")))
    }
}
