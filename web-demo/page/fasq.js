// FasqModel: language models in .fasq files, through WebGPU or on the CPU. Types are in fasq.d.ts.

import init, { Engine } from "./fasq_web.js";

// Adapters that compute on the CPU, which the CPU backend does faster.
const SOFTWARE = /swiftshader|llvmpipe|lavapipe|basic render|warp/i;

// Why a model should not run through WebGPU here; null where it should.
async function againstWebGpu() {
  if (!navigator.gpu) return "this browser has no WebGPU";
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) return "this browser's WebGPU has no adapter";
  const { vendor, architecture, description, isFallbackAdapter } = adapter.info;
  const name = [vendor, architecture, description].filter(Boolean).join(" ");
  if (isFallbackAdapter || SOFTWARE.test(name)) return `its adapter, ${name || "a fallback"}, is the CPU itself`;
  return null;
}

export class FasqModel {
  #engine;

  constructor(engine, info) {
    this.#engine = engine;
    this.info = info;
    this.stats = null;
  }

  static async load(bytes, { backend = "auto" } = {}) {
    await init();
    let fallback = null;
    if (backend === "wgpu") {
      if (!navigator.gpu) throw new Error("this browser has no WebGPU");
      return FasqModel.#open(bytes, "wgpu", null);
    }
    if (backend === "auto") {
      fallback = await againstWebGpu();
      if (!fallback) {
        try {
          return await FasqModel.#open(bytes, "wgpu", null);
        } catch (error) {
          fallback = error.message;
        }
      }
    }
    return FasqModel.#open(bytes, "cpu", fallback);
  }

  static async #open(bytes, backend, fallback) {
    const engine = await Engine.load(bytes, backend);
    return new FasqModel(engine, { ...engine.info, fallback });
  }

  async *generate(prompt, { signal, ...options } = {}) {
    const text = this.#engine.generate(prompt, options);
    const stop = () => text.stop();
    signal?.addEventListener("abort", stop);
    try {
      if (signal?.aborted) text.stop();
      for (let piece; (piece = await text.next()) !== undefined; ) yield piece;
      this.stats = text.stats;
    } finally {
      signal?.removeEventListener("abort", stop);
      text.free();
    }
  }

  free() {
    this.#engine.free();
  }
}
