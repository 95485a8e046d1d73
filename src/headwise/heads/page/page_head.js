
// The page of one head.
function headPage(page) {
  const { table, row } = page.head, { drawings } = page.data;
  const others = table.rows, at = others.indexOf(row);
  const step = (by) => page.open(table.name, others[(at + by + others.length) % others.length]);
  const before = page.data.tables.length > 1 ? page.data.tables[0].rows.find((each) => each.place === row.place && each.head === row.head) : null;
  const figures = columnsOf(table.rows).filter((name) => row[name] !== undefined && inTable(name) && name !== "role").map((name) => make("div", {}, make("dt", {}, name), make("dd", {}, told(row[name]),
    row[`${name}_spread`] === undefined ? null : make("span", { className: "was", title: "standard deviation over the texts" }, ` ± ${told(row[`${name}_spread`])}`),
    before && table.name === "now" && typeof row[name] === "number" ? make("div", { className: "was" }, `before ${told(before[name])}`) : null)));
  return [
    make("div", { className: "bar" }, make("button", { type: "button", onclick: () => page.overview() }, "← All heads"),
      make("span", {}, make("button", { type: "button", onclick: () => step(-1) }, "previous head"), " ", make("button", { type: "button", onclick: () => step(1) }, "next head"))),
    make("h1", {}, `Layer ${row.layer}, head ${row.head}`),
    make("p", { className: "soft" }, [page.data.tables.length > 1 ? (table.name === "now" ? "now" : "before") : "", row.part, row.place].filter(Boolean).join(" · ")),
    row.role ? make("p", {}, make("strong", {}, row.role), ` is what its figures suggest${row.evidence ? `: ${row.evidence}` : ""}.`) : "",
    make("dl", { className: "figures" }, ...figures),
    ...averageOf(page, table, at),
    ...(table.name === "before" || !drawings.length ? [] : [make("div", { id: "text" })]),
  ];
}

function averageOf(page, table, at) {
  const whole_ = table.maps[at];
  if (!whole_) return [];
  const canvas = reached(pictureOf(whole_, page.numbers), table.maps.filter((_, i) => table.rows[i].place === table.rows[at].place).map((map) => page.numbers.codes(map)));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Map over all texts, ${canvas.height} by ${canvas.width} cells; the brightest holds ${told(whole_.top)} of a row.`);
  return [make("h2", {}, "Over all texts"),
    make("p", { className: "small soft" }, `Each text is cut into ${whole_.shape[0]} equal parts; parts that no text was long enough to reach are left out. A row is where the head looks from, a column where it looks to.`),
    make("figure", { className: "over" }, canvas), legend("0", told(whole_.top), told(whole_.top / 4))];
}

// What holds nothing in any head of a layer was reached by no text: weights add up to 1.
function reached(picture, maps) {
  const { width, height } = picture, all = (length) => Array.from({ length }, (_, i) => i);
  const rows = all(height).filter((row) => maps.some((codes) => codes.subarray(row * width, (row + 1) * width).some((code) => code)));
  const columns = all(width).filter((column) => maps.some((codes) => rows.some((row) => codes[row * width + column])));
  const canvas = make("canvas", { width: columns.length || 1, height: rows.length || 1 }), pen = canvas.getContext("2d");
  rows.forEach((row, y) => columns.forEach((column, x) => pen.drawImage(picture, column, row, 1, 1, x, y, 1, 1)));
  return canvas;
}

// What the head does on one text; another text can be chosen.
function fillText(page) {
  const holder = document.getElementById("text");
  if (!holder) return;
  const { row } = page.head, { drawings } = page.data, drawing = drawings[page.text];
  const picture = drawing.pictures.find((each) => each.place === row.place), at = picture ? picture.heads.indexOf(row.head) : -1;
  const select = make("select", { onchange: () => { page.text = Number(select.value); fillText(page); } },
    ...drawings.map((each, i) => make("option", { value: String(i), textContent: titleOf(each, i) })));
  select.value = String(page.text);
  const bar = make("div", { className: "bar" }, make("label", {}, "Text", select));
  if (at < 0) return holder.replaceChildren(make("h2", {}, "On one text"), bar, make("p", { className: "soft" }, "This head was not drawn on this text."));
  const closer = picture.closer.find((each) => each.head === row.head), links = linksOf(page, picture, at, closer);
  const scale = picture.queries > picture.maps[at].shape[0] || picture.keys > picture.maps[at].shape[1];
  return holder.replaceChildren(
    make("h2", {}, "On one text"), bar,
    make("p", { className: "small soft" }, scaleTold(picture, at, closer, scale)),
    drawing.written === null ? "" : make("p", { className: "small soft" }, `The model wrote the words from number ${whole(drawing.written + 1)} on itself; they are underlined.`),
    make("h3", {}, "Where it looks"), mapOf(page, drawing, picture, at, closer),
    make("h3", {}, "Its strongest links, over the text"), textOf(page, drawing, picture, links),
    make("h3", {}, "Along the text"), curveOf(page, drawing, picture, at),
    make("h3", {}, "Where it is sharpest"), sharpestOf(page),
  );
}

const titleOf = (drawing, i) => `${i + 1}. ${drawing.title || drawing.texts.source.slice(0, 10).map((token) => token.trim()).join(" ")} (${[drawing.texts.source.length, ...(drawing.texts.target.length ? [drawing.texts.target.length] : [])].map(whole).join(" → ")} words)`;

function scaleTold(picture, at, closer, scale) {
  const size = `${whole(picture.queries)} × ${whole(picture.keys)} words`;
  if (!scale) return `${size}, every one drawn. A word here is a token of the model.`;
  const more = closer ? ` This head is also stored at ${closer.map.shape.join(" × ")}${closer.windows.length ? `, and around its strongest places down to single words` : ""}.` : " Only chosen heads are stored finer.";
  return `${size}, in ${picture.maps[at].shape.join(" × ")} cells. A word here is a token of the model.${more}`;
}

// The texts and places where the head gives most to one word.
function sharpestOf(page) {
  const { row } = page.head, found = [];
  page.data.drawings.forEach((drawing, text) => {
    const picture = drawing.pictures.find((each) => each.place === row.place), at = picture ? picture.heads.indexOf(row.head) : -1;
    if (at < 0) return;
    const links = linksOf(page, picture, at, undefined).sort((a, b) => b.weight - a.weight), most = page.data.drawings.length > 1 ? 3 : 8;
    for (const link of links.slice(0, most)) found.push({ drawing, text, picture, ...link });
  });
  found.sort((a, b) => b.weight - a.weight);
  return make("ol", { className: "spots" }, ...found.slice(0, 10).map((spot) => {
    const own = spot.drawing.texts[spot.picture.rows] ?? [], other = spot.drawing.texts[spot.picture.columns] ?? [];
    const around = (tokens, at, mark) => [tokens.slice(Math.max(0, at - 4), at).join(" "), " ", make("mark", { className: mark }, tokens[at] ?? `(${at + 1})`), " ", tokens.slice(at + 1, at + 4).join(" ")];
    const show = make("button", { type: "button", className: "small", onclick: () => { page.text = spot.text; fillText(page); requestAnimationFrame(() => requestAnimationFrame(() => page.goTo?.(spot.query, spot.key))); } }, "show");
    return make("li", {}, `${(100 * spot.weight).toFixed(0)} % in text ${spot.text + 1}: … `, ...around(own, spot.query, ""), " … looks at … ", ...around(other, spot.key, "key"), " … ", show);
  }));
}
