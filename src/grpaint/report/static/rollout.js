// @ts-check
// The groups of the last rollout: best, median and worst of each prompt, and the whole group when it is unfolded.
"use strict";

/**
 * @typedef {{file: string | null, total: number | null, advantage: number | null,
 *   rewards: Record<string, number | null>}} Member an image of a group
 * @typedef {{caption: string, kind: string, flat: boolean, members: Member[]}} Group members from best to worst
 */

/**
 * @param {Group[]} groups
 * @param {Viewer} viewer
 */
function drawGroups(groups, viewer) {
  byId("groups").replaceChildren(...groups.map((_, place) => groupElement(groups, place, viewer)));
}

/**
 * @param {Group[]} groups
 * @param {number} place
 * @param {Viewer} viewer
 */
function groupElement(groups, place, viewer) {
  const group = groups[place];
  const last = group.members.length - 1;
  const few = [...new Set([0, Math.floor(last / 2), last])].filter((member) => member >= 0);
  const list = make("ol", { class: "members", "aria-label": `Images of: ${group.caption}` });
  const toggle = make("button", { type: "button", "aria-expanded": "false" }, [`All ${group.members.length}`]);
  const draw = (/** @type {boolean} */ all) => {
    const shown = all ? group.members.map((_, member) => member) : few;
    list.replaceChildren(...shown.map((member) => memberElement(groups, place, member, viewer)));
    toggle.setAttribute("aria-expanded", String(all));
    article.classList.toggle("whole", all);
  };
  toggle.addEventListener("click", () => draw(toggle.getAttribute("aria-expanded") !== "true"));
  const about = [make("p", {}, [group.caption]), make("p", { class: "note" }, [group.kind])];
  if (group.flat)
    about.push(make("p", { class: "note" }, ["No spread: every advantage is 0, and nothing is learned."]));
  const article = make("article", { class: group.flat ? "group flat" : "group" }, [
    make("div", {}, [...about, toggle]),
    list,
  ]);
  draw(false);
  return article;
}

/**
 * @param {number} member
 * @param {number} count
 */
function rankName(member, count) {
  if (member === 0) return "best";
  if (member === count - 1) return "worst";
  return member === Math.floor((count - 1) / 2) ? "median" : `${member + 1} of ${count}`;
}

/**
 * @param {Member} member
 * @returns {Worth[]}
 */
function memberScores(member) {
  const rewards = Object.entries(member.rewards).map(([name, value]) => ({ name, value }));
  const total = rewards.length > 1 ? [{ name: "total", value: member.total }] : [];
  return [...rewards, ...total, { name: "advantage", value: member.advantage }];
}

/**
 * @param {Group[]} groups
 * @param {number} place
 * @param {number} member
 * @param {Viewer} viewer
 */
function memberElement(groups, place, member, viewer) {
  const group = groups[place];
  const one = group.members[member];
  const rank = rankName(member, group.members.length);
  const frame = makeFrame();
  fillFrame(frame, one.file, null, `${group.caption}, ${rank}`);
  const shot = make("button", { type: "button", class: "shot" }, [frame]);
  shot.addEventListener("click", () => enlargeMember(groups, place, member, viewer));
  const worth = memberScores(one).map(({ name, value }) => {
    const signed = name === "advantage" && value !== null;
    const text = signed
      ? `${value > 0 ? "+" : value < 0 ? "\u2212" : ""}${short(Math.abs(value), 3)}`
      : short(value, 3);
    const tone = signed && value ? (value > 0 ? "up" : "down") : "";
    return make("div", {}, [make("span", { class: "name" }, [name]), make("span", { class: tone }, [text])]);
  });
  return make("li", {}, [make("div", { class: "rank" }, [rank]), shot, make("div", { class: "worth" }, worth)]);
}

/**
 * @param {Group[]} groups
 * @param {number} place
 * @param {number} member
 * @param {Viewer} viewer
 */
function enlargeMember(groups, place, member, viewer) {
  const at = { place, member };
  const shown = () => {
    const group = groups[at.place];
    const one = group.members[at.member];
    const rank = rankName(at.member, group.members.length);
    const scores = memberScores(one);
    return {
      source: one.file,
      base: null,
      alt: `${group.caption}, ${rank}`,
      caption: group.caption,
      place: rank,
      scores,
    };
  };
  viewer.show(shown, (columns, rows) => {
    at.place = Math.max(0, Math.min(at.place + rows, groups.length - 1));
    at.member = Math.max(0, Math.min(at.member + columns, groups[at.place].members.length - 1));
  });
}
