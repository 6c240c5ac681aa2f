// The search as the address bar holds it, after the #: that part never reaches a server's log.

export const MOST_QUERIES = 16;
const DIGEST = /^[0-9a-f]{64}$/;
const ID = /^(0|[1-9][0-9]{0,18})$/; // 63 bits: always text, never a number
const LOOKS = ["lines", "overlay", "heat"];

export const EMPTY = Object.freeze({
  uploads: [], images: [], unlike: [], exclude: [], box: null, where: "",
  top: 24, rerank: "", depth: null, fold: true, open: null, look: "", beside: 1, unread: [],
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
  beside: ["beside", (text) => whole(text, 1, MOST_QUERIES)], // which of several queries the open one is compared with
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
  if (state.beside !== EMPTY.beside) words.set("beside", state.beside);
  const text = words.toString().replaceAll("%2C", ",");
  return text ? `#${text}` : location.pathname + location.search;
}

export const queriesIn = (state) => state.uploads.length + state.images.length;

export const asks = (state) => queriesIn(state) > 0;

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

/** The same search without a comparison. */
export const closed = (state) => ({ ...state, open: null, look: "", beside: 1 });

// What each button under a result makes of the search.

const besides = (list, id) => [...list.filter((each) => each !== id), id];

export const ACTIONS = {
  search: (state, id) => ({ ...closed(state), uploads: [], images: [id], unlike: [], exclude: [], box: null }),
  more: (state, id) => ({
    ...closed(state),
    images: besides(state.images, id),
    unlike: state.unlike.filter((each) => each !== id),
    box: null,
  }),
  unlike: (state, id) => ({ ...closed(state), unlike: besides(state.unlike, id) }),
  hide: (state, id) => ({ ...closed(state), exclude: besides(state.exclude, id) }),
};

/** Whether a state searches with more images than a search takes. */
export const tooMany = (state) => queriesIn(state) > MOST_QUERIES || state.unlike.length > MOST_QUERIES;
