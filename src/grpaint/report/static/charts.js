// @ts-check
// The chart of all pages: lines over a chosen axis, with bands, zoom by dragging, values under the pointer, a log scale.
"use strict";

/**
 * @typedef {{label: string, x: (number | null)[], y: (number | null)[], low?: (number | null)[],
 *   high?: (number | null)[], points?: boolean}} Series a line, with its band if it has `low` and `high`
 * @typedef {{title: string, note?: string, xLabel: string, log?: boolean, percent?: boolean, series: Series[]}} Chart
 */

/** @param {number} index */
function seriesColour(index) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--series-${(index % 10) + 1}`).trim();
}

/** @param {string} name */
function themeColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/**
 * Join series of different x to the columns that uPlot draws: one x for all, null where a series has no value.
 * @param {Series[]} series
 * @returns {(number | null)[][]}
 */
function columns(series) {
  const xs = [...new Set(series.flatMap((one) => one.x))].filter((x) => x !== null).sort((a, b) => a - b);
  const places = new Map(xs.map((x, place) => [x, place]));
  const rows = [xs];
  for (const one of series) {
    for (const values of [one.y, ...(one.low && one.high ? [one.low, one.high] : [])]) {
      const row = new Array(xs.length).fill(undefined);
      one.x.forEach((x, place) => {
        const at = places.get(/** @type {number} */ (x));
        if (at !== undefined) row[at] = values[place];
      });
      rows.push(row);
    }
  }
  return rows;
}

/**
 * Draw a chart into an element, in place of what it shows.
 * @param {HTMLElement} place
 * @param {Chart} chart
 */
function drawChart(place, chart) {
  const heading = make("h3", {}, [chart.title]);
  const toggle = make("button", { type: "button", "aria-pressed": Boolean(chart.log) && "true" }, ["log"]);
  toggle.setAttribute("aria-pressed", String(Boolean(chart.log)));
  toggle.setAttribute("aria-label", `log scale: ${chart.title}`);
  const canvas = make("div", { role: "img", "aria-label": summary(chart) });
  place.replaceChildren(make("div", { class: "toolbar" }, [heading, toggle]), canvas);
  if (chart.note) place.append(make("p", { class: "note" }, [chart.note]));
  let log = Boolean(chart.log);
  /** @type {any} */
  let plot;
  const draw = () => {
    plot?.destroy();
    const width = Math.max(220, canvas.clientWidth || place.clientWidth);
    plot = new /** @type {any} */ (window).uPlot(options(chart, width, log), columns(chart.series), canvas);
  };
  toggle.addEventListener("click", () => {
    log = !log;
    toggle.setAttribute("aria-pressed", String(log));
    draw();
  });
  /** @type {any} */ (place).redraw = draw;
  draw();
}

/**
 * What a screen reader says in place of the curves.
 * @param {Chart} chart
 */
function summary(chart) {
  const parts = chart.series.map((one) => {
    const values = one.y.filter((value) => value !== null && value !== undefined);
    return values.length ? `${one.label} from ${short(values[0])} to ${short(values[values.length - 1])}` : one.label;
  });
  return `${chart.title} by ${chart.xLabel}: ${parts.join("; ")}`;
}

/**
 * @param {Chart} chart
 * @param {number} width
 * @param {boolean} log
 */
function options(chart, width, log) {
  const uPlot = /** @type {any} */ (window).uPlot;
  const text = themeColour("--soft");
  const grid = { stroke: themeColour("--line"), width: 1 };
  const format = (/** @type {number} */ value) => (chart.percent ? `${short(100 * value, 3)}%` : short(value, 3));
  const lines = [{ label: chart.xLabel, value: (/** @type {any} */ _, /** @type {number} */ v) => short(v) }];
  const bands = [];
  chart.series.forEach((one, index) => {
    const stroke = seriesColour(index);
    const value = (/** @type {any} */ _, /** @type {number} */ v) => (v === null || v === undefined ? "-" : format(v));
    /** @type {any} */ (lines).push({ label: one.label, stroke, width: 1.5, spanGaps: true, value, points: { show: one.points ? true : undefined, size: 5 } });
    if (one.low && one.high) {
      const from = lines.length;
      for (let end = 0; end < 2; end += 1) /** @type {any} */ (lines).push({ label: "", stroke: "transparent", points: { show: false }, spanGaps: true, class: "band" });
      bands.push({ series: [from + 1, from], fill: `${stroke}26` });
    }
  });
  return {
    width,
    height: 240,
    scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
    axes: [
      { stroke: text, grid, ticks: grid, values: (/** @type {any} */ _, /** @type {number[]} */ v) => v.map((x) => tick(x)) },
      { stroke: text, grid, ticks: grid, size: 62, values: (/** @type {any} */ _, /** @type {number[]} */ v) => v.map((x) => (x === null ? "" : format(x))) },
    ],
    cursor: { drag: { x: true, y: false }, sync: { key: "run", setSeries: false } },
    legend: { live: true },
    series: lines,
    bands,
    plugins: [],
    fmtDate: uPlot.fmtDate,
  };
}

/** @param {number} value */
function tick(value) {
  if (value === null) return "";
  const size = Math.abs(value);
  if (size >= 1e6) return `${short(value / 1e6, 3)}M`;
  return size >= 1e4 ? `${short(value / 1e3, 3)}k` : short(value, 3);
}

/** Draw all charts of the page again, in the colours and the width that it has now. */
function redrawCharts() {
  for (const place of document.querySelectorAll(".chart")) /** @type {any} */ (place).redraw?.();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(redrawCharts, 150);
});
