// @ts-check
// The page of a run: its views, its curves, and the keys that all pictures share.
"use strict";

const pictureViewer = new Viewer();
const film = pageData.film ? new Filmstrip(pageData.film, pictureViewer) : null;
const scoreMap = pageData.map ? new Heatmap(pageData.map) : null;
listenToModes(pictureViewer, film);
if (pageData.groups.length) drawGroups(pageData.groups, pictureViewer);

/** The curves as they are now. @type {{now: Curves}} */
const runCurves = { now: pageData.curves };
const curveGroups = new CurveGroups((axis) =>
  runCurves.now.groups.map((group) => ({
    ...group,
    charts: group.charts.map((chart) => chartBy(runCurves.now, chart, axis)),
  })),
);

/** The chart beside the cards. */
function drawTop() {
  const place = byId("score-chart");
  const { top } = runCurves.now;
  place.hidden = !top;
  if (!top) return;
  const chart = chartBy(runCurves.now, top, "iteration");
  if (drawnCharts.has(place)) updateChart(place, chart);
  else drawChart(place, chart);
}

drawTop();
