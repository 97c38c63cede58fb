// @ts-check
// The numbers of a run as cells of a table.
"use strict";

/**
 * @typedef {{name: string, iteration: number, value: number | null, text: string, gain: number | null, change: string,
 *   tone: string}} RowScore
 * @typedef {{name: string, address: string, stamp: string, state: string, label: string, tone: string, method: string,
 *   done: number, total: number | null, score: RowScore | null, cost: number | null,
 *   alarm: {began: number, now: boolean} | null, began: number | null, notes: string[]}} RunRow
 */

/** @param {string} text */
const soft = (text) => make("span", { class: "none" }, [text]);

/** @param {RunRow} row */
function progressCell(row) {
  if (!row.total) return [short(row.done)];
  const bar = make("progress", { max: row.total, value: row.done, "aria-label": "Iterations done" });
  return [make("div", { class: "progress" }, [`${short(row.done)} of ${short(row.total)}`, bar])];
}

/** @param {RunRow} row */
function scoreCell(row) {
  if (!row.score) return [];
  const name = row.score.name === "strict" ? [] : [soft(`${row.score.name} `)];
  return [...name, row.score.text];
}

/** @param {RunRow} row */
function changeCell(row) {
  if (!row.score?.change) return [];
  const tone = { good: "up", bad: "down" }[row.score.tone] ?? "none";
  return [make("span", { class: `change ${tone}` }, [row.score.change])];
}

/** @param {RunRow} row */
function alarmCell({ alarm }) {
  if (!alarm) return [];
  const text = alarm.now ? `since ${short(alarm.began)}` : `past, at ${short(alarm.began)}`;
  return [make("span", { class: alarm.now ? "flag" : "flag past" }, [text])];
}

/** @param {number | null} ms since 1970 */
function when(ms) {
  if (ms === null) return "";
  const date = new Date(ms);
  const pad = (/** @type {number} */ number) => String(number).padStart(2, "0");
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ${pad(date.getHours())}:${pad(date.getMinutes())}`;
}

/** @param {RunRow} row */
const stateCell = (row) => [make("span", { class: `state ${row.tone} ${row.state}` }, [row.label])];
