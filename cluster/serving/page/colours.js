import { el } from "./dom.js";

// One scale for shares (0 to 1) and one for signed numbers, both from the style sheet, for light and dark.

let palette = null;

export function forgetColours() {
  palette = null;
}

// Shares are drawn by their square root: a weight of 1% can still be seen beside one of 90%.
export function fillFor(share) {
  const fill = between(colours().scale, Math.sqrt(Math.min(Math.max(share, 0), 1)));
  return { colour: css(fill), ink: inkOn(fill) };
}

// Black or white, whichever stands out: at the luminance 0.179 both do by 4.58 to 1, elsewhere the better one by more.
function inkOn(fill) {
  const [red, green, blue] = fill.map((value) => (value <= 10.31 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}

export function signedColour(value, limit) {
  const place = limit > 0 ? Math.sqrt(Math.min(Math.abs(value) / limit, 1)) : 0;
  const { zero, minus, plus } = colours();
  return css(between([zero, value < 0 ? minus : plus], place));
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
      context.fillStyle = css(between(colours().scale, x / 199));
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
  return stops[first].map((from, index) => Math.round(from + (stops[first + 1][index] - from) * (scaled - first)));
}

function css(mixed) {
  return `rgb(${mixed.join(" ")})`;
}
