// @ts-check
// Several runs side by side: their scores, curves on one chart, aligned pictures, and the settings that differ.
"use strict";

/**
 * @typedef {{row: RunRow, curves: Curves, film: Film | null, against: {text: string, tone: string} | null}} SideRun
 * @typedef {{runs: SideRun[], prompts: SharedPrompt[], settings: string[][],
 *   same_base: boolean}} Sides
 */

const DASHES = [undefined, [6, 4], [2, 3], [8, 3, 2, 3]]; // of the lines that one run has in a chart
const BANDS = 3; // more runs would hide each other
const TOP_PX = 300;
/** @type {Sides} */
let sides = pageData;

/**
 * The charts of one title of all runs as one chart; a run's lines have its colour.
 * @param {{run: SideRun, colour: number, chart: CurveChart}[]} parts
 * @param {Axis} axis
 * @returns {Chart}
 */
function joinedChart(parts, axis) {
  const series = parts.flatMap(({ run, colour, chart }) =>
    chartBy(run.curves, chart, axis).series.map((line, place) => {
      const label = chart.series.length > 1 ? `${run.row.name}, ${line.label}` : run.row.name;
      const band = parts.length <= BANDS ? {} : { low: undefined, high: undefined };
      return { ...line, ...band, label, colour, dash: DASHES[place % DASHES.length] };
    }),
  );
  const [{ chart }] = parts;
  return { title: chart.title, note: chart.note, percent: chart.percent, xLabel: AXES[axis], height: CHART_PX, series };
}

/**
 * @param {Axis} axis
 * @returns {ChartGroup[]}
 */
function joinedGroups(axis) {
  /** @type {Map<string, Map<string, {run: SideRun, colour: number, chart: CurveChart}[]>>} by group, then by chart */
  const groups = new Map();
  sides.runs.forEach((run, colour) => {
    for (const { title, charts } of run.curves.groups) {
      const known = groups.get(title) ?? new Map();
      for (const chart of charts.filter((one) => one.title !== run.curves.top?.title))
        known.set(chart.title, [...(known.get(chart.title) ?? []), { run, colour, chart }]);
      groups.set(title, known);
    }
  });
  return [...groups].map(([title, charts]) => ({
    title,
    zeros: [],
    charts: [...charts.values()].map((parts) => joinedChart(parts, axis)),
  }));
}

/** The held-out score of all runs, large. */
function drawTopOfAll() {
  const tops = sides.runs.flatMap((run, colour) => (run.curves.top ? [{ run, colour, chart: run.curves.top }] : []));
  const place = byId("score-chart");
  place.hidden = !tops.length;
  if (!tops.length) return;
  const titles = [...new Set(tops.map((one) => one.chart.title))];
  const chart = { ...joinedChart(tops, curveSides.axis), title: titles.join(" / "), height: TOP_PX };
  const lines = chart.series.map((line) => line.label).join("\n") + chart.xLabel;
  if (place.dataset.lines === lines) updateChart(place, chart);
  else drawChart(place, chart);
  place.dataset.lines = lines;
}

function drawScores() {
  const heads = [
    "Run",
    "Status",
    "Iterations",
    "Score",
    "Against its base",
    `Against ${sides.runs[0].row.name}`,
    "Model evaluations",
    "Alarm",
  ];
  const lines = sides.runs.map(({ row, against }, colour) => {
    const compared = against ? [make("span", { class: `change ${against.tone}` }, [against.text])] : [soft("-")];
    const score = [...scoreCell(row), ...(row.score ? [soft(` at ${short(row.score.iteration)}`)] : [])];
    const cells = [
      stateCell(row),
      progressCell(row),
      score,
      changeCell(row),
      compared,
      row.cost === null ? [] : [tick(row.cost)],
      alarmCell(row),
    ];
    const name = make("th", { scope: "row" }, [swatchLine(colour), make("a", { href: row.address }, [row.name])]);
    return make("tr", {}, [name, ...cells.map((cell) => make("td", {}, cell))]);
  });
  const top = make(
    "tr",
    {},
    heads.map((head) => make("th", { scope: "col" }, [head])),
  );
  byId("scores").replaceChildren(make("thead", {}, [top]), make("tbody", {}, lines));
}

function drawSettings() {
  const names = sides.runs.map((run, colour) => make("th", { scope: "col" }, [swatchLine(colour), run.row.name]));
  const lines = sides.settings.map(([key, ...values]) =>
    make("tr", {}, [make("th", { scope: "row" }, [key]), ...values.map((value) => make("td", {}, [value]))]),
  );
  const top = make("tr", {}, [make("th", { scope: "col" }, ["Setting"]), ...names]);
  byId("differing").replaceChildren(make("thead", {}, [top]), make("tbody", {}, lines));
  byId("differing").hidden = !lines.length;
  byId("equal").hidden = lines.length > 0;
}

/**
 * The runs as columns of pictures; before them the base, if all began from the same.
 * @returns {{runs: PictureRun[], prompts: SharedPrompt[]}}
 */
function pictureColumns() {
  /** @type {PictureRun[]} */
  const runs = sides.runs.map(({ row, film }, colour) => ({ name: row.name, address: row.address, colour, film }));
  const [{ address, film }] = runs;
  const times = film?.times.filter((time) => time.iteration === 0) ?? [];
  if (!sides.same_base || !film || !times.length) return { runs, prompts: sides.prompts };
  const base = { name: "The base", address, colour: null, film: { ...film, times } };
  return { runs: [base, ...runs], prompts: sides.prompts.map((one) => ({ ...one, rows: [one.rows[0], ...one.rows] })) };
}

const sideViewer = new Viewer();
listenToModes(sideViewer, null);
const curveSides = new CurveGroups(joinedGroups);
const columnsOfRuns = sides.prompts.length ? new RunColumns(pictureColumns(), sideViewer) : null;
drawScores();
drawSettings();
drawTopOfAll();
curveSides.select.addEventListener("change", drawTopOfAll);

/** @type {Record<string, string>} */
let sideStamps = pageData.stamps;

const refreshSides = paced(async (stamps) => {
  const answer = await askServer(`compare.json${location.search}`);
  if (answer.status !== 200) return;
  if (!columnsOfRuns && answer.content.prompts.length) location.reload(); // the page has no place for pictures yet
  sides = answer.content;
  drawScores();
  drawSettings();
  drawTopOfAll();
  curveSides.show();
  columnsOfRuns?.update(pictureColumns());
  sideStamps = stamps;
});

follow("runs.json", ({ rows }) => {
  const stamps = Object.fromEntries(rows.map((/** @type {RunRow} */ row) => [row.name, row.stamp]));
  const now = Object.fromEntries(sides.runs.map(({ row }) => [row.name, stamps[row.name]]));
  if (Object.values(now).includes(undefined)) return "One of these runs is no longer in the folder.";
  if (JSON.stringify(now) !== JSON.stringify(sideStamps)) refreshSides(now);
  return "";
});
