// The ways to look at a pair: side by side with lines, overlaid, or with heat. Each fills the stage.

import { el, svg } from "./dom.js";
import { cssTransform } from "./homography.js";
import { count } from "./words.js";

const GAP = 12;
const USUAL_LINES = 48; // more of them hide the images
const LARGEST = 1024; // CSS pixels of the query before it is transformed
const INK = 1200; // of all points, as the sum of their squared radii: more of it hides the images, too

// Black over violet and orange to pale yellow: matplotlib's inferno (CC0).
const HEAT = [
  [0, 0, 4], [33, 12, 74], [86, 16, 110], [137, 34, 106], [187, 55, 84], [227, 89, 50], [249, 140, 10],
  [249, 201, 50], [252, 255, 164],
];

/**
 * A pair: `query` and `image` are {img, width, height}, sizes those of the originals; `box` of the query or
 * null; `points` two lists of (x, y), `homography`, `heat` as /v1/compare gives them.
 */
export const LOOKS = {
  lines: {
    name: "Side by side",
    refuses: () => null,
    slider: (pair) => {
      const n = pair.points ? pair.points[0].length : 0;
      return n > 0 ? { name: "Lines", least: 0, most: n, value: Math.min(n, USUAL_LINES), say: String } : null;
    },
    draw: drawLines,
  },
  overlay: {
    name: "Overlay",
    refuses: (pair) => (pair.homography ? null : "No plane was found that the two have in common."),
    slider: () => ({ name: "Query", least: 0, most: 100, value: 50, say: (v) => `${v} %` }),
    draw: drawOverlay,
  },
  heat: {
    name: "Heat map",
    refuses: (pair) => (pair.heat ? null : "No step of this search makes one."),
    slider: () => ({ name: "Heat", least: 0, most: 100, value: 65, say: (v) => `${v} %` }),
    draw: drawHeat,
  },
};

// -- side by side ---------------------------------------------------------------------------------------------

/** Both as large as they fit, next to each other (`across`) or one above the other, whichever shows more. */
function placed(stage, pair) {
  const [w, h] = [stage.clientWidth, stage.clientHeight];
  const fit = ({ width, height }, roomW, roomH) => Math.min(roomW / width, roomH / height);
  const beside = [pair.query, pair.image].map((each) => fit(each, (w - GAP) / 2, h));
  const above = [pair.query, pair.image].map((each) => fit(each, w, (h - GAP) / 2));
  const shown = (scales) => [pair.query, pair.image].reduce((sum, each, at) => sum + each.width * each.height * scales[at] ** 2, 0);
  const across = shown(beside) >= shown(above);
  const scales = across ? beside : above;
  const sizes = [pair.query, pair.image].map((each, at) => [each.width * scales[at], each.height * scales[at]]);
  const long = (across ? sizes[0][0] + sizes[1][0] : sizes[0][1] + sizes[1][1]) + GAP;
  let from = ((across ? w : h) - long) / 2;
  const areas = sizes.map(([width, height], at) => {
    const area = across
      ? { left: from, top: (h - height) / 2 }
      : { left: (w - width) / 2, top: from };
    from += (across ? width : height) + GAP;
    return { ...area, width, height, scale: scales[at] };
  });
  return { areas, across };
}

function lay(element, { left, top, width, height }) {
  Object.assign(element.style, {
    left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px`, transform: "", opacity: "",
  });
  return element;
}

const onStage = ({ left, top, scale }, [x, y]) => [left + (x + 0.5) * scale, top + (y + 0.5) * scale];

function drawLines(stage, pair, shown) {
  const { areas: [query, image], across } = placed(stage, pair);
  const drawing = svg("svg", { class: "drawing", width: stage.clientWidth, height: stage.clientHeight, "aria-hidden": "true" });
  const [here, there] = pair.points ?? [[], []];
  const ends = here.map((point, at) => [onStage(query, point), onStage(image, there[at])]);
  for (const at of spread(ends.length, shown)) drawing.append(line(ends[at], hue(here[at], pair.query)));
  const r = Math.min(3, Math.max(1.5, Math.sqrt(INK / ends.length)));
  for (const [at, pairOfEnds] of ends.entries()) {
    for (const [cx, cy] of pairOfEnds) {
      drawing.append(svg("circle", { cx, cy, r, fill: hue(here[at], pair.query), class: "point" }));
    }
  }
  const marks = [[pair.box, query], [pair.imageBox, image]].filter(([box]) => box);
  for (const [[x0, y0, x1, y1], area] of marks) {
    const { left, top, scale } = area;
    drawing.append(
      svg("rect", {
        x: left + x0 * scale, y: top + y0 * scale, width: (x1 - x0) * scale, height: (y1 - y0) * scale, class: "part",
      }),
    );
  }
  stage.replaceChildren(lay(pair.query.img, query), lay(pair.image.img, image), drawing);
  if (ends.length === 0) return "No corresponding points were found.";
  return `${count(ends.length, "corresponding point")}; the query is ${across ? "on the left" : "above"}.`;
}

function line([[x1, y1], [x2, y2]], colour) {
  const ends = { x1, y1, x2, y2 };
  return svg("g", { class: "link" }, svg("line", { ...ends, class: "under" }), svg("line", { ...ends, stroke: colour }));
}

/** n rows, evenly drawn from all of them. */
const spread = (all, n) => Array.from({ length: Math.min(n, all) }, (_, at) => Math.floor((at * all) / n));

/** Neighbouring points have neighbouring colours. */
function hue([x, y], { width, height }) {
  const angle = (Math.atan2(y - height / 2, x - width / 2) * 180) / Math.PI;
  return `hsl(${Math.round(angle + 180)} 90% 62%)`;
}

// -- overlay --------------------------------------------------------------------------------------------------

function drawOverlay(stage, pair, opacity) {
  const [w, h] = [stage.clientWidth, stage.clientHeight];
  const { width, height } = pair.image;
  const scale = Math.min(w / width, h / height);
  const area = { left: (w - width * scale) / 2, top: (h - height * scale) / 2, width: width * scale, height: height * scale };
  const frame = lay(el("div", { class: "frame" }), area);
  const base = lay(pair.image.img, { ...area, left: 0, top: 0 });
  const small = Math.min(1, LARGEST / Math.max(pair.query.width, pair.query.height));
  const query = lay(pair.query.img, { left: 0, top: 0, width: pair.query.width * small, height: pair.query.height * small });
  query.style.transform = cssTransform(pair.homography, small, scale);
  query.style.opacity = opacity / 100;
  frame.append(base, query);
  stage.replaceChildren(frame);
  return "The query, turned as it stood before the camera, lies over the match.";
}

// -- heat -----------------------------------------------------------------------------------------------------

function drawHeat(stage, pair, opacity) {
  const { areas } = placed(stage, pair);
  const parts = [part(areas[0], pair.box), areas[1]];
  const maps = [pair.heat.query, pair.heat.image].map((rows, at) => {
    const canvas = lay(heatCanvas(rows), parts[at]);
    canvas.style.opacity = opacity / 100;
    return canvas;
  });
  stage.replaceChildren(lay(pair.query.img, areas[0]), lay(pair.image.img, areas[1]), ...maps);
  return "Bright where the two images correspond.";
}

function part(area, box) {
  if (!box) return area;
  const { left, top, scale } = area;
  const [x0, y0, x1, y1] = box;
  return { left: left + x0 * scale, top: top + y0 * scale, width: (x1 - x0) * scale, height: (y1 - y0) * scale };
}

/** A pixel a cell; CSS makes it large, and smooth. */
function heatCanvas(rows) {
  const canvas = el("canvas", { class: "heat", width: rows[0].length, height: rows.length, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (const [at, value] of rows.flat().entries()) pixels.data.set([...heatColour(value), 255], 4 * at);
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function heatColour(value) {
  const at = Math.min(Math.max(value, 0), 1) * (HEAT.length - 1);
  const [low, high] = [HEAT[Math.floor(at)], HEAT[Math.ceil(at)]];
  return low.map((from, channel) => Math.round(from + (high[channel] - from) * (at % 1)));
}
