// Where answers come from: the service this page was loaded from, or what `herd inspect` recorded in it.

const KEY_NAME = "herd-api-key";
const recordedElement = document.getElementById("recorded");

export const recorded = recordedElement ? JSON.parse(recordedElement.textContent) : null;

export class ServiceError extends Error {
  constructor(status, message, retryAfterSeconds = null) {
    super(message);
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

export function keepKey(key) {
  sessionStorage.setItem(KEY_NAME, key);
}

export async function ask(query, signal) {
  if (recorded) return recordedAnswer(query);
  const response = await post("/v1/inspect", query, signal);
  return response.json();
}

// Yields the objects of a streamed completion.
export async function* complete(body, signal) {
  const response = await post("/v1/completions", { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await readOrFail(reader);
    if (done) throw new ServiceError(0, "the stream broke off before its end");
    waiting += value;
    const events = waiting.split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ServiceError(500, parsed.error.message);
      yield parsed;
    }
  }
}

// What went wrong, as a sentence for people.
export function sentenceOf(error) {
  if (!(error instanceof ServiceError)) return `The page failed: ${error.message}.`;
  const said = sentence(error.message);
  if (error.status === 429 || error.status === 503) {
    const again = error.retryAfterSeconds ? ` It asks to be tried again in ${error.retryAfterSeconds} s.` : "";
    return `The service is busy. ${said}${again}`;
  }
  return said;
}

async function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY_NAME);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch (error) {
    throw unreachable(error);
  }
  if (response.ok) return response;
  let message = `the service answered with status ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch (error) {
    if (error.name === "AbortError") throw error; // otherwise no JSON: a proxy's own page
  }
  throw new ServiceError(response.status, message, Number(response.headers.get("Retry-After")) || null);
}

async function readOrFail(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw unreachable(error);
  }
}

function unreachable(error) {
  if (error.name === "AbortError") return error;
  return new ServiceError(0, "the service does not answer; it may have been stopped. Start it again and go on here");
}

function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

function recordedAnswer(query) {
  const { answer, layers, token, position } = recorded;
  const layer = layers[query.layer];
  const count = answer.tokens.length;
  const weights = unpack(layer.attention, Uint16Array, (value) => value / 65535);
  const perHead = (count * (count + 1)) / 2;
  const rows = [];
  for (let row = 0, at = query.head * perHead; row < count; at += ++row) rows.push(weights.slice(at, at + row + 1));
  const step = { token: unpack(token, Float32Array), position: unpack(position, Float32Array) };
  for (const [name, packed] of Object.entries(layer.vectors)) step[name] = unpack(packed, Float32Array);
  for (const [name, packed] of Object.entries(layer.heads)) {
    const all = unpack(packed, Float32Array);
    const width = all.length / answer.model.n_head;
    step[name] = all.slice(query.head * width, (query.head + 1) * width);
  }
  step.masked = step.scores.map((score, index) => (index >= layer.sees[0] && index <= layer.sees[1] ? score : null));
  return Promise.resolve({ ...answer, layer: query.layer, head: query.head, attention: rows, step });
}

function unpack(text, kind, change = (value) => value) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return Array.from(new kind(bytes.buffer), change);
}
