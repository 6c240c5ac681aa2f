// The search as the address bar holds it, after the #: that part never reaches a server's log.

export const MOST_QUERIES = 16;
const DIGEST = /^[0-9a-f]{64}$/;
const ID = /^(0|[1-9][0-9]{0,18})$/; // 63 bits: always text, never a number
const LOOKS = ["lines", "overlay", "heat"];

export const EMPTY = Object.freeze({
  uploads: [], images: [], unlike: [], exclude: [], box: null, where: "",
  top: 24, rerank: "", depth: null, fold: true, open: null, look: "", unread: [],
});

const whole = (text, least, most) =>
  /^[0-9]{1,4}$/.test(text) && least <= Number(text) && Number(text) <= most ? Number(text) : undefined;

function box(text) {
  const sides = text.split(",").map((side) => (side.trim() === "" ? NaN : Number(side)));
  const good = sides.length === 4 && sides.every(Number.isFinite) && sides[0] < sides[2] && sides[1] < sides[3];
  return good ? sides : undefined;
}

const matching = (pattern) => (text) => (pattern.test(text) ? text : undefined);

// By name in the address: where it goes, and how it is read; undefined is what cannot be read.
const LISTS = {
  upload: ["uploads", matching(DIGEST)],
  image: ["images", matching(ID)],
  unlike: ["unlike", matching(ID)],
  hide: ["exclude", matching(ID)],
};
const SINGLE = {
  box: ["box", box],
  where: ["where", (text) => text],
  top: ["top", (text) => whole(text, 1, 1000)],
  rerank: ["rerank", matching(/^[a-z0-9,_ -]{1,200}$/)],
  depth: ["depth", (text) => whole(text, 1, 1000)],
  fold: ["fold", (text) => ({ no: false, yes: true })[text]],
  open: ["open", matching(ID)],
  look: ["look", (text) => (LOOKS.includes(text) ? text : undefined)],
};

/** Reads `location.hash`; what cannot be read is named in `unread`. */
export function readState(hash) {
  const state = { ...EMPTY, uploads: [], images: [], unlike: [], exclude: [], unread: [] };
  for (const [name, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    const [to, read] = LISTS[name] ?? SINGLE[name] ?? [null, () => undefined];
    const value = read(text);
    if (value === undefined) state.unread.push(name);
    else if (!(name in LISTS)) state[to] = value;
    else if (!state[to].includes(value)) state[to] = [...state[to], value];
  }
  return state;
}

/** The address of a state; what has its usual value is left out. */
export function writeState(state) {
  const words = new URLSearchParams();
  for (const [name, [from]] of Object.entries(LISTS)) for (const value of state[from]) words.append(name, value);
  if (state.box) words.set("box", state.box.join(","));
  if (state.where) words.set("where", state.where);
  if (state.top !== EMPTY.top) words.set("top", state.top);
  if (state.rerank) words.set("rerank", state.rerank);
  if (state.depth) words.set("depth", state.depth);
  if (!state.fold) words.set("fold", "no");
  if (state.open) words.set("open", state.open);
  if (state.look) words.set("look", state.look);
  const text = words.toString().replaceAll("%2C", ",");
  return text ? `#${text}` : location.pathname + location.search;
}

export const asks = (state) => state.uploads.length + state.images.length > 0;

export const mayBox = (state) => state.uploads.length === 1 && state.images.length === 0;

/** The body of POST /v1/search. What is not like the thing is not shown either. */
export function requestOf(state) {
  return {
    uploads: state.uploads,
    image_ids: state.images,
    unlike_ids: state.unlike,
    exclude_ids: [...new Set([...state.exclude, ...state.unlike])],
    ...(state.box && mayBox(state) ? { box: state.box } : {}),
    ...(state.where ? { where: state.where } : {}),
    top: state.top,
    ...(state.rerank ? { rerank: state.rerank } : {}),
    ...(state.depth ? { depth: state.depth } : {}),
    fold: state.fold,
  };
}

// What each button under a result makes of the search.

const fresh = (state) => ({ ...state, open: null, look: "" });
const without = (list, id) => list.filter((each) => each !== id);
const latest = (list, most) => list.slice(-most);

export const ACTIONS = {
  search: (state, id) => ({ ...fresh(state), uploads: [], images: [id], unlike: [], exclude: [], box: null }),
  more: (state, id) => ({
    ...fresh(state),
    images: latest([...without(state.images, id), id], MOST_QUERIES - state.uploads.length),
    unlike: without(state.unlike, id),
    box: null,
  }),
  unlike: (state, id) => ({ ...fresh(state), unlike: latest([...without(state.unlike, id), id], MOST_QUERIES) }),
  hide: (state, id) => ({ ...fresh(state), exclude: [...without(state.exclude, id), id] }),
};
