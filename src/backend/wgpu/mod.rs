//! The wgpu backend: WGSL kernels (`shaders/`) on Vulkan, Metal, DX12, and WebGPU in a browser.
//!
//! A forward pass is one command buffer. Decoding creates no GPU object per token: the parameters of a kernel are the
//! same for every token, and bind groups are kept.
//!
//! | file | what it holds |
//! |---|---|
//! | `device` | the adapter, the device and what of it is used |
//! | `shader`, `unroll`, `limits` | the kernels' sources, and the sizes that they are written for |
//! | `pipelines` | compiled kernels and bind groups, each made once |
//! | `commands` | lists of kernels: recorded, submitted, submitted again |
//! | `layout`, `weight` | weights on the device |
//! | `linear` | which kernel a weight is multiplied with |
//! | `plan` | what is fused |
//! | `lower` | the kernels of each step of a plan |
//! | `backend` | [`crate::backend::Backend`] for [`Wgpu`] |

mod backend;
mod commands;
mod device;
mod layout;
mod limits;
mod linear;
mod lower;
mod pipelines;
mod plan;
mod shader;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
mod unroll;
mod weight;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

pub use weight::Weight;

use crate::backend::unique;
use crate::ops::Operand;
use crate::{Error, Result};
use device::{Capabilities, Device, adapter};
use limits::MAX_VALUE_HEADS;
use pipelines::Cache;

/// A GPU, opened.
#[derive(Clone)]
pub struct Wgpu(Arc<Inner>);

struct Inner {
    device: Device,
    cache: Arc<Cache>,
    /// What bindings that a kernel does not use are bound to.
    unused: Buffer,
    /// The buffer that results are read through; None while one is.
    staging: Mutex<Option<wgpu::Buffer>>,
    /// The buffer that argmax.wgsl writes to; None while it is read.
    maxima: Mutex<Option<Buffer>>,
    dispatches: AtomicU64,
}

/// An array of 4-byte words on the device, or a part of one.
pub struct Buffer {
    storage: Arc<Storage>,
    /// First word, and words, of the part.
    part: Option<[u64; 2]>,
}

/// Words that the first word of a part is a multiple of: the 256 bytes that any adapter aligns bindings to.
const PART_ALIGN: usize = 64;

struct Storage {
    raw: wgpu::Buffer,
    /// Unlike any other storage's.
    id: u64,
    cache: Arc<Cache>,
    /// Words that were asked for.
    words: usize,
}

impl Operand for Buffer {
    fn id(&self) -> u64 {
        self.storage.id
    }

    fn elements(&self) -> usize {
        self.part.map_or(self.storage.words, |[_, words]| words as usize)
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.cache.forget(self.id);
    }
}

impl Buffer {
    fn new(raw: wgpu::Buffer, cache: &Arc<Cache>, words: usize) -> Self {
        Self { storage: Arc::new(Storage { raw, id: unique(), cache: cache.clone(), words }), part: None }
    }

    fn raw(&self) -> &wgpu::Buffer {
        &self.storage.raw
    }

    /// First word of the part.
    fn start(&self) -> u64 {
        self.part.map_or(0, |[start, _]| start)
    }

    /// The binding of a kernel that uses this.
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
    /// Opens the adapter of number `index`, 0 for the best.
    pub async fn open(index: usize) -> Result<Self> {
        let adapter = adapter(index, true).await?;
        Self::open_as(&adapter, Capabilities::of(&adapter)).await
    }

    /// Opens an adapter with these of its capabilities.
    async fn open_as(adapter: &wgpu::Adapter, capabilities: Capabilities) -> Result<Self> {
        let device = Device::open(adapter, capabilities).await?;
        let cache = Arc::new(Cache::default());
        let raw = device.buffer(&wgpu::BufferDescriptor {
            label: Some("unused"),
            size: 16,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let unused = Buffer::new(raw, &cache, 4);
        let (staging, maxima, dispatches) = (Mutex::new(None), Mutex::new(None), AtomicU64::new(0));
        Ok(Self(Arc::new(Inner { device, cache, unused, staging, maxima, dispatches })))
    }

    /// [`Wgpu::open`] for a program that can wait.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new(index: usize) -> Result<Self> {
        pollster::block_on(Self::open(index))
    }

    /// Whether there is a GPU that can be used; a software adapter is none.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn has_gpu() -> bool {
        let open = async {
            let adapter = adapter(0, false).await?;
            Self::open_as(&adapter, Capabilities::of(&adapter)).await
        };
        pollster::block_on(open).is_ok()
    }

    /// What the adapter says of itself.
    pub fn adapter(&self) -> &wgpu::AdapterInfo {
        &self.0.device.info
    }

    /// Whether prompts are multiplied on matrix units, in f16.
    pub fn has_tensor(&self) -> bool {
        self.0.device.capabilities.tensor
    }

    /// Bytes of a weight that are bound at a time; a larger weight takes several dispatches.
    pub fn weight_slice(&self) -> u64 {
        self.0.device.capabilities.weight_slice
    }

    /// A storage buffer of `words` zeros.
    fn storage(&self, words: usize) -> Result<Buffer> {
        let device = &self.0.device;
        // Short ones can be bound as uniforms, which have their whole length (delta_step.wgsl).
        let uniform = 4 * MAX_VALUE_HEADS as u64;
        let size = (words as u64).saturating_mul(4).max(uniform);
        if size > device.max_binding {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let (most, name) = (mib(device.max_binding), device.name());
            let why = format!("{name} takes buffers of up to {most:.2} MiB, not {:.2}", mib(size));
            return Err(Error::backend("wgpu", why));
        }
        use wgpu::BufferUsages as Usage;
        let uniform = if size == uniform { Usage::UNIFORM } else { Usage::empty() };
        let raw = device.buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST | uniform,
            mapped_at_creation: false,
        });
        device.check()?;
        Ok(Buffer::new(raw, &self.0.cache, words))
    }

    /// Writes words from word `start` on, before anything submitted afterwards.
    fn upload_at(&self, buffer: &Buffer, start: usize, words: &[u32]) {
        if !words.is_empty() {
            let at = 4 * (buffer.start() + start as u64);
            self.0.device.queue.write_buffer(buffer.raw(), at, bytemuck::cast_slice(words));
        }
    }

    /// Submits the uploads so far, so that their staging memory is freed.
    fn flush_uploads(&self) {
        self.0.device.queue.submit([]);
    }
}
