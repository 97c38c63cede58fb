// @ts-check
// The held-out pictures over time: rows are prompts, columns are times, and only those of a window exist as elements.
"use strict";

/**
 * @typedef {{iteration: number, files: (string | null)[], scores: Record<string, (number | null)[]>}} Time
 * @typedef {{score: string, lower: string[], captions: string[], kinds: string[], times: Time[]}} Film
 * @typedef {{frame: HTMLElement, worth: HTMLElement, cell: HTMLElement}} FilmCell
 */

/** @param {string} name of a score */
const shortName = (name) => name.replace(/^reward\//, "");
const PLAY_MS = 500;
const CELL_PX = 118; // a column is at least as wide
const PROMPT_PX = 184; // the column of the prompts
const MOST_COLUMNS = 7;

class Filmstrip {
  /**
   * @param {Film} film
   * @param {Viewer} viewer
   */
  constructor(film, viewer) {
    this.film = film;
    /** @type {string[]} of scores, the one that judges the run first */
    this.names = [];
    this.viewer = viewer;
    this.base = this.first = 0;
    this.at = film.times.length - 1;
    this.row = 0;
    this.columns = 0;
    this.narrow = false;
    this.playing = 0;
    this.waiting = 0;
    this.shortcuts = true;
    /** @type {FilmCell[][]} by row: the cells of the window */
    this.cells = [];
    /** @type {HTMLElement[]} by row: all scores at the selected time, beside the prompt */
    this.sides = [];
    /** @type {HTMLButtonElement[]} */
    this.heads = [];
    this.slider = /** @type {HTMLInputElement} */ (byId("time"));
    this.choice = /** @type {HTMLSelectElement} */ (byId("film-score"));
    this.fillControls();
    this.layout();
    this.listen();
  }

  /**
   * Show later pictures; the chosen time stays, unless it was the last.
   * @param {Film} film
   */
  update(film) {
    const { times } = this.film;
    const iteration = this.at === times.length - 1 ? Infinity : times[this.at].iteration;
    const score = this.choice.value;
    this.film = film;
    this.at = film.times.findLastIndex((time) => time.iteration <= iteration);
    this.fillControls();
    if (this.names.includes(score)) this.choice.value = score;
    this.columns = 0;
    this.layout();
    if (this.viewer.open) this.viewer.draw();
  }

  fillControls() {
    const { times } = this.film;
    this.base = times.findIndex((time) => time.iteration === 0);
    this.first = this.base === 0 && times.length > 1 ? 1 : 0; // the base has a column of its own
    this.at = Math.max(this.first, this.at);
    const names = [...new Set(this.film.times.flatMap((time) => Object.keys(time.scores)))];
    names.sort((a, b) => Number(b === this.film.score) - Number(a === this.film.score));
    this.names = names;
    this.choice.replaceChildren(...names.map((name) => make("option", { value: name }, [shortName(name)])));
    for (const toggle of document.querySelectorAll(".film-bar .base-toggle, .film-bar .difference-toggle")) {
      /** @type {HTMLButtonElement} */ (toggle).disabled = this.base < 0;
    }
    this.slider.min = String(this.first);
    this.slider.max = String(this.film.times.length - 1);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) byId("play").hidden = true;
  }

  /** How many columns fit beside the prompts and the base. */
  fitting() {
    this.narrow = matchMedia("(max-width: 40rem)").matches;
    const room = byId("film-place").clientWidth - PROMPT_PX;
    const fit = this.narrow ? 1 : Math.floor(room / CELL_PX) - (this.base === 0 ? 1 : 0);
    return Math.max(1, Math.min(fit, MOST_COLUMNS, this.film.times.length - this.first));
  }

  /** Make the table anew if another number of columns fits, and fill it. */
  layout() {
    const columns = this.fitting();
    if (columns !== this.columns) {
      this.columns = columns;
      this.build();
    }
    this.draw();
  }

  build() {
    const { captions, kinds, times } = this.film;
    this.heads = Array.from({ length: this.columns }, () => make("button", { type: "button" }));
    this.heads.forEach((head, place) => head.addEventListener("click", () => this.select(this.start() + place)));
    const top = [make("th", { scope: "col", class: "prompt" }, ["Prompt"])];
    if (this.first) top.push(make("th", { scope: "col" }, ["base"]));
    top.push(...this.heads.map((head) => make("th", { scope: "col" }, [head])));
    this.cells = [];
    this.sides = [];
    const rows = captions.map((caption, row) => {
      const text = make("span", { title: caption }, [caption]);
      const side = make("div", { class: "worth" });
      this.sides.push(side);
      const line = make("tr", {}, [
        make("th", { scope: "row", class: "prompt" }, [
          text,
          make("small", { class: "note" }, [kinds[row] ?? ""]),
          side,
        ]),
      ]);
      if (this.first) {
        const base = this.makeCell(row, () => this.base);
        line.append(base.cell);
        this.fill(base, row, times[this.base], false);
      }
      const cells = this.heads.map((_, place) => this.makeCell(row, () => this.start() + place));
      line.append(...cells.map((one) => one.cell));
      this.cells.push(cells);
      return line;
    });
    byId("film").replaceChildren(make("thead", {}, [make("tr", {}, top)]), make("tbody", {}, rows));
  }

  /**
   * @param {number} row
   * @param {() => number} time the place of the cell's time when it is chosen
   * @returns {FilmCell}
   */
  makeCell(row, time) {
    const frame = makeFrame();
    const shot = make("button", { type: "button", class: "shot" }, [frame]);
    const worth = make("div", { class: "worth" });
    shot.addEventListener("click", () => this.enlarge(row, time()));
    return { frame, worth, cell: make("td", {}, [shot, worth]) };
  }

  /** The place of the window's first time. */
  start() {
    const middle = this.at - Math.floor(this.columns / 2);
    return Math.max(this.first, Math.min(middle, this.film.times.length - this.columns));
  }

  draw() {
    const start = this.start();
    this.slider.value = String(this.at);
    const iteration = this.film.times[this.at].iteration;
    byId("time-name").textContent = String(iteration);
    this.slider.setAttribute("aria-valuetext", `iteration ${iteration}`);
    this.heads.forEach((head, place) => {
      const selected = start + place === this.at;
      head.textContent = String(this.film.times[start + place].iteration);
      head.setAttribute("aria-pressed", String(selected));
      head.parentElement?.classList.toggle("now", selected);
    });
    this.cells.forEach((cells, row) => {
      cells.forEach((cell, place) => {
        const selected = start + place === this.at;
        cell.cell.classList.toggle("now", selected);
        this.fill(cell, row, this.film.times[start + place], this.narrow);
      });
      const lines = this.scores(row, this.film.times[this.at]).map((one) => this.worthLine(one, true));
      this.sides[row].replaceChildren(...(this.narrow ? [] : lines)); // a narrow page has them below the picture
    });
  }

  /**
   * @param {FilmCell} cell
   * @param {number} row
   * @param {Time} time
   * @param {boolean} whole whether all scores are shown, or the chosen one alone
   */
  fill(cell, row, time, whole) {
    const base = this.base < 0 ? null : (this.film.times[this.base].files[row] ?? null);
    const place = time.iteration ? `iteration ${time.iteration}` : "the base";
    fillFrame(cell.frame, time.files[row] ?? null, base, `${this.film.captions[row]}, ${place}`);
    const scores = this.scores(row, time).filter((one) => whole || one.name === this.choice.value);
    cell.worth.replaceChildren(...scores.map((one) => this.worthLine(one, whole, time.iteration > 0)));
  }

  /**
   * @param {Worth} one
   * @param {boolean} named
   * @param {boolean} compared
   */
  worthLine(one, named, compared = true) {
    const name = named ? [make("span", { class: "name", title: one.name }, [shortName(one.name)])] : [];
    return make("div", {}, [...name, make("span", {}, [short(one.value, 3)]), (compared && changeText(one)) || ""]);
  }

  /**
   * @param {number} row
   * @param {Time} time
   * @returns {Worth[]}
   */
  scores(row, time) {
    const base = this.base < 0 ? null : this.film.times[this.base];
    return this.names.map((name) => ({
      name,
      value: time.scores[name]?.[row] ?? null,
      base: base?.scores[name]?.[row] ?? null,
      lower: this.film.lower.includes(name),
    }));
  }

  /**
   * Move all rows to a time; drawing waits for the next frame, so that a fast slider draws once a frame.
   * @param {number} at
   */
  select(at) {
    this.at = Math.max(this.first, Math.min(at, this.film.times.length - 1));
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
      if (this.viewer.open) this.viewer.draw();
    });
  }

  /**
   * @param {number} row
   * @param {number} time
   */
  enlarge(row, time) {
    let at = time;
    this.row = row;
    const shown = () => {
      const { times, captions } = this.film;
      const base = this.base < 0 ? null : times[this.base];
      const place = times[at].iteration ? `iteration ${times[at].iteration}` : "the base";
      return {
        source: times[at].files[this.row] ?? null,
        base: base?.files[this.row] ?? null,
        alt: `${captions[this.row]}, ${place}`,
        caption: captions[this.row],
        place: `${place}, prompt ${this.row + 1} of ${captions.length}`,
        scores: this.scores(this.row, times[at]),
      };
    };
    this.viewer.show(shown, (columns, rows) => {
      at = Math.max(0, Math.min(at + columns, this.film.times.length - 1));
      this.row = Math.max(0, Math.min(this.row + rows, this.film.captions.length - 1));
      this.select(at);
    });
  }

  /** @param {boolean} on */
  play(on) {
    clearInterval(this.playing);
    byId("play").setAttribute("aria-pressed", String(on));
    if (!on) return;
    if (this.at === this.film.times.length - 1) this.select(this.first);
    this.playing = setInterval(() => {
      if (this.at === this.film.times.length - 1) this.play(false);
      else this.select(this.at + 1);
    }, PLAY_MS);
  }

  listen() {
    this.slider.addEventListener("input", () => this.select(Number(this.slider.value)));
    this.choice.addEventListener("change", () => {
      this.columns = 0; // the base's column shows it too
      this.layout();
    });
    byId("earlier").addEventListener("click", () => this.select(this.at - 1));
    byId("later").addEventListener("click", () => this.select(this.at + 1));
    const play = byId("play");
    play.addEventListener("click", () => this.play(play.getAttribute("aria-pressed") !== "true"));
    const keys = byId("keys");
    keys.title = "Whether this page listens to the keys b, d, the arrows, Home and End";
    keys.addEventListener("click", () => {
      this.shortcuts = !this.shortcuts;
      keys.setAttribute("aria-pressed", String(this.shortcuts));
    });
    addEventListener("resize", () => this.layout());
    document.addEventListener("keydown", (event) => this.keydown(event));
  }

  /** @param {KeyboardEvent} event */
  keydown(event) {
    const target = /** @type {Element} */ (event.target);
    if (this.viewer.open || !this.shortcuts || event.ctrlKey || event.metaKey || event.altKey) return;
    if (target instanceof Element && target.matches("input, select, textarea, [role='region'], pre")) return;
    const last = this.film.times.length - 1;
    const places = { ArrowLeft: this.at - 1, ArrowRight: this.at + 1, Home: this.first, End: last };
    if (!(event.key in places)) return;
    event.preventDefault();
    this.select(places[/** @type {keyof typeof places} */ (event.key)]);
  }
}
