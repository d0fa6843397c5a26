// Streams as lanes, requests as boxes, as `deepsched trace` draws them.

import { inUnit, make, rounded } from "./words.js";

// Okabe and Ito's palette, lightened, as in deepsched/timeline/svg.py.
const COLOURS = ["#8ecae6", "#f4c27a", "#9bd8b5", "#f2a6b3", "#c9b6e4", "#f3e58c", "#b5cf9f", "#d9c2a7"];

const LEFT = 130, RIGHT = 20, NARROWEST = 480;
const TOP = 4, QUEUE = 40, AXIS = 26, MOST_HEIGHT = 420, LANE = 26;
const KEPT_MS = 10000;
const FEWEST_RUNS = 8, MOST_RUNS = 40;  // of median length, one after another in the picture

let plot = 810;  // width of the lanes, as the page leaves it
let runs = [];  // of the last KEPT_MS, as far as they are known without a gap
let knownFrom = 0;
let numSeen = 0;

export function drawLanes(hello, now) {
  if (!now.moment) {
    document.getElementById("moment").textContent = "Requests are being traced by someone else.";
    return;
  }
  remember(now.moment);
  if (!runs.length) return;
  const window = chosenWindow();
  const shown = runs.filter((run) => run.end > window.begin && run.begin < window.end && run.stream >= 0);
  const names = [...new Set(shown.map((run) => run.model))].sort();
  const svg = document.getElementById("lanes");
  svg.replaceChildren();
  const width = Math.max(NARROWEST, svg.clientWidth);
  plot = width - LEFT - RIGHT;
  const lanes = layOut(svg, hello);
  for (const run of shown) drawRun(svg, run, window, lanes, colourOf(run, names));
  const depth = drawQueue(svg, window, lanes.bottom);
  drawAxis(svg, window, lanes.bottom + QUEUE);
  svg.setAttribute("viewBox", `0 0 ${width} ${lanes.bottom + QUEUE + AXIS}`);
  describe(hello, now, window, shown, depth);
  drawLegend(names, shown);
  fillTable(shown, window);
}

/* A moment is all that ended between its begin and its end. Where more ended than it has room for
   it ends early, and there is a gap before the next. */
function remember(moment) {
  const isContinued = runs.length && moment.begin - runs.at(-1).known < 50;
  if (!isContinued) { runs = []; knownFrom = moment.begin; }
  for (const [stream, width, begin, ran, waited, model, outcome, inline] of moment.runs) {
    runs.push({
      stream, width, begin, ran, waited, end: begin + ran, model: moment.names[model],
      outcome: moment.outcomes[outcome], inline, number: numSeen++, known: moment.end,
    });
  }
  if (runs.length) runs.at(-1).known = moment.missed ? -1 : moment.end;
  while (runs.length && runs[0].end < moment.end - KEPT_MS) knownFrom = runs.shift().end;
}

function chosenWindow() {
  // Half of the time that streams are busy goes into runs longer than `median`: a fast model beside
  // a slow one does not make the picture too short for the slow one.
  const ran = runs.filter((run) => run.stream >= 0).map((run) => run.ran).sort((a, b) => a - b);
  const median = byTime(ran, 0.5) || 1;
  const last = Math.max(...runs.map((run) => run.end));
  // What runs still is not known: a stream would look idle where it is not. So the picture ends as
  // long before the last end as nearly every run takes, if there is enough before.
  const end = Math.max(last - byTime(ran, 0.95), Math.min(last, knownFrom + FEWEST_RUNS * median));
  const known = Math.max(end - knownFrom, 1e-3);
  const some = runs.length > 24 ? end - runs[runs.length - 24].begin : known;
  const length = Math.min(known, Math.max(FEWEST_RUNS * median, Math.min(some, MOST_RUNS * median)));
  return { begin: end - length, end, length };
}

function byTime(sorted, share) {
  const wanted = share * sorted.reduce((sum, each) => sum + each, 0);
  let sum = 0;
  return sorted.find((each) => (sum += each) >= wanted) ?? 0;
}

function layOut(svg, hello) {
  const numCores = hello.streams.reduce((sum, stream) => sum + stream.cores.length, 0);
  const lane = Math.min(LANE, MOST_HEIGHT / Math.max(1, numCores));
  const tops = [];
  let y = TOP;
  for (const stream of hello.streams) {
    tops.push(y);
    const height = lane * stream.cores.length;
    add(svg, "rect", { class: "lane", x: LEFT, y, width: plot, height });
    stream.cores.forEach((cpus, k) => {
      if (k) add(svg, "line", { class: "core", x1: LEFT, x2: LEFT + plot, y1: y + k * lane, y2: y + k * lane });
      if (lane >= 11) add(svg, "text", { x: LEFT - 6, y: y + (k + 0.5) * lane + 4, "text-anchor": "end" }, `CPU ${cpus}`);
    });
    if (height >= 11) add(svg, "text", { x: 0, y: y + height / 2 + 4 }, stream.name);
    y += height;
  }
  tops.push(y);
  return { tops, bottom: y };
}

function drawRun(svg, run, window, { tops }, colour) {
  const x = at(run.begin, window), width = Math.max(at(run.end, window) - x, 0.5);
  const y = tops[run.stream], height = tops[run.stream + run.width] - y;
  const group = add(svg, "g", { class: run.outcome === "done" ? "run" : "run unanswered" });
  add(group, "title", {}, `${run.model}: waited ${inUnit(run.waited)}, ran ${inUnit(run.ran)} ` +
    `${run.inline ? "inline" : "on a worker"}, ${run.outcome}`);
  add(group, "rect", { x, y: y + 1, width, height: Math.max(height - 2, 0.5), rx: Math.min(3, width / 2), fill: colour });
  const label = rounded(run.ran);
  if (width > 8 * label.length + 4 && height >= 11) {
    add(group, "text", { x: x + width / 2, y: y + height / 2 + 4 }, label);
  }
}

/* How many waited, as a step function; those that wait still are not known yet. */
function drawQueue(svg, window, top) {
  const changes = runs.filter((run) => run.waited > 0).flatMap((run) => [[run.begin - run.waited, 1], [run.begin, -1]]);
  changes.sort((a, b) => a[0] - b[0]);
  let depth = 0, most = 0;
  const points = [[window.begin, 0]];
  for (const [time, change] of changes) {
    const before = depth;
    depth += change;
    if (time <= window.begin) points[0][1] = depth;
    else if (time < window.end) points.push([time, before], [time, depth]);
  }
  points.push([window.end, points.at(-1)[1]]);
  for (const [, value] of points) most = Math.max(most, value);
  const base = top + QUEUE - 4, room = QUEUE - 12;
  add(svg, "text", { x: 0, y: top + QUEUE / 2 + 8 }, `queue (max ${most})`);
  add(svg, "line", { class: "tick", x1: LEFT, x2: LEFT + plot, y1: base, y2: base });
  const path = points.map(([time, value]) => `${at(time, window).toFixed(1)},${base - room * value / Math.max(1, most)}`);
  add(svg, "polyline", { class: "depth", points: path.join(" ") });
  return most;
}

function drawAxis(svg, window, top) {
  let step = 1e-6;
  for (const factor of function* () { for (;;) yield* [2, 2.5, 2]; }()) {
    if (window.length / step <= 8) break;
    step *= factor;
  }
  for (let k = 0; k * step <= window.length * 1.0001; k++) {
    const x = at(window.begin + k * step, window);
    add(svg, "line", { class: "tick", x1: x, x2: x, y1: top - 4, y2: top + 2 });
    add(svg, "text", { x, y: top + 15, "text-anchor": "middle" }, `${+(k * step).toPrecision(3)}${k ? "" : " ms"}`);
  }
}

function describe(hello, now, window, shown, depth) {
  const ago = Math.max(0, now.moment.now - window.end) / 1000;
  const text = `${hello.scheduler}: ${inUnit(window.length)} that ended ${rounded(ago)} s ago, with ` +
    `${shown.length} requests; at most ${depth} waited at once.`;
  const missed = now.moment.missed ? ` ${now.moment.missed.toLocaleString()} more ended in this second.` : "";
  document.getElementById("moment").textContent = text + missed;
}

const colourOf = (run, names) =>
  COLOURS[(names.length > 1 ? names.indexOf(run.model) : run.number) % COLOURS.length];

function drawLegend(names, shown) {
  const items = names.length > 1
    ? names.map((name, k) => {
      const swatch = make("span", { class: "swatch" });
      swatch.style.background = COLOURS[k % COLOURS.length];
      return make("li", {}, swatch, name);
    })
    : [make("li", { class: "dim" }, "Colours tell requests apart. A number is the time that the request ran, in ms.")];
  if (shown.some((run) => run.outcome !== "done")) items.push(make("li", {}, "Dashed: not answered"));
  document.getElementById("legend").replaceChildren(...items);
}

function fillTable(shown, window) {
  if (!document.getElementById("as-table").open) return;
  document.getElementById("requests").replaceChildren(...shown.map((run) => make(
    "tr", {},
    make("td", {}, run.width > 1 ? `${run.stream} to ${run.stream + run.width - 1}` : String(run.stream)),
    make("td", {}, run.model),
    ...[run.begin - window.begin, run.waited, run.ran].map((ms) => make("td", { class: "n" }, ms.toFixed(3))),
    make("td", {}, run.outcome),
  )));
}

const at = (time, window) => LEFT + plot * Math.min(1, Math.max(0, (time - window.begin) / window.length));

function add(parent, name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}
