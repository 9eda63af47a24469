import { el } from "./dom.js";

// One scale for shares (0 to 1) and one for signed numbers, both from the style sheet, for light and dark.

let palette = null;

export function forgetColours() {
  palette = null;
}

// Shares are drawn by their square root: a weight of 1% can still be seen beside one of 90%.
export function fillFor(share) {
  const place = Math.sqrt(Math.min(Math.max(share, 0), 1));
  return { colour: between(colours().scale, place), isDeep: place > 0.6 };
}

export function signedColour(value, limit) {
  const place = limit > 0 ? Math.sqrt(Math.min(Math.abs(value) / limit, 1)) : 0;
  const { zero, minus, plus } = colours();
  return between([zero, value < 0 ? minus : plus], place);
}

export function named(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Gives a canvas the pixels of its place on this screen; returns its context in CSS pixels.
export function prepare(canvas, width, height) {
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  return context;
}

export function shareLegend(label) {
  const canvas = el("canvas", { class: "legend-bar", "aria-hidden": "true" });
  const ticks = [0, 0.05, 0.25, 0.5, 1].map((share) => {
    const tick = el("span", {}, share === 0 ? "0" : `${share * 100}%`);
    tick.style.left = `${Math.sqrt(share) * 100}%`;
    return tick;
  });
  const element = el("div", { class: "legend" }, el("span", { class: "legend-name" }, label),
    el("div", { class: "legend-scale" }, canvas, el("div", { class: "legend-ticks" }, ...ticks)));
  const draw = () => {
    const context = prepare(canvas, 200, 10);
    for (let x = 0; x < 200; x++) {
      context.fillStyle = between(colours().scale, x / 199);
      context.fillRect(x, 0, 1, 10);
    }
  };
  return { element, draw };
}

function colours() {
  if (palette === null) {
    const scale = [0, 1, 2, 3].map((index) => channels(named(`scale-${index}`)));
    palette = { scale, zero: channels(named("zero")), minus: channels(named("minus")), plus: channels(named("plus")) };
  }
  return palette;
}

function channels(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

function between(stops, place) {
  const scaled = place * (stops.length - 1);
  const first = Math.min(Math.floor(scaled), stops.length - 2);
  const mixed = stops[first].map((from, index) => Math.round(from + (stops[first + 1][index] - from) * (scaled - first)));
  return `rgb(${mixed.join(" ")})`;
}
