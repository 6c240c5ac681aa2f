// A box on an image: drawn, moved and resized by mouse, finger or keys. Its sides are pixels of the original.

import { el } from "./dom.js";

const LEAST = 8; // pixels of the original a side
const LEAST_DRAWN = 6; // CSS pixels a side that are drawn, or it was a slip
const CORNERS = ["nw", "ne", "sw", "se"];
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

/** Shows an image, and the box on it. `onChange(box)` when one has been drawn, moved or (null) cleared. */
export class BoxEditor {
  constructor(onChange) {
    this.onChange = onChange;
    this.box = null;
    this.committed = "null";
    this.size = null;
    this.drag = null;
    this.handles = CORNERS.map((corner) => el("span", { class: `corner ${corner}`, "data-corner": corner }));
    this.mark = el(
      "div",
      { class: "box", tabindex: 0, role: "group", hidden: true, "aria-roledescription": "box" },
      ...this.handles,
    );
    this.element = el("div", { class: "boxer" }, this.mark);
    this.element.addEventListener("pointerdown", (event) => this.begin(event));
    this.element.addEventListener("pointermove", (event) => this.move(event));
    this.element.addEventListener("pointerup", () => this.end());
    this.element.addEventListener("pointercancel", () => this.cancel());
    this.mark.addEventListener("keydown", (event) => this.key(event));
    this.mark.addEventListener("blur", () => this.commit());
  }

  /** Another image, as an <img>. */
  setImage(img) {
    clearTimeout(this.timer); // what was begun on the last image is not for this one
    Object.assign(this, { img, size: null, box: null, committed: "null" });
    this.element.classList.remove("sized");
    this.element.replaceChildren(img, this.mark);
    this.draw();
  }

  /** How large the original is, pixels; boxes can be drawn from then on. */
  setSize(width, height) {
    this.size = { width, height };
    this.element.classList.add("sized");
    this.draw();
  }

  setBox(box) {
    if (this.drag || String(box) === this.committed) return; // keys may be ahead of the address
    clearTimeout(this.timer);
    this.box = box;
    this.committed = String(box);
    this.draw();
  }

  /** Whether fingers draw instead of scrolling. */
  setTouch(on) {
    this.touch = on;
    this.element.classList.toggle("touch", on);
  }

  /** A box in the middle, to be moved; `soon`: and searched with when nothing follows. */
  begun(soon) {
    if (!this.size) return;
    if (!this.box) {
      const { width, height } = this.size;
      this.box = [width / 4, height / 4, (width * 3) / 4, (height * 3) / 4].map(Math.round);
      this.draw();
      if (soon) this.later();
    }
    this.mark.focus();
  }

  clear() {
    clearTimeout(this.timer);
    this.box = null;
    this.draw();
    this.commit();
  }

  place(event) {
    const area = this.img.getBoundingClientRect();
    return [
      clamp(((event.clientX - area.left) / area.width) * this.size.width, 0, this.size.width),
      clamp(((event.clientY - area.top) / area.height) * this.size.height, 0, this.size.height),
    ];
  }

  begin(event) {
    if (!this.size || event.button !== 0 || (event.pointerType === "touch" && !this.touch)) return;
    event.preventDefault();
    this.element.setPointerCapture(event.pointerId);
    const from = this.place(event);
    const corner = event.target.dataset.corner;
    const before = this.box;
    if (corner) {
      const [x0, y0, x1, y1] = this.box;
      const fixed = [corner.includes("w") ? x1 : x0, corner.includes("n") ? y1 : y0];
      this.drag = { before, drawn: true, shape: (to) => spanned(fixed, to) };
    } else if (event.target === this.mark) {
      this.drag = { before, shape: (to) => this.moved(before, to[0] - from[0], to[1] - from[1]) };
      this.mark.focus();
    } else {
      this.drag = { before, drawn: true, shape: (to) => spanned(from, to) };
    }
  }

  move(event) {
    if (!this.drag) return;
    this.box = this.drag.shape(this.place(event)).map(Math.round);
    this.draw();
  }

  end() {
    if (!this.drag) return;
    const { before, drawn } = this.drag;
    this.drag = null;
    const least = Math.max(LEAST, (LEAST_DRAWN * this.size.width) / this.img.getBoundingClientRect().width);
    const [x0, y0, x1, y1] = this.box ?? [0, 0, 0, 0];
    if (drawn && (x1 - x0 < least || y1 - y0 < least)) this.box = before;
    this.draw();
    this.commit();
  }

  cancel() {
    if (!this.drag) return;
    this.box = this.drag.before;
    this.drag = null;
    this.draw();
  }

  moved([x0, y0, x1, y1], dx, dy) {
    const x = clamp(dx, -x0, this.size.width - x1);
    const y = clamp(dy, -y0, this.size.height - y1);
    return [x0 + x, y0 + y, x1 + x, y1 + y];
  }

  key(event) {
    const step = STEPS[event.key];
    if (event.key === "Escape" && this.drag) this.cancel();
    else if (event.key === "Delete" || event.key === "Backspace") this.clear();
    else if (event.key === "Enter") this.commit();
    else if (step) this.nudge(step, event);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  nudge([dx, dy], event) {
    const by = event.altKey ? 1 : Math.max(1, Math.round(Math.max(this.size.width, this.size.height) / 50));
    const [x0, y0, x1, y1] = this.box;
    if (event.shiftKey) {
      this.box = [
        x0,
        y0,
        clamp(x1 + dx * by, x0 + LEAST, this.size.width),
        clamp(y1 + dy * by, y0 + LEAST, this.size.height),
      ];
    } else {
      this.box = this.moved(this.box, dx * by, dy * by);
    }
    this.draw();
    this.later();
  }

  /** Searches when the keys have rested. */
  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.commit(), 600);
  }

  commit() {
    clearTimeout(this.timer);
    if (String(this.box) === this.committed) return;
    this.committed = String(this.box);
    this.onChange(this.box);
  }

  draw() {
    const shown = Boolean(this.box && this.size);
    const held = this.mark === document.activeElement;
    this.mark.hidden = !shown;
    if (held && !shown) this.img?.closest("section")?.querySelector("button:not([hidden])")?.focus();
    if (!shown) return;
    const [x0, y0, x1, y1] = this.box;
    const { width, height } = this.size;
    const { style } = this.mark;
    style.left = `${(100 * x0) / width}%`;
    style.top = `${(100 * y0) / height}%`;
    style.width = `${(100 * (x1 - x0)) / width}%`;
    style.height = `${(100 * (y1 - y0)) / height}%`;
    this.mark.setAttribute(
      "aria-label",
      `Box from ${x0} to ${x1} across and ${y0} to ${y1} down, of ${width} by ${height} pixels. ` +
        "Arrow keys move it, with Shift they resize it, Delete clears it.",
    );
  }
}

const spanned = ([ax, ay], [bx, by]) => [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
