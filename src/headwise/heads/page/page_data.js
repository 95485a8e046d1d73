
"use strict";
// Every text of a model or a user goes through `textContent` or an attribute: nothing here reads markup.

function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !["role", "list", "style"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function drawn(tag, given = {}, ...children) {
  const element = document.createElementNS(document.getElementById("shapes").namespaceURI, tag);
  for (const [name, value] of Object.entries(given)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const tell = (text) => { document.getElementById("told").textContent = text; };

const whole = (value) => value.toLocaleString("en");
function told(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return whole(value);
  return Math.abs(value) >= 100 ? value.toFixed(1) : Math.abs(value) >= 0.0005 ? value.toFixed(3) : value.toExponential(1);
}
const short = (value) => typeof value !== "number" ? "–" : Math.abs(value) >= 1000 ? `${(value / 1000).toFixed(1)}k`
  : Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2);

// Bytes of base64 that was deflated where the page says so.
async function unpacked(text, packing) {
  const raw = atob(text.trim()), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
  if (packing === "none") return bytes.buffer;
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser cannot unpack the page's numbers. Take one of 2023 or later, or write the page with `deflated=False`.");
  }
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

class Numbers {
  constructor(buffer) { this.buffer = buffer; }
  // The bytes or indices of a packed array, with its shape.
  codes(ref) {
    const size = ref.shape.reduce((product, length) => product * length, 1);
    const Kind = ref.float ? Float32Array : { 1: Uint8Array, 2: Int16Array, 4: Int32Array }[ref.bytes];
    return new Kind(this.buffer, ref.at, size);
  }
  value(ref, code) {
    return ref.top === undefined ? ref.low + (ref.high - ref.low) * code / 255 : ref.top * (code / 255) ** 2;
  }
  values(ref) { return Array.from(this.codes(ref), (code) => this.value(ref, code)); }
}

// Dark blue over green to yellow, ever brighter: readable without colour vision.
const STOPS = [[38, 24, 74], [49, 80, 130], [35, 135, 142], [95, 190, 100], [252, 230, 60]];
const COLOURS = Array.from({ length: 256 }, (_, byte) => {
  const place = byte / 255 * (STOPS.length - 1), below = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[below].map((low, i) => Math.round(low + (STOPS[below + 1][i] - low) * (place - below)));
});
const coloured = (share) => COLOURS[Math.max(0, Math.min(255, Math.round(share * 255)))];

function pictureOf(ref, numbers) {
  const [rows, columns] = ref.shape, codes = numbers.codes(ref);
  const canvas = make("canvas", { width: columns, height: rows }), image = new ImageData(columns, rows);
  codes.forEach((code, i) => { image.data.set(COLOURS[code], 4 * i); image.data[4 * i + 3] = 255; });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function legend(low, high, middle) {
  const canvas = make("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const image = new ImageData(256, 1);
  COLOURS.forEach((colour, i) => image.data.set([...colour, 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return make("span", { className: "legend" }, make("span", {}, low), canvas, make("span", {}, high), middle === undefined ? null : make("span", {}, `(middle: ${middle})`));
}

// A table that sorts by any of its columns.
function sortable(caption, names, rows, given = {}) {
  const body = make("tbody");
  let order = { name: "", down: false };
  const fill = (list) => body.replaceChildren(...list.map((row) => make("tr", {}, ...names.map((name) => {
    const cell = make("td", { className: typeof row[name] === "string" ? "words" : "" });
    cell.append(given.link && name === given.link.column ? given.link.make(row) : told(row[name]));
    return cell;
  }))));
  const heading = names.map((name) => make("th", { scope: "col", "aria-sort": "none", className: rows.some((row) => typeof row[name] === "string") ? "words" : "" },
    make("button", { type: "button", onclick: () => sort(name) }, name)));
  function sort(name) {
    order = { name, down: order.name === name ? !order.down : true };
    heading.forEach((cell, i) => cell.setAttribute("aria-sort", names[i] === name ? (order.down ? "descending" : "ascending") : "none"));
    const sign = order.down ? -1 : 1, last = order.down ? -Infinity : Infinity;
    fill([...rows].sort((a, b) => {
      const [x, y] = [a[name] ?? last, b[name] ?? last];
      return sign * (x < y ? -1 : x > y ? 1 : 0);
    }));
  }
  fill(rows);
  return make("table", { className: `rows ${rows.length > 14 ? "tall" : ""}`, tabIndex: rows.length > 14 ? 0 : null, "aria-label": caption },
    make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heading)), body);
}

// A table that is made when somebody opens it.
function tableBehind(summary, names, rows) {
  const details = make("details", {}, make("summary", {}, summary));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(make("div", { className: "scroll" }, sortable(summary, names, rows())));
  });
  return details;
}

// Reads what the page holds and hands it on; says so where that fails.
async function opened(begin) {
  try {
    const data = JSON.parse(document.getElementById("data").textContent);
    begin(data, new Numbers(await unpacked(document.getElementById("numbers").textContent, data.packing)));
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    document.getElementById("main").replaceChildren(make("p", { className: "problem", role: "alert" }, error.message));
    throw error;
  }
}
