// @ts-check
// The chart of all pages: lines over a chosen axis, with bands, zoom by dragging, values under the pointer, a log scale.
"use strict";

/**
 * @typedef {{label: string, x: (number | null)[], y: (number | null)[], low?: (number | null)[],
 *   high?: (number | null)[], points?: boolean, colour?: number, dash?: number[]}} Series a line, with its band if it has
 *   `low` and `high`; `colour` counts the colours of the style sheet, by default the series
 * @typedef {{title: string, note?: string, xLabel: string, log?: boolean, percent?: boolean, height?: number,
 *   series: Series[]}} Chart `xLabel` also says whose cursors move together: charts of one x axis
 */

const COLOURS = 10; // as the style sheet has them; further series begin again, dashed

/** @param {number} index */
function seriesColour(index) {
  return getComputedStyle(document.documentElement)
    .getPropertyValue(`--series-${(index % COLOURS) + 1}`)
    .trim();
}

/** @param {string} name */
function themeColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/**
 * Join series of different x to the columns that uPlot draws: one x for all, null where a series has no value.
 * @param {Series[]} series
 * @returns {uPlot.AlignedData}
 */
function columns(series) {
  const xs = [...new Set(series.flatMap((one) => one.x))].filter((x) => x !== null).sort((a, b) => a - b);
  const places = new Map(xs.map((x, place) => [x, place]));
  const rows = [];
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
  return [xs, ...rows];
}

/**
 * What is drawn in each element, how to draw it again, and how to give it later numbers.
 * @type {Map<HTMLElement, {plot: uPlot, redraw: () => void, update: (chart: Chart) => void}>}
 */
const drawnCharts = new Map();

/**
 * Draw a chart into an element, in place of what it shows.
 * @param {HTMLElement} place
 * @param {Chart} first
 */
function drawChart(place, first) {
  let chart = first;
  const heading = make("h3", {}, [chart.title]);
  const toggle = make("button", { type: "button", "aria-label": `log scale: ${chart.title}` }, ["log"]);
  toggle.setAttribute("aria-pressed", String(Boolean(chart.log)));
  const canvas = make("div");
  place.replaceChildren(make("div", { class: "toolbar" }, [heading, toggle]), canvas);
  if (chart.note) place.append(make("p", { class: "note" }, [chart.note]));
  let log = Boolean(chart.log);
  const draw = (/** @type {uPlot | null} */ before) => {
    const width = Math.max(220, canvas.clientWidth || place.clientWidth);
    const plot = new uPlot(options(chart, width, log), columns(chart.series), canvas);
    drawnCharts.set(place, { plot, redraw, update });
    const picture = canvas.querySelector(".u-wrap");
    picture?.setAttribute("role", "img");
    picture?.setAttribute("aria-label", summary(chart));
    nameLegend(canvas, plot);
    if (!before) return;
    const { min, max } = before.scales.x;
    if (min !== undefined && max !== undefined) plot.setScale("x", { min, max });
    before.series.forEach((one, at) => one.show || plot.setSeries(at, { show: false }));
  };
  const redraw = () => {
    const before = drawnCharts.get(place)?.plot ?? null;
    before?.destroy();
    draw(before);
  };
  const update = (/** @type {Chart} */ later) => {
    const plot = drawnCharts.get(place)?.plot;
    if (!plot) return;
    const xs = columns(chart.series)[0];
    const { min, max } = plot.scales.x;
    const zoomed = xs.length > 1 && (min !== xs[0] || max !== xs[xs.length - 1]); // a single point has a padded range
    chart = later;
    plot.setData(columns(chart.series), !zoomed);
    if (zoomed) plot.redraw();
    canvas.querySelector(".u-wrap")?.setAttribute("aria-label", summary(chart));
  };
  toggle.addEventListener("click", () => {
    log = !log;
    toggle.setAttribute("aria-pressed", String(log));
    redraw();
  });
  drawnCharts.get(place)?.plot.destroy();
  draw(null);
}

/**
 * Give a chart later numbers of the same lines; a zoom, the log scale and hidden lines stay.
 * @param {HTMLElement} place
 * @param {Chart} chart
 */
function updateChart(place, chart) {
  drawnCharts.get(place)?.update(chart);
}

/**
 * Let the keyboard reach the legend, whose labels hide and show their lines.
 * @param {HTMLElement} canvas
 * @param {uPlot} plot
 */
function nameLegend(canvas, plot) {
  canvas.querySelectorAll(".u-series:not(.band) .u-label").forEach((label, place) => {
    if (place === 0) return; // the x axis
    label.setAttribute("role", "button");
    label.setAttribute("tabindex", "0");
    label.setAttribute("aria-pressed", "true");
    label.addEventListener("keydown", (event) => {
      const key = /** @type {KeyboardEvent} */ (event).key;
      if (key !== "Enter" && key !== " ") return;
      event.preventDefault();
      /** @type {HTMLElement} */ (label).click();
    });
  });
  const { bands = [] } = /** @type {{bands?: uPlot.Band[]}} */ (plot); // its types do not name them
  plot.hooks.setSeries = [
    (_, index, change) => {
      if (index === null || change.show === undefined) return;
      const bandEnds = bands.find((band) => band.series[1] === index + 1)?.series ?? [];
      for (const end of bandEnds) plot.setSeries(end, { show: change.show });
      const label = canvas.querySelectorAll(".u-series")[index]?.querySelector("[role=button]");
      label?.setAttribute("aria-pressed", String(change.show));
    },
  ];
}

/**
 * What a screen reader says in place of the curves.
 * @param {Chart} chart
 */
function summary(chart) {
  const parts = chart.series.map((one) => {
    const values = one.y.filter((value) => value !== null && value !== undefined);
    const [first, last] = [values[0], values[values.length - 1]].map((value) => valueText(chart, value));
    return values.length ? `${one.label} from ${first} to ${last}` : one.label;
  });
  return `${chart.title} by ${chart.xLabel}: ${parts.join("; ")}`;
}

/**
 * @param {Chart} chart
 * @param {number | null | undefined} value
 */
function valueText(chart, value) {
  if (value === null || value === undefined) return "-";
  return chart.percent ? `${short(100 * value, 3)}%` : short(value, 3);
}

/**
 * @param {Chart} chart
 * @param {number} width
 * @param {boolean} log
 * @returns {uPlot.Options}
 */
function options(chart, width, log) {
  const text = themeColour("--soft");
  const grid = { stroke: themeColour("--line"), width: 1 };
  /** @type {uPlot.Series[]} */
  const lines = [{ label: chart.xLabel, value: (_, v) => short(v) }];
  /** @type {uPlot.Band[]} */
  const bands = [];
  /** @type {uPlot.Series.Value} */
  const value = (_, v) => valueText(chart, v);
  chart.series.forEach((one, index) => {
    const stroke = seriesColour(one.colour ?? index);
    const dash = one.dash ?? (index < COLOURS ? undefined : [6, 4]);
    const points = { show: one.points ? true : undefined, size: 5 };
    lines.push({ label: one.label, stroke, dash, width: 1.5, spanGaps: true, value, points });
    if (!one.low || !one.high) return;
    bands.push({ series: [lines.length + 1, lines.length], fill: `${stroke}26` });
    const end = { label: "", stroke: "transparent", points: { show: false }, spanGaps: true, class: "band" };
    lines.push({ ...end }, { ...end });
  });
  return {
    width,
    height: chart.height ?? 240,
    scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
    axes: [
      { stroke: text, grid, ticks: grid, values: (_, v) => v.map(tick) },
      {
        stroke: text,
        grid,
        ticks: grid,
        size: 62,
        values: (_, v) => v.map((y) => (y === null ? "" : valueText(chart, y))),
      },
    ],
    cursor: { y: false, drag: { x: true, y: false }, sync: { key: chart.xLabel, setSeries: false } },
    legend: { live: true, markers: { dash: (plot, at) => (plot.series[at].dash ? "dashed" : "solid") } },
    series: lines,
    bands,
  };
}

/** Draw all charts of the page again, in the colours and the width that it has now. */
function redrawCharts() {
  for (const { redraw } of drawnCharts.values()) redraw();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(redrawCharts, 150);
});
