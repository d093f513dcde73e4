// Replaces the content with each fragment from the server, which has escaped everything in it.
"use strict";

const live = document.getElementById("live");
const state = document.getElementById("state");

// The server sends something every 15 s. A connection that is silent for longer is lost, although the browser may not
// notice: after a sleep, or behind a proxy that has forgotten it.
const SILENT_MS = 40000;
const AGAIN_MS = 10000;
// Timers stand still while the computer sleeps, the time of day does not: so it is looked at often.
const LOOK_MS = 1000;

let source = null;
let heardAt = Date.now();
let problem = null;
let waitsSince = 0;
let patience = Infinity;

function show(html) {
  const focused = document.activeElement;
  const inside = live.contains(focused);
  const link = inside ? focused.getAttribute("href") : null;
  const region = inside ? focused.getAttribute("aria-label") ?? focused.getAttribute("aria-labelledby") : null;
  const scrolled = [...live.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
  live.innerHTML = html;
  [...live.querySelectorAll(".scroll")].forEach((one, number) => { one.scrollLeft = scrolled[number] ?? 0; });
  // Keep the keyboard focus.
  if (link !== null) {
    [...live.querySelectorAll("a")].find((one) => one.getAttribute("href") === link)?.focus();
  } else if (region !== null) {
    [...live.querySelectorAll(".scroll")].find(
      (one) => (one.getAttribute("aria-label") ?? one.getAttribute("aria-labelledby")) === region)?.focus();
  }
}

function tell(text) {
  // Update only after a change, so that a screen reader is not interrupted every 2 s.
  if (state.textContent !== text) state.textContent = text;
}

function current() {
  problem = null;
  heardAt = Date.now();
  live.classList.remove("stale");
  tell("live");
}

// Marks all numbers, with their age, until the next update: they are no longer those of the server.
function lost(text) {
  problem = text;
  live.classList.add("stale");
  mark();
}

function mark() {
  const seconds = Math.floor(Math.max(0, Date.now() - heardAt) / 5000) * 5;
  const age = seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min`;
  tell(seconds ? `${problem}, numbers are ${age} old` : problem);
}

function reconnectIn(milliseconds) {
  waitsSince = Date.now();
  patience = milliseconds;
}

function follow(milliseconds = SILENT_MS) {
  const opened = source = new EventSource(live.dataset.events);
  const fresh = () => { reconnectIn(SILENT_MS); current(); };
  reconnectIn(milliseconds);
  source.addEventListener("fragment", (event) => { show(event.data); fresh(); });
  source.addEventListener("same", fresh);
  source.addEventListener("away", (event) => { reconnectIn(SILENT_MS); lost(event.data); });
  source.addEventListener("end", (event) => { close(); lost(`no longer live: ${event.data}`); });
  source.addEventListener("error", () => {
    lost("connection lost, reconnecting");
    // After an answer that is no stream, such as 503 of a proxy, the browser itself does not try again.
    if (opened.readyState === EventSource.CLOSED) reconnectIn(AGAIN_MS);
  });
}

function close() {
  source.close();
  patience = Infinity;
}

setInterval(() => {
  if (problem !== null) mark();
  const waited = Date.now() - waitsSince;
  // Less than nothing after the clock was set back.
  if (patience === Infinity || (waited >= 0 && waited < patience)) return;
  lost("connection lost, reconnecting");
  close();
  follow();
}, LOOK_MS);

// A hidden page needs no updates.
follow();
document.addEventListener("visibilitychange", () => {
  close();
  if (document.visibilityState !== "visible") return;
  const silent = Math.max(0, Date.now() - heardAt);
  if (silent >= SILENT_MS) lost("reconnecting");
  follow(silent < SILENT_MS ? SILENT_MS - silent : SILENT_MS);
});
