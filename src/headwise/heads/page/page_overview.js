
// Layers x heads in colour, and all heads in a table.
const HIDDEN = new Set(["place", "part", "layer", "kind", "head"]);
const named = (row) => `layer ${row.layer}, head ${row.head}`;
const grouped = (rows, key) => rows.reduce((groups, row) => groups.set(key(row), [...(groups.get(key(row)) ?? []), row]), new Map());
const columnsOf = (rows) => [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => !HIDDEN.has(name));
const inTable = (name) => !name.endsWith("_spread") && name !== "evidence";
const coloursBy = (rows) => columnsOf(rows).filter((name) => rows.some((row) => typeof row[name] === "number") && name !== "queries");

function overview(page) {
  const rows = page.data.tables.flatMap((table) => table.rows), names = coloursBy(rows);
  const grids = make("div", {}), key = make("span", {});
  const choose = make("select", { onchange: () => { page.colour = choose.value; paint(); } },
    ...names.map((name) => make("option", { value: name, textContent: name })));
  page.colour ??= names.includes("entropy") ? "entropy" : names[0];
  choose.value = page.colour ?? "";
  function paint() {
    const held = rows.map((row) => row[page.colour]).filter((value) => typeof value === "number");
    const range = [held.reduce((a, b) => Math.min(a, b), Infinity), held.reduce((a, b) => Math.max(a, b), -Infinity)];
    key.replaceChildren(held.length ? legend(told(range[0]), told(range[1])) : "");
    grids.replaceChildren(make("div", { className: "beside" }, ...page.data.tables.map((table) => gridsOf(page, table, range))));
  }
  paint();
  const texts = page.data.drawings.length;
  return [
    make("h1", {}, "Heads"),
    make("p", { className: "soft" }, page.data.about),
    make("p", {}, "Each number is a mean over all words that were looked at. Attention shows where a head looks, not that what it found mattered. ",
      texts ? `Choose a head to see where it looks, in ${whole(texts)} text${texts > 1 ? "s" : ""}.` : "Choose a head to see where it looks."),
    make("h2", {}, "Every head at a glance"),
    make("p", { className: "small soft" }, "Layers go down, heads across. Arrow keys move from head to head."),
    make("div", { className: "bar" }, make("label", {}, "Colour by", choose), key),
    grids,
    make("h2", {}, "Every head in numbers"),
    make("p", { className: "small soft" }, "Choose a column to sort by it."),
    make("div", { className: "beside tables" }, ...page.data.tables.map((table) => make("div", { className: "scroll" }, tableOf(page, table)))),
  ];
}

const titled = (page, table, text) => page.data.tables.length > 1 ? `${table.name === "now" ? "Now" : "Before"}: ${text}` : text;

function gridsOf(page, table, range) {
  const parts = [...grouped(table.rows, (row) => row.part)];
  return make("div", { className: page.data.tables.length > 1 ? "" : "beside" }, ...parts.map(([part, rows]) => make("div", { className: "scroll" }, gridOf(page, table, part, rows, range))));
}

function gridOf(page, table, part, rows, [low, high]) {
  const everywhere = page.data.tables.flatMap((each) => each.rows).filter((row) => row.part === part);
  const heads = [...new Set(everywhere.map((row) => row.head))].sort((a, b) => a - b);
  const lines = [...grouped(everywhere, (row) => row.place)].map(([place, [first]]) => ({ place, layer: first.layer }));
  const cell = (place, head) => {
    const row = rows.find((each) => each.place === place && each.head === head);
    if (!row) return make("td", {}, make("div", { className: "gone", title: "not in this model" }, "cut"));
    const value = row[page.colour], share = typeof value !== "number" ? 0 : high > low ? (value - low) / (high - low) : 0.5;
    const [red, green, blue] = coloured(share);
    const button = make("button", { type: "button", tabIndex: -1, onclick: () => page.open(table.name, row) }, short(value));
    button.setAttribute("aria-label", `${named(row)}, ${part}: ${page.colour} ${short(value)}${row.role ? `, ${row.role}` : ""}`);
    button.style.background = `rgb(${red} ${green} ${blue})`;
    // The ink that stands out more, by relative luminance.
    button.style.color = 0.2126 * (red / 255) ** 2.2 + 0.7152 * (green / 255) ** 2.2 + 0.0722 * (blue / 255) ** 2.2 > 0.18 ? "#000" : "#fff";
    return make("td", {}, button);
  };
  const body = make("tbody", {}, ...lines.map(({ place, layer }) => make("tr", {}, make("th", { scope: "row" }, String(layer)), ...heads.map((head) => cell(place, head)))));
  body.querySelector("button")?.setAttribute("tabindex", "0");
  body.addEventListener("keydown", (event) => roam(event, body));
  return make("table", { className: "heads" }, make("caption", {}, titled(page, table, part)),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "layer"), ...heads.map((head) => make("th", { scope: "col" }, String(head))))), body);
}

// One stop of the tab key for a grid; arrows go from head to head.
function roam(event, body) {
  const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!move) return;
  event.preventDefault();
  const lines = [...body.rows], at = event.target.closest("td"), line = at.parentElement;
  let [y, x] = [lines.indexOf(line) + move[0], [...line.cells].indexOf(at) + move[1]];
  for (; lines[y]?.cells[x]; y += move[0], x += move[1]) {
    const next = lines[y].cells[x].querySelector("button");
    if (!next) continue;
    body.querySelectorAll("button").forEach((button) => { button.tabIndex = -1; });
    next.tabIndex = 0;
    next.focus();
    return;
  }
}

function tableOf(page, table) {
  const parts = new Set(table.rows.map((row) => row.part));
  const names = [...(parts.size > 1 ? ["part"] : []), "layer", "head", ...columnsOf(table.rows).filter(inTable)];
  const link = { column: "head", make: (row) => make("button", { type: "button", onclick: () => page.open(table.name, row), "aria-label": named(row) }, String(row.head)) };
  return sortable(titled(page, table, "heads"), names, table.rows, { link });
}
