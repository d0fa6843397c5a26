// Numbers as words, and elements.

export function rounded(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (value >= 100) return Math.round(value).toLocaleString("en");
  return value >= 10 ? value.toFixed(1) : value.toPrecision(2);
}

export const percent = (share) => `${Math.round(100 * share)}%`;

// Of a time in ms: how to write it.
const unitOf = (ms) => (ms < 0.5 ? [1e3, " µs"] : ms < 1000 ? [1, " ms"] : [1e-3, " s"]);

export function inUnit(ms) {
  const [factor, unit] = unitOf(ms);
  return rounded(ms * factor) + unit;
}

// [p50, p99] in ms: both in the unit of the second.
export function pairInUnit(pair) {
  if (!pair) return ["–", ""];
  const [factor, unit] = unitOf(pair[1]);
  return [pair.map((ms) => rounded(ms * factor)).join(" / "), unit];
}

export function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);  // strings become text: names of models are never markup
  return element;
}
