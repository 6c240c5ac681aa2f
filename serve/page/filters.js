// The filter over metadata columns, and the options of a search.

import { byId, el, show } from "./dom.js";
import { EMPTY, asks, closed } from "./state.js";
import { sentence } from "./words.js";

const STEP_NAMES = {
  geometry: "geometry", cvnet: "CVNet", regions: "regions", expand: "query expansion",
};

// Columns whose names are no plain words stand in backquotes (index/filter_text.py).
const PLAIN = /^[\p{L}_][\p{L}\p{N}_.-]*$/u;
const RESERVED = new Set(["and", "or", "not", "in", "prefix", "contains", "exists", "true", "false"]);

export class Filters {
  constructor(change) {
    this.change = change;
    this.where = byId("where");
    this.applied = null; // what the address says; what is typed meanwhile is not lost
    byId("filter").addEventListener("submit", (event) => {
      event.preventDefault();
      this.apply(this.where.value.trim());
    });
    byId("clear-where").addEventListener("click", () => this.apply(""));
    this.where.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      this.apply(this.where.value.trim());
    });
    byId("options").addEventListener("submit", (event) => {
      event.preventDefault();
      this.applyOptions();
    });
    for (const id of ["rerank", "fold"]) byId(id).addEventListener("change", () => this.applyOptions());
    const wide = matchMedia("(min-width: 760px)");
    byId("filter-panel").open = wide.matches;
  }

  apply(where) {
    this.change((state) => ({ ...closed(state), where }), true);
  }

  applyOptions() {
    const problem = optionsProblem();
    byId("options-error").textContent = problem;
    if (problem) return;
    const depth = byId("depth").value;
    this.change((state) => ({
      ...state,
      top: Number(byId("top").value || EMPTY.top),
      rerank: byId("rerank").value,
      depth: depth ? Number(depth) : null,
      fold: byId("fold").checked,
    }));
  }

  render(state) {
    if (state.where !== this.applied || !asks(state)) this.where.value = state.where;
    this.applied = state.where;
    show(byId("clear-where"), Boolean(state.where));
    byId("filter-state").textContent = state.where ? "on" : "";
    if (state.where) byId("filter-panel").open = true;
    byId("top").value = state.top;
    byId("depth").value = state.depth ?? "";
    byId("fold").checked = state.fold;
    this.chooseRerank(state.rerank);
  }

  chooseRerank(rerank) {
    const select = byId("rerank");
    const known = [...select.options].some((option) => option.value === rerank);
    if (!known) select.append(el("option", { value: rerank }, rerank || "recipe's"));
    select.value = rerank;
  }

  /** The error of a bad filter stands beside it. Returns whether this was one. */
  refused(problem, state) {
    const fields = (problem.extra?.fields ?? []).map(({ field }) => field);
    const named = fields.length > 0 ? fields.includes("where") : /\b(filter|column)\b/i.test(problem.message);
    const mine = Boolean(state.where) && problem.code === "invalid" && named;
    this.showError(mine ? sentence(problem.message) : "");
    if (mine) byId("filter-panel").open = true;
    return mine;
  }

  showError(text) {
    byId("where-error").textContent = text;
    if (text) this.where.setAttribute("aria-invalid", "true");
    else this.where.removeAttribute("aria-invalid");
  }

  /** What the gallery has: columns to filter by, steps of its recipe. */
  describe(info) {
    const always = ["source", "key"]; // the others, which are this gallery's own, come first
    const names = Object.entries(info.columns).sort(([a], [b]) => always.indexOf(a) - always.indexOf(b));
    byId("columns").replaceChildren(
      ...names.map(([name, type]) =>
        el(
          "button",
          { type: "button", title: type, "aria-label": `${name}, ${type}`, on: { click: () => this.insert(name) } },
          name,
          el("span", {}, type),
        ),
      ),
    );
    byId("where-help").textContent = names.length > 0 ? example(names) : "This gallery has no metadata to filter by.";
    const steps = info.steps.length > 0 ? info.steps.join(", ") : "none";
    const others = ["none", ...Object.keys(STEP_NAMES)];
    const chosen = byId("rerank").value;
    byId("rerank").replaceChildren(
      el("option", { value: "" }, `as the recipe (${steps})`),
      ...others.map((step) => el("option", { value: step }, STEP_NAMES[step] ?? step)),
    );
    this.chooseRerank(chosen);
  }

  insert(name) {
    const word = PLAIN.test(name) && !RESERVED.has(name.toLowerCase()) ? name : `\`${name}\``;
    const { selectionStart: start, selectionEnd: end, value } = this.where;
    const space = start > 0 && !/[\s(]$/.test(value.slice(0, start)) ? " " : "";
    this.where.setRangeText(`${space}${word} `, start, end, "end");
    this.where.focus();
  }
}

function optionsProblem() {
  for (const [id, name] of [["top", "How many results"], ["depth", "Looks at the first"]]) {
    if (!byId(id).checkValidity()) return `${name}: a whole number from 1 to 1,000.`;
  }
  return "";
}

const SAMPLES = { integer: ">= 1990", number: "< 2.5", boolean: "= true", text: '= "…"' };

function example(columns) {
  const kinds = new Map(columns.map(([name, type]) => [type, name]).reverse());
  const parts = ["integer", "text", "boolean"].filter((type) => kinds.has(type));
  const [first, ...rest] = parts.map((type) => `${kinds.get(type)} ${SAMPLES[type]}`);
  const text = rest.length > 1 ? `${first} and (${rest[0]} or not ${rest[1]})` : [first, ...rest].join(" and ");
  return first ? `For example: ${text}` : "";
}
