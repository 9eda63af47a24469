import { recorded } from "./source.js";

// What the page shows, in one place. Views read it and are told of every change.

const listeners = [];

export const state = {
  view: "next",
  text: "",
  ids: null, // token ids where tokens were appended: they stay as chosen, and are not cut anew
  position: null, // null: the last token
  layer: 0,
  head: 0,
  temperature: 1,
  topK: null,
  topP: 1,
  answer: null,
  hovered: null,
  isBusy: false,
};

export function onChange(listener) {
  listeners.push(listener);
}

export function update(changes) {
  Object.assign(state, changes);
  for (const listener of listeners) listener(changes);
}

export function promptNow() {
  return JSON.stringify(state.ids ?? state.text);
}

// False from the first letter typed behind an answer until the next one is there.
export function isCurrent(answer) {
  return recorded !== null || answer.prompt === promptNow();
}

export function positionShown() {
  if (!state.answer) return 0;
  // Of attention every row is there already.
  if (state.view === "attention" && state.position !== null) return Math.min(state.position, state.answer.tokens.length - 1);
  return state.answer.position;
}
