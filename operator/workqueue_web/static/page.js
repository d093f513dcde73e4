// Replaces the content with each fragment from the server, which has escaped everything in it.
"use strict";

const live = document.getElementById("live");
const state = document.getElementById("state");

let lostAt = null;

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
  lostAt = null;
  live.classList.remove("stale");
  tell("live");
}

// Marks all numbers, with their age: they are no longer those of the server.
function lost(text) {
  lostAt ??= Date.now();
  live.classList.add("stale");
  const seconds = Math.floor((Date.now() - lostAt) / 5000) * 5;
  const age = seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min`;
  tell(seconds ? `${text}, numbers are ${age} old` : text);
}

function follow() {
  const source = new EventSource(live.dataset.events);
  let timer = null;
  const again = (text) => {
    clearInterval(timer);
    lost(text);
    timer = setInterval(() => lost(text), 5000);
  };
  const fresh = () => { clearInterval(timer); current(); };
  source.addEventListener("error", () => again(
    source.readyState === EventSource.CLOSED ? "no longer live, reload the page" : "connection lost, reconnecting"));
  source.addEventListener("fragment", (event) => { show(event.data); fresh(); });
  source.addEventListener("away", (event) => again(event.data));
  source.addEventListener("end", (event) => { source.close(); again(`no longer live: ${event.data}`); });
  return { close: () => { clearInterval(timer); source.close(); } };
}

// A hidden page needs no updates.
let source = follow();
document.addEventListener("visibilitychange", () => {
  source.close();
  if (document.visibilityState === "visible") source = follow();
});
