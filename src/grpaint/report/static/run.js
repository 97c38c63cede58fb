// @ts-check
// The page of a run: its views, its curves, and the keys that all pictures share.
"use strict";

/**
 * @typedef {{key: string, table: string, label: string, y: (number | null)[], low?: (number | null)[],
 *   high?: (number | null)[], points: boolean}} CurveLine
 * @typedef {{title: string, note: string, percent: boolean, series: CurveLine[]}} CurveChart
 * @typedef {{tables: Record<string, Record<string, (number | null)[]>>,
 *   top: CurveChart | null, groups: {title: string, charts: CurveChart[], zeros: string[]}[]}} Curves
 */

const CHART_PX = 190;
const AXES = { iteration: "iteration", evaluations: "model evaluations", seconds: "seconds" };

/**
 * A chart as charts.js draws it, by one of the x axes.
 * @param {Curves} curves
 * @param {CurveChart} chart
 * @param {keyof typeof AXES} axis
 */
function chartBy(curves, chart, axis) {
  const series = chart.series.map((line) => ({ ...line, x: curves.tables[line.table][axis] }));
  return { ...chart, xLabel: AXES[axis], height: CHART_PX, series };
}

/** @param {Curves} curves */
function drawCurves(curves) {
  const select = /** @type {HTMLSelectElement} */ (byId("axis"));
  /** @type {Map<HTMLElement, CurveChart>} */
  const charts = new Map();
  const axis = () => /** @type {keyof typeof AXES} */ (select.value);
  /** @type {Set<HTMLElement>} */
  const drawn = new Set();
  /** @type {HTMLElement[]} charts that have come near, drawn one a frame so that scrolling goes on */
  const waiting = [];
  const drawNext = () => {
    const place = waiting[0];
    const chart = charts.get(place);
    if (chart) drawChart(place, chartBy(curves, chart, axis()));
    drawn.add(place);
    waiting.shift();
    if (waiting.length) requestAnimationFrame(drawNext);
  };
  const seen = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        const place = /** @type {HTMLElement} */ (target);
        const chart = charts.get(place);
        if (!isIntersecting || !chart) continue;
        seen.unobserve(place);
        if (waiting.push(place) === 1) requestAnimationFrame(drawNext);
      }
    },
    { rootMargin: "300px" },
  );
  const groups = curves.groups.map((group) => {
    const places = group.charts.map((chart) => {
      const place = make("div", { class: "chart" });
      charts.set(place, chart);
      return place;
    });
    return make("section", { class: "chart-group", "aria-label": group.title }, [
      make("h3", {}, [group.title]),
      make("div", { class: "charts" }, places),
      ...(group.zeros.length ? [make("p", { class: "note" }, [`Always 0: ${group.zeros.join(", ")}.`])] : []),
    ]);
  });
  byId("curve-groups").replaceChildren(...groups);
  for (const place of charts.keys()) seen.observe(place);
  select.addEventListener("change", () => {
    for (const place of drawn) {
      const chart = charts.get(place);
      if (chart) drawChart(place, chartBy(curves, chart, axis()));
    }
  });
  if (curves.top) drawChart(byId("score-chart"), chartBy(curves, curves.top, "iteration"));
  else byId("score-chart").remove();
}

/**
 * The keys of both modes, and those of the dialog while it is open.
 * @param {Viewer} viewer
 * @param {Filmstrip | null} film
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

const pictureViewer = new Viewer();
listenToModes(pictureViewer, pageData.film ? new Filmstrip(pageData.film, pictureViewer) : null);
if (pageData.groups.length) drawGroups(pageData.groups, pictureViewer);
if (pageData.map) new Heatmap(pageData.map);
drawCurves(pageData.curves);
