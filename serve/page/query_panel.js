// What is searched with: one uploaded image large, with a box on it; several, and images of the gallery, small.

import { BoxEditor } from "./box.js";
import { byId, el, show } from "./dom.js";
import { kept } from "./kept.js";
import { imagePath, picture, uploadPath } from "./pictures.js";
import { MOST_QUERIES, asks, mayBox, queriesIn } from "./state.js";
import { count } from "./words.js";

const LARGE = "The image searched with";

export class QueryPanel {
  /** `change(state => state)`: makes another search of the present one. */
  constructor(change) {
    this.change = change;
    this.boxer = new BoxEditor((box) => change((state) => ({ ...state, box })));
    byId("boxer").append(this.boxer.element);
    this.shown = null; // the digest of the large image
    this.told = null; // the size of it that the server sees
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
    const before = this.shown;
    this.shown = large;
    if (large && large !== before) this.showLarge(large);
    this.boxer.setBox(large ? state.box : null);
    show(byId("clear-box"), Boolean(large && state.box));
    byId("box-text").textContent = boxText(large ? state.box : null);
    byId("query-tiles").replaceChildren(
      ...(large ? [] : state.uploads.map((digest, at) => this.uploadTile(digest, at))),
      ...state.images.map((id, at) => this.imageTile(id, "images", `image ${at + 1} of the gallery`)),
    );
    show(byId("query-tiles"), byId("query-tiles").childElementCount > 0);
    show(byId("add-label"), asks(state) && queriesIn(state) < MOST_QUERIES);
    show(byId("clear-query"), asks(state));
    byId("unlike-tiles").replaceChildren(
      ...state.unlike.map((id, at) => this.imageTile(id, "unlike", `image ${at + 1} that shows something else`)),
    );
    show(byId("unlike"), state.unlike.length > 0);
    byId("hidden-images").firstChild.textContent = `${count(state.exclude.length, "image")} hidden.`;
    show(byId("hidden-images"), state.exclude.length > 0);
  }

  /** The answer says how large the server sees the image: as it turned it, where formats or browsers differ. */
  answered({ queries: [query] }) {
    if (!this.shown || !query?.width) return;
    const { width, height } = query;
    this.told = { width, height };
    const { size } = this.boxer;
    if (!size) this.boxer.setSize(width, height);
    else if (size.width !== width || size.height !== height) this.showServers(this.shown);
  }

  /** As this browser has it, else as the server sees it. */
  async showLarge(digest) {
    const img = el("img", { alt: LARGE, draggable: "false" });
    this.told = null;
    this.boxer.setImage(img);
    const url = await this.localUrl(digest);
    const seen = url !== null && (await shows(img, url));
    if (this.boxer.img !== img) return; // overtaken
    const { naturalWidth: width, naturalHeight: height } = img;
    const { told } = this;
    if (seen && (!told || (told.width === width && told.height === height))) this.boxer.setSize(width, height);
    else this.showServers(digest);
  }

  showServers(digest) {
    const { told } = this;
    const { box } = this.boxer;
    this.boxer.setImage(picture(uploadPath(digest, 1024), LARGE, false));
    this.boxer.setBox(box);
    if (told) this.boxer.setSize(told.width, told.height);
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
