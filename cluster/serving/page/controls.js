import { el } from "./dom.js";
import { state, update } from "./state.js";

// Sliders: how tokens are drawn, and which layer and head is looked at. The same ones in every view that has them.

export function samplingSliders(name) {
  const sliders = [
    slider(`${name}-temperature`, "Temperature", { min: 0, max: 2, step: 0.1 }, {
      read: () => state.temperature,
      write: (value) => update({ temperature: Number(value.toFixed(1)) }),
      say: (value) => (value === 0 ? "0, the likeliest always" : value.toFixed(1)),
    }),
    slider(`${name}-top-k`, "Top-k", { min: 1, max: 201, step: 1 }, {
      read: () => state.topK ?? 201,
      write: (value) => update({ topK: value > 200 ? null : value }),
      say: (value) => (value > 200 ? "all" : String(value)),
    }),
    slider(`${name}-top-p`, "Top-p", { min: 0.05, max: 1, step: 0.05 }, {
      read: () => state.topP,
      write: (value) => update({ topP: Number(value.toFixed(2)) }),
      say: (value) => (value >= 1 ? "1, all" : value.toFixed(2)),
    }),
  ];
  const element = el("div", { class: "sliders" }, ...sliders.map((made) => made.element));
  return { element, render: () => sliders.forEach((made) => made.render()) };
}

export function placeSliders(name) {
  const size = (what) => (state.answer ? state.answer.model[what] : 1);
  const sliders = [["layer", "Layer", "n_layer"], ["head", "Head", "n_head"]].map(([field, label, total]) =>
    slider(`${name}-${field}`, label, { min: 1, max: 1, step: 1 }, {
      read: () => state[field] + 1,
      write: (value) => update({ [field]: value - 1 }),
      say: (value) => `${value} of ${size(total)}`,
      max: () => size(total),
    }));
  const element = el("div", { class: "sliders places" }, ...sliders.map((made) => made.element));
  return { element, render: () => sliders.forEach((made) => made.render()) };
}

function slider(id, label, range, { read, write, say, max }) {
  const input = el("input", { id, type: "range", ...range, oninput: () => write(Number(input.value)) });
  const output = el("output", { for: id });
  const element = el("div", { class: "slider" }, el("label", { for: id }, label), output, input);
  const render = () => {
    if (max) input.max = max();
    input.value = read();
    input.disabled = max !== undefined && max() === 1;
    output.textContent = say(read());
    input.setAttribute("aria-valuetext", say(read()));
  };
  return { element, render };
}
