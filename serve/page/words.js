// What the server says in codes and numbers, in plain words.

export const VERDICTS = { same: "same thing", maybe: "maybe", unlikely: "unlikely" };

const HEADLINES = {
  unauthorized: "This server asks for a key",
  forbidden: "This key may not do that",
  "not-found": "There is no such thing here",
  "uploads-off": "This server takes no images from outside",
  "too-large": "The image file is too large",
  "body-timeout": "The image did not arrive in time",
  "unsupported-media-type": "This is not an image file",
  "image-rejected": "This image cannot be used",
  invalid: "The search cannot be understood",
  "bad-request": "The search cannot be done",
  overloaded: "The server is busy",
  "not-ready": "The server is not ready for this",
  "store-unavailable": "The storage behind the server does not answer",
  "deadline-exceeded": "The search took too long",
  "partial-refused": "Not everything could be searched",
  internal: "Something went wrong on the server",
  unreachable: "The server cannot be reached",
  unreadable: "The server's answer cannot be read",
  "unreadable-file": "This file cannot be read",
};

const REASONS = {
  empty: "The file is empty.",
  too_many_bytes: "The file is larger than this gallery accepts.",
  unknown_format: "It is in no known image format. JPEG, PNG, WebP, GIF, TIFF and BMP are.",
  unsupported: "It is a variant of its format that cannot be read here; save it as JPEG or PNG.",
  too_many_pixels: "It has more pixels than this gallery accepts.",
  too_small: "It is too small to see anything in it.",
  truncated: "The file ends early: it was cut off on its way.",
  damaged: "The file is damaged.",
  too_costly: "Decoding it takes more time or memory than is allowed.",
  decoder_died: "Decoding it failed.",
  no_features: "It has too little structure: nothing in it could be described.",
  "uploads-off": "It can be searched with images of its gallery only, by links that name them.",
};

export const headline = (problem) => HEADLINES[problem.code] ?? `The server answered ${problem.status}`;

/** More about a problem: what is wrong with the image where that is it, else the server's own sentence. */
export const detail = (problem) => sentence(REASONS[problem.extra?.reason ?? problem.code] ?? problem.message);

export function sentence(text) {
  const trimmed = text.trim().replace(/\b[0-9a-f]{64}\b/g, "the image"); // an upload is named by its digest
  if (!trimmed) return "";
  const begun = trimmed[0].toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

export const score = (value) => value.toFixed(3);

export function percent(share) {
  const rounded = Math.round(share * 100);
  return `${share < 1 && rounded === 100 ? "over 99" : share > 0 && rounded === 0 ? "under 1" : rounded} %`;
}

/** A probability by a fitted curve: never quite nothing, never quite certain. */
export const probability = (p) => (p > 0.99 ? "over 99 %" : p < 0.01 ? "under 1 %" : percent(p));

export function seconds(s) {
  const unit = [[86_400, "day"], [3_600, "hour"], [60, "minute"]].find(([length]) => s >= length);
  return unit ? count(Math.floor(s / unit[0]), unit[1]) : count(Math.floor(s), "second");
}

/** The last part of a key, which is most of what tells it from others. */
export const shortName = (key) => key.slice(key.lastIndexOf("/") + 1) || key;

/** A name as two parts, of which the first gives way: the end tells files apart. */
export function halves(name) {
  const letters = [...name]; // never half a letter of two code units
  return [letters.slice(0, -11).join(""), letters.slice(-11).join("")];
}

/** What the steps found in a pair, in a few words; empty where there is nothing to say. */
export function evidence(steps) {
  const told = steps.map(({ step, figures, added }) => {
    if (step === "geometry") return figures.inliers ? count(figures.inliers, "point agrees", "points agree") : "";
    return added > 0 ? `${step} adds ${score(added)}` : "";
  });
  return told.filter(Boolean).join(", ");
}
