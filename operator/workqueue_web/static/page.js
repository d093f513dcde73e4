// Replaces the content with each fragment from the server, which has escaped everything in it.
"use strict";

const live = document.getElementById("live");
const state = document.getElementById("state");

// The server sends something every 15 s. A connection that is silent for longer is lost, although the browser may not
// notice: after a sleep, or behind a proxy that has forgotten it.
const SILENT_MS = 40000;
const AGAIN_MS = 10000;

let heardAt = Date.now();
let marks = null;

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
  clearInterval(marks);
  heardAt = Date.now();
  live.classList.remove("stale");
  tell("live");
}

// Marks all numbers, with their age, until the next update: they are no longer those of the server.
function lost(text) {
  const mark = () => {
    const seconds = Math.floor((Date.now() - heardAt) / 5000) * 5;
    const age = seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min`;
    tell(seconds ? `${text}, numbers are ${age} old` : text);
  };
  live.classList.add("stale");
  clearInterval(marks);
  marks = setInterval(mark, 5000);
  mark();
}

function follow() {
  const source = new EventSource(live.dataset.events);
  let timer = null;
  const close = () => { clearTimeout(timer); source.close(); };
  const reconnectIn = (milliseconds) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      lost("connection lost, reconnecting");
      close();
      connection = follow();
    }, milliseconds);
  };
  const fresh = () => { reconnectIn(SILENT_MS); current(); };
  reconnectIn(SILENT_MS);
  source.addEventListener("fragment", (event) => { show(event.data); fresh(); });
  source.addEventListener("same", fresh);
  source.addEventListener("away", (event) => { reconnectIn(SILENT_MS); lost(event.data); });
  source.addEventListener("end", (event) => { close(); lost(`no longer live: ${event.data}`); });
  source.addEventListener("error", () => {
    lost("connection lost, reconnecting");
    // After an answer that is no stream, such as 503 of a proxy, the browser itself does not try again.
    if (source.readyState === EventSource.CLOSED) reconnectIn(AGAIN_MS);
  });
  return { close };
}

// A hidden page needs no updates.
let connection = follow();
document.addEventListener("visibilitychange", () => {
  connection.close();
  if (document.visibilityState !== "visible") return;
  if (Date.now() - heardAt >= SILENT_MS) lost("reconnecting");
  connection = follow();
});
