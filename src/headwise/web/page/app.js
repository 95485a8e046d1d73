// Put the page together: what is typed goes to the service, what it answers is shown.

import { ask, Refused, settled, setToken, stop, Unreachable } from "./api.js";
import { drawMap, Grid, showView } from "./heads.js";
import { shade, showClasses, showText, showWritten } from "./text.js";
import { layerName, percent, say, speak, spoken } from "./words.js";

const at = (id) => document.getElementById(id);
const state = { models: [], limits: {}, head: null, tile: { zoom: 0, row: 0, column: 0 }, shown: { zoom: 0, row: 0, column: 0 }, said: () => "", answer: null, why: null, seen: null };
const grid = new Grid(at("heads"), { onSwitch: switched, onHead: (head) => look(head) });

const model = () => state.models.find(({ name }) => name === at("model").value);
const asked = () => ({ model: model().name, off: [...grid.off.values()] });
const text = () => at("text").value;

// Run something that asks the service, and tell how it went; what newer questions have overtaken says nothing.
async function told(action) {
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error instanceof Refused && error.status === 401) at("access").hidden = false;
    tell("problem", () => (error instanceof Refused ? error.message : error instanceof Unreachable ? say("unreachable") : String(error)));
  }
}

// The words come as a function: they may have to be said again in another language.
function tell(kind, words) {
  state.said = words;
  at("state").dataset.state = kind;
  at("state").textContent = words();
}

async function answer() {
  if (!model()) return;
  if (!text().trim()) return clear();
  tell("working", () => say("working"));
  const began = performance.now();
  const found = await ask("/v1/predict", { ...asked(), texts: [text()], cut: true });
  const ms = Math.round(performance.now() - began);
  state.answer = found.answers[0];
  showAnswer();
  tell("done", () => say("done", { ms }) + (found.cut ? say("cut") : ""));
}

function showAnswer() {
  if (!state.answer) at("answer").textContent = say("nothing");
  else if (model().task === "sentiment") showClasses(at("answer"), state.answer);
  else showWritten(at("answer"), state.answer);
}

function clear() {
  stop();
  state.answer = state.why = state.seen = null;
  show();
  tell("idle", () => "");
}

function show() {
  showAnswer();
  showWhy();
  showSeen();
}

async function explain() {
  if (!model() || !text().trim()) return;
  const read = text();
  const found = await ask("/v1/explain", { ...asked(), text: read });
  state.why = { read, found };
  showWhy();
}

function showWhy() {
  at("word-told").replaceChildren();
  grid.point(null, "looked");
  if (!state.why) return at("words").replaceChildren();
  const { read, found } = state.why;
  const most = Math.max(...found.words.map(({ drop }) => Math.abs(drop)), 1e-9);
  const marks = found.words.map((word) => ({ ...word, kind: word.drop >= 0 ? "for" : "against", weight: Math.abs(word.drop) / most }));
  if (model().task === "sentiment") {
    at("words").classList.remove("pair");
    showText(at("words"), read, marks, tellWord);
  } else {
    showPair(read, found, marks);
  }
}

function tellWord(mark, word) {
  const unit = model().task === "sentiment" ? ["points", 100] : ["nats", 1];
  const drop = say(unit[0], { n: (unit[1] * Math.abs(mark.drop)).toFixed(1) });
  const head = mark.head && say("lookedBy", { place: layerName(mark.head.place), head: mark.head.head, share: percent(mark.head.share) });
  at("word-told").textContent = say(mark.drop >= 0 ? "wordFor" : "wordAgainst", { word, drop }) + (head ?? "");
  grid.point(mark.head, "looked");
}

// Both texts, one under the other; a word of either shows its partners in the other.
function showPair(read, { answer: written, words }, marks) {
  const [source, target] = ["div", "div"].map((kind) => document.createElement(kind));
  source.lang = target.lang = "";
  const best = written.texts[0]?.text ?? "";
  const links = written.links ?? [];
  const ends = unique(links.map((link) => link.target));
  const partners = (side, mark) => links.filter((link) => link[side][0] === mark.begin);
  showText(source, read, marks.map(({ begin, end, ...rest }) => ({ begin, end, ...rest, kind: "", weight: 0 })), (mark, word) => {
    light(target, ends, partners("source", mark).map((link) => [link.target, link.drop]));
    light(source, words.map(({ begin, end }) => [begin, end]), []);
    tellWord(mark, word);
  });
  showText(target, best, ends.map(([begin, end]) => ({ begin, end })), (mark) => {
    light(source, words.map(({ begin, end }) => [begin, end]), partners("target", mark).map((link) => [link.source, link.drop]));
    light(target, ends, []);
    at("word-told").textContent = "";
  });
  at("words").replaceChildren(source, document.createElement("hr"), target);
}

function unique(spans) {
  const seen = new Map(spans.map((span) => [span.join(), span]));
  return [...seen.values()].sort((a, b) => a[0] - b[0]);
}

function light(place, spans, lit) {
  const most = Math.max(...lit.map(([, drop]) => drop), 1e-9);
  [...place.querySelectorAll("button")].forEach((button, i) => {
    const found = lit.find(([span]) => span[0] === spans[i]?.[0]);
    shade(button, found ? found[1] / most : 0);
  });
}

async function view() {
  if (!model() || !state.head || !text().trim()) return;
  const { head, tile } = state, read = text();
  const found = await ask("/v1/view", { ...asked(), text: read, head, ...tile });
  state.seen = { found, head, tile, read };
  showSeen();
}

function showSeen() {
  at("link-told").textContent = "";
  at("map-part").hidden = !state.seen;
  if (!state.seen) {
    at("view-head").textContent = say("noHead");
    for (const id of ["queries", "keys"]) at(id).replaceChildren();
    return;
  }
  const { found, head, tile, read } = state.seen;
  const named = { place: layerName(head.place), head: head.head };
  at("view-head").textContent = say("headName", named);
  showView(found, head, { text: read, queries: at("queries"), keys: at("keys"), line: at("link-told") });
  drawMap(at("map"), found, tile);
  at("map").setAttribute("aria-label", say("mapName", { ...named, ...tile }));
  allowMoves(tile, Math.max(found.queries.length, found.keys.length));
}

// Moves go from the tile that is shown: a second click may come before the answer to the first.
function allowMoves({ zoom, row, column }, tokens) {
  state.shown = { zoom, row, column };
  const side = 2 ** zoom;
  at("closer").disabled = 32 * side > state.limits.cells || 16 * side >= tokens;
  at("wider").disabled = zoom === 0;
  at("left").disabled = column === 0;
  at("up").disabled = row === 0;
  at("right").disabled = column === side - 1;
  at("down").disabled = row === side - 1;
}

const answerSoon = settled(() => told(answer), 150);
const explainSoon = settled(() => told(explain), 400);
const viewSoon = settled(() => told(view), 150);

function typed() {
  answerSoon();
  explainSoon();
  viewSoon();
}

function switched() {
  at("count").textContent = grid.count();
  told(answer);
  explainSoon();
  viewSoon();
}

function look(head) {
  state.head = head;
  state.tile = { zoom: 0, row: 0, column: 0 };
  grid.point(head, "seen");
  viewSoon();
}

function moveMap(change) {
  state.tile = { ...state.shown, ...change };
  told(view);
}

function choose() {
  grid.show(model().layers);
  state.head = null;
  note();
  clear();
  typed();
}

function note() {
  const kind = model().task[0].toUpperCase() + model().task.slice(1);
  at("why-note").textContent = say(`note${kind}`);
  at("count").textContent = grid.count();
}

// Say all that the page shows in another language; what is shown stays, and nothing is asked.
function redress() {
  dress();
  if (model()) note();
  grid.draw();
  grid.point(state.head, "seen");
  show();
  at("state").textContent = state.said();
}

function dress() {
  document.documentElement.lang = spoken() === "zh" ? "zh-Hans" : "en";
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  for (const element of document.querySelectorAll("[data-hint]")) element.placeholder = say(element.dataset.hint);
  for (const element of document.querySelectorAll("[data-name]")) element.setAttribute("aria-label", say(element.dataset.name));
  at("language").textContent = spoken() === "zh" ? "English" : "中文";
  at("language").lang = spoken() === "zh" ? "en" : "zh";
}

async function open() {
  const found = await ask("/v1/models");
  at("access").hidden = true;
  state.models = found.models;
  state.limits = found.limits;
  at("model").replaceChildren(...found.models.map(({ name }) => new Option(name, name)));
  choose();
}

at("text").addEventListener("input", typed);
at("model").addEventListener("change", choose);
at("all-on").addEventListener("click", () => grid.allOn());
at("closer").addEventListener("click", () => moveMap({ zoom: state.shown.zoom + 1, row: 2 * state.shown.row, column: 2 * state.shown.column }));
at("wider").addEventListener("click", () => moveMap({ zoom: state.shown.zoom - 1, row: state.shown.row >> 1, column: state.shown.column >> 1 }));
at("left").addEventListener("click", () => moveMap({ column: state.shown.column - 1 }));
at("right").addEventListener("click", () => moveMap({ column: state.shown.column + 1 }));
at("up").addEventListener("click", () => moveMap({ row: state.shown.row - 1 }));
at("down").addEventListener("click", () => moveMap({ row: state.shown.row + 1 }));
at("language").addEventListener("click", () => {
  speak(spoken() === "zh" ? "en" : "zh");
  redress();
});
at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(at("token").value);
  told(open);
});

dress();
told(open);
