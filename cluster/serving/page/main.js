import { byId, el, grouped, rove } from "./dom.js";
import { forgetColours } from "./colours.js";
import { onChange, promptNow, state, update } from "./state.js";
import { ask, keepKey, recorded, sentenceOf } from "./source.js";
import { onTryAgain, visibleProblem } from "./problem.js";
import { renderStrip } from "./tokens.js";
import { buildNext } from "./view_next.js";
import { buildGenerate } from "./view_generate.js";
import { buildAttention, shownWeights } from "./view_attention.js";
import { buildStep } from "./view_step.js";
import { buildAnatomy } from "./view_anatomy.js";

// The page: five views of one text. Loads what the view in front needs, and nothing else.

const VIEWS = {
  next: ["Next token", buildNext],
  generate: ["Generate", buildGenerate],
  attention: ["Attention", buildAttention],
  step: ["Inside a step", buildStep],
  anatomy: ["Anatomy", buildAnatomy],
};
const EXAMPLES = ["The meaning of life is", "def main(", "Once upon a time, there was"];
const MUSIC = ["v16 on60 t50 off60 on64 t50 off64 on67", "v20 on60 on64 on67 t100 off60 off64 off67 on65"];
const TYPING_MILLISECONDS = 250;
const SLIDING_MILLISECONDS = 40;
const STRIP_NOTES = {
  next: "Choose a token to see what the model expected behind it.",
  attention: "Point at a token, or choose it, to see what it looks at: the stronger a colour, the more.",
  step: "Choose the token to follow.",
};

const views = {};
let loading = null;
let timer = null;
let hasBegun = false;

function build() {
  const names = Object.keys(VIEWS).filter((name) => !(recorded && name === "generate"));
  for (const name of names) {
    const [title, make] = VIEWS[name];
    const tab = el("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `view-${name}`, onclick: () => show(name) }, title);
    tab.addEventListener("keydown", (event) => rove(event, [...byId("tabs").children], (index) => show(names[index])));
    const view = make();
    const panel = el("section", { role: "tabpanel", id: `view-${name}`, "aria-labelledby": `tab-${name}` }, view.root);
    views[name] = { ...view, tab, panel };
    byId("tabs").append(tab);
    byId("views").append(panel);
  }
  buildComposer();
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepKey(byId("key").value.trim());
    byId("key").value = "";
    visibleProblem(null);
    loadSoon(0);
  });
  onTryAgain(() => loadSoon(0));
  onChange(changed);
  window.addEventListener("hashchange", () => show(viewOfAddress()));
  window.addEventListener("resize", () => render());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    forgetColours();
    render();
  });
}

function buildComposer() {
  const prompt = byId("prompt");
  prompt.readOnly = Boolean(recorded);
  prompt.addEventListener("input", () => update({ text: prompt.value, ids: null, position: null, hovered: null }));
  if (recorded) {
    byId("foot-note").textContent = "Recorded by herd inspect. For other texts and tokens: herd serve.";
    return;
  }
  byId("foot-note").textContent = "Every number is computed by the model this page is served from.";
}

// Learns what the model is; its kind decides which texts are worth trying.
async function begin() {
  if (recorded) {
    Object.assign(state, { text: recorded.answer.text, position: recorded.answer.position });
  } else {
    const { model } = await ask({ prompt: null, show: [] });
    const examples = model.is_music ? MUSIC : [...model.specials.map(exampleWith), ...EXAMPLES].filter(Boolean);
    state.text = byId("prompt").value || examples[0];
    byId("examples").replaceChildren(...examples.map((text) => el("button", { type: "button", class: "example",
      onclick: () => update({ text, ids: null, position: null, hovered: null }) }, text)));
  }
  hasBegun = true;
  byId("prompt").value = state.text;
}

function exampleWith(special) {
  return special.startsWith("<to-") ? `Add a new page ${special}` : "";
}

function viewOfAddress() {
  const name = location.hash.slice(1);
  return name in views ? name : "next";
}

function show(name) {
  if (name === state.view) return;
  history.replaceState(null, "", `#${name}`);
  update({ view: name, hovered: null });
}

function changed(changes) {
  if ("text" in changes && byId("prompt").value !== state.text) byId("prompt").value = state.text;
  if ("ids" in changes && state.ids !== null) loadSoon(0);
  else if ("text" in changes) loadSoon(TYPING_MILLISECONDS);
  else if ("layer" in changes || "head" in changes) loadSoon(SLIDING_MILLISECONDS);
  else if ("position" in changes || "view" in changes) loadSoon(0);
  const isPointing = "hovered" in changes && Object.keys(changes).length === 1;
  if (isPointing && state.view !== "attention") renderStrip(shownWeights());
  else render();
}

function render() {
  for (const [name, { tab, panel }] of Object.entries(views)) {
    const isShown = name === state.view;
    tab.setAttribute("aria-selected", String(isShown));
    tab.tabIndex = isShown ? 0 : -1;
    panel.hidden = !isShown;
  }
  byId("composer").hidden = state.view === "anatomy";
  byId("views").hidden = state.answer === null;
  byId("waiting").hidden = state.answer !== null || !state.isBusy;
  byId("strip-note").textContent = state.answer && !recorded ? (STRIP_NOTES[state.view] ?? "") : "";
  renderFacts();
  renderStrip(shownWeights());
  views[state.view].render();
}

function renderFacts() {
  const { answer } = state;
  if (!answer) return;
  const { model, tokens } = answer;
  byId("facts").textContent = `${answer.name ?? ""} · ${grouped(model.num_parameters)} parameters · ${model.n_layer} layers × ${model.n_head} heads, ${model.n_embd} wide`;
  byId("count").textContent = `${tokens.length} of ${answer.max_tokens} tokens`;
}

function loadSoon(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(load, milliseconds);
}

async function load() {
  const wanted = views[state.view].show;
  if (wanted === null && hasBegun) return;
  loading?.abort();
  const controller = new AbortController();
  loading = controller;
  setBusy(true);
  try {
    if (!hasBegun) await begin();
    const prompt = promptNow();
    accept(await ask(queryFor(wanted ?? []), controller.signal), prompt);
    visibleProblem(null);
  } catch (error) {
    if (error.name !== "AbortError") visibleProblem(sentenceOf(error), error);
  } finally {
    if (loading === controller) setBusy(false);
  }
}

function queryFor(wanted) {
  const prompt = state.ids ?? state.text;
  // What depends on the text, or the model, alone is asked for once.
  const kept = { heads: state.answer?.prompt === promptNow() && state.answer.heads, anatomy: state.answer?.anatomy };
  const query = { prompt, show: wanted.filter((part) => !kept[part]), layer: state.layer, head: state.head };
  return state.position === null ? query : { ...query, position: state.position };
}

function accept(answer, prompt) {
  const key = JSON.stringify(answer.tokens.map((entry) => entry.id));
  const kept = state.answer ?? {};
  const heads = kept.prompt === prompt ? kept.heads : undefined;
  const whole = { heads, anatomy: kept.anatomy, ...answer, prompt, key };
  const { layer, head } = answer;
  Object.assign(state, { answer: whole });
  if (state.ids !== null) {
    state.text = answer.text;
    byId("prompt").value = answer.text;
  }
  document.body.dataset.shown = JSON.stringify({ view: state.view, layer, head, position: answer.position, key });
  render();
}

function setBusy(isBusy) {
  state.isBusy = isBusy;
  document.body.classList.toggle("busy", isBusy);
  byId("views").setAttribute("aria-busy", String(isBusy));
  if (state.answer === null) render();
}

build();
state.view = viewOfAddress();
render();
loadSoon(0);
