//! The wgpu backend: WGSL kernels (`shaders/`) on Vulkan, Metal, DX12, and WebGPU in a browser.
//!
//! A forward pass is one command buffer; decoding makes no GPU object per token, because the parameters of a kernel
//! are the same for every token and bind groups are kept.

mod backend;
mod commands;
mod device;
mod joined;
mod layout;
mod linear;
mod pipelines;
mod unroll;
mod waiting;
mod weight;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub use commands::Commands;
pub use device::{Matmul, Options};
pub use weight::Weight;

use crate::{Error, Result};
use device::{Device, UNIFORM};
use pipelines::Cache;

/// A GPU, opened.
#[derive(Clone)]
pub struct Wgpu(Arc<Inner>);

struct Inner {
    device: Device,
    cache: Arc<Cache>,
    /// What a binding that a kernel does not use is bound to.
    nothing: Buffer,
    /// The buffer that results are read through, when nobody reads.
    staging: Mutex<Option<wgpu::Buffer>>,
    /// What argmax.wgsl found last.
    found: Mutex<Option<Buffer>>,
    dispatches: AtomicU64,
}

/// An array of 4-byte words on the device, or a part of one.
pub struct Buffer {
    storage: Arc<Storage>,
    /// First word, and words, of the part.
    part: Option<[u64; 2]>,
}

/// Parts of buffers begin at multiples of so many words.
const PART_ALIGN: usize = 64;

struct Storage {
    raw: wgpu::Buffer,
    /// Unlike any other buffer's, and above any word of a parameter struct.
    id: u64,
    cache: Arc<Cache>,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.cache.forget(self.id);
    }
}

impl Buffer {
    fn new(raw: wgpu::Buffer, cache: &Arc<Cache>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { storage: Arc::new(Storage { raw, id, cache: cache.clone() }), part: None }
    }

    fn raw(&self) -> &wgpu::Buffer {
        &self.storage.raw
    }

    fn id(&self) -> u64 {
        self.storage.id
    }

    /// First word of the part.
    fn start(&self) -> u64 {
        self.part.map_or(0, |[start, _]| start)
    }

    /// What a kernel that uses this is bound to.
    fn binding(&self) -> wgpu::BufferBinding<'_> {
        let size = self.part.and_then(|[_, words]| wgpu::BufferSize::new(4 * words));
        wgpu::BufferBinding { buffer: self.raw(), offset: 4 * self.start(), size }
    }

    /// Another handle on the same words.
    fn share(&self) -> Self {
        Self { storage: self.storage.clone(), part: self.part }
    }

    /// A handle on `words` words from word `start` of the array on, a multiple of [`PART_ALIGN`].
    fn part(&self, start: usize, words: usize) -> Self {
        Self { storage: self.storage.clone(), part: Some([start as u64, words as u64]) }
    }

    /// A handle on the whole array.
    fn whole(&self) -> Self {
        Self { storage: self.storage.clone(), part: None }
    }
}

impl Wgpu {
    /// Opens the best adapter that the options allow.
    pub async fn open(options: Options) -> Result<Self> {
        let device = Device::open(options).await?;
        let cache = Arc::new(Cache::default());
        let raw = device.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("nothing"),
            size: 16,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let nothing = Buffer::new(raw, &cache);
        let (staging, found, dispatches) = (Mutex::new(None), Mutex::new(None), AtomicU64::new(0));
        Ok(Self(Arc::new(Inner { device, cache, nothing, staging, found, dispatches })))
    }

    /// [`Wgpu::open`] of any adapter by its number, for a program that can wait.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new(index: usize) -> Result<Self> {
        pollster::block_on(Self::open(Options { index, ..Options::default() }))
    }

    /// Whether there is a GPU that is not the CPU in disguise.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn has_gpu() -> bool {
        pollster::block_on(Self::open(Options { software: false, ..Options::default() })).is_ok()
    }

    /// The adapter, and what it can.
    pub fn adapter(&self) -> &wgpu::AdapterInfo {
        &self.0.device.info
    }

    /// Whether prompts are multiplied on matrix units, in f16.
    pub fn has_tensor(&self) -> bool {
        self.0.device.tensor
    }

    /// Bytes of a weight that are bound at a time; a larger one takes several dispatches.
    pub fn weight_slice(&self) -> u64 {
        self.0.device.weight_slice
    }

    /// A storage buffer of `words` zeros.
    fn storage(&self, words: usize) -> Result<Buffer> {
        let Device { device, max_binding, .. } = &self.0.device;
        // Uniforms have their whole length: that of delta_step.wgsl, or of rows_uniform.wgsl.
        let least = if self.0.device.rows { UNIFORM } else { 256 };
        let size = (words as u64).saturating_mul(4).max(least);
        if size > *max_binding {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let (most, name) = (mib(*max_binding), self.0.device.name());
            let why = format!("{name} takes buffers of up to {most:.2} MiB, not {:.2}", mib(size));
            return Err(Error::backend("wgpu", why));
        }
        use wgpu::BufferUsages as Usage;
        let uniform = if self.0.device.rows || size == least { Usage::UNIFORM } else { Usage::empty() };
        let raw = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST | uniform,
            mapped_at_creation: false,
        });
        self.0.device.check()?;
        Ok(Buffer::new(raw, &self.0.cache))
    }

    /// Writes words from word `start` on, before anything submitted afterwards.
    fn upload_at(&self, buffer: &Buffer, start: usize, words: &[u32]) {
        if !words.is_empty() {
            let at = 4 * (buffer.start() + start as u64);
            self.0.device.queue.write_buffer(buffer.raw(), at, bytemuck::cast_slice(words));
        }
    }

    /// Starts what was uploaded on its way, so that its staging memory comes free.
    fn flush_uploads(&self) {
        self.0.device.queue.submit([]);
    }
}
