// The page in a real browser: text through WebGPU and on the CPU, and what users do wrong.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { chromium } from "playwright-core";

const { PROMPT, EXPECTED, SMALL, EXPECTED_SMALL, SCREENSHOTS } = process.env;
// Software rendering on a busy machine takes its time.
const TIMEOUT = 180_000;
const FLAGS = [
  "--no-sandbox",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-quic",
  "--disable-dev-shm-usage",
];

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

async function serve() {
  const port = await freePort();
  const server = spawn("sh", [new URL("../serve.sh", import.meta.url).pathname, `${port}`], { stdio: "ignore" });
  const url = `http://127.0.0.1:${port}/`;
  for (let tries = 0; ; tries++) {
    if ((await fetch(url).catch(() => null))?.ok) return { url, stop: () => server.kill() };
    assert(tries < 100, `nothing is served on ${url}: is web-demo/dist built?`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const status = (page) => page.textContent("#status");
const failed = (page) => page.waitForSelector("#status.error", { timeout: TIMEOUT });
const idle = (page) => page.waitForSelector("#generate:enabled", { timeout: TIMEOUT });

// Loads the page, and what it loads by itself: through WebGPU if nothing else is said, for here WebGPU is SwiftShader, to
// which the page would prefer the CPU. `prelude` runs first in the model's worker. A `small` model is served for the demo
// model where kernels are to be run.
async function open(browser, url, { prelude = "", backend = "wgpu", small = false } = {}) {
  const page = await browser.newPage({ viewport: { width: 1200, height: 800 } });
  const strangers = [];
  page.on("request", (request) => {
    if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(url)) strangers.push(request.url());
  });
  if (prelude) {
    await page.route("**/worker.js", async (route) => {
      const response = await route.fetch();
      await route.fulfill({ response, body: prelude + (await response.text()) });
    });
  }
  if (small) await page.route("**/*.fasq", (route) => route.fulfill({ path: SMALL }));
  await page.goto(`${url}?backend=${backend}`);
  return { page, strangers };
}

async function write(page, tokens, temperature = 0) {
  await page.fill("#prompt", PROMPT);
  await page.fill("#tokens", `${tokens}`);
  await page.fill("#temperature", `${temperature}`);
  await page.click("#generate");
}

// Waits until some text follows the prompt.
async function written(page) {
  const longer = (length) => document.querySelector("#output").textContent.length > length;
  await page.waitForFunction(longer, PROMPT.length, { timeout: TIMEOUT });
}

async function greedy(page, expected = EXPECTED) {
  await write(page, 16);
  await idle(page);
  assert.match(await status(page), /16 tokens, [\d.]+ tokens\/s, first after [\d.]+ s; token limit/);
  assert.equal(await page.textContent("#output"), PROMPT + expected);
}

// The page is usable again.
async function onCpu(page, expected = EXPECTED) {
  await page.selectOption("#backend", "cpu");
  await page.click("#demo");
  await idle(page);
  await greedy(page, expected);
}

async function screenshot(page, name) {
  if (SCREENSHOTS) await page.screenshot({ path: `${SCREENSHOTS}/${name}.png`, fullPage: true });
}

const tests = {
  async "text through WebGPU"(browser, url) {
    const { page, strangers } = await open(browser, url, { small: true });
    await idle(page);
    const facts = await page.innerText("#facts");
    assert.match(facts, /WebGPU: \S/);
    assert.match(facts, /\d\.\d MB, \d\d\.\d % of FP16/);
    // The first text waits for kernels to be compiled.
    for (const time of ["first", "again"]) {
      await greedy(page, EXPECTED_SMALL);
      console.log(`  ${time}: ${await status(page)}`);
    }
    await screenshot(page, "desktop");
    await page.setViewportSize({ width: 360, height: 740 });
    const [inner, outer] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert(inner <= outer, `the page is ${inner} pixels wide on a screen of ${outer}`);
    await screenshot(page, "phone");

    await write(page, 500, 0.8);
    await written(page);
    await page.click("#stop");
    await idle(page);
    assert.match(await status(page), /interrupted/);

    const junk = { name: "notes.fasq", mimeType: "application/octet-stream", buffer: Buffer.from("no model at all") };
    await page.setInputFiles("#file", junk);
    await failed(page);
    assert.match(await status(page), /notes\.fasq: expected a \.fasq file/);
    await screenshot(page, "bad-file");
    await page.click("#demo");
    await idle(page);
    assert.deepEqual(strangers, [], "other origins were contacted");
  },

  async "the module by itself"(browser, url) {
    const { page } = await open(browser, url);
    const text = await page.evaluate(async (prompt) => {
      const { FasqModel } = await import("./fasq.js");
      const bytes = new Uint8Array(await (await fetch("wiki-32m.fasq")).arrayBuffer());
      const model = await FasqModel.load(bytes, { backend: "cpu" });
      let text = "";
      for await (const piece of model.generate(prompt, { maxTokens: 16, temperature: 0 })) text += piece;
      model.free();
      return text;
    }, PROMPT);
    assert.equal(text, EXPECTED);
  },

  async "the demo model is kept"(browser, url) {
    const { page } = await open(browser, url, { backend: "cpu" });
    await idle(page);
    const asked = [];
    page.on("request", (request) => {
      if (request.url().endsWith(".fasq")) asked.push(request.method());
    });
    await page.reload();
    await idle(page);
    assert.deepEqual(asked, ["HEAD"]);
    // The server gets a newer one.
    await page.route("**/*.fasq", async (route) => {
      const response = await route.fetch();
      const headers = { ...response.headers(), "last-modified": "Tue, 01 Jan 2030 00:00:00 GMT" };
      await route.fulfill({ response, headers });
    });
    for (const more of [["HEAD", "GET"], ["HEAD"]]) {
      asked.length = 0;
      await page.reload();
      await idle(page);
      assert.deepEqual(asked, more);
    }
    await greedy(page);
  },

  async "an adapter below the limits"(browser, url) {
    const low = "Object.defineProperty(GPUSupportedLimits.prototype, 'maxStorageBufferBindingSize', { get: () => 2 ** 17 });";
    const { page } = await open(browser, url, { prelude: low });
    await failed(page);
    assert.match(await status(page), /the adapter takes buffers of up to 0\.1\d MiB/);
    await onCpu(page);
  },

  async "a model larger than the adapter's memory"(browser, url) {
    const full = `const create = GPUDevice.prototype.createBuffer;
      GPUDevice.prototype.createBuffer = function (descriptor) {
        const size = descriptor.size > 4e6 ? 2 ** 40 : descriptor.size;
        return create.call(this, { ...descriptor, size });
      };`;
    const { page } = await open(browser, url, { prelude: full });
    await failed(page);
    assert.match(await status(page), /backend wgpu: the adapter: .*choose a model to begin again/s);
    await onCpu(page);
  },

  async "a lost device"(browser, url) {
    // The worker loses its device when it is told to.
    const lose = `const request = GPUAdapter.prototype.requestDevice;
      GPUAdapter.prototype.requestDevice = async function (descriptor) {
        const device = await request.call(this, descriptor);
        new BroadcastChannel("lose").onmessage = () => device.destroy();
        return device;
      };`;
    const { page } = await open(browser, url, { prelude: lose, small: true });
    await idle(page);
    await write(page, 500);
    await written(page);
    await page.evaluate(() => new BroadcastChannel("lose").postMessage("now"));
    await failed(page);
    assert.match(await status(page), /the adapter was lost: .* choose a model to begin again/);
    await onCpu(page, EXPECTED_SMALL);
  },

  async "a model larger than a page"(browser, url) {
    const { page } = await open(browser, url, { backend: "cpu" });
    await idle(page);
    await page.evaluate(() => Object.defineProperty(File.prototype, "size", { get: () => 7 * 2 ** 30 }));
    const large = { name: "large.fasq", mimeType: "application/octet-stream", buffer: Buffer.from("seven GiB") };
    await page.setInputFiles("#file", large);
    await failed(page);
    assert.match(await status(page), /large\.fasq has 7\.0 GiB; a page can hold 1\.5 GiB/);
    await onCpu(page);
  },

  async "a CPU behind WebGPU"(browser, url) {
    const { page } = await open(browser, url, { backend: "auto" });
    await idle(page);
    assert.match(await status(page), /Not through WebGPU \(its adapter, .*swiftshader.*, is the CPU itself\): the CPU does it/i);
    assert.match(await page.innerText("#facts"), /Runs on\s+cpu/);
    // The choice is the user's.
    await page.selectOption("#backend", "wgpu");
    await page.waitForSelector("#generate:disabled");
    await idle(page);
    assert.match(await page.innerText("#facts"), /Runs on\s+WebGPU: \S/);
  },

  async "no WebGPU"(browser, url) {
    const none = "Object.defineProperty(navigator, 'gpu', { value: undefined });";
    const { page } = await open(browser, url, { prelude: none, backend: "auto" });
    await idle(page);
    assert.match(await status(page), /Not through WebGPU \(this browser has no WebGPU\): the CPU does it/);
    await greedy(page);
    await screenshot(page, "cpu");
  },
};

const wanted = Object.entries(tests).filter(([name]) => name.includes(process.argv[2] ?? ""));
assert(wanted.length > 0, `there is no test ${process.argv[2]}`);

// Takes one test after the other; two of these keep two cores busy.
async function work(url) {
  for (let next; (next = wanted.shift()); ) {
    const [name, test] = next;
    const browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: [...FLAGS, "--enable-unsafe-webgpu"],
    });
    try {
      await test(browser, url);
      console.log(name);
    } catch (error) {
      const pages = browser.contexts().flatMap((context) => context.pages());
      const said = await Promise.all(pages.map((page) => status(page).catch(() => "nothing")));
      console.error(`${name}: failed; the page says "${said.join('", "')}"`);
      throw error;
    } finally {
      await browser.close();
    }
  }
}

const server = await serve();
try {
  await Promise.all([work(server.url), work(server.url)]);
} finally {
  server.stop();
}
