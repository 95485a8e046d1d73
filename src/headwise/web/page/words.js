// What the page says, in each language; {names} are filled in.

const SAID = {
  en: {
    subtitle: "Type a text, get the answer, see the heads.",
    token: "Token of this service", enter: "Enter",
    ask: "Text", model: "Model", text: "Your text", hint: "Type or paste a text",
    answer: "Answer", why: "What it rests on", heads: "Heads", view: "One head",
    nothing: "Nothing yet.", working: "Working …", done: "Done in {ms} ms.", cut: " The end of the text was too long to be read.",
    noteSentiment: "Each word is masked in turn. How far the answer falls says how much the word mattered: underlined words speak for the answer, dashed ones against it. Beside a word stands the head that looked at it most. That alone explains nothing: a head may look where nothing is decided, and what it passes on may be ignored. Only what changes the answer counts.",
    noteTranslation: "Point at a word to see what it belongs to. A word was written from those without which it would have been less likely: each one is masked in turn. Where a head looks is shown beside it, and explains nothing by itself.",
    noteSummarization: "Point at a word of the summary to see where it came from: each part of the text is masked in turn, and what makes the word less likely is where it came from. Where a head looks is shown beside it, and explains nothing by itself.",
    wordFor: "Without “{word}” the answer falls by {drop}.", wordAgainst: "Without “{word}” the answer gains {drop}.",
    lookedBy: " {place} head {head} looked at it most ({share} of its weight).",
    points: "{n} points", nats: "{n} nats",
    headsNote: "Press a head to switch it off or on; the answer follows at once. Press the name of a layer for all of its heads.",
    allOn: "All on", count: "{off} of {all} heads are off.",
    headName: "{place} head {head}", layerName: "{place}: all heads",
    viewNote: "Point at a word to see where this head looks from it. Below stands the whole map: from each row of the text to each column.",
    noHead: "Go to a head above to see what it does.", linked: "From “{query}” it looks at {keys}.",
    mapName: "Map of {place} head {head}, zoom {zoom}, tile {row}, {column}",
    closer: "Closer", wider: "Wider", left: "Tile to the left", right: "Tile to the right", up: "Tile above", down: "Tile below",
    start: "start", end: "end", unreachable: "The service does not answer. Is it still running?",
  },
  zh: {
    subtitle: "输入文字，得到答案，看清每个注意力头。",
    token: "本服务的令牌", enter: "进入",
    ask: "文字", model: "模型", text: "你的文字", hint: "输入或粘贴文字",
    answer: "答案", why: "依据", heads: "注意力头", view: "单个头",
    nothing: "还没有内容。", working: "计算中……", done: "用时 {ms} 毫秒。", cut: "文字太长，末尾没有读到。",
    noteSentiment: "逐个遮住每个词，答案下降多少，就说明这个词有多重要：实线下划线的词支持答案，虚线的词反对答案。旁边是最关注这个词的头。单凭这一点什么也解释不了：头可能看着无关紧要的地方，它传出的信息也可能不被采用。只有改变答案的才算数。",
    noteTranslation: "指向一个词，看它对应哪些词。逐个遮住原文的词，使译词变得不可能的，就是它的来源。旁边写着哪个头在看它，但这本身什么也解释不了。",
    noteSummarization: "指向摘要中的一个词，看它来自哪里：逐段遮住原文，使这个词变得不可能的，就是它的来源。旁边写着哪个头在看它，但这本身什么也解释不了。",
    wordFor: "没有“{word}”，答案下降{drop}。", wordAgainst: "没有“{word}”，答案上升{drop}。",
    lookedBy: "最关注它的是{place}第 {head} 头（占其权重的 {share}）。",
    points: " {n} 个百分点", nats: " {n} 奈特",
    headsNote: "点一个头可以关掉或打开它，答案立刻随之变化。点层的名字可切换整层。",
    allOn: "全部打开", count: "{all} 个头中关掉了 {off} 个。",
    headName: "{place}第 {head} 头", layerName: "{place}：所有头",
    viewNote: "指向一个词，看这个头从它看向哪里。下面是整张图：从每一行的文字看向每一列。",
    noHead: "在上面选一个头，看它在做什么。", linked: "从“{query}”看向{keys}。",
    mapName: "{place}第 {head} 头的图，缩放 {zoom}，第 {row} 行第 {column} 列",
    closer: "放大", wider: "缩小", left: "左边一格", right: "右边一格", up: "上面一格", down: "下面一格",
    start: "开头", end: "末尾", unreachable: "服务没有回应。它还在运行吗？",
  },
};

const LAYER = { en: { encoder: "layer {n}", decoder: "writing layer {n}", cross: "from writing to source, layer {n}", pooling: "pooling", other: "{path}" },
                zh: { encoder: "第 {n} 层", decoder: "解码器第 {n} 层", cross: "解码器第 {n} 层（看原文）", pooling: "汇总", other: "{path}" } };

let language = localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export const spoken = () => language;

export function speak(chosen) {
  language = chosen;
  localStorage.setItem("language", chosen);
}

const filled = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

export const say = (name, values = {}) => filled(SAID[language][name], values);

// Name a layer as people count, by its path in the model.
export function layerName(path) {
  const number = /\d+/.exec(path);
  if (path.startsWith("pooling")) return LAYER[language].pooling;
  const kind = path.includes("cross") ? "cross" : path.startsWith("decoder") ? "decoder" : path.startsWith("encoder") ? "encoder" : "other";
  return filled(LAYER[language][number ? kind : "other"], { n: number ? Number(number[0]) + 1 : 0, path });
}

export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
