import { el, inWords, percent, rove } from "./dom.js";
import { fillFor, named, prepare, shareLegend } from "./colours.js";
import { placeSliders } from "./controls.js";
import { pianoRoll } from "./piano_roll.js";
import { positionShown, state, update } from "./state.js";
import { token, tokenName } from "./tokens.js";

// Which earlier tokens each token looks at: one head's map, and all heads at a glance.

const LABEL_PIXELS = 84;
const LEAST_LABELLED_CELL = 11;
const NUM_NAMED = 6;

export function buildAttention() {
  const sliders = placeSliders("attention");
  const canvas = el("canvas", { class: "map", role: "img" });
  const reading = el("p", { class: "reading", "aria-live": "polite" });
  const halves = el("p", { class: "note halves" });
  const legend = shareLegend("attention weight");
  const glance = el("div", { class: "glance", role: "radiogroup", "aria-label": "All heads" });
  const roll = pianoRoll();
  canvas.addEventListener("pointermove", (event) => hover(canvas, event));
  canvas.addEventListener("pointerleave", () => state.hovered !== null && update({ hovered: null }));
  canvas.addEventListener("click", (event) => {
    const row = rowAt(canvas, event);
    if (row !== null) update({ position: row, hovered: null });
  });
  const map = el("div", { class: "card" }, el("h2", {}, "One head"), sliders.element, reading, halves,
    el("div", { class: "map-box" }, canvas), legend.element, roll.element);
  const all = el("div", { class: "card side" }, el("h2", {}, "All heads"),
    el("p", { class: "note" }, "A row a layer, a column a head. Choose one to see it large."), glance);
  const parts = { sliders, canvas, reading, halves, legend, glance, roll };
  return { root: el("div", { class: "columns wide-main" }, map, all), render: () => renderAttention(parts), show: ["heads", "attention"] };
}

// The weights of the token pointed at or chosen, or null where they are not there.
export function shownWeights() {
  const { answer } = state;
  if (state.view === "step" && answer?.step) return answer.step.weights;
  if (state.view !== "attention" || !answer?.attention) return null;
  return answer.attention[shownRow()] ?? null;
}

function shownRow() {
  return state.hovered ?? positionShown();
}

function renderAttention(parts) {
  const { answer } = state;
  parts.sliders.render();
  parts.legend.draw();
  if (!answer?.attention) return;
  drawMap(parts.canvas, answer);
  parts.reading.replaceChildren(...readingOf(answer));
  const { separator } = answer;
  parts.halves.hidden = !separator;
  if (separator) {
    parts.halves.replaceChildren(inWords("{} source, before {}; {} target, behind it", el("i", { class: "swatch source" }),
      el("span", { class: "token" }, separator.text), el("i", { class: "swatch target" })));
  }
  parts.roll.render(answer, shownRow());
  if (answer.heads) renderGlance(parts.glance, answer);
}

function readingOf(answer) {
  const row = shownRow();
  const weights = answer.attention[row];
  const ranked = weights.map((weight, index) => ({ weight, index })).sort((a, b) => b.weight - a.weight).slice(0, NUM_NAMED);
  const parts = [token(answer.tokens[row]), " looks at "];
  for (const { weight, index } of ranked.filter((entry) => entry.weight >= 0.005)) {
    parts.push(el("span", { class: "looked" }, token(answer.tokens[index]), ` ${percent(weight)}`));
  }
  return parts;
}

function layoutOf(canvas, count) {
  const room = canvas.parentElement.clientWidth;
  const labelled = Math.floor((room - LABEL_PIXELS) / count) >= LEAST_LABELLED_CELL;
  const left = labelled ? LABEL_PIXELS : 0;
  const cell = Math.min(44, (room - left) / count);
  return { left, cell, side: cell * count };
}

function drawMap(canvas, answer) {
  const count = answer.tokens.length;
  const { left, cell, side } = layoutOf(canvas, count);
  if (side <= 0) return;
  const context = prepare(canvas, left + side, side);
  context.clearRect(0, 0, left + side, side);
  const gap = cell > 6 ? 1 : 0;
  answer.attention.forEach((row, index) => row.forEach((weight, place) => {
    context.fillStyle = fillFor(weight).colour;
    context.fillRect(left + place * cell, index * cell, cell - gap, cell - gap);
  }));
  if (left) drawLabels(context, answer, { left, cell });
  drawHalves(context, answer.separator, { left, cell, side });
  context.strokeStyle = named("accent");
  context.lineWidth = 1.5;
  const row = shownRow();
  context.strokeRect(left + 0.75, row * cell + 0.75 - gap / 2, (row + 1) * cell - 1.5, cell - 1.5 + gap / 2);
  canvas.setAttribute("aria-label", `Attention of layer ${answer.layer + 1}, head ${answer.head + 1}: a triangle of ${count} rows; each row is one token, its weights over itself and the tokens before it.`);
}

function drawLabels(context, answer, { left, cell }) {
  context.font = `${Math.min(13, cell * 0.8)}px ui-monospace, Menlo, Consolas, monospace`;
  context.textAlign = "right";
  context.textBaseline = "middle";
  answer.tokens.forEach((entry, index) => {
    context.fillStyle = named(index === shownRow() ? "ink" : "soft");
    const name = tokenName(entry);
    context.fillText(name.length > 10 ? `${name.slice(0, 9)}…` : name, left - 6, (index + 0.5) * cell);
  });
}

function drawHalves(context, separator, { left, cell, side }) {
  if (!separator) return;
  context.strokeStyle = named("second");
  context.setLineDash([4, 3]);
  context.lineWidth = 1;
  context.beginPath();
  for (const place of [separator.start, separator.end]) {
    context.moveTo(left, place * cell - 0.5);
    context.lineTo(left + place * cell, place * cell - 0.5);
    context.lineTo(left + place * cell, side);
  }
  context.stroke();
  context.setLineDash([]);
}

function hover(canvas, event) {
  if (event.pointerType === "touch") return;
  const row = rowAt(canvas, event);
  if (row !== null && row !== state.hovered) update({ hovered: row });
}

function rowAt(canvas, event) {
  const { answer } = state;
  if (!answer?.attention) return null;
  const { cell } = layoutOf(canvas, answer.tokens.length);
  const row = Math.floor(event.offsetY / cell);
  return row >= 0 && row < answer.tokens.length ? row : null;
}

function renderGlance(glance, answer) {
  const { n_layer: layers, n_head: heads } = answer.model;
  const count = layers * heads;
  const choose = (index) => update({ layer: Math.floor(index / heads), head: index % heads });
  if (glance.children.length !== count) {
    glance.style.setProperty("--heads", heads);
    glance.replaceChildren(...Array.from({ length: count }, (_, index) => el("button", {
      type: "button", role: "radio", class: "small-map", title: `layer ${Math.floor(index / heads) + 1}, head ${(index % heads) + 1}`,
      "aria-label": `Layer ${Math.floor(index / heads) + 1}, head ${(index % heads) + 1}`,
      onclick: () => choose(index), onkeydown: (event) => rove(event, [...glance.children], choose, heads),
    }, el("canvas", { "aria-hidden": "true" }))));
    glance.dataset.drawn = "";
  }
  const selected = state.layer * heads + state.head;
  [...glance.children].forEach((button, index) => {
    button.setAttribute("aria-checked", String(index === selected));
    button.tabIndex = index === selected ? 0 : -1;
  });
  const key = `${answer.key} ${named("paper")}`;
  if (glance.dataset.drawn !== key) {
    glance.dataset.drawn = key;
    drawSmallMaps(glance, answer.heads, heads);
  }
}

function drawSmallMaps(glance, { cells, maps }, heads) {
  const each = (cells * (cells + 1)) / 2;
  const layers = maps.map((packed) => Uint8Array.from(atob(packed), (character) => character.charCodeAt(0)));
  [...glance.children].forEach((button, index) => {
    const bytes = layers[Math.floor(index / heads)];
    const canvas = button.firstChild;
    canvas.width = canvas.height = cells;
    const context = canvas.getContext("2d");
    let at = (index % heads) * each;
    for (let row = 0; row < cells; row++) {
      for (let column = 0; column <= row; column++) {
        context.fillStyle = fillFor(bytes[at++] / 255).colour;
        context.fillRect(column, row, 1, 1);
      }
    }
  });
}
