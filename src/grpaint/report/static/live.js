// @ts-check
// Later numbers from the server that the page came from: a small JSON, asked for by its ETag while the page is seen.
"use strict";

const POLL_MS = 2000;
const MOST_WAIT_MS = 15000; // between attempts while the server is away
const LONGEST_ANSWER_MS = 60000;

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
 * @param {(content: any) => void | Promise<void>} take
 */
function follow(address, take) {
  let tag = "";
  let wait = POLL_MS;
  let timer = 0;
  let asking = false;
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
      if (answer.status === 200) await take(answer.content);
      tag = answer.tag;
      wait = POLL_MS;
      line.textContent = "";
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
