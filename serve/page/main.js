// The page: its state is the address; whatever changes the address makes the search that it says.

import { Problem, fetchJson, patiently } from "./api.js";
import { Compare } from "./compare.js";
import { listenToDialogs } from "./dialogs.js";
import { byId, el, say, show } from "./dom.js";
import { Filters } from "./filters.js";
import { Gallery } from "./gallery.js";
import { listen } from "./incoming.js";
import {
  begin, clearNotices, clearProblem, end, showFailure, showNotices, showProblem, showSummary, showWaiting,
} from "./notices.js";
import { QueryPanel } from "./query_panel.js";
import { ResultGrid } from "./results.js";
import {
  ACTIONS, EMPTY, MOST_QUERIES, asks, closed, mayBox, readState, requestOf, tooMany, writeState,
} from "./state.js";
import { ImageGone, upload, withUploads } from "./uploads.js";
import { count } from "./words.js";

let state = EMPTY;
let answer = null;
let answered = null; // the request that `answer` answers, or that was refused
let running = new AbortController(); // the search
let sending = new AbortController(); // images on their way

const panel = new QueryPanel((make) => change(make));
const filters = new Filters((make, again) => change(make, again));
const act = (action, id) => change((now) => ACTIONS[action](now, id));
const grid = new ResultGrid((id) => go({ ...state, open: id }, { opened: true }), act);
const gallery = new Gallery((info) => {
  filters.describe(info);
  if (answer) showNotices(answer, info, state);
});
const compare = new Compare({
  turn,
  act,
  look: (look) => go({ ...state, look: look === "lines" ? "" : look }, history.state, true),
  beside: (number) => go({ ...state, beside: number }, history.state, true),
  close: closeCompare,
  resultOf: (id) => answer?.results.find((result) => result.image_id === id),
  stepsOf: (now) => gallery.stepsOf(now),
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
  if (tooMany(next) && !tooMany(state)) {
    sayTooMany();
    return;
  }
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
  if (!compare.isOpen) return;
  compare.hide(); // at once: to go back takes a moment, and a second Escape must not go back twice
  if (history.state?.opened) history.back();
  else go(closed(state), null, true);
}

/** Opens the result whose card is `by` places from that of the open one; `only`: says whether there is one. */
function turn(by, only = false) {
  const open = grid.neighbour(state.open, by);
  if (open && !only) go({ ...state, open }, history.state, true);
  return Boolean(open);
}

// -- searching ------------------------------------------------------------------------------------------------

const again = () => change((now) => now, true);

async function search(request) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  answered = request;
  const asked = state;
  started();
  try {
    const post = () => fetchJson("v1/search", { json: JSON.parse(request), signal });
    const found = await patiently(() => withUploads(asked.uploads, post, signal), signal, (left, problem) =>
      showWaiting(left, problem, () => {
        running.abort();
        forget();
        stopped(again);
      }),
    );
    finish(found, asked);
  } catch (problem) {
    if (signal.aborted) return;
    fail(problem, asked);
  }
}

function started() {
  begin();
  filters.showError("");
}

function finish(found, asked) {
  end();
  answer = found;
  panel.answered(found);
  const told = showNotices(found, gallery.info, asked);
  showSummary(found);
  grid.render(found.results);
  const n = found.results.length;
  say([n > 0 ? `${count(n, "result")} of generation ${found.generation}.` : "Nothing was found.", ...told].join(" "));
  if (compare.isOpen) compare.render(state);
  if (found.generation !== gallery.info?.number) gallery.learn();
}

function fail(problem, asked) {
  end();
  clearNotices();
  if (filters.refused(problem, asked)) {
    keepStale();
    return;
  }
  forget();
  if (problem instanceof ImageGone) askForImage(problem.digest);
  else if (problem instanceof Problem) showFailure(problem, again);
  else throw problem;
}

/** The filter says what is wrong with it; what was found before stays, and says so. */
function keepStale() {
  byId("results").classList.add("stale");
  const left = answer ? "these are the results from before" : "nothing was searched";
  byId("summary").textContent = `The filter could not be applied: ${left}.`;
  show(byId("summary"), true);
}

/** Nobody waits any more for what the server was too busy for. */
function stopped(resume) {
  end();
  const button = el("button", { type: "button", on: { click: resume } }, "Search now");
  showProblem("Not searched", "The server was busy, and you stopped waiting.", "", button);
}

function forget() {
  answer = null;
  answered = null;
  clearNotices();
  grid.render([]);
  show(byId("summary"), false);
}

function clear() {
  running.abort();
  sending.abort();
  end();
  clearProblem();
  filters.showError("");
  forget();
  show(byId("start"), true);
}

// -- images ---------------------------------------------------------------------------------------------------

async function take(files, add) {
  if (files.length > MOST_QUERIES) {
    sayTooMany();
    return;
  }
  sending.abort();
  sending = new AbortController();
  const { signal } = sending;
  const resume = () => take(files, add);
  const waiting = (left, problem) =>
    showWaiting(left, problem, () => {
      sending.abort();
      restore();
      stopped(resume);
    });
  started();
  say(files.length > 1 ? `Sending ${files.length} images.` : "Sending the image.");
  const digests = [];
  try {
    for (const file of files) digests.push(await patiently(() => upload(file, signal), signal, waiting));
  } catch (problem) {
    if (signal.aborted) return;
    restore();
    if (!(problem instanceof Problem)) throw problem;
    showFailure(problem, resume, files.length > 1 ? files[digests.length].name : "");
    return;
  }
  end();
  change((now) => searchFor(add ? now : { ...now, uploads: [], images: [], unlike: [], exclude: [] }, digests), true);
}

/** What stood there before images were sent. */
function restore() {
  end();
  if (answer) showNotices(answer, gallery.info, state);
  else clearNotices();
  show(byId("start"), !asks(state));
}

function sayTooMany() {
  closeCompare();
  showProblem("Too many images", `A search takes ${MOST_QUERIES} at most.`);
}

function searchFor(now, digests) {
  return { ...closed(now), uploads: [...new Set([...now.uploads, ...digests])], box: null };
}

/** A link leads to an image that nobody has any more. */
function askForImage(digest) {
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
    if (!(problem instanceof Problem)) throw problem;
    showFailure(problem, () => replaceGone(file, digest));
  }
}

// -- the whole page -------------------------------------------------------------------------------------------

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
listen(take);
addEventListener("popstate", render);
render();
