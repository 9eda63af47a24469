import { el, percent, rove } from "./dom.js";
import { samplingSliders } from "./controls.js";
import { state, update } from "./state.js";
import { complete, sentenceOf } from "./source.js";
import { visibleProblem } from "./problem.js";
import { token } from "./tokens.js";

// A completion as it is written, each token tinted by how likely the model held it to be.

export function buildGenerate() {
  const sliders = samplingSliders("generate");
  const seed = el("input", { id: "seed", type: "number", min: 0, step: 1, value: 1, inputmode: "numeric" });
  const most = el("input", { id: "most", type: "number", min: 1, max: 4096, step: 1, value: 120, inputmode: "numeric" });
  const start = el("button", { type: "button", class: "primary" }, "Write");
  const stop = el("button", { type: "button", disabled: true }, "Stop");
  const keep = el("button", { type: "button", class: "quiet", hidden: true }, "Take it as the text");
  const said = el("p", { class: "note rate", role: "status" }, "The same seed writes the same text.");
  const written = el("div", { class: "written" }, el("p", { class: "empty" }, "What the model writes appears here."));
  const told = el("p", { class: "note told", "aria-live": "polite" });
  written.addEventListener("pointerover", (event) => tell(told, event.target));
  written.addEventListener("focusin", (event) => tell(told, event.target));
  written.addEventListener("keydown", (event) => rove(event, [...written.querySelectorAll(".drawn-token")], () => {}));
  const parts = { seed, most, start, stop, keep, said, told, written, run: null };
  start.addEventListener("click", () => write(parts));
  stop.addEventListener("click", () => parts.run?.abort());
  keep.addEventListener("click", () => update({ ids: null, text: parts.whole, position: null }));
  const side = el("div", { class: "card side" }, el("h3", {}, "How it is drawn"), sliders.element,
    el("div", { class: "fields" }, field("seed", "Seed", seed), field("most", "Tokens at most", most)),
    el("div", { class: "buttons" }, start, stop));
  const page = el("div", { class: "card" }, written, el("div", { class: "written-foot" }, said, keep),
    el("p", { class: "note key-note" }, el("i", { class: "swatch likely" }), "as expected", el("i", { class: "swatch surprising" }),
      "a surprise; point at a token, or choose it, for its probability"), told);
  return { root: el("div", { class: "columns controls-first" }, page, side), render: sliders.render, show: null };
}

function field(id, label, input) {
  return el("div", { class: "field" }, el("label", { for: id }, label), input);
}

async function write(parts) {
  const { start, stop, keep, said, told, written } = parts;
  const run = new AbortController();
  parts.run = run;
  start.disabled = true;
  stop.disabled = false;
  keep.hidden = true;
  visibleProblem(null);
  parts.whole = state.answer?.model.is_music ? `${state.text.trimEnd()} ` : state.text;
  written.replaceChildren(el("span", { class: "given" }, parts.whole));
  told.replaceChildren();
  said.textContent = "reading the text …";
  const progress = { tokens: 0, begun: null, ended: performance.now(), reason: null };
  try {
    for await (const event of complete(bodyOf(parts), run.signal)) takeIn(event, parts, progress);
    said.textContent = rateOf(progress);
  } catch (error) {
    said.textContent = error.name === "AbortError" ? `${rateOf(progress)}, stopped` : "";
    if (error.name !== "AbortError") visibleProblem(sentenceOf(error), error, () => write(parts));
  } finally {
    start.disabled = false;
    stop.disabled = true;
    keep.hidden = progress.tokens === 0;
  }
}

function bodyOf({ seed, most }) {
  const body = {
    prompt: state.ids ?? state.text, max_tokens: Number(most.value) || 1, seed: Number(seed.value) || 0,
    temperature: state.temperature, logprobs: 0,
  };
  if (state.topK !== null) body.top_k = state.topK;
  if (state.topP < 1) body.top_p = state.topP;
  return body;
}

function takeIn(event, parts, progress) {
  const choice = event.choices[0];
  if (!choice) return;
  const { tokens = [], token_logprobs: logprobs = [] } = choice.logprobs ?? {};
  // The first tokens come with the reading of the prompt: the rate is that of those behind them.
  progress.ended = performance.now();
  progress.begun ??= { time: progress.ended, tokens: tokens.length };
  progress.tokens += tokens.length;
  progress.reason = choice.finish_reason ?? progress.reason;
  parts.whole += choice.text;
  const isWhole = tokens.join("") === choice.text;
  const pieces = isWhole ? tokens.map((text, index) => [text, logprobs[index]]) : [[choice.text, logprobs[0] ?? null]];
  for (const [text, logprob] of pieces) if (text) parts.written.append(writtenToken(text, logprob, parts.written.children.length === 1));
  parts.said.textContent = rateOf(progress);
}

function tell(told, element) {
  const { probability } = element.dataset;
  if (probability) told.replaceChildren(token({ text: element.textContent }), ` was held to be ${percent(Number(probability))} likely.`);
}

// Of the written tokens one can be tabbed to; the arrow keys go on from there.
function writtenToken(text, logprob, isFirst) {
  const element = el("span", { class: "drawn-token", tabindex: isFirst ? 0 : -1 }, text);
  if (logprob !== null && logprob !== undefined) {
    const probability = Math.exp(logprob);
    element.dataset.probability = probability;
    element.classList.toggle("surprise", probability < 0.1);
    element.style.setProperty("--surprise", String(Math.min(1, -Math.log10(Math.max(probability, 1e-4)) / 4)));
  }
  return element;
}

function rateOf({ tokens, begun, ended, reason }) {
  const count = `${tokens} ${tokens === 1 ? "token" : "tokens"}`;
  const seconds = begun ? (ended - begun.time) / 1000 : 0;
  const rate = seconds > 0.05 ? ` · ${((tokens - begun.tokens) / seconds).toFixed(1)} tokens/s` : "";
  const end = { stop: " · the model ended the text", length: " · as long as allowed" }[reason] ?? "";
  return count + rate + end;
}
