import { el, inWords, percent, redraw, shown } from "./dom.js";
import { prepare, signedColour } from "./colours.js";
import { placeSliders } from "./controls.js";
import { positionShown, state, update } from "./state.js";
import { token } from "./tokens.js";

// One token's way through the stack, in the numbers of the loaded model.

const NUM_LOGITS = 10;
const NUM_NUMBERS = 6;

export function buildStep() {
  const sliders = placeSliders("step");
  const heading = el("h2", {});
  const way = el("ol", { class: "way" });
  const lens = el("div", { class: "card" });
  const logits = el("div", { class: "card" });
  const root = el("div", { class: "columns wide-main" },
    el("div", { class: "card" }, heading, sliders.element, way), el("div", { class: "stack" }, lens, logits));
  const render = () => {
    sliders.render();
    const { answer } = state;
    if (!answer?.step || !answer.lens || !answer.next) return;
    heading.replaceChildren(inWords(`{} in layer ${answer.layer + 1}`, token(answer.tokens[positionShown()])));
    redraw(way, ...stagesOf(answer));
    for (const draw of way.querySelectorAll("canvas")) drawVector(draw);
    redraw(lens, ...lensOf(answer));
    redraw(logits, ...logitsOf(answer));
  };
  return { root, render, show: ["step", "lens", "next"] };
}

function stagesOf({ step, tokens, layer, head, model }) {
  const at = positionShown();
  const width = model.n_embd / model.n_head;
  const earlier = layer === 0 ? null : vector(`The stream behind ${layer === 1 ? "layer 1" : `layers 1 to ${layer}`}`, step.before);
  return [
    stage("Embedding", `x = wte[${tokens[at].id}] + wpe[${at}]`,
      vector("Token", step.token), vector("Position", step.position),
      vector("Their sum, the stream", step.token.map((value, index) => value + step.position[index])), earlier),
    stage("LayerNorm", "n = ln_1(x)", vector("Normed", step.normed)),
    stage(`Head ${head + 1} asks`, "q, k, v = n · W + b", vector("Query", step.query), vector("Key", step.key), vector("Value", step.value)),
    stage("Scores", `q · k / √${width}, then the mask, then softmax`, scoresOf(step, tokens)),
    stage("Attention", "a = mix of values, all heads, projected", vector(`Head ${head + 1}’s mix of values`, step.mixed),
      vector("What attention adds", step.attention), vector("The stream with it", step.middle)),
    stage("MLP", "m = W₂ · gelu(W₁ · ln_2(x) + b₁) + b₂", vector("What the MLP adds", step.mlp)),
    stage("Block’s output", "x + a + m", vector("The stream", step.after)),
  ];
}

function stage(title, formula, ...content) {
  return el("li", {}, el("div", { class: "stage-head" }, el("h3", {}, title), el("code", {}, formula)), ...content);
}

const vectorsOnPage = new WeakMap();

function vector(name, values) {
  const length = Math.sqrt(values.reduce((total, value) => total + value * value, 0));
  const first = values.slice(0, NUM_NUMBERS).map(shown).join("  ") + (values.length > NUM_NUMBERS ? "  …" : "");
  const numbers = el("p", { class: "numbers" }, first);
  const canvas = el("canvas", { class: "vector", role: "slider", tabindex: 0, "aria-label": name, "aria-valuemin": 0,
    "aria-valuemax": values.length - 1, "aria-valuenow": 0, "data-keep": name });
  let at = 0;
  const say = (index) => {
    at = Math.min(values.length - 1, Math.max(0, index));
    numbers.textContent = `[${at}] = ${values[at]}`;
    canvas.setAttribute("aria-valuenow", at);
    canvas.setAttribute("aria-valuetext", numbers.textContent);
  };
  const point = (event) => say(Math.floor((event.offsetX / canvas.clientWidth) * values.length));
  const leave = () => (numbers.textContent = first);
  const keys = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity };
  vectorsOnPage.set(canvas, values);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
  canvas.addEventListener("focus", () => say(at));
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    say(at + keys[event.key]);
  });
  return el("div", { class: "vector-box" },
    el("p", { class: "vector-name" }, name, el("span", { class: "note" }, `${values.length} numbers, length ${shown(length)}`)), canvas, numbers);
}

function drawVector(canvas) {
  const values = vectorsOnPage.get(canvas);
  const width = canvas.parentElement.clientWidth;
  if (!width) return;
  const context = prepare(canvas, width, 18);
  const limit = Math.max(...values.map(Math.abs));
  const each = width / values.length;
  values.forEach((value, index) => {
    context.fillStyle = signedColour(value, limit);
    context.fillRect(index * each, 0, Math.ceil(each), 18);
  });
}

function scoresOf(step, tokens) {
  const at = positionShown();
  const rows = tokens.map((entry, index) => {
    const bar = el("i", { class: "drawn" });
    bar.style.width = `${step.weights[index] * 100}%`;
    return el("tr", { class: step.masked[index] === null ? "masked" : index === at ? "self" : "" },
      el("th", { scope: "row" }, token(entry)), el("td", {}, shown(step.scores[index])), el("td", {}, shown(step.masked[index])),
      el("td", { class: "bar-cell" }, el("span", { class: "bar", "aria-hidden": "true" }, bar), el("span", { class: "value" }, percent(step.weights[index]))));
  });
  const table = el("table", { class: "scores" }, el("thead", {}, el("tr", {}, ...["token", "score", "masked", "weight"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "data-keep": "scores", "aria-label": "Scores of every token" }, table);
}

function lensOf(answer) {
  const rows = answer.lens.map((entry, index) => {
    const best = entry.top[0];
    const bar = el("i", { class: "drawn" });
    bar.style.width = `${best.probability * 100}%`;
    const name = index === 0 ? "embedding" : `layer ${index}`;
    const others = entry.top.slice(1).map((other) => el("span", { class: "then" }, token(other), ` ${percent(other.probability)}`));
    return el("tr", { class: index === answer.layer + 1 ? "self" : "" },
      el("th", { scope: "row" }, index === 0 ? name : el("button", { type: "button", class: "link", "data-keep": name, onclick: () => update({ layer: index - 1 }) }, name)),
      el("td", {}, token(best), ...others),
      el("td", { class: "bar-cell" }, el("span", { class: "bar", "aria-hidden": "true" }, bar), el("span", { class: "value" }, percent(best.probability))),
      el("td", { class: "rank" }, `${entry.chosen.rank}`));
  });
  const chosen = answer.lens.at(-1).top[0];
  return [
    el("h2", {}, "Logit lens"),
    el("p", { class: "note" }, inWords("What the model would choose if it stopped after each layer, and how high its final choice {} stands there.", token(chosen))),
    el("table", { class: "lens" }, el("thead", {}, el("tr", {}, ...["after", "would choose", "probability", "rank"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...rows)),
  ];
}

function logitsOf({ next }) {
  const rows = next.candidates.slice(0, NUM_LOGITS).map((candidate) => el("tr", {},
    el("th", { scope: "row" }, token(candidate)), el("td", {}, String(candidate.id)), el("td", {}, shown(candidate.logit)),
    el("td", {}, percent(candidate.probability))));
  return [
    el("h2", {}, "Logits"),
    el("p", { class: "note" }, `Softmax: each probability is e to the logit, over e to ${shown(next.logsumexp)}.`),
    el("table", { class: "logits" }, el("thead", {}, el("tr", {}, ...["token", "id", "logit", "probability"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...rows)),
  ];
}
