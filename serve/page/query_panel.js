// What is searched with: one uploaded image large, with a box on it; several, and images of the gallery, small.

import { BoxEditor } from "./box.js";
import { byId, el, show } from "./dom.js";
import { kept } from "./kept.js";
import { imagePath, picture, uploadPath } from "./pictures.js";
import { MOST_QUERIES, asks, mayBox } from "./state.js";
import { count } from "./words.js";

export class QueryPanel {
  /** `change(state => state)`: makes another search of the present one. */
  constructor(change) {
    this.change = change;
    this.boxer = new BoxEditor((box) => change((state) => ({ ...state, box })));
    byId("boxer").append(this.boxer.element);
    this.shown = null;
    this.urls = new Map();
    this.draw = byId("draw-box");
    this.draw.addEventListener("click", (event) => this.drawBox(event));
    byId("clear-box").addEventListener("click", () => this.boxer.clear());
    byId("clear-query").addEventListener("click", () => change(() => null));
    byId("show-hidden").addEventListener("click", () => change((state) => ({ ...state, exclude: [] })));
  }

  /** Fingers draw while it is pressed, else they scroll; keys and mouse get a box in the middle to move. */
  drawBox(event) {
    if (event.pointerType !== "touch") {
      this.boxer.begun(event.detail === 0);
      return;
    }
    const pressed = this.draw.getAttribute("aria-pressed") !== "true";
    this.draw.setAttribute("aria-pressed", String(pressed));
    this.boxer.setTouch(pressed);
  }

  render(state) {
    const large = mayBox(state) ? state.uploads[0] : null;
    show(byId("boxer"), Boolean(large));
    show(byId("box-tools"), Boolean(large));
    if (large && large !== this.shown) this.showLarge(large);
    this.shown = large;
    this.boxer.setBox(large ? state.box : null);
    show(byId("clear-box"), Boolean(large && state.box));
    byId("box-text").textContent = boxText(large ? state.box : null);
    byId("query-tiles").replaceChildren(
      ...(large ? [] : state.uploads.map((digest, at) => this.uploadTile(digest, at))),
      ...state.images.map((id, at) => this.imageTile(id, "images", `image ${at + 1} of the gallery`)),
    );
    show(byId("query-tiles"), byId("query-tiles").childElementCount > 0);
    show(byId("add-label"), asks(state) && state.uploads.length + state.images.length < MOST_QUERIES);
    show(byId("clear-query"), asks(state));
    byId("unlike-tiles").replaceChildren(
      ...state.unlike.map((id, at) => this.imageTile(id, "unlike", `image ${at + 1} that shows something else`)),
    );
    show(byId("unlike"), state.unlike.length > 0);
    byId("hidden-images").firstChild.textContent = `${count(state.exclude.length, "image")} hidden.`;
    show(byId("hidden-images"), state.exclude.length > 0);
  }

  /** The answer says how large the image is, also where this browser cannot show it. */
  answered(answer) {
    const [query] = answer.queries;
    if (this.shown && !this.boxer.size && query?.width) this.boxer.setSize(query.width, query.height);
  }

  async showLarge(digest) {
    const img = el("img", { alt: "The image searched with", draggable: "false" });
    this.boxer.setImage(img);
    const url = await this.localUrl(digest);
    if (url && (await shows(img, url))) {
      if (this.shown === digest) this.boxer.setSize(img.naturalWidth, img.naturalHeight);
    } else if (this.shown === digest) {
      const from = picture(uploadPath(digest, 1024), img.alt, false);
      img.replaceWith(from);
      this.boxer.img = from;
    }
  }

  /** A blob: URL of a file that this browser keeps; null if it does not. */
  async localUrl(digest) {
    if (!this.urls.has(digest)) {
      const file = await kept(digest);
      if (file) this.urls.set(digest, URL.createObjectURL(file));
    }
    return this.urls.get(digest) ?? null;
  }

  uploadTile(digest, at) {
    const name = `uploaded image ${at + 1}`;
    return this.tile(picture(uploadPath(digest, 160), name), name, (state) => ({
      ...state,
      uploads: state.uploads.filter((each) => each !== digest),
    }));
  }

  imageTile(id, list, name) {
    return this.tile(picture(imagePath(id, 160), name), name, (state) => ({
      ...state,
      [list]: state[list].filter((each) => each !== id),
    }));
  }

  tile(img, name, removed) {
    const button = el(
      "button",
      { type: "button", "aria-label": `Remove ${name}`, title: "Remove", on: { click: () => this.change(removed) } },
      "×",
    );
    return el("li", {}, img, button);
  }
}

function boxText(box) {
  const fingers = matchMedia("(pointer: coarse)").matches;
  if (!box) return fingers ? "To look for only a part." : "Drag on the image to look for only a part of it.";
  const [x0, y0, x1, y1] = box.map(Math.round);
  return `Only ${x1 - x0} × ${y1 - y0} pixels at (${x0}, ${y0}).`;
}

function shows(img, url) {
  return new Promise((resolve) => {
    img.addEventListener("load", () => resolve(true), { once: true });
    img.addEventListener("error", () => resolve(false), { once: true });
    img.src = url;
  });
}
