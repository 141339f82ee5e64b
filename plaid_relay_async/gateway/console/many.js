// The view of a list of partners: checked, run, watched, and its outcomes saved.

import { Run } from "./bulk.js";
import { problemWith, url } from "./checks.js";
import { checkKey } from "./connection.js";
import { outcomesCsv, partnersCsv, partnersOf } from "./csv.js";
import { ask, byId, download, h, say, secretField, showProblem } from "./dom.js";
import { wayOutOf } from "./explain.js";
import { operationOf } from "./operations.js";
import { madeBefore, note, state } from "./state.js";

const CREATE = operationOf("/credit/relay/create");
const [TOKEN] = CREATE.inputs;
const PAGE = 100; // rows of the table at a time
const MOST_PROBLEMS = 50;
const LONG = 2_000; // characters; a browser's own way to paste takes a second for a thousand lines, and minutes for ten
const SHOWN = ["all", "created", "failed", "unknown", "not attempted", "waiting"];

let list = { partners: [], problems: [], unknown: [] };
let typed = null; // the timer of the check after a pause in typing
let unreadable = null; // the problem with the file chosen last, until something else takes its place
let run = null;
let running = false;
let saved = true; // whether all tokens of the run were downloaded
let filter = "all";
let page = 0;
let token = null;

export function prepare() {
  prepareFields();
  prepareDrop();
  byId("filters").append(...SHOWN.map(filterOf));
  byId("many-form").addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  byId("many-stop").addEventListener("click", stop);
  byId("many-download").addEventListener("click", save);
  byId("many-left").addEventListener("click", listLeft);
  state.unsaved.add(() => running || !saved);
  check();
}

export function show() {
  token.value = state.secrets[TOKEN.env] ?? "";
}

// --------------------------------------------------------------------------------------------- the form

function prepareFields() {
  const id = "many-token";
  const { field, whole } = secretField(
    { id, "aria-describedby": `${id}-hint ${id}-wrong`, "aria-required": "true" },
    "the report token",
  );
  token = field;
  byId("many-token-here").append(
    h(
      "label",
      { for: id },
      h("span", { class: "code" }, "report_tokens"),
      " ",
      h("span", { class: "kind" }, "list of one token, required"),
    ),
    whole,
    h("p", { class: "hint", id: `${id}-hint` }, "The report to share with all of them."),
    h("p", { class: "wrong", id: `${id}-wrong`, hidden: true }),
  );
  field.addEventListener("input", () => {
    state.secrets[TOKEN.env] = field.value;
    mark("many-token");
  });
  byId("many-webhook").addEventListener("input", () => mark("many-webhook"));
  byId("concurrency").addEventListener("input", () => mark("concurrency"));
  byId("leave-out").addEventListener("change", showList);
  byId("allow-odd").addEventListener("change", checkAloud);
}

const CHECKS = {
  "many-token": ["report_tokens", (value) => problemWith(TOKEN, value)],
  "many-webhook": ["webhook", (value) => (value ? url(value) : null)],
  concurrency: [
    "Calls at once",
    (value) => (/^([1-9]|1\d|20)$/.test(value) ? null : "must be a whole number from 1 to 20"),
  ],
};

function mark(id) {
  const [name, problemOf] = CHECKS[id];
  return showProblem(byId(id), name, problemOf(byId(id).value));
}

function prepareDrop() {
  const area = byId("partners");
  area.addEventListener("input", () => {
    unreadable = null;
    clearTimeout(typed);
    typed = setTimeout(check, 150); // a long list isn't checked at every stroke
  });
  area.addEventListener("blur", checkAloud);
  area.addEventListener("paste", (event) => {
    const text = event.clipboardData?.getData("text") ?? "";
    if (text.length < LONG) return;
    event.preventDefault();
    area.setRangeText(text, area.selectionStart, area.selectionEnd, "end");
    byId("allow-odd").checked = false; // it was said of another list
    unreadable = null;
    checkAloud();
  });
  byId("file").addEventListener("change", ({ target }) => {
    read(target.files[0]);
    target.value = "";
  });
  const drop = byId("drop");
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      drop.classList.toggle("dropping", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") read(event.dataTransfer.files[0]);
    });
  }
}

async function read(file) {
  if (!file) return;
  try {
    byId("partners").value = decoded(await file.arrayBuffer());
    byId("allow-odd").checked = false; // it was said of another list
    unreadable = null;
  } catch {
    unreadable = { line: 1, text: `${file.name} isn’t UTF-8 or UTF-16 text` };
  }
  checkAloud();
}

function decoded(buffer) {
  const [first, second] = new Uint8Array(buffer.slice(0, 2));
  const encoding = { 0xfffe: "utf-16le", 0xfeff: "utf-16be" }[(first << 8) | second] ?? "utf-8";
  const text = new TextDecoder(encoding, { fatal: true }).decode(buffer);
  if (text.includes("\0")) throw new TypeError("it is UTF-16 without a byte order mark, or no text");
  return text;
}

function check() {
  clearTimeout(typed);
  list = unreadable
    ? { partners: [], problems: [unreadable], unknown: [] }
    : partnersOf(byId("partners").value, byId("allow-odd").checked);
  showList();
}

// While somebody types, a screen reader has enough to say.
function checkAloud() {
  const before = byId("partners-count").textContent;
  check();
  const now = byId("partners-count").textContent;
  if (now && (now !== before || document.activeElement !== byId("partners"))) say(now);
}

const counted = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;

function showList() {
  const { partners, problems, unknown } = list;
  const some = partners.length + problems.length > 0;
  const wrong = problems.length ? `, ${counted(problems.length, "line")} to correct` : "";
  const ignored = unknown.length ? `, ignored columns: ${unknown.join(", ")}` : "";
  byId("partners-count").textContent = some ? counted(partners.length, "partner") + wrong + ignored : "";
  const lines = problems
    .slice(0, MOST_PROBLEMS)
    .map((each) => h("li", { class: "wrong" }, `Line ${each.line}: ${each.text}`));
  if (problems.length > MOST_PROBLEMS)
    lines.push(h("li", { class: "wrong" }, `and ${problems.length - MOST_PROBLEMS} more`));
  byId("problems-here").replaceChildren(
    lines.length
      ? h("ul", { class: "problems", tabindex: "0", "aria-label": "Lines to correct" }, ...lines)
      : "",
  );
  byId("allow-odd-here").hidden = !byId("allow-odd").checked && !problems.some(({ odd }) => odd);
  byId("leave-out-here").hidden = !problems.length || !partners.length;
  byId("leave-out-text").textContent = `Leave out ${problems.length === 1 ? "that line" : "those lines"}`;
  const tokens = partners.length ? counted(partners.length, "relay token") : "relay tokens";
  const where = state.environment === "production" ? " in production" : "";
  byId("many-run").textContent = `Create ${tokens}${where}`;
}

// ---------------------------------------------------------------------------------------------- the run

function refusal() {
  const bad = Object.keys(CHECKS).filter(mark);
  if (checkKey()) return ["key", byId("key-wrong").textContent];
  if (bad.length) return [bad[0], byId(`${bad[0]}-wrong`).textContent];
  if (!saved)
    return ["many-download", "Download the outcomes first: the tokens of the last run are nowhere else."];
  if (!list.partners.length) return ["partners", "There is no partner to share with."];
  if (list.problems.length && !byId("leave-out").checked)
    return ["partners", "Correct the lines that are named, or leave them out."];
  return null;
}

async function start() {
  if (running) return;
  check();
  const [where, why] = refusal() ?? [];
  byId("many-wrong").hidden = !why;
  byId("many-wrong").textContent = why ?? "";
  if (why) {
    say(why);
    byId(where).focus();
    return;
  }
  if (await mayBeRepeated()) await go();
}

const bodyFor = (reportToken, partner) => ({ report_tokens: [reportToken], secondary_client_id: partner });

async function mayBeRepeated() {
  const before = list.partners.map(({ partner }) => madeBefore(CREATE, bodyFor(token.value, partner)));
  const [done, unknown] = ["done", "unknown"].map((kind) => before.filter((each) => each === kind).length);
  if (!done && !unknown) return true;
  const text = `Of these partners, ${done} got a relay token for this report on this page already, and of ${unknown} nobody can tell. Run again, they may get a second one.`;
  return ask("Make second ones?", text, "Run all the same");
}

async function go() {
  running = true;
  saved = false;
  page = 0;
  filter = "all";
  byId("filters").querySelector("input").checked = true;
  const settings = {
    key: state.key,
    reportToken: token.value,
    webhook: byId("many-webhook").value || null,
    concurrency: Number(byId("concurrency").value),
  };
  run = new Run(list.partners, settings, soon);
  showRunning(true);
  say(`Running ${counted(run.rows.length, "creation")}`);
  const watching = setInterval(soon, 500); // a pause counts down
  await run.run();
  clearInterval(watching);
  running = false;
  saved = !run.counts.created && !run.counts.unknown;
  for (const { outcome, partner } of run.rows) {
    const kind = { created: "done", unknown: "unknown" }[outcome];
    if (kind) note(CREATE, bodyFor(settings.reportToken, partner), kind);
  }
  showRunning(false);
}

function showRunning(now) {
  byId("run").hidden = false;
  byId("many-run").hidden = now;
  byId("many-stop").hidden = !now;
  byId("many-stop").textContent = "Stop";
  for (const id of ["leave-out", "allow-odd", "partners", "many-token", "many-webhook", "concurrency", "file"]) byId(id).disabled = now;
  byId("many-download").disabled = now;
  draw();
  // The button that was pressed is gone; whoever is elsewhere by now stays there.
  if (document.activeElement === document.body) byId(now ? "many-stop" : "many-download").focus();
}

function stop() {
  if (run.stopping) {
    run.giveUp();
    return;
  }
  run.stop();
  byId("many-stop").textContent = "Give up on those";
  say("Stopping: nothing more is sent, and what is in flight is waited for");
}

function save() {
  download(outcomesCsv(run.rows), "outcomes.csv", "text/csv");
  saved = true;
}

// Of these it is known that the run made no token.
const left = () =>
  running ? [] : run.rows.filter(({ outcome }) => outcome === "failed" || outcome === "not_attempted");

function listLeft() {
  byId("partners").value = partnersCsv(left());
  byId("partners").focus();
  checkAloud();
}

// ------------------------------------------------------------------------------------------ the outcomes

let due = false;

// Hundreds of changes a second are drawn ten times, and of the table a hundred rows.
function soon() {
  if (due) return;
  due = true;
  setTimeout(() => {
    due = false;
    draw();
  }, 100);
}

const stateOf = (row) => (row.outcome === "not_attempted" ? "not attempted" : row.outcome);
const matches = (row) =>
  filter === "all" || stateOf(row) === filter || (filter === "waiting" && row.outcome === "in flight");

function draw() {
  const { counts, rows } = run;
  const total = rows.length;
  byId("bar").max = total;
  byId("bar").value = run.done;
  const told = `${run.done.toLocaleString("en")} of ${total.toLocaleString("en")}: ${counts.created} created, ${counts.failed} failed, ${counts.unknown} unknown`;
  const rest = counts.not_attempted ? `, ${counts.not_attempted} not attempted` : "";
  byId("progress").textContent = told + rest;
  announce(told + rest);
  drawPause();
  drawVerdict();
  byId("many-left").hidden = !left().length;
  byId("many-left").textContent = `List those without a token again (${left().length.toLocaleString("en")})`;
  drawFilters();
  drawRows();
}

let quarter = 0;

// Told at each quarter, and no oftener.
function announce(told) {
  const now = running ? Math.floor((4 * run.done) / run.rows.length) : 5;
  if (now !== quarter && now > 0) say(now === 5 ? `Ended. ${told}` : told);
  quarter = now;
}

function drawPause() {
  const left = Math.ceil(run.pause);
  const stopping = run.stopping && running;
  byId("pause").hidden = !running || (!left && !stopping);
  if (byId("pause").hidden) return;
  byId("pause").textContent = stopping
    ? `Stopping: ${run.counts["in flight"]} in flight are waited for, and nothing more is sent.`
    : `Asked to slow down: it goes on in ${left} s. What was refused so is surely not carried out, and is sent again.`;
}

function drawVerdict() {
  const parts = [];
  if (run.stoppedBy)
    parts.push(`Stopped, for all others would have met the same: ${run.stoppedBy}.`, wayOutOf(run.stoppedBy));
  if (run.counts.unknown) {
    parts.push(
      `Of ${counted(run.counts.unknown, "partner")} nobody can tell: a token may exist that nobody holds. It isn’t sent again; Plaid’s support can look up a request id.`,
    );
  }
  byId("verdict").hidden = running || !parts.length;
  byId("verdict").textContent = parts.join(" ");
}

function filterOf(name) {
  const radio = h("input", { type: "radio", name: "filter", value: name, checked: name === "all" });
  radio.addEventListener("change", () => {
    filter = name;
    page = 0;
    draw();
  });
  return h("label", {}, radio, h("span", { "data-filter": name }, name));
}

function drawFilters() {
  const { counts, rows } = run;
  const numbers = {
    ...counts,
    all: rows.length,
    "not attempted": counts.not_attempted,
    waiting: counts.waiting + counts["in flight"],
  };
  for (const label of byId("filters").querySelectorAll("span")) {
    const name = label.dataset.filter;
    label.textContent = `${name} ${numbers[name].toLocaleString("en")}`;
    label.parentElement.hidden = !numbers[name] && name !== "all" && name !== filter;
  }
}

function drawRows() {
  const chosen = filter === "all" ? run.rows : run.rows.filter(matches);
  page = Math.min(page, Math.max(0, Math.ceil(chosen.length / PAGE) - 1));
  const from = page * PAGE;
  const lines = chosen.slice(from, from + PAGE).map(lineOf);
  byId("rows").replaceChildren(...(lines.length ? lines : [h("tr", {}, h("td", { colspan: "6" }, "None."))]));
  drawPages(from, chosen.length);
}

function lineOf(row) {
  const cells = [
    String(row.line),
    row.partner,
    null,
    row.errorCode ?? "",
    row.requestId ?? "",
    String(row.attempts),
  ].map((text) =>
    h("td", {}, text ?? h("span", { class: `state is-${row.outcome.replace(" ", "-")}` }, stateOf(row))),
  );
  return h("tr", {}, ...cells);
}

function drawPages(from, length) {
  const box = byId("pages");
  box.hidden = length <= PAGE;
  if (!box.childElementCount) {
    const turn = (by) => () => {
      page += by;
      draw();
    };
    box.append(
      h("button", { type: "button", class: "quiet", id: "page-back", onclick: turn(-1) }, "Back"),
      h("span", { id: "page-told" }),
      h("button", { type: "button", class: "quiet", id: "page-on", onclick: turn(1) }, "On"),
    );
  }
  byId("page-back").disabled = from === 0;
  byId("page-on").disabled = from + PAGE >= length;
  byId("page-told").textContent = `${from + 1} to ${Math.min(from + PAGE, length)} of ${length}`;
}
