// The grid of heads, each a switch; and what one head does.

import { layerName, percent, say } from "./words.js";
import { letters, shade, showText } from "./text.js";

const keyOf = (place, head) => `${place} ${head}`;

export class Grid {
  constructor(table, { onSwitch, onHead }) {
    this.table = table;
    this.onSwitch = onSwitch;
    this.onHead = onHead;
    this.layers = [];
    this.off = new Map();
    table.addEventListener("keydown", (event) => this.move(event));
  }

  show(layers) {
    this.layers = layers;
    this.off.clear();
    this.draw();
  }

  draw() {
    const focused = document.activeElement?.dataset?.key;
    this.table.replaceChildren(...this.layers.map((layer) => this.row(layer)));
    const buttons = [...this.table.querySelectorAll("td button")];
    (buttons.find((each) => each.dataset.key === focused) ?? buttons[0])?.setAttribute("tabindex", "0");
    if (focused) buttons.find((each) => each.dataset.key === focused)?.focus();
  }

  row(layer) {
    const row = document.createElement("tr");
    const name = document.createElement("th");
    const all = document.createElement("button");
    all.type = "button";
    all.textContent = layerName(layer.place);
    all.setAttribute("aria-label", say("layerName", { place: layerName(layer.place) }));
    all.addEventListener("click", () => this.turnLayer(layer));
    name.scope = "row";
    name.append(all);
    row.append(name, ...layer.heads.map((head) => this.cell(layer.place, head)));
    return row;
  }

  cell(place, head) {
    const cell = document.createElement("td");
    const button = document.createElement("button");
    const key = keyOf(place, head);
    button.type = "button";
    button.textContent = head;
    button.dataset.key = key;
    button.tabIndex = -1;
    button.setAttribute("aria-pressed", String(!this.off.has(key)));
    button.setAttribute("aria-label", say("headName", { place: layerName(place), head }));
    button.addEventListener("click", () => this.turn(place, head));
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => this.onHead({ place, head }));
    cell.append(button);
    return cell;
  }

  turn(place, head) {
    const key = keyOf(place, head);
    if (!this.off.delete(key)) this.off.set(key, { place, head });
    this.draw();
    this.onSwitch();
  }

  turnLayer({ place, heads }) {
    const anyOn = heads.some((head) => !this.off.has(keyOf(place, head)));
    for (const head of heads) {
      if (anyOn) this.off.set(keyOf(place, head), { place, head });
      else this.off.delete(keyOf(place, head));
    }
    this.draw();
    this.onSwitch();
  }

  allOn() {
    this.off.clear();
    this.draw();
    this.onSwitch();
  }

  count() {
    return say("count", { off: this.off.size, all: this.layers.reduce((sum, layer) => sum + layer.heads.length, 0) });
  }

  // Point at one head by a class of the style sheet.
  point(found, kind) {
    const key = found && keyOf(found.place, found.head);
    for (const button of this.table.querySelectorAll("td button")) button.classList.toggle(kind, button.dataset.key === key);
  }

  move(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const cell = event.target.closest("td");
    if (!step || !cell) return;
    event.preventDefault();
    const row = this.table.rows[cell.parentElement.rowIndex + step[0]];
    const next = row?.cells[Math.min(cell.cellIndex + step[1], row.cells.length - 1)]?.querySelector("button");
    if (next && next.closest("td")) {
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
  }
}

// Show where a head looks from each word, told: an answer of /v1/view.
export function showView(told, head, { text, queries, keys, line }) {
  const asked = told.queries_written ? told.written : text;
  const marks = told.queries.map(([begin, end], i) => ({ begin, end, i }));
  const name = (key) => {
    const [begin, end] = told.keys[key];
    if (end === begin) return say(key === 0 ? "start" : "end");
    return `“${letters(keyText).slice(begin, end).join("")}”`;
  };
  const keyText = told.keys_written ? told.written : text;
  const drawn = showText(keys, keyText, told.keys.map(([begin, end]) => ({ begin, end })), () => {});
  showText(queries, asked, marks, (mark, word) => {
    const links = told.links[mark.i] ?? [];
    const within = (key, { begin, end }) => told.keys[key][0] < end && told.keys[key][1] > begin;
    const weightOf = (shown) => links.reduce((sum, { key, weight }) => sum + (within(key, shown) ? weight : 0), 0);
    keys.querySelectorAll("button").forEach((button, at) => shade(button, weightOf(drawn[at])));
    const listed = links.map(({ key, weight }) => `${name(key)} (${percent(weight)})`).join(", ");
    line.textContent = say("linked", { query: word, keys: listed });
  });
}

const TILE = 16;

// The cells of a tile that some token falls into: of a short text most of them stay empty.
function held(tokens, zoom, tile) {
  const cells = TILE * 2 ** zoom;
  const all = new Set(Array.from({ length: tokens }, (_, i) => Math.floor((i * cells) / tokens) - TILE * tile));
  return [...all].filter((cell) => cell >= 0 && cell < TILE);
}

export function drawMap(canvas, found, view) {
  const rows = held(found.queries.length, view.zoom, view.row), columns = held(found.keys.length, view.zoom, view.column);
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const most = Math.max(...found.map.flat(), 1e-9);
  const [height, width] = [canvas.height / rows.length, canvas.width / columns.length];
  context.fillStyle = style.getPropertyValue("--paper");
  context.fillRect(0, 0, canvas.width, canvas.height);
  rows.forEach((row, i) => columns.forEach((column, j) => {
    context.fillStyle = `rgba(${style.getPropertyValue("--for")}, ${found.map[row][column] / most})`;
    context.fillRect(j * width, i * height, width, height);
  }));
}
