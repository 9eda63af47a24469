// Small helpers to build the page. Text goes in as text, never as HTML.

export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function byId(id) {
  return document.getElementById(id);
}

export function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = share * 100;
  if (value === 0) return "0%";
  if (value < 0.01) return "<0.01%";
  return `${value.toFixed(value < 1 ? 2 : 1)}%`;
}

export function grouped(number) {
  return Math.round(number).toLocaleString("en-US");
}

// A number as people compare them: a sign of its own width, four decimals at most.
export function shown(number) {
  if (number === null || number === undefined) return "−∞";
  const size = Math.abs(number);
  const text = size >= 100 ? size.toFixed(1) : size >= 10 ? size.toFixed(2) : size.toFixed(4);
  return (number < 0 && Number(text) !== 0 ? "−" : "") + text;
}

// Moves the focus among elements of a group with the arrow keys, as radio buttons and tabs do.
export function rove(event, elements, choose, columns = 1) {
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  const at = elements.indexOf(document.activeElement);
  let to = event.key in steps ? at + steps[event.key] : event.key === "Home" ? 0 : event.key === "End" ? elements.length - 1 : null;
  if (to === null || at < 0) return;
  event.preventDefault();
  to = Math.min(Math.max(to, 0), elements.length - 1);
  elements[to].focus();
  choose(to);
}

// Replaces what is in an element. The part with the focus keeps it, by its data-keep, and boxes stay where they were scrolled to.
export function redraw(element, ...children) {
  const kept = element.contains(document.activeElement) ? document.activeElement.dataset.keep : undefined;
  const tops = [...element.querySelectorAll(".scroll")].map((box) => box.scrollTop);
  element.replaceChildren(...children);
  [...element.querySelectorAll(".scroll")].forEach((box, index) => (box.scrollTop = tops[index] ?? 0));
  if (kept !== undefined) element.querySelector(`[data-keep="${kept}"]`)?.focus({ preventScroll: true });
}

export function inWords(template, ...parts) {
  // "a {} b {}" with elements in the places of {}.
  const pieces = template.split("{}");
  const fragment = document.createDocumentFragment();
  pieces.forEach((piece, index) => {
    fragment.append(piece);
    if (index < parts.length) fragment.append(parts[index]);
  });
  return fragment;
}
