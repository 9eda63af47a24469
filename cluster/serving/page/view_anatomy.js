import { el, grouped, percent, shown } from "./dom.js";
import { state } from "./state.js";

// Every tensor of the loaded model.

const KINDS = [
  ["Token embedding, and output head", (name) => name === "wte.weight"],
  ["Position embedding", (name) => name === "wpe.weight"],
  ["Attention", (name) => name.includes(".attn.")],
  ["MLP", (name) => name.includes(".mlp.")],
  ["LayerNorms", (name) => name.includes("ln_")],
];

export function buildAnatomy() {
  const tiles = el("dl", { class: "tiles" });
  const shares = el("div", { class: "shares" });
  const table = el("div", { class: "tensors" });
  const root = el("div", { class: "card" }, el("h2", {}, "Anatomy"), tiles, shares, table);
  let drawn = null;
  const render = () => {
    const anatomy = state.answer?.anatomy;
    if (!anatomy || drawn === anatomy) return;
    drawn = anatomy;
    tiles.replaceChildren(...tilesOf(state.answer));
    shares.replaceChildren(...sharesOf(anatomy));
    table.replaceChildren(tableOf(anatomy, state.answer.model));
  };
  return { root, render, show: ["anatomy"] };
}

function tilesOf({ model, anatomy }) {
  const facts = [
    ["parameters", grouped(anatomy.num_parameters)],
    ["bytes in fp32", grouped(4 * anatomy.num_parameters)],
    ["layers", grouped(model.n_layer)],
    ["heads a layer", grouped(model.n_head)],
    ["width", grouped(model.n_embd)],
    ["positions", grouped(model.num_positions)],
    ["tokens known", grouped(model.vocabulary_size)],
    ["a block", grouped(anatomy.block)],
  ];
  return facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}

function sharesOf({ tensors, num_parameters: total }) {
  const counts = KINDS.map(([name, belongs], index) => ({
    name, index, count: tensors.filter((row) => belongs(row.name)).reduce((sum, row) => sum + row.num_parameters, 0),
  }));
  const bar = el("div", { class: "share-bar", "aria-hidden": "true" }, ...counts.map(({ index, count }) => {
    const part = el("i", { class: `kind-${index}` });
    part.style.flexGrow = String(count / total);
    return part;
  }));
  const legend = el("ul", { class: "share-legend" }, ...counts.map(({ name, index, count }) =>
    el("li", {}, el("i", { class: `swatch kind-${index}` }), `${name} `, el("span", { class: "note" }, percent(count / total)))));
  return [bar, legend];
}

function tableOf({ tensors }, model) {
  const bodies = [];
  let open = null;
  for (const row of tensors) {
    if (row.layer === null) {
      bodies.push(el("tbody", {}, tensorRow(row)));
      open = null;
    } else if (open === null) {
      open = blocks(tensors.filter((other) => other.layer !== null), model.n_layer);
      bodies.push(...open);
    }
  }
  const head = el("thead", {}, el("tr", {}, ...["tensor", "size", "parameters", "mean", "deviation", "what it is"].map((name) => el("th", { scope: "col" }, name))));
  return el("table", {}, head, ...bodies);
}

function blocks(rows, numLayers) {
  return Array.from({ length: numLayers }, (_, layer) => {
    const own = rows.filter((row) => row.layer === layer);
    const lines = own.map(tensorRow);
    const total = own.reduce((sum, row) => sum + row.num_parameters, 0);
    const button = el("button", { type: "button", class: "link fold", "aria-expanded": String(layer === 0) }, `layer ${layer + 1}`);
    const show = (isOpen) => {
      button.setAttribute("aria-expanded", String(isOpen));
      lines.forEach((line) => (line.hidden = !isOpen));
    };
    button.addEventListener("click", () => show(button.getAttribute("aria-expanded") !== "true"));
    show(layer === 0);
    const title = el("tr", { class: "block" }, el("th", { scope: "rowgroup" }, button), el("td", { class: "size" }, `${own.length} tensors`),
      el("td", {}, grouped(total)), el("td", {}), el("td", {}), el("td", { class: "role" }, "a block"));
    return el("tbody", {}, title, ...lines);
  });
}

function tensorRow(row) {
  return el("tr", {}, el("th", { scope: "row" }, row.name), el("td", { class: "size" }, row.size.map(grouped).join(" × ")),
    el("td", {}, grouped(row.num_parameters)), el("td", {}, shown(row.mean)), el("td", {}, row.deviation === null ? "" : shown(row.deviation)),
    el("td", { class: "role" }, row.role));
}
