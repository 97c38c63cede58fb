// @ts-check
// A picture large, in a dialog, with its scores, and what every view of pictures shares: frames, scores, the two modes.
"use strict";

/**
 * @typedef {{name: string, value: number | null, base?: number | null, lower?: boolean}} Worth a score, and that of the base
 * @typedef {{source: string | null, base: string | null, alt: string, caption: string, place: string,
 *   scores: Worth[]}} Shown what the dialog shows of a picture
 */

/**
 * A square that holds a picture; the base lies behind it, for blinking and for the difference.
 * @returns {HTMLSpanElement}
 */
function makeFrame() {
  return make("span", { class: "frame" });
}

/**
 * Put a picture into a frame, in place of the one that it has.
 * @param {HTMLElement} frame
 * @param {string | null} source
 * @param {string | null} base
 * @param {string} alt
 * @param {boolean} lazy
 */
function fillFrame(frame, source, base, alt, lazy = true) {
  frame.style.backgroundImage = base && source !== null ? `url("${base}")` : "none";
  let picture = frame.querySelector("img");
  frame.classList.toggle("based", base !== null);
  frame.classList.toggle("empty", source === null);
  if (source === null) {
    frame.replaceChildren("no picture");
    return;
  }
  if (!picture) {
    picture = make("img", { loading: lazy ? "lazy" : "eager", decoding: lazy ? "async" : "sync", alt: "" });
    const drawn = picture;
    picture.addEventListener("load", () =>
      frame.classList.toggle("grain", drawn.naturalWidth <= 64 && drawn.naturalHeight <= 64),
    );
    picture.addEventListener("error", () => {
      frame.classList.add("empty");
      frame.style.backgroundImage = "none";
      frame.replaceChildren("gone: reload the page"); // the run has replaced it by a later one
    });
    frame.replaceChildren(picture);
  }
  picture.alt = alt;
  if (picture.getAttribute("src") !== source) picture.setAttribute("src", source);
}

/**
 * A change with its sign, in the colour of a gain or a loss; null if there is nothing to compare with.
 * @param {Worth} worth
 * @returns {HTMLSpanElement | null}
 */
function changeText({ value, base, lower }) {
  if (value === null || base === null || base === undefined) return null;
  const change = Number((value - base).toPrecision(6));
  const sign = change > 0 ? "+" : change < 0 ? "\u2212" : "\u00b1";
  const better = lower ? change < 0 : change > 0;
  return make("span", { class: change === 0 ? "note" : better ? "up" : "down" }, [
    `${sign}${short(Math.abs(change), 3)}`,
  ]);
}

/** The modes of all views: whether the base is shown in place of pictures, and whether the difference from it is. */
const modes = { base: false, difference: false };

/**
 * Switch a mode, on every view and its buttons.
 * @param {"base" | "difference"} mode
 * @param {boolean} on
 */
function setMode(mode, on) {
  modes[mode] = on;
  for (const view of document.querySelectorAll("#film, #viewer-picture"))
    view.classList.toggle(mode === "base" ? "blink" : mode, on);
  for (const button of document.querySelectorAll(`.${mode}-toggle`)) button.setAttribute("aria-pressed", String(on));
}

/** The dialog of one picture. */
class Viewer {
  constructor() {
    this.dialog = /** @type {HTMLDialogElement} */ (byId("viewer"));
    this.frame = makeFrame();
    byId("viewer-picture").append(this.frame);
    /** @type {(() => Shown) | null} */
    this.shown = null;
    /** @type {(columns: number, rows: number) => void} */
    this.move = () => {};
    byId("viewer-close").addEventListener("click", () => this.dialog.close());
    byId("viewer-earlier").addEventListener("click", () => this.step(-1, 0));
    byId("viewer-later").addEventListener("click", () => this.step(1, 0));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside its content
    });
    this.dialog.addEventListener("close", () => setMode("base", false));
  }

  get open() {
    return this.dialog.open;
  }

  /**
   * @param {() => Shown} shown called at once, and after every move
   * @param {(columns: number, rows: number) => void} move
   */
  show(shown, move) {
    this.shown = shown;
    this.move = move;
    this.draw();
    this.dialog.showModal();
  }

  /**
   * @param {number} columns
   * @param {number} rows
   */
  step(columns, rows) {
    this.move(columns, rows);
    this.draw();
  }

  draw() {
    if (!this.shown) return;
    const { source, base, alt, caption, place, scores } = this.shown();
    fillFrame(this.frame, source, base, alt, false);
    byId("viewer-caption").textContent = caption;
    byId("viewer-place").textContent = place;
    const compared = scores.some((one) => one.base !== undefined && one.base !== null);
    const heads = ["Score", "Here", ...(compared ? ["Base", "Change"] : [])];
    const rows = scores.map((one) => {
      const cells = [short(one.value), ...(compared ? [short(one.base), changeText(one) ?? "-"] : [])];
      return make("tr", {}, [make("th", { scope: "row" }, [one.name]), ...cells.map((cell) => make("td", {}, [cell]))]);
    });
    byId("viewer-scores").replaceChildren(
      make("thead", {}, [
        make(
          "tr",
          {},
          heads.map((head) => make("th", { scope: "col" }, [head])),
        ),
      ]),
      make("tbody", {}, rows),
    );
    for (const button of this.dialog.querySelectorAll(".base-toggle, .difference-toggle")) {
      /** @type {HTMLButtonElement} */ (button).disabled = base === null;
    }
  }
}

/**
 * The keys of both modes, and those of the dialog while it is open.
 * @param {Viewer} viewer
 * @param {{shortcuts: boolean} | null} film
 */
function listenToModes(viewer, film) {
  for (const mode of /** @type {const} */ (["base", "difference"])) {
    for (const button of document.querySelectorAll(`.${mode}-toggle`)) {
      button.addEventListener("click", () => setMode(mode, !modes[mode]));
    }
  }
  const ignored = (/** @type {KeyboardEvent} */ event) =>
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    film?.shortcuts === false ||
    (event.target instanceof Element && event.target.matches("select, textarea, input:not([type='range'])"));
  document.addEventListener("keydown", (event) => {
    if (ignored(event)) return;
    if (event.key === "b") setMode("base", true);
    if (event.key === "d" && !event.repeat) setMode("difference", !modes.difference);
    if (!viewer.open) return;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [columns, rows] = moves[/** @type {keyof typeof moves} */ (event.key)];
    viewer.step(columns, rows);
  });
  document.addEventListener("keyup", (event) => {
    if (event.key === "b" && !ignored(event)) setMode("base", false);
  });
  addEventListener("blur", () => setMode("base", false)); // the key's release is not heard elsewhere
}
