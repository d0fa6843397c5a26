// The live page: one message a second from live/events, drawn. What the messages hold is said in
// sampler.py. Nothing here is kept or sent anywhere.

import { drawLanes } from "./lanes.js";
import { make, pairInUnit, percent, rounded } from "./words.js";

const KEPT_SECONDS = 120;  // in the small charts
const STALE_MS = 2500;  // that a message may be late
const RETRY_MS = 5000;

const byId = (id) => document.getElementById(id);
const charts = {};  // figure -> its values of the last KEPT_SECONDS
let hello = null;
let source = null;
let lastAt = 0;  // when a message came last
let nextMs = 1000;  // from then until the next one
let pausedAt = "";  // empty: it is not
let link = "connecting", linkText = "Connecting";

// --- The connection ---------------------------------------------------------------------------

function connect() {
  source = new EventSource("live/events");
  source.addEventListener("hello", (event) => begin(JSON.parse(event.data)));
  source.addEventListener("full", (event) => {
    source.close();
    say("full", `${event.data} viewers look already. Trying again every few seconds`);
    setTimeout(connect, RETRY_MS);
  });
  source.addEventListener("bye", () => say("lost", `The server stopped at ${clock()}`));
  source.onmessage = (event) => {
    lastAt = Date.now();
    say("live", "Live");
    const now = JSON.parse(event.data);
    nextMs = 1000 * now.next;
    if (!pausedAt) show(now);
  };
  source.onerror = () => {
    if (link !== "lost" && link !== "full") say("lost", `No connection since ${clock()}. Trying again`);
    if (source.readyState === EventSource.CLOSED && link === "lost") {  // it does not try by itself
      setTimeout(() => { if (!document.hidden) connect(); }, RETRY_MS);
    }
  };
}

function say(state, text) {
  if (state === link) return;  // so that a screen reader speaks of changes alone
  link = state;
  linkText = text;
  document.body.dataset.link = state;
  sayWhere();
}

function sayWhere() {
  const parts = pausedAt ? [`Paused at ${pausedAt}`] : [];
  if (!pausedAt || link !== "live") parts.push(linkText);
  byId("link").textContent = parts.join("; ");
}

setInterval(() => {
  if (link === "live" && Date.now() - lastAt > nextMs + STALE_MS) {
    say("stale", `Nothing new since ${clock(lastAt)}`);
  }
}, 1000);

// Nobody looks at a hidden page: it costs the server nothing.
document.addEventListener("visibilitychange", () => {
  source?.close();
  if (!document.hidden) connect();
});

byId("pause").addEventListener("click", (event) => {
  pausedAt = pausedAt ? "" : clock();
  event.currentTarget.setAttribute("aria-pressed", String(Boolean(pausedAt)));
  sayWhere();
});

const clock = (at = Date.now()) => new Date(at).toLocaleTimeString([], { hour12: false });

// --- What does not change ---------------------------------------------------------------------

function begin(message) {
  hello = message;
  byId("server").textContent = hello.server;
  byId("window").textContent = hello.window;
  byId("machine-text").textContent = hello.machine.title;
  byId("machine").replaceChildren(...hello.machine.boxes.map(boxOf));
}

function boxOf(box) {
  const element = make("div", { class: "box" }, make("p", {}, box.title || "CPUs"));
  if (box.boxes.length) {
    element.append(make("div", {}, ...box.boxes.map(boxOf)));
  } else {
    element.append(make("ul", { class: "cells" }, ...box.cells.map(cellOf)));
  }
  return element;
}

function cellOf(cell) {
  const cpus = cell.cpus.map((cpu, index) => {
    const use = cell.uses[index];
    const isStream = typeof use === "number";
    const label = isStream ? `stream ${use}` : use;
    const element = make(
      "span", { class: `cpu ${isStream ? "stream" : use}`, title: `CPU ${cpu}: ${label}` },
      String(cpu), make("small", {}, label),
    );
    if (isStream) element.append(make("i", { "data-stream": use, "aria-hidden": "true" }));
    return element;
  });
  return make("li", {}, ...cpus);
}

// --- What comes each second -------------------------------------------------------------------

function show(now) {
  figure("rate", [rounded(now.rate), ""], now.rate);
  figure("failing", [rounded(now.failing), ""], now.failing);
  figure("waiting", pairInUnit(now.waiting), now.waiting?.[1]);
  figure("running", pairInUnit(now.running), now.running?.[1]);
  figure("queue", [String(now.queue[0]), ` of ${now.queue[1]}`], now.queue[0]);
  figure("busy", [percent(now.busy), ""], now.busy);
  document.title = `${rounded(now.rate)}/s · deepsched`;
  byId("models").replaceChildren(...now.models.map(modelRow));
  for (const bar of document.querySelectorAll("[data-stream]")) {
    bar.style.width = percent(now.streams[bar.dataset.stream] ?? 0);
  }
  byId("limits").textContent = limits(now);
  if (hello) drawLanes(hello, now);
}

function figure(name, [text, unit], value) {
  byId(name).replaceChildren(text, make("small", {}, unit));
  const values = (charts[name] ??= []);
  values.push(value ?? 0);
  if (values.length > KEPT_SECONDS) values.shift();
  const most = Math.max(...values, 1e-9);
  const path = values
    .map((each, index) => `${KEPT_SECONDS - values.length + index},${(26 - 24 * each / most).toFixed(1)}`)
    .join("L");
  const chart = document.querySelector(`[data-of="${name}"]`);
  if (!chart.firstChild) {
    chart.innerHTML =
      `<svg viewBox="0 0 ${KEPT_SECONDS - 1} 28" preserveAspectRatio="none" aria-hidden="true"><path/></svg>`;
  }
  chart.querySelector("path").setAttribute("d", `M${path}`);
}

function modelRow(model) {
  const kind = { ready: "ready", failed: "failed" }[model.state] ?? "other";
  const state = make("td", { class: kind }, model.state);
  if (model.reason) state.append(make("div", { class: "dim" }, model.reason));
  return make(
    "tr", {}, make("th", { scope: "row" }, model.name), make("td", {}, model.version), state,
    make("td", { class: "n" }, rounded(model.rate)), make("td", { class: "n" }, rounded(model.failing)),
    make("td", { class: "n" }, pairInUnit(model.waiting).join("")),
    make("td", { class: "n" }, pairInUnit(model.running).join("")),
  );
}

function limits(now) {
  const parts = [`Memory ${rounded(now.memory / 1e6)} MB`];
  if (now.throttled > 0) parts.push(`throttled by the CPU quota for ${percent(now.throttled)} of the time`);
  if (now.lost_cpus) parts.push(`CPUs ${now.lost_cpus} are not allowed any more`);
  return `${parts.join("; ")}.`;
}

if (!document.hidden) connect();
