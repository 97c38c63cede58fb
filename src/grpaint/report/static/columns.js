// @ts-check
// Pictures of several runs: rows are the prompts that they share, columns are runs, all at one time of the slider.
"use strict";

/**
 * @typedef {{name: string, address: string, colour: number | null, film: Film | null}} PictureRun
 * @typedef {{number: number, caption: string, rows: (number | null)[]}} SharedPrompt `rows`: each run's row in its film
 */

class RunColumns {
  /**
   * @param {{runs: PictureRun[], prompts: SharedPrompt[]}} columns
   * @param {Viewer} viewer
   */
  constructor(columns, viewer) {
    this.runs = columns.runs;
    this.prompts = columns.prompts;
    this.viewer = viewer;
    /** @type {number[]} iterations at which any run has pictures */
    this.times = [];
    this.at = 0;
    this.slider = /** @type {HTMLInputElement} */ (byId("time"));
    this.choice = /** @type {HTMLSelectElement} */ (byId("film-score"));
    this.slider.addEventListener("input", () => this.select(Number(this.slider.value)));
    this.choice.addEventListener("change", () => this.draw());
    this.update(columns);
  }

  /** @param {{runs: PictureRun[], prompts: SharedPrompt[]}} columns */
  update({ runs, prompts }) {
    const iteration = this.at === this.times.length - 1 || !this.times.length ? Infinity : this.times[this.at];
    const score = this.choice.value;
    this.runs = runs;
    this.prompts = prompts;
    const films = runs.flatMap(({ film }) => (film ? [film] : []));
    const every = new Set(films.flatMap((film) => film.times.map((time) => time.iteration)));
    this.times = [...every].sort((a, b) => a - b);
    this.at = Math.max(
      0,
      this.times.findLastIndex((time) => time <= iteration),
    );
    const names = [
      ...new Set(films.flatMap((film) => [film.score, ...film.times.flatMap((one) => Object.keys(one.scores))])),
    ];
    this.choice.replaceChildren(
      ...names.map((name) => make("option", { value: name }, [name.replace(/^reward\//, "")])),
    );
    if (names.includes(score)) this.choice.value = score;
    this.slider.max = String(this.times.length - 1);
    this.build();
  }

  build() {
    const heads = this.runs.map((run) => {
      const small = make("small");
      return {
        small,
        head: make("th", { scope: "col" }, [...(run.colour === null ? [] : [swatchLine(run.colour)]), run.name, small]),
      };
    });
    this.smalls = heads.map((one) => one.small);
    this.cells = this.prompts.map((_, place) =>
      this.runs.map((_run, column) => {
        const frame = makeFrame();
        const shot = make("button", { type: "button", class: "shot" }, [frame]);
        shot.addEventListener("click", () => this.enlarge(place, column));
        const worth = make("div", { class: "worth" });
        return { frame, worth, cell: make("td", {}, [shot, worth]) };
      }),
    );
    const lines = this.prompts.map(({ caption, number }, place) =>
      make("tr", {}, [
        make("th", { scope: "row", class: "prompt" }, [
          make("span", { title: caption }, [caption]),
          make("small", { class: "note" }, [`prompt ${number}`]),
        ]),
        ...(this.cells ?? [])[place].map((one) => one.cell),
      ]),
    );
    const top = [make("th", { scope: "col", class: "prompt" }, ["Prompt"]), ...heads.map((one) => one.head)];
    byId("film").replaceChildren(make("thead", {}, [make("tr", {}, top)]), make("tbody", {}, lines));
    this.draw();
  }

  /**
   * A run's last pictures at or before the selected time.
   * @param {PictureRun} run
   */
  timeOf({ film }) {
    const at = film?.times.findLastIndex((time) => time.iteration <= this.times[this.at]) ?? -1;
    return film && at >= 0 ? film.times[at] : null;
  }

  /** @param {number} at */
  select(at) {
    this.at = Math.max(0, Math.min(at, this.times.length - 1));
    this.draw();
    if (this.viewer.open) this.viewer.draw();
  }

  draw() {
    this.slider.value = String(this.at);
    byId("time-name").textContent = String(this.times[this.at]);
    this.slider.setAttribute("aria-valuetext", `iteration ${this.times[this.at]}`);
    this.runs.forEach((run, column) => {
      const time = this.timeOf(run);
      const other = run.colour !== null && time?.iteration !== this.times[this.at];
      (this.smalls ?? [])[column].textContent = !time
        ? "not yet drawn"
        : other
          ? `its last: iteration ${time.iteration}`
          : `iteration ${time.iteration}`;
    });
    (this.cells ?? []).forEach((cells, place) => {
      cells.forEach(({ frame, worth }, column) => {
        const shown = this.shown(place, column);
        fillFrame(frame, shown.source, shown.base, shown.alt);
        const chosen = shown.scores.find((one) => one.name === this.choice.value);
        const change = chosen && shown.base !== shown.source ? changeText(chosen) : null;
        const line = chosen ? [make("span", {}, [short(chosen.value, 3)]), change ?? ""] : [];
        worth.replaceChildren(make("div", {}, line));
      });
    });
  }

  /**
   * @param {number} place
   * @param {number} column
   * @returns {Shown}
   */
  shown(place, column) {
    const run = this.runs[column];
    const row = this.prompts[place].rows[column];
    const time = this.timeOf(run);
    const start = run.film?.times.find((one) => one.iteration === 0) ?? null;
    const file = (/** @type {Time | null} */ at) =>
      row === null || !at?.files[row] ? null : `${run.address}${at.files[row]}`;
    const scores = Object.keys(time?.scores ?? {}).map((name) => ({
      name,
      value: row === null ? null : (time?.scores[name][row] ?? null),
      base: row === null ? null : (start?.scores[name]?.[row] ?? null),
      lower: run.film?.lower.includes(name),
    }));
    const when = time?.iteration ? `iteration ${time.iteration}` : "the base";
    const { caption } = this.prompts[place];
    return {
      source: file(time),
      base: file(start),
      alt: `${caption}, ${run.name}, ${when}`,
      caption,
      place: `${run.name}, ${when}`,
      scores,
    };
  }

  /**
   * @param {number} place
   * @param {number} column
   */
  enlarge(place, column) {
    const at = { place, column };
    this.viewer.show(
      () => this.shown(at.place, at.column),
      (columns, rows) => {
        at.place = Math.max(0, Math.min(at.place + rows, this.prompts.length - 1));
        at.column = Math.max(0, Math.min(at.column + columns, this.runs.length - 1));
      },
    );
  }
}

/** @param {number} colour */
function swatchLine(colour) {
  const line = make("span", { class: "swatch-line" });
  line.style.background = `var(--series-${(colour % COLOURS) + 1})`;
  return line;
}
