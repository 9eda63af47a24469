import { el, grouped, inWords, percent, rove } from "./dom.js";
import { samplingSliders } from "./controls.js";
import { shape } from "./shaping.js";
import { isCurrent, positionShown, state, update } from "./state.js";
import { recorded } from "./source.js";
import { token, tokenName, tokenText } from "./tokens.js";

// The likeliest next tokens, and what drawing makes of them.

const NUM_ROWS = 10;

export function buildNext() {
  const heading = el("h2", {});
  const rows = Array.from({ length: NUM_ROWS }, (_, index) => candidateRow(index));
  const list = el("ol", { class: "candidates", "aria-label": "Likeliest next tokens" }, ...rows.map((row) => row.item));
  list.addEventListener("keydown", (event) => {
    if (["ArrowDown", "ArrowUp"].includes(event.key)) rove(event, rows.map((row) => row.button), () => {});
  });
  const summary = el("p", { class: "summary", "aria-live": "polite" });
  const sliders = samplingSliders("next");
  const how = recorded ? "Appending a token needs a running service." : "Click a token, or press Enter on it, to append it.";
  const side = el("div", { class: "card side" }, el("h3", {}, "How it is drawn"), sliders.element,
    el("p", { class: "note key-note" }, el("i", { class: "swatch own" }), "the model’s own probability"),
    el("p", { class: "note key-note" }, el("i", { class: "swatch drawn" }), "as it would be drawn"), summary);
  const root = el("div", { class: "columns" },
    el("div", { class: "card" }, heading, list, el("p", { class: "note" }, how)), side);
  const render = () => renderNext({ heading, list, rows, summary, sliders });
  return { root, render, show: ["next"] };
}

function renderNext({ heading, list, rows, summary, sliders }) {
  sliders.render();
  const { answer } = state;
  if (!answer?.next) return;
  list.classList.toggle("stale", !isCurrent(answer));
  const at = positionShown();
  heading.replaceChildren(inWords("After {}", token(answer.tokens[at])));
  const shaped = shape(answer.next, state.temperature, state.topK, state.topP);
  const follows = answer.tokens[at + 1];
  const widest = Math.max(answer.next.candidates[0].probability, shaped.probabilities[0]);
  rows.forEach((row, index) => fillRow(row, answer.next.candidates[index], shaped.probabilities[index], { widest, follows }));
  summary.replaceChildren(...saying(shaped, answer));
}

function saying(shaped, answer) {
  const total = answer.model.num_known;
  if (shaped.kept === null) {
    return [`${state.topP < 1 ? "More than 200 of" : "All"} ${grouped(total)} tokens can be drawn.`];
  }
  const noun = shaped.kept === 1 ? "token" : "tokens";
  return [el("strong", {}, grouped(shaped.kept)), ` of ${grouped(total)} ${noun} can be drawn, with `,
    el("strong", {}, percent(shaped.share)), " of the model’s own probability."];
}

function candidateRow(index) {
  const name = el("span", { class: "token" });
  const own = el("i", { class: "own" });
  const drawn = el("i", { class: "drawn" });
  const value = el("span", { class: "value" });
  const button = el("button", { type: "button", class: "candidate", disabled: Boolean(recorded), onclick: () => append(index) },
    name, el("span", { class: "bar", "aria-hidden": "true" }, own, drawn), value);
  return { item: el("li", {}, button), button, name, own, drawn, value };
}

function fillRow(row, candidate, probability, { widest, follows }) {
  row.item.hidden = candidate === undefined;
  if (!candidate) return;
  row.name.replaceChildren(tokenText(candidate));
  row.own.style.width = `${(candidate.probability / widest) * 100}%`;
  row.drawn.style.width = `${(probability / widest) * 100}%`;
  row.value.textContent = percent(probability);
  row.item.classList.toggle("out", probability === 0);
  row.item.classList.toggle("follows", follows !== undefined && follows.id === candidate.id);
  const own = `the model gives it ${percent(candidate.probability)}`;
  const told = follows?.id === candidate.id ? `${own}; this is what follows in the text` : own;
  row.button.title = told;
  row.button.setAttribute("aria-label", `Append ${tokenName(candidate)}: drawn with ${percent(probability)}; ${told}`);
}

function append(index) {
  const { answer } = state;
  if (!answer?.next || state.isBusy || !isCurrent(answer)) return;
  const kept = answer.tokens.slice(0, positionShown() + 1).map((entry) => entry.id);
  update({ ids: [...kept, answer.next.candidates[index].id], position: null, hovered: null });
}
