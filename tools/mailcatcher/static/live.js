// Keeps an open page up to date and shows times as the reader's clock has them.
// Everything works without it; only reloading is then the reader's job.

const SHORT = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const LONG = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

function showLocalTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    const today = moment.toDateString() === new Date().toDateString();
    time.title = LONG.format(moment);
    time.textContent = "long" in time.dataset ? LONG.format(moment) : (today ? SHORT : DAY).format(moment);
  }
}

// Rows that stay are not touched: focus, selection and scroll position survive.
function mergeRows(list, fresh) {
  const wanted = new Map([...fresh.children].map((row) => [row.dataset.id, row]));
  for (const row of [...list.children]) {
    if (!wanted.has(row.dataset.id)) row.remove();
  }
  let position = list.firstElementChild;
  for (const [id, row] of wanted) {
    if (position?.dataset.id === id) {
      position.className = row.className;
      position = position.nextElementSibling;
    } else {
      row.classList.add("fresh");
      list.insertBefore(row, position);
    }
  }
}

async function refresh(mailbox) {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok) throw new Error(`the catcher answered ${answer.status}`);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.getElementById("mailbox");
  showLocalTimes(fresh);
  const [list, freshList] = [mailbox.querySelector("#mails"), fresh.querySelector("#mails")];
  const live = mailbox.querySelector("#live").className;
  if (list && freshList) {
    mergeRows(list, freshList);
    mailbox.querySelector("#count").textContent = fresh.querySelector("#count").textContent;
    mailbox.querySelector(".pages")?.remove();
    mailbox.append(...fresh.querySelectorAll(".pages"));
  } else {
    mailbox.replaceChildren(...fresh.children);
    showState(mailbox, live);
  }
  mailbox.dataset.version = fresh.dataset.version;
  document.title = page.title;
}

function showState(mailbox, className) {
  const live = mailbox.querySelector("#live");
  live.hidden = false;
  live.className = className;
  live.textContent = className.includes("off") ? "Not connected" : "Live";
}

function follow(mailbox) {
  const events = new EventSource("/events");
  let busy = false;
  let latest = mailbox.dataset.version;
  const catchUp = async () => {
    if (busy || document.hidden) return;
    busy = true;
    try {
      while (BigInt(latest) > BigInt(mailbox.dataset.version)) await refresh(mailbox);
    } catch {
      // The catcher is gone for the moment; the stream reconnects by itself and says so.
    } finally {
      busy = false;
    }
  };
  events.onopen = () => showState(mailbox, "live");
  events.onerror = () => showState(mailbox, "live off");
  events.onmessage = (event) => {
    latest = event.lastEventId;
    catchUp();
  };
  document.addEventListener("visibilitychange", catchUp);
}

// Arrow keys walk the list, as in a mail program; Tab and Enter work as everywhere.
function walk(event) {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const row = step && event.target.closest?.("#mails li");
  const next = row?.[step]?.querySelector("a");
  if (next) {
    event.preventDefault();
    next.focus();
  }
}

showLocalTimes(document);
const mailbox = document.getElementById("mailbox");
if (mailbox) {
  document.addEventListener("keydown", walk);
  if (mailbox.dataset.start === "0") follow(mailbox);
}
