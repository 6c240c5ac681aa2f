// The page: its state is the address; whatever changes the address makes the search that it says.

import { fetchJson, patiently } from "./api.js";
import { Compare } from "./compare.js";
import { listenToDialogs } from "./dialogs.js";
import { byId, el, say, show } from "./dom.js";
import { Filters } from "./filters.js";
import { listen } from "./incoming.js";
import { clearProblem, showFailure, showNotices, showProblem, showSummary, showWaiting } from "./notices.js";
import { QueryPanel } from "./query_panel.js";
import { ResultGrid } from "./results.js";
import { ACTIONS, EMPTY, MOST_QUERIES, asks, mayBox, readState, requestOf, writeState } from "./state.js";
import { ImageGone, upload, withUploads } from "./uploads.js";
import { count, seconds } from "./words.js";

const PAIR_STEPS = new Set(["geometry", "cvnet", "regions"]);

let state = EMPTY;
let info = null; // GET /v1/generation
let learned = null; // when it is there, or cannot be had
let answer = null;
let answered = null; // the request that `answer` answers
let running = new AbortController(); // the search
let sending = new AbortController(); // images on their way

const panel = new QueryPanel((make) => change(make));
const filters = new Filters((make, again) => change(make, again));
const grid = new ResultGrid(
  (id) => go({ ...state, open: id }, { opened: true }),
  (action, id) => change((now) => ACTIONS[action](now, id)),
);
const compare = new Compare({
  turn,
  act: (action, id) => change((now) => ACTIONS[action](now, id)),
  look: (look) => go({ ...state, look: look === "lines" ? "" : look }, history.state, true),
  close: closeCompare,
  resultOf: (id) => answer?.results.find((result) => result.image_id === id),
  stepsOf,
});

// -- the address ----------------------------------------------------------------------------------------------

function go(next, mark = null, replace = false) {
  const address = writeState(next);
  if (replace) history.replaceState(mark, "", address);
  else history.pushState(mark, "", address);
  render();
}

/** Another search; null for none. `again`: even if it is the same. */
function change(make, again = false) {
  const made = make(state);
  const next = made === null ? EMPTY : { ...made, box: made.box && mayBox(made) ? made.box : null };
  if (again) answered = null;
  if (writeState(next) === writeState(state)) render();
  else go(next);
}

function render() {
  const before = state.open;
  state = readState(location.hash);
  panel.render(state);
  filters.render(state);
  const request = asks(state) ? JSON.stringify(requestOf(state)) : null;
  if (request === null) clear();
  else if (request !== answered) search(request);
  compare.render(state);
  if (before && !state.open) grid.focusOn(before);
}

function closeCompare() {
  if (history.state?.opened) history.back();
  else go({ ...state, open: null, look: "" }, null, true);
}

/** The result `by` places from the open one; `try_`: only whether there is one. */
function turn(by, only = false) {
  const results = answer?.results ?? [];
  const at = results.findIndex((result) => result.image_id === state.open);
  const next = at < 0 ? undefined : results[at + by];
  if (next && !only) go({ ...state, open: next.image_id }, history.state, true);
  return Boolean(next);
}

/** What looks closely at a pair: the search's steps; where none of them does, geometry is tried. */
async function stepsOf({ rerank }) {
  await learned;
  const asked = rerank === "none" ? "" : rerank;
  const steps = asked ? asked.split(",") : (info?.steps ?? []);
  const looks = !info || steps.some((step) => PAIR_STEPS.has(step.trim()));
  return looks ? { rerank: asked } : { rerank: "geometry", tried: true };
}

// -- searching ------------------------------------------------------------------------------------------------

async function search(request) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  answered = request;
  const asked = state;
  begin();
  try {
    const post = () => fetchJson("v1/search", { json: JSON.parse(request), signal });
    const found = await patiently(() => withUploads(asked.uploads, post, signal), signal, (left, problem) =>
      showWaiting(left, problem, stopWaiting),
    );
    finish(found, asked);
  } catch (problem) {
    if (signal.aborted) return;
    fail(problem, asked);
  }
}

function begin() {
  show(byId("start"), false);
  clearProblem();
  filters.showError("");
  show(byId("progress"), true);
  byId("results").setAttribute("aria-busy", "true");
}

function end() {
  show(byId("progress"), false);
  byId("results").removeAttribute("aria-busy");
  byId("results").classList.remove("stale");
}

function finish(found, asked) {
  end();
  answer = found;
  panel.answered(found);
  const told = showNotices(found, info, asked);
  showSummary(found);
  grid.render(found.results);
  const n = found.results.length;
  say([n > 0 ? `${count(n, "result")} of generation ${found.generation}.` : "Nothing was found.", ...told].join(" "));
  if (compare.isOpen) compare.render(state);
  if (found.generation !== info?.number) learn();
}

function fail(problem, asked) {
  end();
  answered = null;
  byId("notices").replaceChildren();
  if (problem instanceof ImageGone) askForImage(problem.digest);
  else if (problem.code === undefined) throw problem;
  else if (filters.refused(problem, asked)) keepStale();
  else {
    forget();
    showFailure(problem, () => change((now) => now, true));
  }
}

/** The filter says what is wrong with it; what was found before stays, and says so. */
function keepStale() {
  if (!answer) return;
  byId("results").classList.add("stale");
  byId("summary").textContent = "The filter could not be applied: these are the results from before.";
}

function stopWaiting() {
  running.abort();
  sending.abort();
  end();
  answered = null;
  const again = el("button", { type: "button", on: { click: () => change((now) => now, true) } }, "Search now");
  byId("notices").replaceChildren();
  showProblem("Not searched", "The server was busy, and you stopped waiting.", "", again);
}

function forget() {
  answer = null;
  grid.render([]);
  show(byId("summary"), false);
}

function clear() {
  running.abort();
  end();
  forget();
  answered = null;
  clearProblem();
  filters.showError("");
  byId("notices").replaceChildren();
  show(byId("start"), true);
}

// -- images ---------------------------------------------------------------------------------------------------

async function take(files, add) {
  sending.abort();
  sending = new AbortController();
  const { signal } = sending;
  begin();
  say(files.length > 1 ? `Sending ${files.length} images.` : "Sending the image.");
  try {
    const digests = [];
    for (const file of files.slice(0, MOST_QUERIES)) {
      const send = () => upload(file, signal);
      digests.push(await patiently(send, signal, (left, problem) => showWaiting(left, problem, stopWaiting)));
    }
    change((now) => searchFor(add ? now : { ...now, uploads: [], images: [], unlike: [], exclude: [] }, digests), true);
  } catch (problem) {
    if (signal.aborted) return;
    if (problem.code === undefined) throw problem;
    end();
    if (answer) showNotices(answer, info, state);
    else byId("notices").replaceChildren();
    show(byId("start"), !asks(state));
    showFailure(problem, () => take(files, add));
  }
}

function searchFor(now, digests) {
  const uploads = [...new Set([...now.uploads, ...digests])].slice(-MOST_QUERIES);
  return { ...now, uploads, box: null, open: null, look: "" };
}

/** A link leads to an image that nobody has any more. */
function askForImage(digest) {
  forget();
  const input = el("input", { type: "file", accept: "image/*", class: "hidden", id: "pick-again" });
  input.addEventListener("change", () => input.files[0] && replaceGone(input.files[0], digest));
  showProblem(
    "The image of this search is gone",
    "The server keeps uploads only for a while, and this browser has no copy of it. Choose it again to repeat the search.",
    "",
    el("label", { class: "button primary" }, "Choose it again", input),
  );
}

async function replaceGone(file, digest) {
  clearProblem();
  try {
    const found = await upload(file, new AbortController().signal);
    if (found !== digest) say("That is another file: searching with it instead.");
    const uploads = (now) => now.uploads.map((each) => (each === digest ? found : each));
    change((now) => ({ ...now, uploads: uploads(now), box: found === digest ? now.box : null }), true);
  } catch (problem) {
    if (problem.code === undefined) throw problem;
    showFailure(problem, () => replaceGone(file, digest));
  }
}

// -- the gallery ----------------------------------------------------------------------------------------------

async function learn() {
  try {
    const signal = new AbortController().signal;
    info = await patiently(() => fetchJson("v1/generation"), signal, () => {
      byId("gallery").textContent = "The server is still loading its index";
    });
  } catch (problem) {
    byId("gallery").textContent = problem.code === "unauthorized" ? "No key was given" : "";
    return;
  }
  const images = info.counts.live ?? info.counts.images;
  const parts = [
    images === undefined ? null : count(images, "image"),
    `generation ${info.number}`,
    `published ${seconds(info.age_s)} ago`,
  ];
  byId("gallery").textContent = parts.filter(Boolean).join(" · ");
  byId("gallery").title = `Recipe ${info.recipe}; ${info.published}`;
  filters.describe(info);
  if (!info.images) {
    byId("start-text").textContent =
      "This gallery holds ready-made vectors: it has no images to look at, and can be searched by programs only.";
  }
  if (answer) showNotices(answer, info, state);
}

function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    const busy = event.target.closest?.("input, textarea, select, dialog");
    if (event.key !== "/" || busy || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    byId("filter-panel").open = true;
    byId("where").focus();
  });
  byId("skip").addEventListener("click", () => {
    if (grid.cards().length > 0) grid.focus(0);
    else byId("main").focus();
  });
  byId("home").addEventListener("click", (event) => {
    event.preventDefault();
    change(() => null);
  });
}

listenToDialogs();
listenToKeys();
learned = learn();
listen(take);
addEventListener("popstate", render);
render();
