/**
 * The registration form with a script: checks while typing, sends once, tries again by itself.
 *
 * Rules and their words come from the inputs' attributes, which the server renders from the one
 * shared rule. Without this script the same form is posted and answered as pages.
 */

const ATTEMPTS = 5;
/** Tries per press of the button, then the person decides. */

const ANSWER_WITHIN_MS = 15_000;
/** The server answers within its own deadline of 5 s; more means the connection is gone. */

const LONGEST_WAIT_S = 30;
/** A larger Retry-After is not waited for to the end. */

const form = document.querySelector("form");
const inputs = [...form.querySelectorAll("input:not([type=hidden])")];
const summary = document.getElementById("summary");
const notice = document.getElementById("notice");
const announcer = document.getElementById("announcer");
const button = form.querySelector("button");
const label = button.querySelector("[data-label]");
const idleLabel = label.textContent;
const title = document.title.replace(/^[^:]*: /, "");

/** Body to key: whatever is sent again is sent under the same key. */
const keys = new Map();
const limits = new Map(inputs.map((input) => [input, input.maxLength]));
const touched = new Set(inputs.filter((input) => input.getAttribute("aria-invalid") === "true"));
/** Input to what the server said of its value; holds until the value changes. */
const refused = new Map();
let sending = false;

for (const input of inputs) {
  // The browser would cut a pasted text without a word; here it is told.
  input.removeAttribute("maxlength");
  input.addEventListener("input", () => touched.has(input) && show(input, complaint(input)));
  input.addEventListener("blur", () => {
    if (input.value === "" && !touched.has(input)) return; // only passing by
    touched.add(input);
    const text = complaint(input);
    show(input, text);
    announcer.textContent = text && named(input, text);
  });
}
// Pressing must not leave the field: a complaint appearing there would move the button away
// before it is released, and the click would be lost.
button.addEventListener("mousedown", (event) => event.preventDefault());
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!sending) submit();
});
window.addEventListener("pageshow", (event) => event.persisted && setSending(false));

async function submit() {
  notice.hidden = true;
  if (!report()) return;
  setSending(true);
  const leaving = await register(values());
  if (!leaving) setSending(false);
}

/** Send until there is an answer; true when the browser is on its way to the next page. */
async function register(body) {
  for (let attempt = 1; ; attempt += 1) {
    const answer = await post(body);
    if (answer.status === 202) {
      // The path alone: people stay on the host under which they reached the form.
      location.assign(new URL((await answer.json()).statusUrl, location).pathname);
      return true;
    }
    const problem = await answer.json().catch(() => ({}));
    if (problem.code === "idempotency_key_reused") {
      keys.set(body, newKey()); // from a page that was left and restored
    } else if (answer.status !== 503) {
      refuse(problem);
      return false;
    }
    if (attempt === ATTEMPTS) {
      tell(notice.dataset.unconfirmed);
      notice.focus();
      return false;
    }
    if (answer.status === 503) await waitAfter(answer, attempt);
  }
}

/** One try; no connection and no answer in time look like a 503. */
async function post(body) {
  if (!keys.has(body)) keys.set(body, newKey());
  try {
    const answer = await fetch(form.dataset.api, {
      method: "POST",
      headers: {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "Idempotency-Key": keys.get(body),
      },
      body,
      signal: AbortSignal.timeout(ANSWER_WITHIN_MS),
    });
    return [502, 504].includes(answer.status) ? new Response(null, { status: 503 }) : answer;
  } catch {
    return new Response(null, { status: 503 });
  }
}

async function waitAfter(answer, attempt) {
  const asked = Number(answer.headers.get("Retry-After")) || 2 ** (attempt - 1);
  const seconds = Math.min(asked, LONGEST_WAIT_S);
  tell(`There is no answer yet. What you typed is kept, and goes out again in ${seconds}\u00a0s by itself (try ${attempt + 1} of ${ATTEMPTS}).`);
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

/** The server had the last word: its errors at their fields, the rest above the form. */
function refuse(problem) {
  for (const input of inputs) {
    const error = problem.errors?.find(({ pointer }) => pointer === `/${input.name}`);
    if (error) refused.set(input, { value: clean(input.value), text: error.detail });
  }
  if (report()) {
    tell(problem.detail ?? notice.dataset.unconfirmed);
    notice.focus();
  }
}

/** What is wrong with the value, in words; nothing if it is right. */
function complaint(input) {
  const value = clean(input.value);
  if (refused.get(input)?.value === value) return refused.get(input).text;
  if (value === "") return input.dataset.missing;
  if ([...value].length > limits.get(input)) return input.dataset.tooLong;
  if (new RegExp(input.pattern, "u").test(value)) return "";
  const allowed = new RegExp(input.dataset.character, "u");
  const stray = [...value].find((character) => !allowed.test(character));
  return stray ? input.dataset.stray.replace("{character}", () => shown(stray)) : input.dataset.mismatch;
}

/** A character as the subject of a sentence: by its number where it is invisible. */
function shown(character) {
  if (character === " ") return "A space";
  if (!/[\p{C}\p{Z}]/u.test(character)) return `“${character}”`;
  const number = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return `The character U+${number}`;
}

function clean(value) {
  return value.normalize("NFC").trim();
}

function values() {
  return JSON.stringify(Object.fromEntries(inputs.map((input) => [input.name, clean(input.value)])));
}

/** The form's nonce for what was typed first, so that both ways of sending make the same id. */
function newKey() {
  newKey.made = (newKey.made ?? 0) + 1;
  const nonce = form.elements.nonce.value;
  return newKey.made === 1 ? nonce : `${nonce}.${newKey.made}`;
}

function show(input, text) {
  const error = document.getElementById(`${input.id}-error`);
  input.setAttribute("aria-invalid", String(text !== ""));
  error.textContent = text;
  error.hidden = text === "";
}

/** Show all complaints and lead to them; true if there are none. */
function report() {
  const complaints = inputs.map((input) => [input, complaint(input)]);
  const wrong = complaints.filter(([, text]) => text !== "");
  for (const [input, text] of complaints) show(input, text);
  for (const [input] of wrong) touched.add(input);
  summary.querySelector("ul").replaceChildren(...wrong.map(([input, text]) => link(input, text)));
  summary.hidden = wrong.length === 0;
  document.title = wrong.length === 0 ? title : `Error: ${title}`;
  if (wrong.length > 0) summary.focus();
  return wrong.length === 0;
}

function link(input, text) {
  const item = document.createElement("li");
  const anchor = document.createElement("a");
  anchor.href = `#${input.id}`;
  anchor.textContent = named(input, text);
  item.append(anchor);
  return item;
}

/** A complaint as it stands away from its input, where it must say what it is about. */
function named(input, text) {
  const name = input.labels[0].textContent;
  return text.toLowerCase().includes(name.toLowerCase()) ? text : `${name}: ${text}`;
}

function tell(text) {
  notice.hidden = false;
  notice.querySelector("[data-text]").textContent = text;
  notice.scrollIntoView({ block: "nearest" });
  announcer.textContent = text;
}

function setSending(on) {
  sending = on;
  form.setAttribute("aria-busy", String(on));
  button.setAttribute("aria-disabled", String(on));
  button.querySelector(".spinner").hidden = !on;
  label.textContent = on ? label.dataset.busy : idleLabel;
  if (on) announcer.textContent = label.dataset.busy;
  for (const input of inputs) input.readOnly = on;
}
