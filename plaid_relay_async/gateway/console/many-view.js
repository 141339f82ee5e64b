// The view for a list of partners: it checks the list, runs the batch, shows its progress, and saves the outcomes.

import { Batch, bodyFor } from "./batch.js";
import { problemWith, problemWithUrl } from "./checks.js";
import { checkKey } from "./connection.js";
import { outcomesCsv, parsePartners, partnersCsv } from "./csv.js";
import { announce, byId, confirm, download, h, secretField, showProblem } from "./dom.js";
import { operationOf } from "./operations.js";
import { earlierCall, recordCall, state } from "./state.js";

const CREATE = operationOf("/credit/relay/create");
const [TOKEN] = CREATE.inputs;
const PAGE_ROWS = 100; // rows of the table that are shown at a time
const MAX_PROBLEMS = 50; // problems of the list that are shown
const LONG_PASTE = 2_000; // characters; a browser pastes a thousand lines in a second, and ten thousand in minutes
const FILTERS = ["all", "created", "failed", "unknown", "not attempted", "waiting"];

let list = { partners: [], problems: [], unknown: [] };
let typingTimer = null; // checks the list after a pause in typing
let fileProblem = null; // the problem with the last selected file, until another list replaces it
let batch = null;
let running = false;
let abandonShown = false; // whether the button says that it abandons the calls in flight
let saved = true; // whether all tokens of the batch were downloaded
let filter = "all";
let page = 0;
let tokenField = null;

export function prepare() {
  prepareFields();
  prepareList();
  byId("filters").append(...FILTERS.map(createFilter));
  byId("many-form").addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  byId("many-stop").addEventListener("click", stop);
  byId("many-download").addEventListener("click", save);
  byId("many-relist").addEventListener("click", relist);
  state.unsaved.add(() => running || !saved);
  checkList();
}

export function show() {
  tokenField.value = state.secrets[TOKEN.env] ?? "";
}

// --------------------------------------------------------------------------------------------- the form

function prepareFields() {
  const id = "many-token";
  const { field, container } = secretField(
    { id, "aria-describedby": `${id}-hint ${id}-error`, "aria-required": "true" },
    "the report token",
  );
  tokenField = field;
  byId("many-token-field").append(
    h(
      "label",
      { for: id },
      h("span", { class: "code" }, "report_tokens"),
      " ",
      h("span", { class: "kind" }, "list of one token, required"),
    ),
    container,
    h("p", { class: "hint", id: `${id}-hint` }, "The report to share with all partners."),
    h("p", { class: "error", id: `${id}-error`, hidden: true }),
  );
  field.addEventListener("input", () => {
    state.secrets[TOKEN.env] = field.value;
    validate("many-token");
  });
  byId("many-webhook").addEventListener("input", () => validate("many-webhook"));
  byId("concurrency").addEventListener("input", () => validate("concurrency"));
  byId("leave-out").addEventListener("change", showList);
  byId("allow-odd").addEventListener("change", checkAndAnnounce);
}

const CHECKS = {
  "many-token": ["report_tokens", (value) => problemWith(TOKEN, value)],
  "many-webhook": ["webhook", (value) => (value ? problemWithUrl(value) : null)],
  concurrency: [
    "Concurrent calls",
    (value) => (/^([1-9]|1\d|20)$/.test(value) ? null : "must be a whole number from 1 to 20"),
  ],
};

function validate(id) {
  const [name, problemOf] = CHECKS[id];
  return showProblem(byId(id), name, problemOf(byId(id).value));
}

function prepareList() {
  const area = byId("partners");
  area.addEventListener("input", () => {
    fileProblem = null;
    clearTimeout(typingTimer);
    typingTimer = setTimeout(checkList, 150); // a long list is not checked at each keystroke
  });
  area.addEventListener("blur", checkAndAnnounce);
  area.addEventListener("paste", (event) => {
    const text = event.clipboardData?.getData("text") ?? "";
    if (text.length < LONG_PASTE) return;
    event.preventDefault();
    area.setRangeText(text, area.selectionStart, area.selectionEnd, "end");
    byId("allow-odd").checked = false; // the user decided this for another list
    fileProblem = null;
    checkAndAnnounce();
  });
  byId("file").addEventListener("change", ({ target }) => {
    readFile(target.files[0]);
    target.value = "";
  });
  const drop = byId("drop");
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      drop.classList.toggle("dropping", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") readFile(event.dataTransfer.files[0]);
    });
  }
}

async function readFile(file) {
  if (!file) return;
  try {
    byId("partners").value = decode(await file.arrayBuffer());
    byId("allow-odd").checked = false; // the user decided this for another list
    fileProblem = null;
  } catch {
    fileProblem = { line: 1, text: `${file.name} isn’t UTF-8 or UTF-16 text` };
  }
  checkAndAnnounce();
}

function decode(buffer) {
  const [first, second] = new Uint8Array(buffer.slice(0, 2));
  const encoding = { 0xfffe: "utf-16le", 0xfeff: "utf-16be" }[(first << 8) | second] ?? "utf-8";
  const text = new TextDecoder(encoding, { fatal: true }).decode(buffer);
  if (text.includes("\0")) throw new TypeError("it is UTF-16 without a byte order mark, or not text");
  return text;
}

function checkList() {
  clearTimeout(typingTimer);
  list = fileProblem
    ? { partners: [], problems: [fileProblem], unknown: [] }
    : parsePartners(byId("partners").value, byId("allow-odd").checked);
  showList();
}

// While the user types, a screen reader reads what is typed. The result is announced afterwards.
function checkAndAnnounce() {
  const before = byId("partners-count").textContent;
  checkList();
  const now = byId("partners-count").textContent;
  if (now && (now !== before || document.activeElement !== byId("partners"))) announce(now);
}

const withCount = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;

function showList() {
  const { partners, problems, unknown } = list;
  const isEmpty = partners.length + problems.length === 0;
  const invalid = problems.length ? `, ${withCount(problems.length, "line")} to correct` : "";
  const ignored = unknown.length ? `, ignored columns: ${unknown.join(", ")}` : "";
  byId("partners-count").textContent = isEmpty ? "" : withCount(partners.length, "partner") + invalid + ignored;
  const items = problems
    .slice(0, MAX_PROBLEMS)
    .map((problem) => h("li", { class: "error" }, `Line ${problem.line}: ${problem.text}`));
  if (problems.length > MAX_PROBLEMS)
    items.push(h("li", { class: "error" }, `and ${problems.length - MAX_PROBLEMS} more`));
  byId("problem-list").replaceChildren(
    items.length
      ? h("ul", { class: "problems", tabindex: "0", "aria-label": "Lines to correct" }, ...items)
      : "",
  );
  byId("allow-odd-label").hidden = !byId("allow-odd").checked && !problems.some(({ odd }) => odd);
  byId("leave-out-label").hidden = !problems.length || !partners.length;
  byId("leave-out-text").textContent = `Leave out ${problems.length === 1 ? "that line" : "those lines"}`;
  const tokens = partners.length ? withCount(partners.length, "relay token") : "relay tokens";
  const where = state.environment === "production" ? " in production" : "";
  byId("many-run").textContent = `Create ${tokens}${where}`;
}

// ---------------------------------------------------------------------------------------------- the batch

// Return the element to focus and the reason why the batch cannot start, or null.
function findObstacle() {
  const invalid = Object.keys(CHECKS).filter(validate);
  if (checkKey()) return ["key", byId("key-error").textContent];
  if (invalid.length) return [invalid[0], byId(`${invalid[0]}-error`).textContent];
  if (!saved)
    return ["many-download", "Download the outcomes first: the tokens of the last run are not stored anywhere."];
  if (!list.partners.length) return ["partners", "There is no partner to share with."];
  if (list.problems.length && !byId("leave-out").checked)
    return ["partners", "Correct the listed lines, or leave them out."];
  return null;
}

async function start() {
  if (running) return;
  checkList();
  const [elementId, reason] = findObstacle() ?? [];
  byId("many-error").hidden = !reason;
  byId("many-error").textContent = reason ?? "";
  if (reason) {
    announce(reason);
    byId(elementId).focus();
    return;
  }
  if (await mayRepeat()) await run();
}

async function mayRepeat() {
  const calls = list.partners.map(({ partner }) => earlierCall(CREATE, bodyFor(tokenField.value, partner)));
  const [succeeded, unknown] = ["succeeded", "unknown"].map(
    (kind) => calls.filter((call) => call === kind).length,
  );
  if (!succeeded && !unknown) return true;
  const text = `Of these partners, ${succeeded} already got a relay token for this report on this page, and the outcome of ${unknown} is unknown. Running again may create second tokens for them.`;
  return confirm("Create second tokens?", text, "Run anyway");
}

async function run() {
  running = true;
  saved = false;
  page = 0;
  filter = "all";
  byId("filters").querySelector("input").checked = true;
  const settings = {
    key: state.key,
    reportToken: tokenField.value,
    webhook: byId("many-webhook").value || null,
    concurrency: Number(byId("concurrency").value),
  };
  batch = new Batch(list.partners, settings, scheduleDraw);
  showRunning(true);
  announce(`Running ${withCount(batch.rows.length, "creation")}`);
  const countdown = setInterval(scheduleDraw, 500); // shows the remaining seconds of a pause
  await batch.run();
  clearInterval(countdown);
  running = false;
  saved = !batch.counts.created && !batch.counts.unknown;
  for (const { outcome, partner } of batch.rows) {
    const kind = { created: "succeeded", unknown: "unknown" }[outcome];
    if (kind) recordCall(CREATE, bodyFor(settings.reportToken, partner), kind);
  }
  showRunning(false);
}

function showRunning(isRunning) {
  byId("run").hidden = false;
  byId("many-run").hidden = isRunning;
  byId("many-stop").hidden = !isRunning;
  for (const id of [
    "leave-out",
    "allow-odd",
    "partners",
    "many-token",
    "many-webhook",
    "concurrency",
    "file",
  ])
    byId(id).disabled = isRunning;
  byId("many-download").disabled = isRunning;
  draw();
  // If the button that was pressed had the focus, hiding it moved the focus to the body. Otherwise the focus stays.
  if (document.activeElement === document.body) byId(isRunning ? "many-stop" : "many-download").focus();
}

// A batch may stop itself just before the click. A click on a button that still says Stop abandons nothing.
function stop() {
  if (abandonShown) {
    batch.abandon();
    return;
  }
  batch.stop();
  draw();
}

function save() {
  download(outcomesCsv(batch.rows), "outcomes.csv", "text/csv");
  saved = true;
}

// The rows for which the batch certainly created no token.
const rowsWithoutToken = () =>
  running ? [] : batch.rows.filter(({ outcome }) => outcome === "failed" || outcome === "not_attempted");

function relist() {
  byId("partners").value = partnersCsv(rowsWithoutToken());
  byId("partners").focus();
  checkAndAnnounce();
}

// ------------------------------------------------------------------------------------------ the outcomes

let drawScheduled = false;

// The batch may change hundreds of times a second. It is drawn ten times a second, and the table shows a hundred rows.
function scheduleDraw() {
  if (drawScheduled) return;
  drawScheduled = true;
  setTimeout(() => {
    drawScheduled = false;
    draw();
  }, 100);
}

const labelOf = (row) => (row.outcome === "not_attempted" ? "not attempted" : row.outcome);
const matchesFilter = (row) =>
  filter === "all" || labelOf(row) === filter || (filter === "waiting" && row.outcome === "in flight");

function draw() {
  const { counts, rows } = batch;
  const total = rows.length;
  byId("bar").max = total;
  byId("bar").value = batch.done;
  const outcomes = `${batch.done.toLocaleString("en")} of ${total.toLocaleString("en")}: ${counts.created} created, ${counts.failed} failed, ${counts.unknown} unknown`;
  const notAttempted = counts.not_attempted ? `, ${counts.not_attempted} not attempted` : "";
  byId("progress").textContent = outcomes + notAttempted;
  announceProgress(outcomes + notAttempted);
  drawPause();
  drawStop();
  drawNotice();
  byId("many-relist").hidden = !rowsWithoutToken().length;
  byId("many-relist").textContent =
    `Return partners without a token to the list (${rowsWithoutToken().length.toLocaleString("en")})`;
  drawFilters();
  drawRows();
}

let announcedQuarter = 0;

// The progress is announced at each quarter, and at the end.
function announceProgress(text) {
  const quarter = running ? Math.floor((4 * batch.done) / batch.rows.length) : 5;
  if (quarter !== announcedQuarter && quarter > 0) announce(quarter === 5 ? `Ended. ${text}` : text);
  announcedQuarter = quarter;
}

function drawPause() {
  const seconds = Math.ceil(batch.remainingPause);
  const stopping = batch.stopping && running;
  byId("pause").hidden = !running || (!seconds && !stopping);
  if (byId("pause").hidden) return;
  byId("pause").textContent = stopping
    ? `Stopping: waiting for ${batch.counts["in flight"]} in flight; no more requests are sent.`
    : `Paused; continues in ${seconds} s. Declined requests were not executed and are sent again.`;
}

function drawStop() {
  if (batch.stopping && running && !abandonShown)
    announce("Stopping: no more requests are sent, and the calls in flight are waited for");
  abandonShown = batch.stopping;
  byId("many-stop").textContent = abandonShown ? "Abandon calls in flight" : "Stop";
}

function drawNotice() {
  const parts = [];
  if (batch.stopReason)
    parts.push(
      `Stopped, because all other rows would fail in the same way: ${batch.stopReason}.`,
      ...batch.stopTexts,
    );
  if (batch.counts.unknown) {
    parts.push(
      `The outcome of ${withCount(batch.counts.unknown, "partner")} is unknown: a token may exist that was not received. The page does not repeat the call. Plaid’s support can look up a request ID.`,
    );
  }
  byId("run-notice").hidden = running || !parts.length;
  byId("run-notice").textContent = parts.join(" ");
}

function createFilter(name) {
  const radio = h("input", { type: "radio", name: "filter", value: name, checked: name === "all" });
  radio.addEventListener("change", () => {
    filter = name;
    page = 0;
    draw();
  });
  return h("label", {}, radio, h("span", { "data-filter": name }, name));
}

function drawFilters() {
  const { counts, rows } = batch;
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
  const matching = filter === "all" ? batch.rows : batch.rows.filter(matchesFilter);
  page = Math.min(page, Math.max(0, Math.ceil(matching.length / PAGE_ROWS) - 1));
  const first = page * PAGE_ROWS;
  const rows = matching.slice(first, first + PAGE_ROWS).map(createRow);
  byId("rows").replaceChildren(...(rows.length ? rows : [h("tr", {}, h("td", { colspan: "6" }, "None."))]));
  drawPages(first, matching.length);
}

function createRow(row) {
  const cells = [
    String(row.line),
    row.partner,
    null,
    row.errorCode ?? "",
    row.requestId ?? "",
    String(row.attempts),
  ].map((text) =>
    h("td", {}, text ?? h("span", { class: `state is-${row.outcome.replace(" ", "-")}` }, labelOf(row))),
  );
  return h("tr", {}, ...cells);
}

function drawPages(first, length) {
  const container = byId("pages");
  container.hidden = length <= PAGE_ROWS;
  if (!container.childElementCount) {
    const turnBy = (count) => () => {
      page += count;
      draw();
    };
    container.append(
      h("button", { type: "button", class: "quiet", id: "page-previous", onclick: turnBy(-1) }, "Previous"),
      h("span", { id: "page-range" }),
      h("button", { type: "button", class: "quiet", id: "page-next", onclick: turnBy(1) }, "Next"),
    );
  }
  byId("page-previous").disabled = first === 0;
  byId("page-next").disabled = first + PAGE_ROWS >= length;
  byId("page-range").textContent = `${first + 1} to ${Math.min(first + PAGE_ROWS, length)} of ${length}`;
}
