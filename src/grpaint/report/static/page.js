// @ts-check
// What every page shares: its data, and small functions on elements.
"use strict";

/** The content of the page's JSON, whose form the page's own script knows. @type {any} */
const pageData = JSON.parse(document.getElementById("data")?.textContent || "{}");

/**
 * The element with this id, which the template has.
 * @param {string} id
 * @returns {HTMLElement}
 */
function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element ${id}`);
  return element;
}

/**
 * A new element; texts are text, never markup.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | number | boolean>} attributes
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
function make(tag, attributes = {}, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false) element.setAttribute(name, String(value));
  }
  element.append(...children);
  return element;
}

/**
 * A number in a few digits, as the tables show it.
 * @param {number | null | undefined} value
 * @param {number} digits significant ones
 */
function short(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "-";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(digits))) : value.toExponential(digits - 2);
}

/**
 * A number in a few digits with k or M, as axes show it.
 * @param {number | null} value
 */
function tick(value) {
  if (value === null) return "";
  const size = Math.abs(value);
  if (size >= 1e6) return `${short(value / 1e6, 3)}M`;
  return size >= 1e4 ? `${short(value / 1e3, 3)}k` : short(value, 3);
}
