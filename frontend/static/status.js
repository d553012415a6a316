/**
 * The status page with a script: live by server-sent events, times in the reader's own zone.
 *
 * All words are in the page already; this only says which of them are to be seen.
 */

const LOST_AFTER_MS = 4_000;
/** A shorter break (a restart, a stream that was renewed) is not worth a word. */

const LOOK_AFTER_MS = 3_000;
/** Where there is no stream to be had, the state is asked for instead, before a word is lost. */

const page = document.getElementById("journey");
const notice = document.getElementById("notice");
const announcer = document.getElementById("announcer");
const progress = JSON.parse(page.dataset.progress);
const steps = [...page.querySelectorAll("[data-state]")];
let lost;

for (const time of page.querySelectorAll("time[datetime]")) localise(time);
if (!finished()) listen();

function listen() {
  const events = new EventSource(page.dataset.events);
  events.addEventListener("open", connected);
  events.addEventListener("journey", (event) => {
    heard(JSON.parse(event.data));
    if (finished()) events.close(); // else the browser would ask again for ever
  });
  events.addEventListener("unavailable", () => {
    connected();
    warn();
  });
  events.addEventListener("error", () => {
    lost ??= setTimeout(warn, LOST_AFTER_MS);
    // The browser reconnects by itself, except after an answer that is no stream.
    if (events.readyState === EventSource.CLOSED) setTimeout(look, LOOK_AFTER_MS);
  });
}

/** Ask once, then try to listen again. */
async function look() {
  const answer = await fetch(page.dataset.journey).catch(() => undefined);
  if (answer?.ok) heard(await answer.json());
  if (!finished()) listen();
}

function heard(journey) {
  connected();
  notice.hidden = true;
  follow(journey);
}

function connected() {
  clearTimeout(lost);
  lost = undefined;
}

function warn() {
  if (!notice.hidden) return;
  notice.hidden = false;
  announcer.textContent = notice.textContent;
}

/** Whether no step is left to come. */
function finished() {
  return progress[page.dataset.status].every((state) => state === "done" || state === "failed");
}

function follow(journey) {
  for (const time of page.querySelectorAll("[data-moment]")) {
    const moment = journey[time.dataset.moment];
    if (!moment) continue;
    time.dateTime = moment;
    localise(time);
  }
  if (journey.status === page.dataset.status) return;
  page.dataset.status = journey.status;
  steps.forEach((step, index) => advance(step, progress[journey.status][index]));
  for (const part of page.querySelectorAll("[data-when]")) {
    if (!part.closest("[data-state]")) reveal(part, journey.status);
  }
  const heading = page.querySelector("div[data-when]:not([hidden])");
  document.title = `${heading.querySelector("h1").textContent} – UserStream`;
  announcer.textContent = heading.textContent;
}

function advance(step, state) {
  step.dataset.state = state;
  if (state === "current") step.setAttribute("aria-current", "step");
  else step.removeAttribute("aria-current");
  for (const part of step.querySelectorAll("[data-when]")) reveal(part, state);
}

function reveal(part, state) {
  part.hidden = !part.dataset.when.split(" ").includes(state);
}

function localise(time) {
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "long", timeStyle: "medium" });
  time.textContent = format.format(new Date(time.dateTime));
  time.hidden = false;
}
