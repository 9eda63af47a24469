import { el, percent } from "./dom.js";
import { fillFor, named, prepare } from "./colours.js";
import { update } from "./state.js";

// Music: the notes of the events, tinted by what the chosen event takes from each.

const HEIGHT = 190;

export function pianoRoll() {
  const canvas = el("canvas", { class: "roll", role: "img" });
  const element = el("figure", { class: "roll-box", hidden: true }, canvas,
    el("figcaption", { class: "note" }, "Time runs to the right, pitch upwards. A note has the colour of the weight of the event that strikes it."));
  let boxes = [];
  canvas.addEventListener("click", (event) => {
    const hit = boxes.find((box) => event.offsetX >= box.x && event.offsetX <= box.x + box.width && Math.abs(event.offsetY - box.y) < 6);
    if (hit) update({ position: hit.token, hovered: null });
  });
  const render = (answer, row) => {
    element.hidden = !answer.notes;
    if (answer.notes) boxes = drawNotes(canvas, answer, row);
  };
  return { element, render };
}

function drawNotes(canvas, answer, row) {
  const { notes } = answer;
  const weights = answer.attention[row];
  const width = canvas.parentElement.clientWidth;
  const context = prepare(canvas, width, HEIGHT);
  const end = Math.max(...notes.map((note) => note.end), 0.1);
  const pitches = notes.map((note) => note.pitch);
  const [low, high] = [Math.min(...pitches) - 2, Math.max(...pitches) + 2];
  const step = HEIGHT / (high - low + 1);
  const boxes = notes.map((note) => ({
    x: (note.start / end) * width, width: Math.max(((note.end - note.start) / end) * width - 1, 3),
    y: (high - note.pitch + 0.5) * step, token: note.token,
  }));
  boxes.forEach((box) => {
    const weight = weights[box.token];
    context.fillStyle = weight === undefined ? named("line") : fillFor(weight).colour;
    context.strokeStyle = named(box.token === row ? "second" : "soft");
    context.lineWidth = box.token === row ? 2 : 0.6;
    const height = Math.max(Math.min(step * 0.8, 10), 3);
    context.beginPath();
    context.roundRect(box.x, box.y - height / 2, box.width, height, 2);
    context.fill();
    context.stroke();
  });
  const best = boxes.reduce((a, b) => ((weights[b.token] ?? 0) > (weights[a.token] ?? 0) ? b : a), boxes[0]);
  canvas.setAttribute("aria-label", `${notes.length} notes; the most looked at takes ${percent(weights[best.token] ?? 0)}.`);
  return boxes;
}
