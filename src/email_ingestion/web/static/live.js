"use strict";
// Replaces the parts of #live that have changed, except the one with the keyboard's focus. Where nothing comes any more
// it says so: what stands on the page is old then.
(() => {
  const live = document.getElementById("live");
  if (!live || !window.EventSource) return;
  const warning = document.getElementById("live-stale");
  const STALE = 6000, RELOAD = 15000;
  let last = Date.now(), asked = Date.now();

  const source = new EventSource(live.dataset.events);
  source.onmessage = (event) => {
    last = Date.now();
    warning.hidden = true;
    const text = JSON.parse(event.data);
    if (!text) return; // nothing has changed
    const fresh = new DOMParser().parseFromString(text, "text/html");
    for (const part of fresh.querySelectorAll("body > [id]")) {
      const old = document.getElementById(part.id);
      if (old && !old.contains(document.activeElement) && old.outerHTML !== part.outerHTML) {
        old.replaceWith(document.adoptNode(part));
      }
    }
  };

  setInterval(async () => {
    const now = Date.now();
    if (now - last > STALE && warning.hidden) {
      warning.querySelector("time").textContent = new Date(last).toISOString().slice(11, 19);
      warning.hidden = false;
    }
    if (source.readyState === EventSource.CLOSED && now - asked > RELOAD) {
      asked = now;
      try {
        await fetch(location.href, { redirect: "manual" });
        location.reload(); // to the page, or to the login
      } catch {
        // the process is away: the warning stands
      }
    }
  }, 1000);
})();
