// Show texts whose words can be pointed at. Places count Unicode code points, as the service does.

import { say } from "./words.js";

export const letters = (text) => Array.from(text);

// Cut a text at spans [begin, end], each with a mark; what is between them stays plain. Of marks that overlap, as
// several tokens of one character do, the first becomes a button. Gives the marks that did, in order.
export function showText(place, text, marks, onWord) {
  const all = letters(text);
  const parts = [], drawn = [];
  let at = 0;
  for (const mark of marks) {
    if (mark.begin < at || mark.end <= mark.begin) continue;
    parts.push(all.slice(at, mark.begin).join(""), wordButton(all.slice(mark.begin, mark.end).join(""), mark, onWord));
    drawn.push(mark);
    at = mark.end;
  }
  parts.push(all.slice(at).join(""));
  place.replaceChildren(...parts);
  return drawn;
}

function wordButton(word, mark, onWord) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = word;
  if (mark.kind) button.classList.add(mark.kind);
  shade(button, mark.weight ?? 0, mark.kind);
  button.setAttribute("aria-pressed", "false");
  for (const event of ["pointerenter", "focus", "click"]) {
    button.addEventListener(event, () => {
      for (const other of button.parentElement.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      onWord(mark, word);
    });
  }
  return button;
}

// Tint a word, 0 to 1; the letters stay readable at any strength.
export function shade(element, weight, kind) {
  const colour = getComputedStyle(document.documentElement).getPropertyValue(kind === "against" ? "--against" : "--for");
  element.style.backgroundColor = weight > 0 ? `rgba(${colour}, ${Math.min(0.45, 0.45 * weight)})` : "";
}

// Show the classes of an answer, the likeliest first.
export function showClasses(place, answer) {
  const rows = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 12);
  place.replaceChildren(...rows.map(([label, share], i) => bar(label, share, i === 0)));
}

function bar(label, share, first) {
  const [row, name, track, fill, number] = ["div", "span", "div", "div", "span"].map((kind) => document.createElement(kind));
  row.className = first ? "bar first" : "bar";
  name.textContent = label;
  track.className = "track";
  fill.className = "fill";
  fill.style.width = `${100 * share}%`;
  number.className = "number";
  number.textContent = `${(100 * share).toFixed(1)} %`;
  track.append(fill);
  row.append(name, track, number);
  return row;
}

export function showWritten(place, answer) {
  place.replaceChildren(...answer.texts.map(({ text }) => {
    const line = document.createElement("p");
    line.className = "written";
    line.textContent = text;
    return line;
  }));
  if (!answer.texts.length) place.textContent = say("nothing");
}
