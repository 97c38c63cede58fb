// @ts-check
// Later numbers from the server that the page came from: a small JSON, asked for by its ETag while the page is seen.
"use strict";

const POLL_MS = 2000;
const MOST_WAIT_MS = 8000; // between attempts while the server is away
const LONGEST_ANSWER_MS = 60000;
const LEAST_REST_MS = 3000;
const REST = 20; // times as long as a large answer took, before the next one is asked for

/**
 * Ask for a JSON of the page's own server.
 * @param {string} address relative
 * @param {string} tag of the answer that the page has
 * @returns {Promise<{status: number, tag: string, content: any}>}
 */
async function askServer(address, tag = "") {
  /** @type {Record<string, string>} */
  const headers = tag ? { "If-None-Match": tag } : {};
  const signal = AbortSignal.timeout(LONGEST_ANSWER_MS);
  const answer = await fetch(address, { headers, cache: "no-store", signal });
  const content = answer.status === 200 ? await answer.json() : null;
  return { status: answer.status, tag: answer.headers.get("ETag") ?? tag, content };
}

/**
 * Call `take` with a JSON whenever it has changed; not while the page is hidden. What goes wrong is said in #live.
 * @param {string} address relative
 * @param {(content: any) => string | void} take returns a sentence for #live, if there is one
 */
function follow(address, take) {
  let tag = "";
  let wait = POLL_MS;
  let timer = 0;
  let asking = false;
  let sentence = "";
  const line = byId("live");
  const later = () => {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(ask, wait);
  };
  const ask = async () => {
    if (asking) return;
    asking = true;
    try {
      const answer = await askServer(address, tag);
      if (answer.status === 403) {
        line.textContent = "This address is no longer valid: open the one that the server has printed.";
        return;
      }
      if (answer.status !== 200 && answer.status !== 304) throw new Error(`status ${answer.status}`);
      if (answer.status === 200) sentence = take(answer.content) ?? "";
      tag = answer.tag;
      wait = POLL_MS;
      line.textContent = sentence;
    } catch {
      wait = Math.min(2 * wait, MOST_WAIT_MS);
      line.textContent = "The server does not answer. The page goes on by itself when it does.";
    } finally {
      asking = false;
    }
    later();
  };
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden) ask();
  });
  later();
}

/**
 * Return a function that loads a large answer for a stamp, and after it rests for a multiple of the time that it took.
 * @param {(stamp: any) => Promise<void>} load
 */
function paced(load) {
  let freeAt = 0;
  let timer = 0;
  const call = async (/** @type {any} */ stamp) => {
    clearTimeout(timer);
    const start = performance.now();
    if (start < freeAt) {
      timer = setTimeout(() => call(stamp), Math.min(freeAt - start, LONGEST_ANSWER_MS));
      return;
    }
    freeAt = Infinity;
    let rest = LEAST_REST_MS;
    try {
      await load(stamp);
      rest = Math.max(rest, REST * (performance.now() - start));
    } catch {
      // the next poll says that the server is away, and the one after it asks for this again
    }
    freeAt = performance.now() + rest;
  };
  return call;
}
