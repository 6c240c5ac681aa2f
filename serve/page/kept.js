// Uploaded files by sha256, kept in this browser: a server forgets them after a while, a link should not.

const MOST_FILES = 48;
const MOST_BYTES = 256 * 2 ** 20;
const memory = new Map(); // what IndexedDB does not take (private windows, no room)
let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("reseen", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("files", { keyPath: "digest" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const committed = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });

const files = async (mode) => (await database()).transaction("files", mode).objectStore("files");

export async function keep(digest, file) {
  try {
    const store = await files("readwrite");
    store.put({ digest, file, used: Date.now() }); // a copy: the file may change
    await committed(store.transaction);
    memory.delete(digest);
    await makeRoom();
  } catch {
    memory.set(digest, file);
  }
}

/** The file of a digest; null if this browser has not got it. */
export async function kept(digest) {
  if (memory.has(digest)) return memory.get(digest);
  try {
    return (await done((await files("readonly")).get(digest)))?.file ?? null;
  } catch {
    return null;
  }
}

async function makeRoom() {
  const all = await done((await files("readonly")).getAll());
  all.sort((a, b) => b.used - a.used);
  let bytes = 0;
  for (const [place, { digest, file }] of all.entries()) {
    bytes += file.size;
    if (place > 0 && (place >= MOST_FILES || bytes > MOST_BYTES)) await done((await files("readwrite")).delete(digest));
  }
}
