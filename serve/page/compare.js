// One result beside the query: what corresponds, drawn; what its score is made of; and where to go from it.

import { Problem, fetchJson, patiently } from "./api.js";
import { byId, el, show } from "./dom.js";
import { LOOKS } from "./looks.js";
import { imagePath, picture, uploadPath } from "./pictures.js";
import { BUTTONS, verdict } from "./results.js";
import { mayBox } from "./state.js";
import { withUploads } from "./uploads.js";
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
  /** `turn(by)`, `act(action, id)`, `look(name)`, `close()` make another state of the page. */
  constructor({ turn, act, look, close, resultOf, stepsOf }) {
    Object.assign(this, { turn, act, look, close, resultOf, stepsOf });
    this.dialog = byId("compare");
    this.stage = byId("stage");
    this.chosen = 0;
    this.values = {};
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
    if (!this.isOpen) this.dialog.showModal();
    const asked = JSON.stringify([queriesOf(state), state.open, state.rerank]);
    this.wanted = state.look || "lines";
    this.state = state;
    if (asked === this.asked) {
      this.showLooks();
      return;
    }
    const [queries] = JSON.parse(this.asked ?? "[[]]");
    if (JSON.stringify(queries) !== JSON.stringify(queriesOf(state))) this.chosen = 0;
    this.asked = asked;
    this.load();
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
    const query = queriesOf(this.state)[this.chosen];
    this.pair = null;
    this.stage.replaceChildren();
    this.stage.classList.add("busy");
    this.head(this.resultOf(this.state.open));
    this.say("Looking closely…");
    try {
      this.show(query, await this.ask(query.body, signal));
    } catch (problem) {
      if (problem.name === "AbortError") return;
      this.say(problem.code ? `${headline(problem)}. ${detail(problem)}` : "The image searched with is gone.");
      byId("looks").replaceChildren();
      for (const id of ["slider", "slider-label", "slider-value", "flip"]) show(byId(id), false);
    }
    if (!signal.aborted) this.stage.classList.remove("busy");
  }

  async ask(body, signal) {
    const { rerank, tried } = await this.stepsOf(this.state);
    const wanted = rerank && !(tried && this.cannot) ? { rerank } : {};
    const json = { ...body, image_id: this.state.open, ...wanted };
    const post = () => fetchJson("v1/compare", { json, signal });
    const again = () => withUploads(this.state.uploads, post, signal);
    try {
      return await patiently(again, signal, (left) => this.say(`The server is busy: trying again in ${left} s.`));
    } catch (problem) {
      if (!(tried && !this.cannot && problem instanceof Problem && problem.code === "invalid")) throw problem;
      this.cannot = true; // the gallery has no points to compare
      return this.ask(body, signal);
    }
  }

  show(query, answer) {
    const image = this.resultOf(answer.image.image_id) ?? answer.image;
    const points = answer.steps.map((step) => step.points).find((each) => each && each[0].length > 0) ?? null;
    this.pair = {
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
    this.actions(image);
    this.showLooks();
  }

  head(image) {
    byId("compare-title").textContent = image ? shortName(image.key) : "Comparing";
    byId("compare-title").title = image?.key ?? "";
    const rank = image?.rank ? `${image.rank}.` : "";
    byId("compare-verdict").replaceChildren(
      ...(image ? [rank, ` ${score(image.score)} `, verdict(image.verdict) ?? ""] : []),
    );
    for (const [id, by] of [["compare-before", -1], ["compare-next", 1]]) byId(id).disabled = !this.turn(by, true);
  }

  say(text) {
    byId("stage-text").textContent = text;
  }

  // -- ways to look -----------------------------------------------------------------------------------------

  showLooks() {
    if (!this.pair) return;
    const usable = Object.keys(LOOKS).filter((name) => LOOKS[name].refuses(this.pair) === null);
    this.now = usable.includes(this.wanted) ? this.wanted : "lines";
    radios(byId("looks"), "look", Object.entries(LOOKS).map(([name, { name: words, refuses }]) => ({
      value: name, words, checked: name === this.now, why: refuses(this.pair),
    })), (name) => this.look(name));
    const queries = queriesOf(this.state);
    show(byId("with"), queries.length > 1);
    radios(byId("with"), "with", queries.map((_, at) => ({
      value: String(at), words: `Query ${at + 1}`, checked: at === this.chosen, why: null,
    })), (at) => {
      this.chosen = Number(at);
      this.load();
    });
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

  actions(image) {
    byId("compare-actions").replaceChildren(
      ...BUTTONS.map(([action, , words]) =>
        el("button", { type: "button", "data-act": action, on: { click: () => this.act(action, image.image_id) } }, words),
      ),
    );
  }

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
    else if (action && this.pair) this.act(action, this.state.open);
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
