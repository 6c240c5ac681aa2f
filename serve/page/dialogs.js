// The key that a server may ask for, the list of keys to press, and the colours.

import { keepKey, onUnauthorized, storedKey } from "./api.js";
import { byId, el, show } from "./dom.js";

const HELP = [
  ["Ctrl V", "search with the image on the clipboard"],
  ["Arrow keys", "go through the results; in the comparison, ← → to the next"],
  ["Enter", "compare a result with the query"],
  ["S", "search with the result"],
  ["M", "search for more like it"],
  ["N", "not this: look away from it"],
  ["H", "hide it"],
  ["F", "in the overlay: flip between query and match"],
  ["/", "go to the filter"],
  ["Arrow keys", "on the box: move it, with Shift resize it; Delete clears it"],
  ["Esc", "close"],
];

export function listenToDialogs() {
  onUnauthorized(askForKey);
  byId("forget-key").addEventListener("click", () => {
    keepKey(null);
    location.reload();
  });
  byId("help-keys").append(
    ...HELP.map(([keys, what]) => el("div", {}, el("dt", {}, el("kbd", {}, keys)), el("dd", {}, what))),
  );
  byId("help").addEventListener("click", () => {
    byId("help-dialog").showModal();
    byId("help-title").focus(); // its end on a phone is far from its beginning
  });
  byId("help-close").addEventListener("click", () => byId("help-dialog").close());
  listenToTheme();
  show(byId("forget-key"), Boolean(storedKey()));
}

function askForKey(refused) {
  const dialog = byId("key-dialog");
  byId("key-text").textContent = refused ? "That key was not accepted: it may be mistyped, or expired." : "";
  byId("key").value = "";
  return new Promise((resolve) => {
    const done = (key) => {
      byId("key-form").onsubmit = null;
      byId("key-cancel").onclick = null;
      dialog.oncancel = null;
      dialog.close();
      show(byId("forget-key"), Boolean(key));
      resolve(key);
    };
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      done(byId("key").value.trim() || null);
    };
    byId("key-cancel").onclick = () => done(null);
    dialog.oncancel = (event) => {
      event.preventDefault();
      done(null);
    };
    if (!dialog.open) dialog.showModal();
  });
}

const THEMES = { "": "Colours: auto", light: "Colours: light", dark: "Colours: dark" };

function listenToTheme() {
  const names = Object.keys(THEMES);
  const button = byId("theme");
  const wear = (name) => {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    button.textContent = THEMES[name];
  };
  let now = "";
  try {
    now = names.includes(localStorage.getItem("reseen-theme")) ? localStorage.getItem("reseen-theme") : "";
  } catch {
    // no storage: as the system
  }
  wear(now);
  button.addEventListener("click", () => {
    now = names[(names.indexOf(now) + 1) % names.length];
    wear(now);
    try {
      localStorage.setItem("reseen-theme", now);
    } catch {
      // worn until the page is left
    }
  });
}
