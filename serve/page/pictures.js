// Thumbnails. With a key they are fetched, for an <img> cannot send a header, and shown as blobs.

import { authorization, storedKey } from "./api.js";

const MOST_BLOBS = 300;
const blobs = new Map(); // path -> promise of a blob: URL, the one used last at the end

const seen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      load(target);
    }
  },
  { rootMargin: "300px" },
);

/** An <img> of a path of the API, loaded when it comes near the window. */
export function picture(path, alt, lazy = true) {
  const img = document.createElement("img");
  img.alt = alt;
  img.decoding = "async";
  img.draggable = false;
  img.dataset.path = path;
  img.addEventListener("error", () => img.classList.add("absent"));
  if (lazy) seen.observe(img);
  else load(img);
  return img;
}

async function load(img) {
  const path = img.dataset.path;
  if (!storedKey()) {
    img.src = path;
    return;
  }
  try {
    img.src = await blobOf(path);
  } catch {
    img.dispatchEvent(new Event("error"));
  }
}

function blobOf(path) {
  const found = blobs.get(path) ?? fetched(path);
  blobs.delete(path);
  blobs.set(path, found);
  found.catch(() => blobs.delete(path));
  if (blobs.size > MOST_BLOBS) {
    const [oldest, url] = blobs.entries().next().value;
    blobs.delete(oldest);
    url.then((text) => setTimeout(() => URL.revokeObjectURL(text), 60_000), () => {});
  }
  return found;
}

async function fetched(path, tries = 4) {
  const response = await fetch(path, { headers: authorization() });
  if (response.status === 429 && tries > 1) {
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    return fetched(path, tries - 1);
  }
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return URL.createObjectURL(await response.blob());
}

export const imagePath = (id, size) => `v1/images/${id}/thumbnail?size=${size}`;
export const uploadPath = (digest, size) => `v1/uploads/${digest}/thumbnail?size=${size}`;
