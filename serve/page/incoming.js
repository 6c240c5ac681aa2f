// Images from outside: chosen, pasted, or dropped anywhere on the page.

import { byId, say, show } from "./dom.js";

/** `take(files, add)`: images to search with; `add`: besides those that are there. */
export function listen(take) {
  for (const [id, add] of [["pick", false], ["pick-start", false], ["pick-more", true]]) {
    const input = byId(id);
    input.addEventListener("change", () => {
      const files = [...input.files];
      input.value = ""; // so that the same file can be chosen again
      if (files.length > 0) take(files, add);
    });
  }
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length > 0) {
      event.preventDefault();
      take(files, false);
    } else if (!event.target.closest?.("input, textarea")) {
      say("There is no image on the clipboard. Copy the image itself, not its address.");
    }
  });
  listenToDrops(take);
}

function listenToDrops(take) {
  let depth = 0; // of elements entered and not left
  const over = (by) => {
    depth = by === 0 ? 0 : Math.max(0, depth + by);
    show(byId("drop"), depth > 0);
  };
  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragenter", (event) => holdsFiles(event) && over(1));
  document.addEventListener("dragleave", (event) => holdsFiles(event) && over(-1));
  document.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  document.addEventListener("drop", (event) => {
    over(0);
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    take(files, Boolean(event.target.closest?.("#query-tiles")));
  });
}
