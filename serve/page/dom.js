// Elements without markup strings: whatever comes from outside becomes text, never HTML.

export const byId = (id) => document.getElementById(id);

/** An element. `on`: listeners by event; other names are attributes, left out where null or false. */
export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  const { on = {}, ...attributes } = given;
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    made.setAttribute(name, value === true ? "" : String(value));
  }
  for (const [event, listener] of Object.entries(on)) made.addEventListener(event, listener);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

const PATHS = {
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13ZM15.5 15.5 21 21",
  more: "M12 5v14M5 12h14",
  unlike: "M5 12h14",
  hide: "M3 12s3.5-6 9-6 9 6 9 6-3.5 6-9 6-9-6-9-6ZM4 20 20 4",
  stack: "M8 8h12v12H8zM4 16V4h12",
};

/** A line drawing that says nothing by itself: its button needs a label. */
export function icon(name) {
  return svg(
    "svg",
    { viewBox: "0 0 24 24", "aria-hidden": "true", class: "icon" },
    svg("path", { d: PATHS[name] }),
  );
}

/** Says something to screen readers; the same words twice are said twice. */
export function say(words) {
  const live = byId("live");
  live.textContent = live.textContent === words ? `${words}\u00a0` : words;
}

export function show(element, shown) {
  element.hidden = !shown;
}
