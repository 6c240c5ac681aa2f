// What the gallery is, as /v1/generation tells: its generation, its columns, the steps of its recipe.

import { fetchJson, patiently } from "./api.js";
import { byId } from "./dom.js";
import { count, seconds } from "./words.js";

const PAIR_STEPS = new Set(["geometry", "cvnet", "regions"]);

export class Gallery {
  /** `told(info)` when it is known, and whenever it was learned anew. */
  constructor(told) {
    this.info = null;
    this.told = told;
    this.learned = this.learn(); // or cannot be had
  }

  async learn() {
    const line = byId("gallery");
    try {
      this.info = await patiently(() => fetchJson("v1/generation"), new AbortController().signal, () => {
        line.textContent = "The server is still loading its index";
      });
    } catch (problem) {
      line.textContent = problem.code === "unauthorized" ? "No key was given" : "";
      return;
    }
    const { info } = this;
    const images = info.counts.live ?? info.counts.images;
    const parts = [
      images === undefined ? null : count(images, "image"),
      `generation ${info.number}`,
      `published ${seconds(info.age_s)} ago`,
    ];
    line.textContent = parts.filter(Boolean).join(" · ");
    line.title = `Recipe ${info.recipe}; ${info.published}`;
    if (!info.images) {
      byId("start-text").textContent =
        "This gallery holds ready-made vectors: it has no images to look at, and can be searched by programs only.";
    }
    this.told(info);
  }

  /** What looks closely at a pair: the search's steps; where none of them does, geometry is tried. */
  async stepsOf({ rerank }) {
    await this.learned;
    const asked = rerank === "none" ? "" : rerank;
    const steps = asked ? asked.split(",") : (this.info?.steps ?? []);
    const looks = !this.info || steps.some((step) => PAIR_STEPS.has(step.trim()));
    return looks ? { rerank: asked } : { rerank: "geometry", tried: true };
  }
}
