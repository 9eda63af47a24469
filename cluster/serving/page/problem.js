import { byId, el } from "./dom.js";

// What went wrong, in one place of the page; a missing key is asked for instead.

let again = () => {};

export function onTryAgain(action) {
  again = action;
}

export function visibleProblem(text, error = null, retry = again) {
  const notice = byId("notice");
  const wantsKey = error?.status === 401;
  byId("key-form").hidden = !wantsKey;
  notice.hidden = text === null || wantsKey;
  if (text === null) return;
  const canRetry = error !== null && (error.status === 0 || error.status >= 429);
  notice.replaceChildren(el("span", {}, text));
  if (canRetry) notice.append(el("button", { type: "button", class: "quiet", onclick: () => retry() }, "Try again"));
}
