
// The strongest links over the text itself, and along it the curve of a statistic.
const SHOWN = 160, ARCS = 60;

// Every link that is stored for a head: of a short text all, of a long one those of the sharpest query of each cell.
function linksOf(page, picture, at, closer) {
  const { numbers } = page, links = [];
  const add = (keyRef, weightRef, from, begin, count, width) => {
    const [keys, weights] = [numbers.codes(keyRef), numbers.codes(weightRef)];
    for (let i = 0; i < count; i += 1) {
      for (let n = 0; n < width; n += 1) {
        const place = (begin + i) * width + n, weight = numbers.value(weightRef, weights[place]);
        if (keys[place] >= 0 && weight > 0) links.push({ query: from(i), key: keys[place], weight });
      }
    }
  };
  if (closer) add(closer.key, closer.weight, (i) => i, 0, ...closer.key.shape);
  else {
    const [, cells, width] = picture.links.key.shape, queries = numbers.codes(picture.links.query);
    add(picture.links.key, picture.links.weight, (i) => queries[at * cells + i], at * cells, cells, width);
  }
  return links;
}

function textOf(page, drawing, picture, links) {
  const cross = picture.rows !== picture.columns, own = drawing.texts[picture.rows] ?? [], other = drawing.texts[picture.columns] ?? [];
  if (!own.length || !other.length) return make("p", { className: "soft" }, "This layer does not look from token to token: it makes one vector of the text.");
  const written = drawing.written === null ? Infinity : drawing.written;
  const isWritten = (name, i) => i >= written && name === (drawing.texts.target.length ? "target" : "source");
  const holder = make("div", { className: "linked" }), shapes = drawn("svg", { "aria-hidden": "true" });
  const byQuery = grouped(links, (link) => link.query);
  const begins = { rows: 0, columns: 0 };
  let chosen = null, items = {};

  function listOf(axis, tokens, label) {
    const begin = begins[axis];
    const list = make("ol", { className: "tokens", role: "listbox", "aria-label": label },
      ...tokens.slice(begin, begin + SHOWN).map((token, i) => make("li", {
        role: "option", tabIndex: i ? -1 : 0, className: isWritten(picture[axis], begin + i) ? "written" : "",
        "aria-selected": "false", title: `${whole(begin + i + 1)}`, textContent: token.trim() ? token : "␣",
      })));
    items[axis] = [...list.children];
    if (axis === "columns" && cross) return list;
    const pick = (item) => choose(begin + items.rows.indexOf(item));
    list.addEventListener("focusin", (event) => pick(event.target.closest("li")));
    list.addEventListener("pointerover", (event) => { const item = event.target.closest("li"); if (item) pick(item); });
    list.addEventListener("pointerleave", () => choose(null));
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const next = step && items.rows[items.rows.indexOf(event.target) + step];
      if (!step) return;
      event.preventDefault();
      if (!next) return;
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
    return list;
  }

  const at = (axis, index) => items[axis]?.[index - begins[axis]];
  function choose(query) {
    chosen = query;
    const mine = query === null ? [] : byQuery.get(query) ?? [];
    for (const item of new Set([...items.rows, ...items.columns])) { item.classList.remove("from", "to"); item.setAttribute("aria-selected", "false"); }
    const item = query === null ? null : at("rows", query);
    item?.classList.add("from");
    item?.setAttribute("aria-selected", "true");
    mine.forEach((link) => at("columns", link.key)?.classList.add("to"));
    arcs();
    if (query === null) return;
    const words = mine.map((link) => `“${other[link.key]}” (${whole(link.key + 1)}) ${(100 * link.weight).toFixed(0)} %`);
    said.textContent = `“${own[query]}” (${whole(query + 1)}) looks at ${words.length ? words.join(", ") : "…: no link of this word is stored, only those of the sharpest word of each cell"}`;
  }

  function arcs() {
    const frame = holder.getBoundingClientRect(), centre = (item) => { const box = item.getBoundingClientRect(); return { x: box.left + box.width / 2 - frame.left, top: box.top - frame.top, bottom: box.bottom - frame.top }; };
    const visible = (chosen === null ? links : byQuery.get(chosen) ?? []).filter((link) => at("rows", link.query) && at("columns", link.key) && (cross || link.query !== link.key || chosen !== null));
    const best = [...visible].sort((a, b) => b.weight - a.weight).slice(0, ARCS);
    shapes.replaceChildren(...best.map((link) => {
      const [from, to] = [centre(at("rows", link.query)), centre(at("columns", link.key))];
      const curve = cross ? `M${from.x} ${from.bottom}C${from.x} ${(from.bottom + to.top) / 2} ${to.x} ${(from.bottom + to.top) / 2} ${to.x} ${to.top}`
        : `M${from.x} ${from.top}Q${(from.x + to.x) / 2} ${Math.min(from.top, to.top) - 8 - Math.min(40, Math.abs(from.x - to.x) / 6)} ${to.x} ${to.top}`;
      return drawn("path", { d: curve, "stroke-width": (0.75 + 3 * link.weight).toFixed(2), "stroke-opacity": (0.15 + 0.75 * link.weight).toFixed(2) });
    }));
  }

  const said = make("p", { className: "readout small", role: "status", "aria-live": "polite" }, "Point at a word, or use the tab and arrow keys, to see its links alone.");
  function fill() {
    items = {};
    const parts = cross ? [make("p", { className: "part" }, `from the ${picture.rows}`), listOf("rows", own, "the words that look"), make("p", { className: "part" }, `to the ${picture.columns}`), listOf("columns", other, "the words that are looked at")] : [listOf("rows", own, "the text")];
    if (!cross) { items.columns = items.rows; begins.columns = begins.rows; }
    holder.replaceChildren(shapes, ...parts);
    chosen = null;
    arcs();
  }
  const pagers = (cross ? [["rows", own, "looking"], ["columns", other, "looked at"]] : [["rows", own, ""]]).filter(([, tokens]) => tokens.length > SHOWN)
    .map(([axis, tokens, told_]) => pagerOf(tokens.length, told_, (begin) => { begins[axis] = begin; fill(); }));
  page.goTo = (query, key) => {
    const near = (index, length) => Math.max(0, Math.min(length - SHOWN, index - SHOWN / 2));
    begins.rows = near(cross ? query : Math.min(query, Math.max(key, query - SHOWN / 3)), own.length);
    if (cross) begins.columns = near(key, other.length);
    fill();
    pagers.forEach((pager) => pager.show(begins));
    at("rows", query)?.focus();
  };
  page.redrawn = arcs;
  requestAnimationFrame(fill);
  const table = tableBehind("The strongest links as a table", ["from", "place", "to", "at", "weight"], () => [...links].sort((a, b) => b.weight - a.weight).slice(0, 200)
    .map((link) => ({ from: own[link.query], place: link.query + 1, to: other[link.key], at: link.key + 1, weight: link.weight })));
  return make("div", {}, ...pagers.map((pager) => pager.bar), holder, said, table);
}

function pagerOf(length, label, go) {
  let begin = 0;
  const field = make("input", { type: "number", min: 1, max: length, value: 1, "aria-label": `first word shown ${label}` });
  const move = (to) => { begin = Math.max(0, Math.min(length - SHOWN, to)); field.value = begin + 1; go(begin); };
  field.addEventListener("change", () => move(Number(field.value || 1) - 1));
  const bar = make("div", { className: "bar small" }, make("span", {}, label ? `Words ${label} from` : "Words from"), field, `of ${whole(length)}`,
    make("button", { type: "button", onclick: () => move(begin - SHOWN) }, "earlier"), make("button", { type: "button", onclick: () => move(begin + SHOWN) }, "later"));
  return { bar, show: (begins) => { begin = label === "looked at" ? begins.columns : begins.rows; field.value = begin + 1; } };
}

function curveOf(page, drawing, picture, at) {
  const names = Object.keys(picture.curves), holder = make("div", { className: "curve" }), table = make("div", {});
  const select = make("select", { onchange: () => { page.curve = select.value; paint(); } }, ...names.map((name) => make("option", { value: name, textContent: name })));
  select.value = names.includes(page.curve) ? page.curve : names[0];
  function paint() {
    const name = select.value, ref = picture.curves[name][at], values = page.numbers.values(ref), received = name === "received";
    const length = received ? picture.keys : picture.queries, tokens = drawing.texts[received ? picture.columns : picture.rows] ?? [];
    const height = ref.high - ref.low || 1, x = (i) => ((i + 0.5) / values.length * 1000).toFixed(1), y = (value) => (96 - (value - ref.low) / height * 92).toFixed(1);
    const line = values.length > 1 ? values.map((value, i) => `${i ? "L" : "M"}${x(i)} ${y(value)}`).join("") : `M0 ${y(values[0] ?? 0)}H1000`;
    const svg = drawn("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img",
      "aria-label": `${name} along the text, from ${told(ref.low)} to ${told(ref.high)}; the table below holds the numbers.` }, drawn("path", { class: "base", d: "M0 98H1000" }), drawn("path", { d: line }));
    if (drawing.written !== null && picture.rows === (drawing.texts.target.length ? "target" : "source")) {
      const mark = (drawing.written / length * 1000).toFixed(1);
      svg.append(drawn("path", { class: "written", d: `M${mark} 0V100` }));
    }
    holder.replaceChildren(make("div", { className: "ends" }, make("span", {}, `highest ${told(ref.high)}`)), svg,
      make("div", { className: "ends" }, make("span", {}, `word 1`), make("span", {}, `lowest ${told(ref.low)}`), make("span", {}, `word ${whole(length)}`)));
    table.replaceChildren(tableBehind("The curve as a table", ["from word", "word", name], () => values.map((value, i) => {
      const first = firstOf(i, values.length, length);
      return { "from word": first + 1, word: tokens[first] ?? "", [name]: value };
    })));
  }
  paint();
  return make("div", {}, make("div", { className: "bar" }, make("label", {}, "Statistic", select)), holder, table);
}
