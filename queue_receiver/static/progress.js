// Follows a redrive without reloading the page, which would lose the scroll position.

const SECOND = 1000;

async function follow() {
  const main = document.querySelector("main");
  const shown = main.querySelector("[data-state]");
  if (shown.dataset.state !== "running") return;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.ok) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.title = fresh.title;
      for (const part of fresh.querySelectorAll("[data-live]")) {
        const old = main.querySelector(`[data-live="${part.dataset.live}"]`);
        if (old.innerHTML !== part.innerHTML) old.replaceChildren(...part.childNodes);
      }
      shown.dataset.state = fresh.querySelector("[data-state]").dataset.state;
    }
  } catch {
    // Unavailable for a moment: try again.
  }
  setTimeout(follow, SECOND);
}

setTimeout(follow, SECOND);
