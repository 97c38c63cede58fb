// @ts-check
// The map of scores: rows are held-out prompts, columns are evaluations, drawn on a canvas.
"use strict";

/**
 * @typedef {{score: string, binary: boolean, iterations: number[], rows: (number | null)[][], captions: string[],
 *   kinds: Record<string, (number | null)[]>, left_out: number}} MapData
 */

const MAP_PX = 420; // the height that rows share
const ROW_PX = [1, 18]; // the least and the most of a row

class Heatmap {
  /** @param {MapData} data */
  constructor(data) {
    this.data = data;
    this.canvas = /** @type {HTMLCanvasElement} */ (byId("map"));
    this.order = "loss";
    this.low = this.high = 0;
    for (const button of document.querySelectorAll(".sort")) {
      button.addEventListener("click", () => this.sort(/** @type {HTMLElement} */ (button).dataset.order ?? "loss"));
    }
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    addEventListener("resize", () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.update(data);
  }

  /** @param {MapData} data */
  update(data) {
    this.data = data;
    const values = data.rows.flat().filter((value) => value !== null);
    this.low = data.binary ? 0 : values.reduce((a, b) => Math.min(a, b), Infinity);
    this.high = data.binary ? 1 : values.reduce((a, b) => Math.max(a, b), -Infinity);
    this.sort(this.order);
  }

  /** @param {string} order */
  sort(order) {
    this.order = order;
    for (const button of document.querySelectorAll(".sort")) {
      button.setAttribute("aria-pressed", String(/** @type {HTMLElement} */ (button).dataset.order === order));
    }
    const { rows, kinds, captions } = this.data;
    if (order === "kind") {
      this.lines = Object.entries(kinds).map(([name, values]) => ({ name, values }));
    } else {
      this.lines = rows.map((values, row) => ({
        name: captions[row] ? `${row + 1}, ${captions[row]}` : `${row + 1}`,
        values,
      }));
      if (order !== "number") {
        const sign = order === "loss" ? 1 : -1;
        this.lines.sort((a, b) => sign * (gain(a.values) - gain(b.values)));
      }
    }
    const what = order === "kind" ? "kinds" : "prompts";
    const text = `Map of ${this.data.score}: ${this.lines.length} ${what} by ${this.data.iterations.length} evaluations, sorted by ${order}. The tables below list the largest changes.`;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", text);
    this.draw();
  }

  draw() {
    const lines = this.lines ?? [];
    const columns = this.data.iterations.length;
    const height = Math.max(ROW_PX[0], Math.min(ROW_PX[1], Math.floor(MAP_PX / lines.length))) * lines.length;
    const scale = devicePixelRatio || 1;
    const width = this.canvas.clientWidth;
    this.canvas.style.height = `${height}px`;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d");
    if (!pen) return;
    const [none, full] = [mapColour("--panel"), mapColour("--series-1")];
    lines.forEach(({ values }, row) => {
      const top = Math.round((row * this.canvas.height) / lines.length);
      const gap = height / lines.length >= 8 ? 1 : 0; // a line between tall rows
      const bottom = Math.round(((row + 1) * this.canvas.height) / lines.length) - gap;
      values.forEach((value, column) => {
        if (value === null) return;
        const left = Math.round((column * this.canvas.width) / columns);
        const right = Math.round(((column + 1) * this.canvas.width) / columns);
        const share = this.high > this.low ? (value - this.low) / (this.high - this.low) : 1;
        pen.fillStyle = `rgb(${none.map((from, part) => Math.round(from + share * (full[part] - from))).join(" ")})`;
        pen.fillRect(left, top, right - left, bottom - top);
      });
    });
    this.key(none, full);
  }

  /**
   * Say what the colours mean.
   * @param {number[]} none
   * @param {number[]} full
   */
  key(none, full) {
    const swatch = (/** @type {number[]} */ colour) => {
      const box = make("span", { class: "swatch" });
      box.style.background = `rgb(${colour.join(" ")})`;
      return box;
    };
    const { binary, iterations, left_out: out } = this.data;
    const span = `Columns: iterations ${iterations[0]} to ${iterations[iterations.length - 1]}${out ? `, ${out} evaluations left out` : ""}.`;
    const names = binary ? ["0, not met", "1, met"] : [short(this.low), short(this.high)];
    byId("map-key").replaceChildren(span, swatch(none), names[0], swatch(full), names[1]);
  }

  /** @param {PointerEvent} event */
  point(event) {
    const lines = this.lines ?? [];
    const box = this.canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * lines.length);
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.data.iterations.length);
    const line = lines[row];
    if (!line || line.values[column] === undefined) return;
    const what = this.order === "kind" ? "Kind" : "Prompt";
    byId("map-text").textContent =
      `${what} ${line.name}; iteration ${this.data.iterations[column]}: ${short(line.values[column])}`;
  }
}

/**
 * How much a row has gained since its first value; the mean of all decides between equal ones.
 * @param {(number | null)[]} values
 */
function gain(values) {
  const numbers = values.filter((value) => value !== null);
  if (!numbers.length) return 0;
  const mean = numbers.reduce((a, b) => a + b, 0) / numbers.length;
  return numbers[numbers.length - 1] - numbers[0] + 1e-3 * (mean - numbers[0]);
}

/**
 * The red, green and blue of a colour of the style sheet.
 * @param {string} name
 */
function mapColour(name) {
  const text = themeColour(name).slice(1);
  const whole = text.length === 3 ? [...text].map((digit) => digit + digit).join("") : text;
  return [0, 2, 4].map((at) => parseInt(whole.slice(at, at + 2), 16));
}
