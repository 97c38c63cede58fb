// @ts-check
// The page of a comparison: a chart for each cost.
"use strict";

for (const chart of pageData.charts ?? []) {
  const place = make("figure", { class: "chart" });
  byId("charts").append(place);
  drawChart(place, chart);
}
