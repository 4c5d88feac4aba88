// SPDX-License-Identifier: Apache-2.0
// What pages of canvases share.
const percent = (p) => (100 * p).toFixed(p < 0.9995 ? 1 : 0) + " %";
const add = (parent, tag, className, text) => {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return parent.appendChild(made);
};

// What a browser would not show, or would let run into the page, is written out.
const visible = (text) => text
  .replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\p{Cs}]/gu,
    (c) => "⟨" + c.codePointAt(0).toString(16).padStart(2, "0") + "⟩")
  .replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t");

// Violet is the first step and red the last. Orange is a guess and a calm green is certainty.
const stepColour = (t) => `oklch(var(--light) var(--chroma) ${290 - 265 * t})`;
const sureColour = (p) => `oklch(var(--light) calc(var(--chroma) * ${1.35 - p}) ${40 + 135 * p})`;

// Tokens unmasked in each step, above the slider: a bar for every step.
const drawBars = (bars, counts) => {
  const last = counts.length, most = Math.max(...counts, 1);
  bars.setAttribute("viewBox", `0 0 ${Math.max(last, 1)} 1`);
  bars.replaceChildren();
  return counts.map((count, step) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const place = { x: step + 0.06, y: 1 - count / most, width: 0.88, height: count / most };
    for (const name in place) bar.setAttribute(name, place[name]);
    bar.style.fill = stepColour(last > 1 ? step / (last - 1) : 0);
    return bars.appendChild(bar);
  });
};
const paintLegend = (legend, by) => {
  const ramp = by === "step" ? stepColour : sureColour;
  const stops = [...Array(9).keys()].map((i) => ramp(i / 8));
  legend.children[1].style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  legend.children[0].textContent = by === "step" ? "first" : "0 %";
  legend.children[2].textContent = by === "step" ? "last" : "100 %";
};
