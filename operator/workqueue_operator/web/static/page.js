// Puts each fragment that the server sends where the last one was. Everything in it was escaped by the server.
"use strict";

const live = document.getElementById("live");
const state = document.getElementById("state");

function show(html) {
  const focused = document.activeElement;
  const inside = live.contains(focused);
  const link = inside ? focused.getAttribute("href") : null;
  const region = inside ? focused.getAttribute("aria-label") ?? focused.getAttribute("aria-labelledby") : null;
  const scrolled = [...live.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
  live.innerHTML = html;
  [...live.querySelectorAll(".scroll")].forEach((one, number) => { one.scrollLeft = scrolled[number] ?? 0; });
  // Whoever works with the keyboard stays where they were.
  if (link !== null) {
    [...live.querySelectorAll("a")].find((one) => one.getAttribute("href") === link)?.focus();
  } else if (region !== null) {
    [...live.querySelectorAll(".scroll")].find(
      (one) => (one.getAttribute("aria-label") ?? one.getAttribute("aria-labelledby")) === region)?.focus();
  }
}

function tell(text) {
  // Said only when it changes, so that a screen reader is not interrupted every two seconds.
  if (state.textContent !== text) state.textContent = text;
}

function follow() {
  const source = new EventSource(live.dataset.events);
  source.addEventListener("open", () => tell("live"));
  source.addEventListener("error", () => tell("connection lost, trying again"));
  source.addEventListener("fragment", (event) => show(event.data));
  source.addEventListener("end", () => { source.close(); tell("no longer live: load the page again"); });
  return source;
}

// A page that nobody looks at costs the operator nothing.
let source = follow();
document.addEventListener("visibilitychange", () => {
  source.close();
  if (document.visibilityState === "visible") source = follow();
});
