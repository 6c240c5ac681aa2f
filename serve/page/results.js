// The results as a grid of cards: one Tab stop, arrow keys between them, near-copies folded behind the best.

import { byId, el, icon } from "./dom.js";
import { imagePath, picture } from "./pictures.js";
import { VERDICTS, count, evidence, halves, probability, score, shortName } from "./words.js";

export const BUTTONS = [
  // action, letter, words
  ["search", "s", "Search with this"],
  ["more", "m", "More like this"],
  ["unlike", "n", "Not this"],
  ["hide", "h", "Hide"],
];

export class ResultGrid {
  /** `open(id)` shows one beside the query; `act(action, id)` searches again. */
  constructor(open, act) {
    this.list = byId("results");
    this.open = open;
    this.act = act;
    this.unfolded = new Set();
    this.results = [];
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("focusin", (event) => this.settle(event.target.closest("li")));
  }

  /** The results in the order shown, near-copies behind the one that they repeat. */
  render(results) {
    const place = this.cards().findIndex((card) => card.contains(document.activeElement));
    this.results = results;
    this.fill();
    if (place >= 0) this.focus(Math.min(place, this.cards().length - 1));
  }

  fill() {
    const there = new Set(this.results.map(({ image_id: id }) => id));
    const copies = new Map();
    const leaders = [];
    for (const result of this.results) {
      const of = result.duplicate_of;
      if (of !== null && there.has(of)) copies.set(of, [...(copies.get(of) ?? []), result]);
      else leaders.push(result);
    }
    const cards = leaders.flatMap((result) => {
      const folded = copies.get(result.image_id) ?? [];
      const shown = this.unfolded.has(result.image_id);
      return [this.card(result, folded, shown), ...(shown ? folded.map((copy) => this.card(copy, [], false)) : [])];
    });
    this.list.replaceChildren(...cards);
    this.settle(cards[0]);
  }

  card(result, copies, shown) {
    const id = result.image_id;
    const name = shortName(result.key);
    const img = picture(imagePath(id, 256), "");
    const opener = el(
      "button",
      {
        type: "button", class: "open", "aria-label": described(result, name), title: result.key,
        "aria-haspopup": "dialog", on: { click: () => this.open(id) },
      },
      img,
      verdict(result.verdict),
    );
    const about = el(
      "p",
      { class: "about", "aria-hidden": "true" },
      el("span", { class: "rank" }, String(result.rank)),
      el("span", { class: "name" }, ...halves(name).map((half) => el("span", {}, half))),
    );
    const scored = el(
      "p",
      { class: "scored", "aria-hidden": "true" },
      el("span", { class: "score" }, score(result.score)),
      el("span", { class: "quiet" }, evidence(result.steps)),
    );
    return el(
      "li",
      { "data-id": id, class: result.duplicate_of !== null ? "copy" : "" },
      opener,
      about,
      scored,
      copies.length > 0 && this.stack(id, copies.length, shown),
      this.tools(id, name),
    );
  }

  tools(id, name) {
    return el(
      "div",
      { class: "acts" },
      ...BUTTONS.map(([action, letter, words]) =>
        el(
          "button",
          {
            type: "button", title: `${words} (${letter.toUpperCase()})`, "aria-label": `${words}: ${name}`,
            "data-act": action, on: { click: () => this.act(action, id) },
          },
          icon(action),
        ),
      ),
    );
  }

  stack(id, copies, shown) {
    const words = `${shown ? "Fold" : "+"} ${count(copies, "near-duplicate")}`;
    return el(
      "button",
      { type: "button", class: "stack", "aria-expanded": String(shown), on: { click: () => this.unfold(id) } },
      icon("stack"),
      words,
    );
  }

  unfold(id) {
    if (!this.unfolded.delete(id)) this.unfolded.add(id);
    this.fill();
    this.list.querySelector(`li[data-id="${id}"] .stack`)?.focus();
  }

  // -- keys -----------------------------------------------------------------------------------------------

  cards = () => [...this.list.children];

  /** Only the buttons of one card are Tab stops. */
  settle(card) {
    if (!card) return;
    for (const each of this.cards()) {
      for (const button of each.querySelectorAll("button")) button.tabIndex = each === card ? 0 : -1;
    }
  }

  focus(place) {
    this.cards()[place]?.querySelector(".open").focus();
  }

  /** Where the card of a result is, or of the one that it is folded behind; -1: nowhere. */
  placeOf(id) {
    const leader = this.results.find((result) => result.image_id === id)?.duplicate_of;
    const place = (of) => this.cards().findIndex((card) => card.dataset.id === of);
    return place(id) >= 0 ? place(id) : place(leader);
  }

  /** The result whose card is `by` places from that of another; undefined where there is none. */
  neighbour(id, by) {
    const at = this.placeOf(id);
    return at < 0 ? undefined : this.cards()[at + by]?.dataset.id;
  }

  focusOn(id) {
    this.focus(Math.max(0, this.placeOf(id)));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const cards = this.cards();
    const card = event.target.closest("li");
    const to = destination(event.key, cards.indexOf(card), cards);
    const [action] = BUTTONS.find(([, letter]) => letter === event.key.toLowerCase()) ?? [];
    if (to !== null) this.focus(to);
    else if (action) this.act(action, card.dataset.id);
    else return;
    event.preventDefault();
  }
}

function destination(key, at, cards) {
  const columns = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (key === "Home") return 0;
  if (key === "End") return cards.length - 1;
  if (!(key in steps)) return null;
  const to = at + steps[key];
  if (to >= 0 && to < cards.length) return to;
  // Down from the last row but one lands on the last card, where the row below is shorter.
  const shorter = key === "ArrowDown" && Math.floor(at / columns) < Math.floor((cards.length - 1) / columns);
  return shorter ? cards.length - 1 : at;
}

export function verdict(found) {
  if (!found) return null;
  const title = `${probability(found.probability)} of labelled answers with this score showed the same thing`;
  return el("span", { class: `verdict ${found.label}`, title }, VERDICTS[found.label]);
}

function described(result, name) {
  const parts = [`Result ${result.rank}: ${name}`, `score ${score(result.score)}`];
  if (result.verdict) parts.push(VERDICTS[result.verdict.label]);
  if (evidence(result.steps)) parts.push(evidence(result.steps));
  if (result.duplicate_of !== null) parts.push("near-duplicate");
  return `${parts.join(", ")}. Compare with the query`;
}
