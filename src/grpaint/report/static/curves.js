// @ts-check
// Groups of charts by a chosen x axis, each drawn when it comes near.
"use strict";

/**
 * @typedef {{key: string, table: string, label: string, y: (number | null)[], low?: (number | null)[],
 *   high?: (number | null)[], points: boolean}} CurveLine
 * @typedef {{title: string, note: string, percent: boolean, series: CurveLine[]}} CurveChart
 * @typedef {{tables: Record<string, Record<string, (number | null)[]>>,
 *   top: CurveChart | null, groups: {title: string, charts: CurveChart[], zeros: string[]}[]}} Curves
 * @typedef {keyof typeof AXES} Axis
 * @typedef {{title: string, charts: Chart[], zeros: string[]}} ChartGroup
 */

const CHART_PX = 190;
const AXES = { iteration: "iteration", evaluations: "model evaluations", seconds: "seconds" };

/**
 * A chart as charts.js draws it, by one of the x axes.
 * @param {Curves} curves
 * @param {CurveChart} chart
 * @param {Axis} axis
 * @returns {Chart}
 */
function chartBy(curves, chart, axis) {
  const series = chart.series.map((line) => ({ ...line, x: curves.tables[line.table][axis] }));
  return { ...chart, xLabel: AXES[axis], height: CHART_PX, series };
}

class CurveGroups {
  /** @param {(axis: Axis) => ChartGroup[]} groupsBy what to show by an axis, asked again at every change */
  constructor(groupsBy) {
    this.groupsBy = groupsBy;
    this.select = /** @type {HTMLSelectElement} */ (byId("axis"));
    /** @type {Map<HTMLElement, Chart>} */
    this.charts = new Map();
    /** @type {Set<HTMLElement>} */
    this.drawn = new Set();
    /** @type {HTMLElement[]} charts that have come near, drawn one a frame so that scrolling goes on */
    this.waiting = [];
    this.structure = "";
    this.seen = new IntersectionObserver((entries) => this.come(entries), { rootMargin: "300px" });
    this.select.addEventListener("change", () => this.show(true));
    this.show();
  }

  get axis() {
    return /** @type {Axis} */ (this.select.value);
  }

  /**
   * Show the charts as they are now: new numbers in the places that are there, or all anew if there are other charts.
   * @param {boolean} anew whether the x axis has changed, which ends every zoom
   */
  show(anew = false) {
    const groups = this.groupsBy(this.axis);
    const names = groups.map((one) => [one.title, one.zeros, one.charts.map((chart) => [chart.title, labels(chart)])]);
    const structure = JSON.stringify(names);
    if (structure !== this.structure) {
      this.structure = structure;
      this.build(groups);
      return;
    }
    const charts = groups.flatMap((group) => group.charts);
    [...this.charts.keys()].forEach((place, at) => {
      this.charts.set(place, charts[at]);
      if (!this.drawn.has(place)) return;
      if (anew) drawChart(place, charts[at]);
      else updateChart(place, charts[at]);
    });
  }

  /** @param {ChartGroup[]} groups */
  build(groups) {
    for (const place of this.charts.keys()) {
      this.seen.unobserve(place);
      drawnCharts.delete(place);
    }
    this.charts.clear();
    this.drawn.clear();
    const sections = groups.map((group) => {
      const places = group.charts.map((chart) => {
        const place = make("div", { class: "chart" });
        this.charts.set(place, chart);
        return place;
      });
      return make("section", { class: "chart-group", "aria-label": group.title }, [
        make("h3", {}, [group.title]),
        make("div", { class: "charts" }, places),
        ...(group.zeros.length ? [make("p", { class: "note" }, [`Always 0: ${group.zeros.join(", ")}.`])] : []),
      ]);
    });
    byId("curve-groups").replaceChildren(...sections);
    for (const place of this.charts.keys()) this.seen.observe(place);
  }

  /** @param {IntersectionObserverEntry[]} entries */
  come(entries) {
    for (const { isIntersecting, target } of entries) {
      const place = /** @type {HTMLElement} */ (target);
      if (!isIntersecting || !this.charts.has(place)) continue;
      this.seen.unobserve(place);
      if (this.waiting.push(place) === 1) requestAnimationFrame(() => this.drawNext());
    }
  }

  drawNext() {
    const place = this.waiting[0];
    const chart = this.charts.get(place);
    if (chart) {
      drawChart(place, chart);
      this.drawn.add(place);
    }
    this.waiting.shift();
    if (this.waiting.length) requestAnimationFrame(() => this.drawNext());
  }
}

/** @param {Chart} chart */
const labels = (chart) => chart.series.map((one) => [one.label, Boolean(one.low && one.high)]);
