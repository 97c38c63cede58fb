// @ts-check
// The page of a run under way, served live: small news at every poll, pictures and curves when the run has written some.
"use strict";

/**
 * @typedef {{title: string, headline: string, sentences: string[], change: string, tone: string}} StandingCard
 * @typedef {{text: string, note?: string, tone?: string}} TableCell
 */

let shownStamp = pageData.live.stamp;

/**
 * @param {StandingCard[]} cards
 * @param {{done: number, total: number | null}} iterations
 */
function drawCards(cards, { done, total }) {
  const articles = cards.map(({ title, headline, sentences, change, tone }, place) => {
    const colour = { good: "up", bad: "down" }[tone] ?? "";
    const beside = change ? [" ", make("span", { class: `change ${colour}` }, [change])] : [];
    const bar =
      place === 0 && total ? [make("progress", { max: total, value: done, "aria-label": "Iterations done" })] : [];
    const lines = sentences.map((text) => make("p", {}, [text]));
    const heading = [make("h2", {}, [title]), make("p", { class: "headline" }, [headline, ...beside])];
    return make("article", { class: `card ${tone}` }, [...heading, ...bar, ...lines]);
  });
  byId("cards").replaceChildren(...articles);
}

/** @param {Record<string, TableCell[][]>} tables */
function fillTables(tables) {
  for (const body of document.querySelectorAll("tbody[data-rows]")) {
    const rows = tables[body.getAttribute("data-rows") ?? ""] ?? [];
    const lines = rows.map(([head, ...cells]) => {
      const about = head.note ? [" ", make("span", { class: "note" }, [head.note])] : [];
      const others = cells.map((cell) => make("td", { class: cell.tone ?? "" }, [cell.text]));
      return make("tr", {}, [make("th", { scope: "row" }, [head.text, ...about]), ...others]);
    });
    body.replaceChildren(...lines);
  }
}

/** @param {any} data as the page itself had it when it was loaded */
function showLater(data) {
  if (JSON.stringify(data.parts) !== JSON.stringify(pageData.parts)) {
    location.reload(); // it has pictures or tables now that it had no place for
    return;
  }
  drawCards(data.cards, data);
  fillTables(data.tables);
  for (const [name, text] of Object.entries(data.texts)) {
    const element = document.querySelector(`[data-text="${name}"]`);
    if (element) element.textContent = String(text);
  }
  film?.update(data.film);
  scoreMap?.update(data.map);
  if (JSON.stringify(data.groups) !== JSON.stringify(pageData.groups)) drawGroups(data.groups, pictureViewer);
  pageData.groups = data.groups;
  runCurves.now = data.curves;
  curveGroups.show();
  drawTop();
}

const refresh = paced(async (stamp) => {
  const answer = await askServer("data.json");
  if (answer.status !== 200) return;
  showLater(answer.content);
  shownStamp = stamp;
});

/** @param {RunRow[]} rows */
function takeNews(rows) {
  const row = rows.find((one) => one.name === pageData.live.name);
  if (!row) return "This run is no longer in the folder.";
  const chip = byId("status");
  chip.textContent = row.label;
  chip.className = `chip ${row.tone}`;
  document.title = `${row.name}: ${row.label.toLowerCase()}`;
  if (row.stamp !== shownStamp) refresh(row.stamp);
  return "";
}

follow("../../runs.json", (content) => takeNews(content.rows));
