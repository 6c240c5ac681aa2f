// What stands above the results: problems, and what a person must know about an answer.

import { byId, el, say, show } from "./dom.js";
import { count, detail, headline, percent, sentence } from "./words.js";

/** A search, or an image, is on its way. */
export function begin() {
  show(byId("start"), false);
  clearProblem();
  byId("notices").querySelector(".waiting")?.remove();
  show(byId("progress"), true);
  byId("results").setAttribute("aria-busy", "true");
}

export function end() {
  show(byId("progress"), false);
  byId("results").removeAttribute("aria-busy");
  byId("results").classList.remove("stale");
}

/** Shows a problem; `buttons`: more that can be done about it. */
export function showProblem(title, text, requestId = "", ...buttons) {
  const shown = [el("h2", {}, title), el("p", {}, text)];
  if (buttons.length > 0) shown.push(el("div", { class: "tools" }, ...buttons));
  if (requestId) shown.push(el("p", { class: "quiet" }, `Request ${requestId}`));
  byId("problem").replaceChildren(...shown);
}

/** What the same request may get over has a button for it. `of`: the file that it is about, one of several. */
export function showFailure(problem, again, of = "") {
  const passing = problem.status === 0 || problem.status === 401 || problem.status === 429 || problem.status >= 500;
  const button = el("button", { type: "button", on: { click: again } }, "Try again");
  const title = of ? `${headline(problem)}: ${of}` : headline(problem);
  showProblem(title, detail(problem), problem.requestId, ...(passing ? [button] : []));
}

export function clearProblem() {
  byId("problem").replaceChildren();
}

export function clearNotices() {
  byId("notices").replaceChildren();
}

/** Counts down on the screen; screen readers hear it once. */
export function showWaiting(left, problem, stop) {
  const box = byId("notices");
  let shown = box.querySelector(".waiting");
  if (!shown) {
    const button = el("button", { type: "button", on: { click: stop } }, "Stop waiting");
    shown = el("div", { class: "notice waiting" }, el("p"), button);
    box.replaceChildren(shown);
    say(`${headline(problem)}. Trying again in ${count(left, "second")}.`);
  }
  const text = left > 0 ? `Trying again in ${count(left, "second")}.` : "Trying again.";
  shown.firstChild.textContent = `${headline(problem)}. ${text}`;
}

/** The line above the results. */
export function showSummary({ results, generation, took_ms: took, coverage }) {
  const words = [
    results.length > 0 ? count(results.length, "result") : "Nothing was found",
    `generation ${generation}`,
    `${percent(coverage)} searched`,
    `${Math.round(took)} ms`,
  ];
  byId("summary").textContent = words.join(" · ");
  show(byId("summary"), true);
}

/** What is to be known about an answer, and about the gallery that gave it. */
export function showNotices(answer, info, state) {
  const notices = [
    ...linkNotices(state),
    ...weakNotices(answer, state),
    ...partialNotices(answer),
    ...answer.warnings.filter((warning) => !saidAlready(warning, answer)).map((text) => ["warning", sentence(text)]),
    ...generationNotices(info, answer),
  ];
  byId("notices").replaceChildren(
    ...notices.map(([kind, text, more]) =>
      el("div", { class: `notice ${kind}` }, el("p", {}, text), more && details(more)),
    ),
  );
  return notices.filter(([kind]) => kind === "weak" || kind === "partial").map(([, text]) => text);
}

const details = ([summary, lines]) =>
  el("details", {}, el("summary", {}, summary), el("ul", {}, ...lines.map((line) => el("li", {}, line))));

function linkNotices(state) {
  if (state.unread.length === 0) return [];
  return [["warning", `Parts of this address could not be read and were left out: ${state.unread.join(", ")}.`]];
}

/** The server warns of weak images, too. */
const saidAlready = (warning, { queries }) => queries.some(({ weak, name }) => weak && name && warning.includes(name));

function weakNotices(answer, state) {
  const weak = answer.queries.filter((query) => query.weak);
  if (weak.length === 0) return [];
  const one = state.box ? "This part of the image has" : "This image has";
  const which = answer.queries.length > 1 ? `${weak.length} of ${answer.queries.length} images have` : one;
  const found = weak.flatMap((query) => Object.values(query.features)).reduce((sum, n) => sum + n, 0);
  const features = `${count(found, "feature")} found`;
  return [["weak", `${which} too little structure to match (${features}): what was found may be chance. Use a larger or sharper one.`]];
}

function partialNotices(answer) {
  if (!answer.partial) return [];
  const parts = [];
  if (answer.coverage < 1) parts.push(`${percent(answer.coverage)} of the images were searched`);
  const looks = answer.skipped_steps.filter((step) => step !== "more-lists");
  if (looks.length > 0) parts.push(`no second look by ${looks.join(", ")}`);
  if (looks.length < answer.skipped_steps.length) parts.push("there was no time to look for all that the filter lets through");
  const text = `Partial answer: ${parts.join("; ") || "some of it came too late"}. Better ones may be missing.`;
  const shards = answer.missing_shards;
  return [["partial", text, shards.length > 0 && [`${count(shards.length, "shard")} missing`, shards]]];
}

function generationNotices(info, answer) {
  if (!info) return [];
  const notices = info.warning && !answer.warnings.includes(info.warning) ? [["warning", sentence(info.warning)]] : [];
  for (const [number, why] of Object.entries(info.refused)) {
    if (Number(number) > answer.generation) {
      notices.push(["warning", `Generation ${number} could not be loaded; ${answer.generation} answers. ${sentence(why)}`]);
    }
  }
  return notices;
}
