"use strict";
// Helpers that make nodes. Text reaches the page only through text nodes; innerHTML is never set.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
  return node;
}
const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

// Show a section and its link, or neither.
function reveal(id, present) {
  byId(id).hidden = document.querySelector(`nav [href='#${id}']`).hidden = !present;
}

// Invisible characters that affect the display: control and format characters, lone surrogates.
const INVISIBLE = /(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}]/gu;

function visible(text) {
  if (text === null) return [DASH];
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(INVISIBLE)) {
    parts.push(text.slice(end, match.index));
    parts.push(el("span", { class: "escape" }, "\\u" + match[0].codePointAt(0).toString(16).padStart(4, "0")));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

// Text with words marked: whole words in any case, with either kind of apostrophe and hyphen, also across lines.
function marked(text, words) {
  if (!words.length) return visible(text);
  const escaped = [...words].sort((a, b) => b.length - a.length)
    .map((word) => word.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&")
      .replace(/'/g, "['’]").replace(/-/g, "[-‑]").replace(/ /g, "\\s+"));
  const pattern = new RegExp(`(?<![\\p{L}\\p{N}_-])(?:${escaped.join("|")})(?![\\p{L}\\p{N}_-])`, "giu");
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    parts.push(...visible(text.slice(end, match.index)), el("mark", {}, match[0]));
    end = match.index + match[0].length;
  }
  return [...parts, ...visible(text.slice(end))];
}

const wordsOf = (hits) => [...new Set(Object.values(hits).flat())];

// Numbers for people.
const DASH = "–";
const known = (value) => value !== null && value !== undefined;
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
function number(value) {
  if (value === null || value === undefined) return DASH;
  const size = Math.abs(value), sign = value < 0 ? "−" : "";
  if (size >= 1000) return sign + Math.round(size).toLocaleString("en");
  if (size !== 0 && size < 0.001) return sign + size.toExponential(1).replace(".0e", "e");
  return sign + Number(size.toPrecision(3));
}
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const percent = (share) => (share === null || share === undefined ? DASH : (100 * share).toFixed(1) + "%");
const gigabytes = (bytes) => (bytes === null || bytes === undefined ? DASH : (bytes / 1e9).toFixed(2) + " GB");
function clock(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 120) return number(seconds) + " s";
  const minutes = Math.round(seconds / 60);
  return seconds < 600 ? number(seconds / 60) + " min" : minutes < 120 ? minutes + " min" : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
function inUnit(value, unit) {
  if (unit === "share") return percent(value);
  return unit === "bytes" ? gigabytes(value) : number(value);
}
