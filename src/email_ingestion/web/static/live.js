"use strict";
// Replaces the parts of #live that have changed, except the one with the keyboard's focus.
(() => {
  const live = document.getElementById("live");
  if (!live || !window.EventSource) return;
  const source = new EventSource(live.dataset.events);
  source.onmessage = (event) => {
    const fresh = new DOMParser().parseFromString(JSON.parse(event.data), "text/html");
    for (const part of fresh.querySelectorAll("body > [id]")) {
      const old = document.getElementById(part.id);
      if (old && !old.contains(document.activeElement) && old.outerHTML !== part.outerHTML) {
        old.replaceWith(document.adoptNode(part));
      }
    }
  };
})();
