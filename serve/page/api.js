// Talking to the server: the key, problem documents as errors, and waiting where it says when to come back.

const KEY = "reseen-key";
const PATIENCE = 8; // tries before a person is asked
const RETRIED = new Set(["overloaded", "not-ready", "store-unavailable"]);

/** What a server, or the way to it, said instead of an answer. */
export class Problem extends Error {
  constructor(status, body, retryAfter = null) {
    super(body.detail || body.title || `HTTP ${status}`);
    this.status = status;
    this.code = body.code ?? `http-${status}`;
    this.extra = body.extra ?? {};
    this.requestId = body.request_id ?? "";
    this.retryAfter = retryAfter;
  }
}

let askForKey = async () => false;
let asking = null;
let held = null; // the key, where the browser stores nothing

/** Says who asks a person for a key: `ask(refused)` resolves to a key, or to null. */
export function onUnauthorized(ask) {
  askForKey = ask;
}

export function storedKey() {
  try {
    return sessionStorage.getItem(KEY) ?? held;
  } catch {
    return held;
  }
}

export function keepKey(key) {
  held = key;
  try {
    if (key === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, key);
  } catch {
    // no storage: held until the page is left
  }
}

export const authorization = () => (storedKey() ? { Authorization: `Bearer ${storedKey()}` } : {});

async function newKey(refused) {
  if (storedKey() !== refused) return true; // somebody has just given one
  asking ??= askForKey(refused !== null).finally(() => {
    asking = null;
  });
  const key = await asking;
  if (key) keepKey(key);
  return Boolean(key);
}

/** A response that is no error; `json`: sent as such. Throws `Problem`, or AbortError. */
export async function call(path, { json, headers = {}, ...rest } = {}) {
  const options = json === undefined ? rest : { ...rest, method: "POST", body: JSON.stringify(json) };
  const type = json === undefined ? {} : { "Content-Type": "application/json" };
  for (;;) {
    const key = storedKey();
    const response = await reached(path, { ...options, headers: { ...type, ...headers, ...authorization() } });
    if (response.ok) return response;
    if (response.status !== 401 || !(await newKey(key))) throw await problemOf(response);
    options.signal?.throwIfAborted();
  }
}

/** The body of an answer. Throws as `call` does, also where it ends early or is no JSON. */
export async function fetchJson(path, options) {
  const response = await call(path, options);
  try {
    return JSON.parse(await response.text(), exactly);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, error instanceof SyntaxError ? UNREADABLE : UNREACHABLE);
  }
}

const UNREACHABLE = { code: "unreachable", detail: "Check the network, and whether the server still runs." };
const UNREADABLE = { code: "unreadable", detail: "Something on the way to it, such as a proxy, answered instead." };

/** Metadata may hold whole numbers that JavaScript would round: those stay text. */
function exactly(_, value, context) {
  const rounded = typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source);
  return rounded ? context.source : value;
}

async function reached(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, UNREACHABLE);
  }
}

async function problemOf(response) {
  const after = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  let body = {};
  try {
    body = await response.json();
  } catch {
    // a proxy's page, or nothing: the status says what there is to say
  }
  return new Problem(response.status, body, Number.isFinite(after) ? after : null);
}

/** Tries again while the server is busy or loading. `onWait(seconds, problem)` each second; 0 when it tries. */
export async function patiently(attempt, signal, onWait) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await attempt();
    } catch (problem) {
      if (!(problem instanceof Problem && RETRIED.has(problem.code)) || tries >= PATIENCE) throw problem;
      for (let left = Math.max(1, Math.ceil(problem.retryAfter ?? 3)); left > 0; left -= 1) {
        onWait(left, problem);
        await pause(1000, signal);
      }
      onWait(0, problem);
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const gaveUp = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", gaveUp);
      resolve();
    }, milliseconds);
    signal.addEventListener("abort", gaveUp);
  });
}
