// One result beside the query: what corresponds, drawn; what its score is made of; and where to go from it.

import { Problem, fetchJson, patiently } from "./api.js";
import { byId, el, show } from "./dom.js";
import { LOOKS } from "./looks.js";
import { imagePath, picture, uploadPath } from "./pictures.js";
import { BUTTONS, verdict } from "./results.js";
import { mayBox } from "./state.js";
import { ImageGone, withUploads } from "./uploads.js";
import { detail, headline, probability, score, shortName } from "./words.js";

const SIZE = 1024;

/** The queries of a search that a result can be compared with: bodies of /v1/compare, and their pictures. */
function queriesOf(state) {
  const box = state.box && mayBox(state) ? { box: state.box } : {};
  return [
    ...state.uploads.map((upload) => ({ body: { upload, ...box }, path: uploadPath(upload, SIZE) })),
    ...state.images.map((id) => ({ body: { query_id: id }, path: imagePath(id, SIZE) })),
  ];
}

export class Compare {
  /** `turn(by)`, `act(action, id)`, `look(name)`, `beside(number)`, `close()` make another state of the page. */
  constructor({ turn, act, look, beside, close, resultOf, stepsOf }) {
    Object.assign(this, { turn, act, look, beside, close, resultOf, stepsOf });
    this.dialog = byId("compare");
    this.stage = byId("stage");
    this.title = byId("compare-title");
    this.values = {};
    byId("compare-actions").append(
      ...BUTTONS.map(([action, , words]) => this.button(words, () => act(action, this.state.open))),
    );
    byId("compare-before").addEventListener("click", () => turn(-1));
    byId("compare-next").addEventListener("click", () => turn(1));
    byId("compare-close").addEventListener("click", () => close());
    byId("flip").addEventListener("click", () => this.flip());
    byId("slider").addEventListener("input", (event) => this.slid(Number(event.target.value)));
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      close();
    });
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.stage);
  }

  get isOpen() {
    return this.dialog.open;
  }

  /** Shows the state's `open` beside its query, or nothing. */
  render(state) {
    if (!state.open || queriesOf(state).length === 0) {
      this.hide();
      return;
    }
    if (!this.isOpen) {
      this.dialog.showModal();
      this.title.focus();
    }
    this.state = state;
    const asked = JSON.stringify([this.query, state.open, state.rerank]);
    if (asked === this.asked) {
      this.head(this.resultOf(state.open) ?? this.pair?.found);
      this.showLooks();
      return;
    }
    this.asked = asked;
    this.load();
  }

  /** The query that the state compares with; the first where there are fewer. */
  get query() {
    const queries = queriesOf(this.state);
    return queries[this.state.beside - 1] ?? queries[0];
  }

  hide() {
    this.controller?.abort();
    this.asked = null;
    this.pair = null;
    if (this.isOpen) this.dialog.close();
  }

  async load() {
    this.controller?.abort();
    this.controller = new AbortController();
    const { signal } = this.controller;
    const { query } = this;
    this.pair = null;
    this.keepFocus(this.stage);
    this.stage.replaceChildren();
    this.stage.classList.add("busy");
    byId("compare-figures").replaceChildren();
    this.head(this.resultOf(this.state.open));
    this.say("Looking closely…");
    try {
      this.show(query, await this.ask(query.body, signal));
    } catch (problem) {
      if (signal.aborted) return;
      this.fail(problem);
    }
    this.stage.classList.remove("busy");
  }

  fail(problem) {
    const known = problem instanceof Problem;
    if (!known && !(problem instanceof ImageGone)) throw problem;
    this.say(known ? `${headline(problem)}. ${detail(problem)}` : "The image searched with is gone.");
    if (known) this.stage.replaceChildren(this.button("Try again", () => this.load()));
    this.keepFocus(byId("looks"));
    byId("looks").replaceChildren();
    for (const id of ["slider", "slider-label", "slider-value", "flip"]) show(byId(id), false);
  }

  async ask(query, signal) {
    const { uploads, open } = this.state;
    const { rerank, tried } = await this.stepsOf(this.state);
    const post = (steps) => {
      const json = { ...query, image_id: open, ...steps };
      const sent = () => withUploads(uploads, () => fetchJson("v1/compare", { json, signal }), signal);
      return patiently(sent, signal, (left) => this.say(`The server is busy: trying again in ${left} s.`));
    };
    if (!rerank || (tried && this.cannot)) return post({});
    try {
      return await post({ rerank });
    } catch (problem) {
      if (!tried || problem.code !== "invalid") throw problem;
      const answer = await post({});
      this.cannot = true; // it was for the step alone: the gallery has no points to compare
      return answer;
    }
  }

  show(query, answer) {
    const image = this.resultOf(answer.image.image_id) ?? answer.image;
    const points = answer.steps.map((step) => step.points).find((each) => each && each[0].length > 0) ?? null;
    this.pair = {
      found: image,
      query: { img: picture(query.path, "The query", false), ...sizeOf(answer.query) },
      image: { img: picture(imagePath(image.image_id, SIZE), `The match ${image.key}`, false), ...sizeOf(answer) },
      box: query.body.box ?? null,
      imageBox: answer.steps.map((step) => step.box).find(Boolean) ?? null,
      points,
      homography: answer.homography,
      heat: answer.heat,
    };
    this.head(image);
    this.figures(image, answer);
    this.showLooks();
  }

  head(image) {
    this.title.textContent = image ? shortName(image.key) : "Comparing";
    this.title.title = image?.key ?? "";
    const rank = image?.rank ? `${image.rank}.` : "";
    byId("compare-verdict").replaceChildren(
      ...(image ? [rank, ` ${score(image.score)} `, verdict(image.verdict) ?? ""] : []),
    );
    for (const [id, by] of [["compare-before", -1], ["compare-next", 1]]) {
      const there = this.turn(by, true);
      if (!there) this.keepFocus(byId(id));
      byId(id).disabled = !there;
    }
  }

  /** What had the focus goes: keys and screen readers stay in the dialog. */
  keepFocus(going) {
    if (going.contains(document.activeElement)) this.title.focus();
  }

  button(words, click) {
    return el("button", { type: "button", on: { click } }, words);
  }

  say(text) {
    byId("stage-text").textContent = text;
  }

  // -- ways to look -----------------------------------------------------------------------------------------

  showLooks() {
    if (!this.pair) return;
    const usable = Object.keys(LOOKS).filter((name) => LOOKS[name].refuses(this.pair) === null);
    this.now = usable.includes(this.state.look) ? this.state.look : "lines";
    radios(byId("looks"), "look", Object.entries(LOOKS).map(([name, { name: words, refuses }]) => ({
      value: name, words, checked: name === this.now, why: refuses(this.pair),
    })), (name) => this.look(name));
    const queries = queriesOf(this.state);
    show(byId("with"), queries.length > 1);
    radios(byId("with"), "with", queries.map((query, at) => ({
      value: String(at + 1), words: `Query ${at + 1}`, checked: query.path === this.query.path, why: null,
    })), (number) => this.beside(Number(number)));
    this.showSlider();
    this.draw();
  }

  showSlider() {
    const set = LOOKS[this.now].slider(this.pair);
    for (const id of ["slider", "slider-label", "slider-value"]) show(byId(id), Boolean(set));
    show(byId("flip"), this.now === "overlay");
    this.slider = set;
    if (!set) return;
    const value = Math.min(this.values[this.now] ?? set.value, set.most);
    byId("slider-label").textContent = set.name;
    Object.assign(byId("slider"), { min: set.least, max: set.most, value });
    byId("slider-value").textContent = set.say(value);
  }

  slid(value) {
    this.values[this.now] = value;
    byId("slider").value = value;
    byId("slider-value").textContent = this.slider.say(value);
    this.draw();
  }

  /** Query, match, query: what moves is not the same. */
  flip() {
    if (this.now === "overlay") this.slid(Number(byId("slider").value) < 50 ? 100 : 0);
  }

  draw() {
    if (!this.pair || !this.isOpen || this.stage.clientWidth === 0) return;
    const value = this.slider ? Number(byId("slider").value) : 0;
    this.say(LOOKS[this.now].draw(this.stage, this.pair, value));
  }

  // -- words ------------------------------------------------------------------------------------------------

  figures(image, answer) {
    const rows = [
      ["score", score(image.score)],
      ["similarity", score(image.similarity)],
      ...answer.steps.flatMap((step) => [
        [`${step.step} adds`, score(step.added)],
        ...Object.entries(step.figures).map(([name, value]) => [`${step.step} ${name}`, number(value)]),
      ]),
      ...(image.verdict ? [["probability", probability(image.verdict.probability)]] : []),
      ...Object.entries(image.metadata).map(([name, value]) => [name, String(value)]),
      ["size", `${answer.width} × ${answer.height}`],
      ["key", image.key],
      ["source", image.source],
      ["place", image.uri],
      ["id", image.image_id],
    ];
    byId("compare-figures").replaceChildren(
      ...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    );
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
    const letter = event.key.toLowerCase();
    const [action] = BUTTONS.find(([, key]) => key === letter) ?? [];
    if (event.key === "ArrowLeft") this.turn(-1);
    else if (event.key === "ArrowRight") this.turn(1);
    else if (letter === "f") this.flip();
    else if (action) this.act(action, this.state.open);
    else return;
    event.preventDefault();
  }
}

const sizeOf = ({ width, height }) => ({ width, height });

const number = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(3));

/** Native radio buttons, so that arrow keys and screen readers know them; the same ones stay in focus. */
function radios(group, name, choices, chosen) {
  const held = group.contains(document.activeElement) ? document.activeElement.value : null;
  group.replaceChildren(
    ...choices.map(({ value, words, checked, why }) =>
      el(
        "label",
        { title: why ?? "", class: why ? "refused" : "" },
        el("input", {
          type: "radio", name, value, checked, disabled: why !== null, on: { change: () => chosen(value) },
        }),
        words,
        why ? el("span", { class: "hidden" }, `(${why})`) : null,
      ),
    ),
  );
  if (held !== null) group.querySelector("input:checked")?.focus();
}
