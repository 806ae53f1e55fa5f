//! Metadata: values by key, read with errors that name the key.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// The type of a value, or of a list's members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Kind {
    /// By its number in a file.
    pub fn new(number: u32) -> Result<Self, String> {
        use Kind::*;
        let kinds = [U8, I8, U16, I16, U32, I32, F32, Bool, Text, List, U64, I64, F64];
        let kind = usize::try_from(number).ok().and_then(|number| kinds.get(number));
        kind.copied()
            .ok_or_else(|| format!("a value of type {number}, where 0 to {} are known", kinds.len() - 1))
    }

    /// Bytes of a number of this type; 0 of what is none.
    pub fn size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Text | Self::List => 0,
        }
    }

    /// A number of this type from as many little-endian bytes.
    pub fn number<'a>(self, bytes: &[u8]) -> Result<Value<'a>, String> {
        let mut raw = [0; 8];
        raw.iter_mut().zip(bytes).for_each(|(raw, byte)| *raw = *byte);
        let bits = u64::from_le_bytes(raw);
        Ok(match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Int(bits.into()),
            Self::I8 => Value::Int((bits as i8).into()),
            Self::I16 => Value::Int((bits as i16).into()),
            Self::I32 => Value::Int((bits as i32).into()),
            Self::I64 => Value::Int((bits as i64).into()),
            Self::F32 => Value::Float(f32::from_bits(bits as u32).into()),
            Self::F64 => Value::Float(f64::from_bits(bits)),
            Self::Bool if bits < 2 => Value::Bool(bits == 1),
            Self::Bool => return Err(format!("a truth value of {bits}")),
            Self::Text | Self::List => return Err("no number".into()),
        })
    }
}

/// A value of the metadata.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(&'a str),
    List(List<'a>),
}

impl Value<'_> {
    /// What it is, for messages.
    fn describe(&self) -> String {
        match self {
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
            Self::List(_) => "a list".into(),
        }
    }
}

/// A list of values of one type.
#[derive(Clone, Debug)]
pub enum List<'a> {
    Texts(Vec<&'a str>),
    /// Their type and their bytes.
    Numbers(Kind, &'a [u8]),
}

/// Every value by its key.
#[derive(Debug)]
pub struct Metadata<'a>(pub BTreeMap<&'a str, Value<'a>>);

impl<'a> Metadata<'a> {
    /// The value of a key as `read` understands it, if the key is there.
    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let mismatch = || Error::mismatch(format!("metadata {key}"), expected, value.describe());
        read(value).map(Some).ok_or_else(mismatch)
    }

    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a text", |value| if let Value::Text(text) = value { Some(*text) } else { None })
    }

    /// A whole number from 0 on.
    pub fn count(&self, key: &str) -> Result<Option<u64>> {
        let count = |value: &Value<'_>| if let Value::Int(n) = value { u64::try_from(*n).ok() } else { None };
        self.read(key, "a whole number from 0 on", count)
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a finite number", |value| match value {
            Value::Int(n) => Some(*n as f64),
            Value::Float(n) => Some(*n).filter(|n| n.is_finite()),
            Value::Bool(_) | Value::Text(_) | Value::List(_) => None,
        })
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(
            key,
            "true or false",
            |value| if let Value::Bool(flag) = value { Some(*flag) } else { None },
        )
    }

    pub fn texts(&self, key: &str) -> Result<Option<&[&'a str]>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::List(List::Texts(texts))) => Ok(Some(texts)),
            Some(other) => {
                Err(Error::mismatch(format!("metadata {key}"), "a list of texts", other.describe()))
            }
        }
    }

    /// The numbers of a list; truth values count as 0 and 1.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.read(key, "a list of numbers", |value| {
            let Value::List(List::Numbers(kind, bytes)) = value else { return None };
            let number = |bytes| match kind.number(bytes) {
                Ok(Value::Int(n)) => Some(n as f64),
                Ok(Value::Float(n)) => Some(n),
                Ok(Value::Bool(flag)) => Some(f64::from(u8::from(flag))),
                Ok(Value::Text(_) | Value::List(_)) | Err(_) => None,
            };
            bytes.chunks_exact(kind.size() as usize).map(number).collect()
        })
    }

    /// A value that must be there.
    pub fn required<T>(key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::mismatch(format!("metadata {key}"), "a value", "nothing"))
    }
}
