
// One head's map of one text: from the whole text down to single tokens, with a cursor for mouse and keys.
function layersOf(picture, at, closer) {
  const layer = (map, query, key, queries, keys, name) => ({ map, name, query, key, queries, keys });
  const { queries, keys } = picture;
  const layers = [layer(picture.maps[at], 0, 0, queries, keys, "the whole text")];
  if (!closer) return layers;
  layers.push(layer(closer.map, 0, 0, queries, keys, "the whole text, finer"));
  closer.windows.forEach((window) => {
    const [rows, columns] = window.map.shape;
    const size = [Math.min(rows * window.cell, queries - window.query), Math.min(columns * window.cell, keys - window.key)];
    const place = Math.floor(layers.filter((each) => each.place).length / 2) + 1;
    const scale = window.cell === 1 ? "token by token" : `${window.cell} tokens a cell`;
    layers.push({ ...layer(window.map, window.query, window.key, ...size, `from word ${whole(window.query + 1)} to word ${whole(window.key + 1)}, ${scale}`), place });
  });
  return layers;
}

// The tokens of a cell: position i falls in cell floor(i cells / length).
const firstOf = (cell, cells, length) => Math.ceil(cell * length / cells);
const cellOf = (at, cells, length) => Math.min(cells - 1, Math.floor(at * cells / length));
function spanOf(cell, cells, length, offset) {
  const [first, last] = [firstOf(cell, cells, length), firstOf(cell + 1, cells, length) - 1];
  return { first: offset + first, last: offset + Math.max(first, last) };
}

function mapOf(page, drawing, picture, at, closer) {
  const layers = layersOf(picture, at, closer), { numbers } = page;
  const [rowTokens, columnTokens] = [drawing.texts[picture.rows] ?? [], drawing.texts[picture.columns] ?? []];
  const word = (tokens, span) => span.first === span.last
    ? `${tokens[span.first] === undefined ? "" : `“${tokens[span.first]}” `}(${whole(span.first + 1)})`
    : `words ${whole(span.first + 1)} to ${whole(span.last + 1)}`;
  const canvas = make("canvas", { tabIndex: 0, role: "application", "aria-roledescription": "map" });
  const readout = make("p", { className: "readout small", role: "status", "aria-live": "polite" }), key = make("div", {});
  const choose = make("select", { onchange: () => show(layers[Number(choose.value)]) },
    ...layers.map((layer, i) => make("option", { value: String(i), textContent: `${layer.name} (${layer.map.shape.join(" × ")})` })));
  let layer = layers[0], source = null, view = null, cursor = { row: 0, column: 0 }, aim = null;

  function show(next, row, column) {
    layer = next;
    if (!row) aim = layer.queries === picture.queries ? spotOf(layers.find((each) => each.place && each.queries === each.map.shape[0])) : null;
    choose.value = String(layers.indexOf(layer));
    source = pictureOf(layer.map, numbers);
    const [rows, columns] = layer.map.shape;
    view = { row: 0, column: 0, rows, columns };
    if (aim) cursor = within(aim.query, aim.key);
    else if (row) cursor = within(row, column);
    else cursor = strongest(1)[0] ?? { row: 0, column: 0 };
    key.replaceChildren(legend("0", told(layer.map.top), told(layer.map.top / 4)));
    canvas.setAttribute("aria-label", `Map of where this head looks, ${layer.name}, ${rows} rows by ${columns} columns. `
      + `Its brightest cell holds ${told(layer.map.top)} of a row. Arrow keys move, plus and minus zoom; the table below holds the strongest cells.`);
    paint();
    readout.textContent = "Point at a cell, or focus the map and use the arrow keys; + and − zoom, 0 shows all.";
  }

  // The word that looks and the one that is looked at in the strongest cell of a window: where zooming leads at first.
  function spotOf(window) {
    if (!window) return null;
    const codes = numbers.codes(window.map), columns = window.map.shape[1], best = codes.indexOf(codes.reduce((a, b) => Math.max(a, b), 0));
    const [query, key_] = [window.query + Math.floor(best / columns), window.key + best % columns];
    return { query: { first: query, last: query }, key: { first: key_, last: key_ } };
  }
  // The strongest of the cells that cover a place, as far as this layer reaches.
  function within(row, column) {
    const [rows, columns] = layer.map.shape, codes = numbers.codes(layer.map), place = (at, cells, length) => cellOf(Math.max(0, at), cells, length);
    const [top, bottom] = [place(row.first - layer.query, rows, layer.queries), place(row.last - layer.query, rows, layer.queries)];
    const [left, right] = [place(column.first - layer.key, columns, layer.keys), place(column.last - layer.key, columns, layer.keys)];
    let best = { row: top, column: left };
    for (let y = top; y <= bottom; y += 1) {
      for (let x = left; x <= right; x += 1) if (codes[y * columns + x] > codes[best.row * columns + best.column]) best = { row: y, column: x };
    }
    return best;
  }
  function strongest(count) {
    const columns = layer.map.shape[1], codes = numbers.codes(layer.map);
    const order = Array.from(codes.keys()).filter((i) => codes[i]).sort((a, b) => codes[b] - codes[a]).slice(0, count);
    return order.map((i) => ({ row: Math.floor(i / columns), column: i % columns }));
  }
  const valueAt = ({ row, column }) => numbers.value(layer.map, numbers.codes(layer.map)[row * layer.map.shape[1] + column]);
  const spans = ({ row, column }) => [spanOf(row, layer.map.shape[0], layer.queries, layer.query), spanOf(column, layer.map.shape[1], layer.keys, layer.key)];

  function paint() {
    const width = Math.max(canvas.clientWidth, 280), ratio = window.devicePixelRatio || 1;
    const labelled = view.rows <= 40 && view.columns <= 40 && layer.map.shape[0] === layer.queries && layer.map.shape[1] === layer.keys && rowTokens.length > 0 && width / view.columns > 9;
    const style = getComputedStyle(canvas), size = Math.max(9, Math.min(13, width / view.columns * 0.7));
    const edge = labelled ? 7 * size : 0, side = (width - edge) / view.columns;
    const height = edge + Math.min(Math.max(side * view.rows, 24), width * 1.3);
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(source, view.column, view.row, view.columns, view.rows, edge, edge, width - edge, height - edge);
    const box = { x: edge, y: edge, w: (width - edge) / view.columns, h: (height - edge) / view.rows };
    if (labelled) label(pen, box, style, size);
    else outlines(pen, box);
    pen.lineWidth = 2;
    pen.strokeStyle = style.getPropertyValue("--mark");
    const [x, y] = [box.x + (cursor.column - view.column) * box.w, box.y + (cursor.row - view.row) * box.h];
    if (x >= edge && y >= edge) pen.strokeRect(x, y, Math.max(box.w, 4), Math.max(box.h, 4));
    canvas.box = box;
  }

  // Names of the tokens beside the rows and above the columns.
  function label(pen, box, style, size) {
    const cut = (text) => (text ?? "").length > 11 ? `${text.slice(0, 10)}…` : text ?? "";
    pen.fillStyle = style.getPropertyValue("--ink");
    pen.font = `${size}px ${style.fontFamily}`;
    pen.textBaseline = "middle";
    for (let i = 0; i < view.rows; i += 1) {
      pen.textAlign = "right";
      pen.fillText(cut(rowTokens[layer.query + view.row + i]), box.x - 5, box.y + (i + 0.5) * box.h, box.x - 6);
    }
    for (let i = 0; i < view.columns; i += 1) {
      pen.save();
      pen.translate(box.x + (i + 0.5) * box.w, box.y - 5);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(cut(columnTokens[layer.key + view.column + i]), 0, 0, box.y - 6);
      pen.restore();
    }
  }

  // Frames around the parts that are stored at a finer scale.
  function outlines(pen, box) {
    const scale = { row: layer.map.shape[0] / layer.queries, column: layer.map.shape[1] / layer.keys };
    pen.lineWidth = 1;
    pen.strokeStyle = "#fff";
    for (const inner of layers.filter((each) => each.queries < layer.queries && each.place)) {
      const at = [(inner.key - layer.key) * scale.column - view.column, (inner.query - layer.query) * scale.row - view.row];
      pen.strokeRect(box.x + at[0] * box.w, box.y + at[1] * box.h, Math.max(inner.keys * scale.column * box.w, 3), Math.max(inner.queries * scale.row * box.h, 3));
    }
  }

  function read() {
    const [row, column] = spans(cursor);
    readout.textContent = `${word(rowTokens, row)} → ${word(columnTokens, column)}: ${(100 * valueAt(cursor)).toFixed(1)} % of its attention`;
  }
  function move(rows, columns) {
    aim = null;
    cursor = { row: clamp(cursor.row + rows, layer.map.shape[0]), column: clamp(cursor.column + columns, layer.map.shape[1]) };
    view.row = Math.min(Math.max(view.row, cursor.row - view.rows + 1), cursor.row);
    view.column = Math.min(Math.max(view.column, cursor.column - view.columns + 1), cursor.column);
    paint();
    read();
  }
  const clamp = (value, length) => Math.max(0, Math.min(length - 1, value));

  // Where few cells are left, a finer layer takes over at the same place, if one is stored there.
  function zoom(factor) {
    const fine = (each) => each.queries * each.keys / each.map.shape[0] / each.map.shape[1];
    const [row, column] = aim ? [aim.query, aim.key] : spans(cursor), [seen, other] = [view.rows * layer.queries / layer.map.shape[0], view.columns * layer.keys / layer.map.shape[1]];
    const meets = (from, to, span) => from <= span.last && span.first < to;
    const holds = (each) => meets(each.query, each.query + each.queries, row) && meets(each.key, each.key + each.keys, column);
    const finer = layers.find((each) => holds(each) && fine(each) < fine(layer) * 0.9);
    const coarser = [...layers].reverse().find((each) => fine(each) > fine(layer) * 1.1);
    if (factor < 1 && finer && Math.min(view.rows, view.columns) * factor < 16) show(finer, row, column);
    else if (factor > 1 && coarser && view.rows >= layer.map.shape[0] && view.columns >= layer.map.shape[1]) show(coarser, row, column);
    const [rows, columns] = layer.map.shape;
    const cells = (span, length, count) => Math.max(Math.min(4, count), Math.min(count, Math.round(span * factor * count / length)));
    view = { rows: cells(seen, layer.queries, rows), columns: cells(other, layer.keys, columns) };
    view.row = Math.max(0, Math.min(rows - view.rows, cursor.row - Math.floor(view.rows / 2)));
    view.column = Math.max(0, Math.min(columns - view.columns, cursor.column - Math.floor(view.columns / 2)));
    paint();
    read();
  }
  const all = () => show(layer);

  canvas.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 8 : 1;
    const act = { ArrowUp: () => move(-step, 0), ArrowDown: () => move(step, 0), ArrowLeft: () => move(0, -step), ArrowRight: () => move(0, step), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: all }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  const cellAt = (event) => {
    const frame = canvas.getBoundingClientRect(), { x, y, w, h } = canvas.box;
    const at = { row: view.row + Math.floor((event.clientY - frame.top - y) / h), column: view.column + Math.floor((event.clientX - frame.left - x) / w) };
    return at.row >= view.row && at.row < view.row + view.rows && at.column >= view.column && at.column < view.column + view.columns ? at : null;
  };
  canvas.addEventListener("pointermove", (event) => { const at = cellAt(event); if (at) { cursor = at; aim = null; paint(); read(); } });
  canvas.addEventListener("dblclick", () => zoom(0.5));
  page.resized = paint;
  requestAnimationFrame(() => show(layer));

  const button = (name, text, act) => make("button", { type: "button", "aria-label": name, onclick: act }, text);
  const table = tableBehind("The strongest cells as a table", ["from", "to", "share"], () => strongest(100).map((cell) => {
    const [row, column] = spans(cell);
    return { from: word(rowTokens, row), to: word(columnTokens, column), share: valueAt(cell) };
  }));
  choose.addEventListener("change", () => { table.open = false; table.querySelector(".scroll")?.remove(); });
  return make("div", {},
    make("div", { className: "bar" }, make("label", {}, "Show", choose), make("span", {}, button("Zoom in", "+", () => zoom(0.5)), " ", button("Zoom out", "−", () => zoom(2)), " ", button("Show all of it", "all", all)), key),
    make("figure", { className: "map" }, canvas, make("figcaption", { className: "small" }, "From a row (top: the beginning) to a column (left: the beginning); colours grow with the square root.")),
    readout, table);
}
