// @ts-check
// The table of runs: sorted by a column's head, filtered by words and status, and drawn anew when the server has news.
"use strict";

/**
 * @typedef {{key: string, head: string, text?: boolean, down?: boolean,
 *   value: (row: RunRow) => string | number | null, cell: (row: RunRow) => (Node | string)[]}} Column
 */

const MOST_COMPARED = 8;

/** @type {Column[]} */
const COLUMNS = [
  { key: "name", head: "Run", text: true, value: (row) => row.name, cell: (row) => [nameLink(row)] },
  { key: "status", head: "Status", text: true, value: (row) => row.label, cell: stateCell },
  { key: "method", head: "Method", text: true, value: (row) => row.method, cell: (row) => [row.method] },
  { key: "done", head: "Iterations", down: true, value: (row) => row.done, cell: progressCell },
  { key: "score", head: "Score", down: true, value: (row) => row.score?.value ?? null, cell: scoreCell },
  { key: "gain", head: "Gain", down: true, value: (row) => row.score?.gain ?? null, cell: changeCell },
  {
    key: "cost",
    head: "Cost",
    down: true,
    value: (row) => row.cost,
    cell: (row) => (row.cost === null ? [] : [tick(row.cost)]),
  },
  {
    key: "alarm",
    head: "Alarm",
    text: true,
    down: true,
    value: (row) => row.alarm && Number(row.alarm.now),
    cell: alarmCell,
  },
  { key: "began", head: "Began", down: true, value: (row) => row.began, cell: (row) => [when(row.began)] },
];

/** @param {RunRow} row */
function nameLink(row) {
  return make("a", { href: row.address, title: row.notes.join("\n") || row.name }, [row.name]);
}

class RunTable {
  /** @param {RunRow[]} rows */
  constructor(rows) {
    this.rows = rows;
    /** @type {Set<string>} names of the runs to compare, in the order of choosing */
    this.picked = new Set();
    const kept = new URLSearchParams(location.hash.slice(1));
    this.by = COLUMNS.find((column) => column.key === kept.get("by")) ?? COLUMNS[COLUMNS.length - 1];
    this.down = kept.has("by") ? kept.has("down") : true;
    this.state = kept.get("status") ?? "";
    this.words = /** @type {HTMLInputElement} */ (byId("words"));
    this.words.value = kept.get("words") ?? "";
    this.words.addEventListener("input", () => this.draw());
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    this.button = /** @type {HTMLButtonElement} */ (byId("compare"));
    this.button.addEventListener("click", () => this.compare());
    this.heads = COLUMNS.map((column) => {
      const button = make("button", { type: "button" }, [column.head]);
      button.addEventListener("click", () => this.sort(column));
      return make("th", { scope: "col", class: column.text ? "text" : "" }, [button]);
    });
    const pick = make("th", { scope: "col", class: "pick" }, [make("span", { class: "hidden" }, ["Compare"])]);
    byId("heads").append(pick, ...this.heads);
    this.draw();
  }

  /** @param {RunRow[]} rows */
  update(rows) {
    this.rows = rows;
    this.draw();
  }

  /** @param {Column} column */
  sort(column) {
    this.down = this.by === column ? !this.down : Boolean(column.down);
    this.by = column;
    this.draw();
  }

  compare() {
    const words = [...this.picked].map((name) => `run=${encodeURIComponent(name)}`);
    location.href = `compare?${words.join("&")}`;
  }

  /** The rows that the filters leave, in order; those without a value come last. */
  shown() {
    const words = this.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (/** @type {RunRow} */ row) =>
      (!this.state || (this.state === "alarm" ? row.alarm !== null : row.state === this.state)) &&
      words.every((word) => row.name.toLowerCase().includes(word) || row.method.toLowerCase().includes(word));
    const sign = this.down ? -1 : 1;
    return this.rows.filter(fits).sort((one, other) => {
      const [a, b] = [this.by.value(one), this.by.value(other)];
      if (a === null || b === null) return Number(a === null) - Number(b === null);
      const order = typeof a === "string" ? a.localeCompare(String(b), "en", { numeric: true }) : a - Number(b);
      return sign * order || one.name.localeCompare(other.name, "en", { numeric: true });
    });
  }

  draw() {
    const shown = this.shown();
    this.drawStates();
    this.heads.forEach((head, place) => {
      if (COLUMNS[place] === this.by) head.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const focused = document.activeElement?.closest("#rows tr")?.getAttribute("data-run");
    const within = document.activeElement?.tagName;
    byId("rows").replaceChildren(...shown.map((row) => this.drawRow(row)));
    if (focused) {
      const line = [...document.querySelectorAll("#rows tr")].find((one) => one.getAttribute("data-run") === focused);
      /** @type {HTMLElement | null | undefined} */ (line?.querySelector(within === "INPUT" ? "input" : "a"))?.focus();
    }
    byId("count").textContent = this.rows.length
      ? `${shown.length === this.rows.length ? "" : `${shown.length} of `}${this.rows.length} run${this.rows.length > 1 ? "s" : ""}`
      : "No runs yet: grpaint train makes one, and it appears here by itself.";
    this.drawButton();
    this.keep();
  }

  drawStates() {
    /** @type {Map<string, {label: string, count: number}>} */
    const states = new Map([["", { label: "All", count: this.rows.length }]]);
    for (const row of this.rows) {
      const state = states.get(row.state) ?? { label: row.label, count: 0 };
      states.set(row.state, { ...state, count: state.count + 1 });
    }
    const alarms = this.rows.filter((row) => row.alarm).length;
    if (alarms) states.set("alarm", { label: "Alarm", count: alarms });
    if (!states.has(this.state)) this.state = "";
    const focused = document.activeElement?.closest("#states button")?.getAttribute("data-state");
    const chips = [...states].map(([state, { label, count }]) => {
      const chip = make(
        "button",
        { type: "button", "data-state": state, "aria-pressed": String(state === this.state) },
        [label, make("b", {}, [String(count)])],
      );
      chip.addEventListener("click", () => {
        this.state = state;
        this.draw();
      });
      return chip;
    });
    byId("states").replaceChildren(...chips);
    chips.find((chip) => chip.getAttribute("data-state") === focused)?.focus();
  }

  /** @param {RunRow} row */
  drawRow(row) {
    const box = make("input", {
      type: "checkbox",
      "aria-label": `Compare ${row.name}`,
      checked: this.picked.has(row.name),
    });
    const line = make("tr", { "data-run": row.name, class: this.picked.has(row.name) ? "picked" : "" }, [
      make("td", { class: "pick" }, [box]),
    ]);
    box.addEventListener("change", () => {
      if (box.checked) this.picked.add(row.name);
      else this.picked.delete(row.name);
      line.classList.toggle("picked", box.checked);
      this.drawButton();
    });
    COLUMNS.forEach((column, place) => {
      const content = column.cell(row);
      const kind = `${column.text ? "text" : ""} at-${column.key} ${content.length ? "" : "void"}`;
      const cell = place ? make("td", { class: kind, "data-head": column.head }, content) : null;
      line.append(cell ?? make("th", { scope: "row", class: kind }, content));
    });
    return line;
  }

  drawButton() {
    for (const name of this.picked) {
      if (!this.rows.some((row) => row.name === name)) this.picked.delete(name);
    }
    const count = this.picked.size;
    this.button.disabled = count < 2 || count > MOST_COMPARED;
    this.button.textContent = count < 2 ? "Compare: choose two or more" : `Compare ${count} runs`;
    if (count > MOST_COMPARED) this.button.textContent = `Compare: ${MOST_COMPARED} runs at most`;
  }

  /** Keep order and filters in the address, so that going back or reloading shows the same. */
  keep() {
    const kept = new URLSearchParams();
    kept.set("by", this.by.key);
    if (this.down) kept.set("down", "1");
    if (this.state) kept.set("status", this.state);
    if (this.words.value) kept.set("words", this.words.value);
    history.replaceState(null, "", `#${kept}`);
  }
}

const runTable = new RunTable(pageData.rows);
follow("runs.json", (content) => runTable.update(content.rows));
