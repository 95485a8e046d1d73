
// Opens at the head that the address names, and keeps the address where there is one.
class Page {
  constructor(data, numbers) {
    this.data = data;
    this.numbers = numbers;
    this.text = 0;
    this.main = document.getElementById("main");
    window.addEventListener("hashchange", () => this.follow());
    window.addEventListener("resize", () => { this.resized?.(); this.redrawn?.(); });
  }
  address(hash) {
    if (location.hash === hash) return this.follow();
    if (location.protocol === "about:") { this.hash = hash; return this.follow(); }
    location.hash = hash;
    return undefined;
  }
  open(name, row) { this.address(`#${name}/${row.place}/${row.head}`); }
  overview() { this.address("#heads"); }
  follow() {
    const [name, place, head] = addressed(this.hash ?? location.hash);
    const table = this.data.tables.find((each) => each.name === name);
    const row = table?.rows.find((each) => each.place === place && String(each.head) === head);
    this.resized = this.redrawn = this.goTo = null;
    const back = this.head;
    this.head = row ? { table, row } : null;
    this.main.replaceChildren(...(row ? headPage(this) : overview(this)));
    document.title = row ? `Layer ${row.layer}, head ${row.head}` : "Heads";
    if (row) fillText(this);
    if (row || back) { window.scrollTo(0, 0); this.main.focus({ preventScroll: true }); tell(document.title); }
  }
}

// The parts of an address; none where it is broken, as a lone percent sign is.
function addressed(hash) {
  try {
    return decodeURIComponent(hash).slice(1).split("/");
  } catch (error) {
    if (!(error instanceof URIError)) throw error;
    return [];
  }
}

opened((data, numbers) => new Page(data, numbers).follow());
