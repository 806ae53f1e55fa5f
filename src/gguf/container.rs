//! The container: metadata, then a table of tensors, then their data.
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little-endian. Counts and
//! lengths are believed only as far as the file goes: nothing is allocated that its bytes do not fill.

use std::collections::BTreeMap;
use std::ops::Range;

use super::blocks::{self, Blocks};
use super::metadata::{Kind, List, Metadata, Value};

/// The first bytes of a file.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// The key that says how tensors are aligned, and the alignment without it.
const ALIGNMENT: (&str, u64) = ("general.alignment", 32);
/// No padding is longer.
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;

/// What a file says before its tensors' data.
#[derive(Debug)]
pub struct Container<'a> {
    pub metadata: Metadata<'a>,
    pub tensors: Vec<TensorInfo<'a>>,
}

/// A tensor of the table.
#[derive(Debug)]
pub struct TensorInfo<'a> {
    pub name: &'a str,
    /// Rows before columns: `[out, in]`. (The file has them the other way round.)
    pub shape: Vec<usize>,
    pub blocks: &'static Blocks,
    /// Its bytes in the file; no other tensor's overlap them.
    pub bytes: Range<usize>,
}

impl<'a> Container<'a> {
    /// Reads everything before the data; or says what is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut cursor = Cursor { bytes, at: 0 };
        if cursor.take(4).ok() != Some(MAGIC) {
            return Err("it does not begin with GGUF".into());
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("version {version}, where 2 and 3 are known (little-endian)"));
        }
        let (tensors, pairs) = (cursor.u64()?, cursor.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..pairs {
            let key = cursor.text()?;
            let value = cursor.value().map_err(|why| format!("metadata {key}: {why}"))?;
            if metadata.insert(key, value).is_some() {
                return Err(format!("metadata {key} is there twice"));
            }
        }
        let mut table = Vec::new();
        for _ in 0..tensors {
            table.push(cursor.row()?);
        }
        let (key, default) = ALIGNMENT;
        let alignment = match metadata.get(key) {
            None => default,
            Some(Value::Int(found)) => u64::try_from(*found).unwrap_or(0),
            Some(_) => 0,
        };
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            return Err(format!("{key} is no power of two up to {MAX_ALIGNMENT}"));
        }
        let data = (cursor.at as u64).next_multiple_of(alignment);
        let place = |row: Row<'a>| {
            let name = row.name;
            row.placed(data, alignment, bytes.len()).map_err(|why| format!("tensor {name}: {why}"))
        };
        let tensors = table.into_iter().map(place).collect::<Result<Vec<_>, _>>()?;
        check_apart(&tensors)?;
        Ok(Self { metadata: Metadata(metadata), tensors })
    }
}

/// Fails if two tensors share bytes: a small file could stand for any amount of weights.
fn check_apart(tensors: &[TensorInfo<'_>]) -> Result<(), String> {
    let mut order: Vec<&TensorInfo<'_>> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.bytes.start);
    match order.windows(2).find(|pair| pair[0].bytes.end > pair[1].bytes.start) {
        None => Ok(()),
        Some(pair) => Err(format!("tensors {} and {} overlap", pair[0].name, pair[1].name)),
    }
}

/// A line of the table, as it stands there.
struct Row<'a> {
    name: &'a str,
    /// Columns first.
    dimensions: Vec<u64>,
    kind: u32,
    /// From the start of the data.
    offset: u64,
}

impl<'a> Row<'a> {
    /// The tensor in a file of `length` bytes whose data begins at `data`.
    fn placed(self, data: u64, alignment: u64, length: usize) -> Result<TensorInfo<'a>, String> {
        let blocks = blocks::of_kind(self.kind)?;
        let shape = self.dimensions.iter().rev().map(|n| usize::try_from(*n)).collect::<Result<Vec<_>, _>>();
        let elements = self.dimensions.iter().try_fold(1_u64, |product, n| product.checked_mul(*n));
        let (Ok(shape), Some(elements)) = (shape, elements) else {
            return Err(format!("a shape of {:?} is beyond any file", self.dimensions));
        };
        if elements == 0 || !self.dimensions[0].is_multiple_of(blocks.elements as u64) {
            let expected = format!("rows of whole blocks of {} elements", blocks.elements);
            return Err(format!("expected {expected}, found a shape of {shape:?} in {}", blocks.name));
        }
        if !self.offset.is_multiple_of(alignment) {
            return Err(format!("its offset {} is no multiple of {alignment}", self.offset));
        }
        let start = data.checked_add(self.offset);
        let size = (elements / blocks.elements as u64).checked_mul(blocks.bytes as u64);
        let end = start.zip(size).and_then(|(start, size)| start.checked_add(size));
        match (start, end) {
            (Some(start), Some(end)) if end <= length as u64 => {
                Ok(TensorInfo { name: self.name, shape, blocks, bytes: start as usize..end as usize })
            }
            _ => Err(format!("its data at offset {} is beyond the file's {length} bytes", self.offset)),
        }
    }
}

/// Reads from the start of a file on.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(count).ok().and_then(|count| rest.get(..count));
        let taken = taken
            .ok_or_else(|| format!("{count} bytes wanted at byte {}, of {}", self.at, self.bytes.len()))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N as u64)?;
        taken.try_into().map_err(|_| "a number is cut off".into())
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.u64()?;
        std::str::from_utf8(self.take(length)?).map_err(|e| format!("a text is not UTF-8: {e}"))
    }

    fn kind(&mut self) -> Result<Kind, String> {
        Kind::new(self.u32()?)
    }

    fn value(&mut self) -> Result<Value<'a>, String> {
        match self.kind()? {
            Kind::Text => self.text().map(Value::Text),
            Kind::List => self.list().map(Value::List),
            kind => kind.number(self.take(kind.size())?),
        }
    }

    fn list(&mut self) -> Result<List<'a>, String> {
        let (kind, count) = (self.kind()?, self.u64()?);
        if kind == Kind::List {
            return Err("lists of lists have no meaning here".into());
        }
        if kind == Kind::Text {
            let mut texts = Vec::new();
            for _ in 0..count {
                texts.push(self.text()?);
            }
            return Ok(List::Texts(texts));
        }
        let size = count.checked_mul(kind.size()).ok_or_else(|| format!("a list of {count} numbers"))?;
        Ok(List::Numbers(kind, self.take(size)?))
    }

    fn row(&mut self) -> Result<Row<'a>, String> {
        let name = self.text()?;
        let count = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&count) {
            return Err(format!("tensor {name}: expected 1 to {MAX_DIMENSIONS} dimensions, found {count}"));
        }
        let dimensions = (0..count).map(|_| self.u64()).collect::<Result<_, _>>()?;
        Ok(Row { name, dimensions, kind: self.u32()?, offset: self.u64()? })
    }
}
