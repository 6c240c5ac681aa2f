// Images on their way to the server, and again when it has forgotten them.

import { Problem, fetchJson } from "./api.js";
import { keep, kept } from "./kept.js";

/** Posts a file and keeps it here; its digest. Throws `Problem` where it cannot be read, as a folder cannot. */
export async function upload(file, signal) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem(0, { code: "unreadable-file", detail: "It may be a folder, or have changed. Choose it again." });
  }
  const body = new FormData();
  body.append("image", file, file.name || "image");
  const { digest } = await fetchJson("v1/uploads", { method: "POST", body, signal });
  await keep(digest, file);
  return digest;
}

/** An image that neither the server nor this browser has any more. */
export class ImageGone extends Error {
  constructor(digest) {
    super(digest);
    this.digest = digest;
  }
}

/** Runs `attempt`; uploads again what the server says it has not got. Throws `ImageGone` where nobody has it. */
export async function withUploads(digests, attempt, signal) {
  const again = new Set();
  for (;;) {
    try {
      return await attempt();
    } catch (problem) {
      const lost = lostOf(problem, digests).filter((digest) => !again.has(digest));
      if (lost.length === 0) throw problem;
      for (const digest of lost) {
        const file = await kept(digest);
        if (file === null) throw new ImageGone(digest);
        await upload(file, signal);
        again.add(digest);
      }
    }
  }
}

function lostOf(problem, digests) {
  if (!(problem instanceof Problem) || problem.status !== 404) return [];
  const told = `${problem.message} ${JSON.stringify(problem.extra)}`;
  return digests.filter((digest) => told.includes(digest));
}
