import { byId, el, rove } from "./dom.js";
import { fillFor } from "./colours.js";
import { recorded } from "./source.js";
import { positionShown, state, update } from "./state.js";

// Tokens as people read them, and the strip of them under the text.

const MARKS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };

export function tokenText(token) {
  const fragment = document.createDocumentFragment();
  if (token.partial || token.text === "<|endoftext|>") {
    fragment.append(el("span", { class: "odd" }, token.partial ? token.text : "⟨end of text⟩"));
    return fragment;
  }
  for (const piece of token.text.split(/([ \n\t\r])/).filter(Boolean)) {
    fragment.append(piece in MARKS ? el("span", { class: "space" }, MARKS[piece]) : piece);
  }
  return fragment;
}

export function tokenName(token) {
  return [...token.text].map((character) => MARKS[character] ?? character).join("") || "(nothing)";
}

export function token(entry) {
  return el("span", { class: "token" }, tokenText(entry));
}

// Draws the strip; `weights` tints each token by what the selected one takes from it.
export function renderStrip(weights) {
  const strip = byId("strip");
  const { answer } = state;
  const isShown = answer !== null && ["next", "attention", "step"].includes(state.view);
  strip.hidden = !isShown;
  if (!isShown) return;
  const chips = chipsFor(strip, answer.tokens);
  const selected = positionShown();
  chips.forEach((chip, index) => {
    const isLater = index > (state.hovered ?? selected);
    const fill = weights && index < weights.length && !isLater ? fillFor(weights[index]) : null;
    chip.style.backgroundColor = fill ? fill.colour : "";
    chip.style.color = fill ? fill.ink : "";
    chip.classList.toggle("filled", fill !== null);
    chip.classList.toggle("later", isLater);
    chip.classList.toggle("hovered", index === state.hovered);
    chip.setAttribute("aria-checked", String(index === selected));
    chip.disabled = recorded !== null && state.view !== "attention" && index !== selected;
    chip.tabIndex = index === selected ? 0 : -1;
    chip.dataset.half = half(answer.separator, index);
  });
}

function half(separator, index) {
  if (!separator) return "";
  return index < separator.start ? "source" : index < separator.end ? "separator" : "target";
}

function chipsFor(strip, tokens) {
  const key = JSON.stringify(tokens.map((entry) => entry.id));
  if (strip.dataset.key !== key) {
    strip.dataset.key = key;
    strip.setAttribute("role", "radiogroup");
    strip.setAttribute("aria-label", "Tokens; the chosen one is looked at");
    strip.replaceChildren(...tokens.map((entry, index) => chip(entry, index, strip)));
  }
  return [...strip.children];
}

function chip(entry, index, strip) {
  const choose = (place) => update({ position: place, hovered: null });
  return el("button", {
    type: "button", role: "radio", class: "chip", "aria-label": `${tokenName(entry)}, token ${index + 1}`,
    title: `token ${index + 1}, id ${entry.id}`,
    onclick: () => choose(index),
    onpointerenter: (event) => event.pointerType === "mouse" && update({ hovered: index }),
    onpointerleave: () => state.hovered !== null && update({ hovered: null }),
    onkeydown: (event) => rove(event, [...strip.children], choose),
  }, tokenText(entry));
}
