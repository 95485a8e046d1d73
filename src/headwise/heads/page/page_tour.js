
// Multi-head attention in five steps, with the numbers of one sentence.
class Tour {
  constructor(data, numbers) {
    this.data = data;
    this.arrays = Object.fromEntries(Object.entries(data.numbers).map(([name, ref]) => [name.split("_")[0], { shape: ref.shape, codes: numbers.codes(ref) }]));
    const longest = data.tokens.map((token) => [...token.replace(/[^\p{L}\p{N}_]/gu, "")].length);
    this.word = longest.indexOf(Math.max(...longest));
    const of = data.heads.map((_, head) => Math.max(...this.row("weights", head, this.word)));
    this.head = of.indexOf(Math.max(...of));
    this.parts = {};
    document.getElementById("main").replaceChildren(...this.outline());
    this.paint();
  }
  // The last axis of an array at the places given.
  row(name, ...at) {
    const { shape, codes } = this.arrays[name], width = shape[shape.length - 1];
    const place = at.reduce((sum, index, axis) => sum * shape[axis] + index, 0);
    return codes.subarray(place * width, (place + 1) * width);
  }
  get width() { return this.arrays.query.shape[2]; }
  token(i) { return `“${this.data.tokens[i]}”`; }

  outline() {
    const { data } = this, [words, wide] = this.arrays.x.shape, heads = data.heads.length;
    const part = (name) => { this.parts[name] = make("div", {}); return this.parts[name]; };
    return [
      make("h1", {}, "Multi-head attention, step by step"),
      make("p", { className: "soft" }, `${data.model}: its first attention layer, ${heads} heads, on ${words} tokens. All numbers are the model's own.`),
      make("p", {}, "Choose a word, and below a head. Each step shows what happens to that word."),
      part("words"),
      make("h2", {}, "Step 1: words become vectors"),
      make("p", {}, `Each word has a learned vector of ${wide} numbers. Attention knows no order, so each place in the sentence has a vector too. `
        + `Both are added; some models normalise the sum. Blue is below zero, orange above.`),
      part("step1"),
      make("h2", {}, `Step 2: three projections, split into ${heads} heads`),
      make("p", {}, `Three matrices make of each vector a query (what the word asks), a key (how it is found) and a value (what it has to say). Each is cut into ${heads} pieces of ${this.width}, one a head. `
        + `${data.before ? "This model normalises the vector before it projects it." : ""}`),
      part("step2"),
      make("h2", {}, "Step 3: each head compares, and looks"),
      make("p", {}, `A head multiplies the word's query with every key, divides by √${this.width} = ${Math.sqrt(this.width).toFixed(2)}, and turns the scores into weights that add up to 1 (softmax). The weights mix the values.${data.biased ? " This model also adds to each score a number that depends on the distance." : ""}`),
      part("heads"), part("step3"),
      make("h2", {}, "Step 4: the heads side by side, and one more matrix"),
      make("p", {}, `What the ${heads} heads found is set side by side again, ${heads} × ${this.width} = ${heads * this.width} numbers, and one matrix mixes them.`),
      part("step4"),
      make("h2", {}, `Step 5: add what was there${data.before ? "" : ", and normalise"}`),
      make("p", {}, data.before ? "What attention found is added to the word's vector. This model normalises before the next part instead of here."
        : "What attention found is added to the word's vector, and the sum is normalised: mean 0 and spread 1, then the layer's own scale and shift."),
      part("step5"),
      make("h2", {}, "And then"),
      make("p", {}, "The result goes through two more products, word by word, and into the next layer, which does the same again. An attention weight says where a head looked, not that the look mattered."),
    ];
  }

  paint() {
    const { parts, word, head, data } = this, name = data.heads[head], own = this.token(word);
    this.pick(parts.words, "The words of the sentence", data.tokens, word, (i) => { this.word = i; });
    parts.step1.replaceChildren(this.strip(`the vector of the word ${own}`, this.row("word", word)), this.strip(`the vector of place ${word + 1}`, this.row("place", word)), this.strip("what goes into the layer: X", this.row("x", word)));
    const whole_ = (kind) => data.heads.flatMap((_, h) => [...this.row(kind, h, word)]);
    parts.step2.replaceChildren(this.strip(`query of ${own}, all heads: Q = X Wq`, whole_("query"), true), this.strip("key: K = X Wk", whole_("key"), true), this.strip("value: V = X Wv", whole_("value"), true), this.strip(`its query in head ${name} alone`, this.row("query", head, word)));
    this.maps();
    parts.step3.replaceChildren(make("div", { className: "beside" }, make("div", { className: "scroll" }, this.looks()), make("div", {}, make("h3", {}, `Head ${name}, every word`), this.map(head, 300))),
      this.strip(`what head ${name} found for ${own}: the values, mixed by these weights`, this.row("mixed", head, word)));
    parts.step4.replaceChildren(this.strip("all heads side by side: [O₁ … O_H]", whole_("mixed"), true), this.strip("mixed by one matrix: O = [O₁ … O_H] Wo", this.row("projected", word)));
    const steps = [this.strip("what was there: X", this.row("x", word)), this.strip("what attention found: O", this.row("projected", word)), this.strip("their sum: X + O", this.row("summed", word))];
    if (!data.before) steps.push(this.strip("normalised: Y = LayerNorm(X + O)", this.row("output", word)));
    const sum = [...this.row("summed", word)], mean = sum.reduce((a, b) => a + b, 0) / sum.length, spread = Math.sqrt(sum.reduce((a, b) => a + (b - mean) ** 2, 0) / sum.length);
    parts.step5.replaceChildren(...steps, make("p", { className: "small soft" }, `The sum has mean ${mean.toFixed(3)} and spread ${spread.toFixed(3)}.`));
  }

  // Choices of which one is pressed; arrows move between them.
  pick(holder, label, texts, chosen, act) {
    const list = make("div", { className: "tokens", role: "radiogroup", "aria-label": label }, ...texts.map((text, i) => {
      const button = make("button", { type: "button", role: "radio", tabIndex: i === chosen ? 0 : -1, className: i === chosen ? "chosen" : "", "aria-checked": String(i === chosen), onclick: () => { act(i); this.paint(); holder.querySelector(".chosen").focus(); } }, text);
      return button;
    }));
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      list.children[(chosen + step + texts.length) % texts.length].click();
    });
    holder.replaceChildren(list);
  }

  maps() {
    const { data, head } = this;
    this.pick(this.parts.heads, "The heads", data.heads.map((each) => `head ${each}`), head, (i) => { this.head = i; });
    [...this.parts.heads.querySelectorAll("button")].forEach((button, i) => { button.classList.add("tall"); button.prepend(this.map(i, 64)); });
  }

  map(head, size) {
    const { shape, codes } = this.arrays.weights, words = shape[1], own = codes.subarray(head * words * words, (head + 1) * words * words);
    const canvas = make("canvas", { width: words, height: words, className: "tiny", role: "img", "aria-label": `Weights of head ${this.data.heads[head]}: rows look at columns.` });
    const image = new ImageData(words, words);
    own.forEach((weight, i) => image.data.set([...coloured(Math.sqrt(weight)), 255], 4 * i));
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.style.width = canvas.style.height = `${size}px`;
    return canvas;
  }

  looks() {
    const { data, head, word } = this, scores = this.row("score", head, word), weights = this.row("weights", head, word);
    const rows = data.tokens.map((token, i) => {
      const bar = make("div", { className: "weight" });
      bar.style.width = `${(100 * weights[i]).toFixed(1)}%`;
      return make("tr", {}, make("th", { scope: "row", className: "words" }, token), make("td", {}, (scores[i] * Math.sqrt(this.width)).toFixed(2)), make("td", {}, scores[i].toFixed(2)), make("td", {}, `${(100 * weights[i]).toFixed(1)} %`), make("td", { className: "wide" }, bar));
    });
    return make("table", { className: "rows" }, make("caption", {}, `Head ${data.heads[head]}: where ${this.token(word)} looks`),
      make("thead", {}, make("tr", {}, ...["word", "q · k", `÷ √${this.width}`, "weight"].map((text, i) => make("th", { scope: "col", className: i ? "" : "words" }, text)), make("td", {}))), make("tbody", {}, ...rows));
  }

  // A vector as a row of coloured cells, with its first numbers in writing.
  strip(label, values, split = false) {
    const list = [...values], top = list.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
    const canvas = make("canvas", { width: list.length, height: 1, "aria-hidden": "true" }), image = new ImageData(list.length, 1);
    list.forEach((value, i) => image.data.set([...signed(value / top), 255], 4 * i));
    canvas.getContext("2d").putImageData(image, 0, 0);
    const frame = make("div", { className: "cells" }, canvas);
    if (split) {
      const mark = make("div", { className: "own", title: `head ${this.data.heads[this.head]}` });
      mark.style.left = `${100 * this.head / this.data.heads.length}%`;
      mark.style.width = `${100 / this.data.heads.length}%`;
      frame.append(mark);
    }
    const first = split ? this.head * this.width : 0;
    return make("div", { className: "strip" }, make("div", { className: "small" }, label), frame,
      make("div", { className: "small soft" }, `${split ? `head ${this.data.heads[this.head]}: ` : ""}${list.slice(first, first + 6).map((value) => value.toFixed(2)).join("  ")} … (${list.length} numbers)`));
  }
}

// Blue below zero, orange above, white at zero: a pair that colour-blind eyes tell apart.
function signed(part) {
  const end = part < 0 ? [5, 80, 160] : [200, 80, 0], share = Math.min(1, Math.abs(part)) ** 0.7;
  return end.map((value) => Math.round(245 + (value - 245) * share));
}

opened((data, numbers) => new Tour(data, numbers));
