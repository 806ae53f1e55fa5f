// The page: fetches a model or takes a dropped one, hands it to the worker, shows what comes back.

const DEMO = "wiki-32m.fasq";
const MIB = 1024 * 1024;

const $ = (id) => document.getElementById(id);
const [status, progress, form, output] = ["status", "progress", "form", "output"].map($);
let worker = null;
// Loads the model at hand again.
let again = null;
// Models asked for so far: only the last one's bytes are wanted when they come.
let asked = 0;
// A page's memory holds a file twice while it is loaded.
const MOST = 1.5 * 1024 * MIB;

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

function ready(isReady, isWriting = false) {
  $("generate").disabled = !isReady || isWriting;
  $("stop").disabled = !isWriting;
  for (const id of ["demo", "file", "backend"]) $(id).disabled = isWriting;
}

// What tells one version of a file on the server from another.
function versionOf({ headers }) {
  return headers.get("etag") ?? headers.get("last-modified") ?? headers.get("content-length") ?? "";
}

// The demo model, from the browser's cache where it is there and the server has no other.
async function fetchDemo() {
  const cache = await globalThis.caches?.open("fasq").catch(() => null);
  const kept = await cache?.match(DEMO);
  if (kept) {
    const there = await fetch(DEMO, { method: "HEAD" }).catch(() => null);
    if (!there?.ok || versionOf(there) === kept.headers.get("version")) return new Uint8Array(await kept.arrayBuffer());
  }
  const response = await fetch(DEMO);
  if (!response.ok) throw new Error(`${DEMO}: the server answers ${response.status}`);
  const total = Number(response.headers.get("content-length")) || 0;
  const parts = [];
  let got = 0;
  progress.hidden = false;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    got += value.length;
    if (total) progress.value = got / total;
    say(`Fetching ${DEMO}: ${(got / MIB).toFixed(1)} MiB`);
  }
  const blob = new Blob(parts);
  // A full disk only costs another download.
  await cache?.put(DEMO, new Response(blob, { headers: { version: versionOf(response) } })).catch(() => {});
  return new Uint8Array(await blob.arrayBuffer());
}

// Loads a model in a worker of its own: the last one's memory goes with its worker.
async function load(name, bytesOf) {
  worker?.terminate();
  again = () => load(name, bytesOf);
  const number = ++asked;
  ready(false);
  $("about").hidden = true;
  say(`Reading ${name} …`);
  try {
    const bytes = await bytesOf();
    if (number !== asked) return;
    progress.hidden = true;
    say(`Loading ${name} …`);
    worker = new Worker("worker.js", { type: "module" });
    worker.onmessage = ({ data }) => events[data.type](data, name);
    worker.onerror = (event) => fail(event.message || "the page's own script could not be loaded");
    worker.postMessage({ type: "load", bytes, backend: $("backend").value }, [bytes.buffer]);
  } catch (error) {
    if (number !== asked) return;
    progress.hidden = true;
    fail(error.message);
  }
}

function fail(message) {
  ready(false);
  say(`${message} — choose a model to begin again.`, true);
}

function show(list, rows) {
  list.replaceChildren(
    ...rows.flatMap(([name, value]) => {
      const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
      [term.textContent, detail.textContent] = [name, value];
      return [term, detail];
    }),
  );
}

const events = {
  loaded({ info, adapter }, name) {
    const percent = (100 * info.bytes) / (2 * info.parameters);
    show($("facts"), [
      ["Model", `${name}: ${info.family}, ${info.layers} layers, ${(info.parameters / 1e6).toFixed(1)} M weights`],
      ["Size", `${(info.bytes / 1e6).toFixed(1)} MB, ${percent.toFixed(1)} % of FP16`],
      ["Runs on", adapter ? `WebGPU: ${adapter.name}` : info.backend],
      ...(adapter
        ? [["Limits", `${adapter.maxStorageBufferBindingSize / MIB} MiB a binding, ${adapter.maxBufferSize / MIB} MiB a buffer`]]
        : []),
      ...(info.fallback ? [["Why not WebGPU", info.fallback]] : []),
    ]);
    $("about").hidden = false;
    say(info.fallback ? `Not through WebGPU (${info.fallback}): the CPU does it.` : "Ready.");
    ready(true);
  },
  piece({ piece }) {
    output.append(piece);
  },
  end({ stats }) {
    say(
      `${stats.generatedTokens} tokens, ${stats.tokensPerSecond.toFixed(1)} tokens/s, ` +
        `first after ${stats.promptSeconds.toFixed(2)} s; ${stats.reason}.`,
    );
    ready(true);
  },
  error({ message, during }, name) {
    if (during === "load" || message.includes("was lost")) return fail(message.replace(/^model:/, `${name}:`));
    say(message, true);
    ready(true);
  },
};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const number = (id) => Number($(id).value);
  const options = {
    maxTokens: number("tokens"),
    temperature: number("temperature"),
    topP: number("top-p"),
    seed: number("seed"),
  };
  const prompt = $("prompt").value;
  const given = document.createElement("span");
  given.className = "prompt";
  given.textContent = prompt;
  output.replaceChildren(given);
  say("Writing …");
  ready(true, true);
  worker.postMessage({ type: "generate", prompt, options });
});
$("stop").addEventListener("click", () => worker.postMessage({ type: "stop" }));
$("demo").addEventListener("click", () => load(DEMO, fetchDemo));

function take(file) {
  if (!file) return;
  load(file.name, async () => {
    const gib = (bytes) => (bytes / 1024 / MIB).toFixed(1);
    if (file.size > MOST) throw new Error(`${file.name} has ${gib(file.size)} GiB; a page can hold ${gib(MOST)} GiB`);
    return new Uint8Array(await file.arrayBuffer());
  });
}
$("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  // The same file may be chosen again.
  event.target.value = "";
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (!$("stop").disabled) return;
  take(event.dataTransfer.files[0]);
});

$("backend").addEventListener("change", () => {
  if ($("stop").disabled) again();
});

// page.html?backend=wgpu: where to run, from the start.
const wanted = new URLSearchParams(location.search).get("backend");
if ([...$("backend").options].some(({ value }) => value === wanted)) $("backend").value = wanted;
ready(false);
load(DEMO, fetchDemo);
