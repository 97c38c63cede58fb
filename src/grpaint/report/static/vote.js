// @ts-check
// A voter's page: shows a group of images, takes picks by mouse, touch or keys, and sends them.
"use strict";

/** @typedef {{number: number, caption: string, choices: number, left: number, places: number[]}} Question */

const GRAIN_SIDE = 64; // pixels up to which an image is shown with its pixels as squares
const MAGNIFIER = "M10.5 4a6.5 6.5 0 1 0 0 13a6.5 6.5 0 0 0 0-13M20 20l-4.5-4.5M10.5 8v5M8 10.5h5";

/** @type {Question | null} */
let question = null;
/** @type {number[]} numbers of the picked images on the page, best first */
let picks = [];
let sending = false;
let large = 0; // the number of the image that the dialog shows

const list = byId("images");
const dialog = /** @type {HTMLDialogElement} */ (byId("large"));
const buttons = /** @type {Record<string, HTMLButtonElement>} */ (
  Object.fromEntries(["none", "undo", "send", "before", "after", "pick", "close"].map((name) => [name, byId(name)]))
);

/**
 * A place in a row, in words.
 * @param {number} place from 0
 */
function ordinal(place) {
  return ["1st", "2nd", "3rd"][place] ?? `${place + 1}th`;
}

/** @param {number} image */
function address(image) {
  return `images/${question?.number}-${question?.places[image]}.png`;
}

/**
 * An image with its button, and another that shows it large.
 * @param {number} image
 */
function makeItem(image) {
  const picture = make("img", { src: address(image), alt: "", draggable: "false" });
  picture.addEventListener("load", () => {
    picture.classList.toggle("grain", Math.max(picture.naturalWidth, picture.naturalHeight) <= GRAIN_SIDE);
  });
  const choice = make("button", { type: "button", class: "choice", "aria-pressed": "false" }, [
    picture,
    make("span", { class: "key" }, [make("span")]),
  ]);
  choice.addEventListener("click", () => toggle(image));
  const zoom = make("button", { type: "button", class: "zoom", "aria-label": `Show image ${image + 1} large` });
  const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  icon.setAttribute("viewBox", "0 0 24 24");
  icon.setAttribute("aria-hidden", "true");
  path.setAttribute("d", MAGNIFIER);
  icon.append(path);
  zoom.append(icon);
  zoom.addEventListener("click", () => showLarge(image));
  return make("li", {}, [choice, zoom]);
}

/** Show what is picked so far. */
function refreshBallot() {
  const choices = question?.choices ?? 0;
  const full = choices > 1 && picks.length === choices; // a single pick is replaced by the next
  list.querySelectorAll(".choice").forEach((choice, image) => {
    const place = picks.indexOf(image);
    choice.setAttribute("aria-pressed", String(place >= 0));
    choice.setAttribute("aria-label", place >= 0 ? `Image ${image + 1}, ${ordinal(place)}` : `Image ${image + 1}`);
    const key = choice.querySelector(".key span");
    if (key) key.textContent = place >= 0 ? ordinal(place) : String(image + 1);
  });
  buttons.none.disabled = sending || picks.length > 0;
  buttons.undo.disabled = sending || picks.length === 0;
  buttons.send.disabled = sending || picks.length === 0;
  const word = choices === 1 ? "Pick" : `Pick as ${ordinal(picks.length)}`;
  buttons.pick.textContent = picks.includes(large) ? "Take back" : word;
  buttons.pick.disabled = sending || (full && !picks.includes(large));
}

/**
 * Pick an image, or take its pick back.
 * @param {number} image
 */
function toggle(image) {
  if (!question || sending || image >= question.places.length) return;
  if (picks.includes(image)) picks = picks.filter((one) => one !== image);
  else if (question.choices === 1) picks = [image];
  else if (picks.length < question.choices) picks = [...picks, image];
  refreshBallot();
}

/** @param {string} text */
function say(text) {
  const line = byId("message");
  line.textContent = text;
  line.hidden = text === "";
}

/**
 * Show a question in place of the last one, or that there is none.
 * @param {Question | null} next
 */
function show(next) {
  question = next;
  picks = [];
  if (dialog.open) dialog.close();
  byId("ballot").hidden = next === null;
  byId("idle").hidden = next !== null;
  if (next) {
    byId("standing").textContent = next.left === 1 ? "The last group for now" : `${next.left} groups wait for you`;
    byId("caption").textContent = next.caption || "(no caption)";
    byId("hint").textContent =
      next.choices === 1
        ? "Pick the better image."
        : `Pick the best image, then the next best if you can tell: up to ${next.choices}. The others rank below.`;
    list.replaceChildren(...next.places.map((_, image) => makeItem(image)));
    scrollTo(0, 0);
  }
  refreshBallot();
}

/**
 * Send the picks; none says that the voter sees no difference.
 * @param {number[]} chosen
 */
async function send(chosen) {
  if (!question || sending) return;
  const { number, places } = question;
  sending = true;
  refreshBallot();
  try {
    const body = JSON.stringify({ question: number, picks: chosen.map((image) => places[image]) });
    const signal = AbortSignal.timeout(LONGEST_ANSWER_MS);
    const answer = await fetch("vote", { method: "POST", body, signal });
    if (answer.status !== 200 && answer.status !== 409) throw new Error((await answer.text()).slice(0, 200));
    const content = await answer.json();
    sending = false;
    say(content.refused ?? "");
    show(content.question);
  } catch (error) {
    say(`The vote was not sent; try again. (${error instanceof Error ? error.message : error})`);
  } finally {
    sending = false;
    refreshBallot();
  }
}

/**
 * Show an image as large as the window.
 * @param {number} image
 */
function showLarge(image) {
  if (!question) return;
  const count = question.places.length;
  large = (image + count) % count;
  const picture = /** @type {HTMLImageElement} */ (byId("large-image"));
  picture.src = address(large);
  picture.alt = `Image ${large + 1} of ${count}`;
  picture.className = list.querySelectorAll("img")[large].className;
  refreshBallot();
  if (!dialog.open) dialog.showModal();
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  if (!question || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (dialog.open) {
    if (event.key === "ArrowLeft") showLarge(large - 1);
    else if (event.key === "ArrowRight") showLarge(large + 1);
    else return;
  } else if (/^[1-9]$/.test(event.key)) toggle(Number(event.key) - 1);
  else if (event.key === "0") {
    if (!buttons.none.disabled) send([]);
  } else if (event.key === "Backspace") toggle(picks[picks.length - 1] ?? Number.POSITIVE_INFINITY);
  else if (event.key === "Enter" && picks.length && !document.activeElement?.matches("#images button, .actions button"))
    send(picks);
  else return;
  event.preventDefault();
}

buttons.none.addEventListener("click", () => send([]));
buttons.undo.addEventListener("click", () => toggle(picks[picks.length - 1] ?? Number.POSITIVE_INFINITY));
buttons.send.addEventListener("click", () => send(picks));
buttons.before.addEventListener("click", () => showLarge(large - 1));
buttons.after.addEventListener("click", () => showLarge(large + 1));
buttons.pick.addEventListener("click", () => toggle(large));
buttons.close.addEventListener("click", () => dialog.close());
document.addEventListener("keydown", onKey);

const showFirst = (/** @type {any} */ next) => {
  if (!question && !sending) show(next);
};
askServer("question").then(
  ({ content }) => content && showFirst(content.question),
  () => showFirst(null),
);
follow("question", ({ question: next }) => showFirst(next));
