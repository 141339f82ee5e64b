// The page: its connection, its operations, and which of them is shown.

import { problemWithAddress, problemWithKey } from "./checks.js";
import { byId, h, secretField } from "./dom.js";
import * as many from "./many.js";
import * as one from "./one.js";
import { OPERATIONS, operationOf } from "./operations.js";
import { LANGUAGES } from "./snippets.js";
import { addressOf, save, state } from "./state.js";
import { forgetKey, keepKey, recall, recallKey, takeFromAddress } from "./storage.js";

const RELAY = OPERATIONS.filter(({ group }) => group === "Relay").map(({ path }) => path);
const SECRETS = { report_token: "REPORT_TOKEN", relay_token: "RELAY_TOKEN" };

async function settings() {
  try {
    const response = await fetch("/console/settings.json", { cache: "no-store", credentials: "omit" });
    const { environment, operations, version } = await response.json();
    return { environment, operations: operations ?? RELAY, version };
  } catch {
    return { environment: null, operations: RELAY, version: null };
  }
}

function prepareConnection() {
  const { field, whole } = secretField({ id: "key", "aria-describedby": "key-hint key-wrong" }, "the key");
  byId("key-here").append(whole);
  field.value = state.key;
  let touched = false;
  const mark = () => marked(field, byId("key-wrong"), touched && problemWithKey(state.key), "The key");
  field.addEventListener("input", () => {
    touched = true;
    state.key = field.value.trim();
    if (byId("remember").checked) keepKey(state.key);
    mark();
  });
  // Also asked for by Send, when it is empty.
  field.addEventListener("blur", (event) => {
    touched ||= !event.isTrusted || Boolean(field.value);
    mark();
  });
  byId("remember").checked = recallKey() !== null;
  byId("remember").addEventListener("change", ({ target }) => (target.checked ? keepKey(state.key) : forgetKey()));
  prepareAddress();
}

function prepareAddress() {
  const field = byId("address");
  byId("own").textContent = location.origin;
  field.placeholder = location.origin;
  field.value = addressOf();
  field.addEventListener("input", () => {
    state.address = field.value.trim();
    marked(field, byId("address-wrong"), problemWithAddress(addressOf()), "The address");
    save();
    one.showCode();
  });
}

export function marked(field, line, problem, name) {
  field.setAttribute("aria-invalid", String(Boolean(problem)));
  line.hidden = !problem;
  line.textContent = problem ? `${name} ${problem}` : "";
}

function prepareNavigation() {
  const entry = (path, title) => h("button", { type: "button", "data-path": path, onclick: () => show(path) }, title);
  const groups = new Map();
  for (const { group, path, title } of state.served) {
    if (!groups.has(group)) {
      const id = `group-${groups.size}`;
      groups.set(group, h("div", { role: "group", "aria-labelledby": id }, h("h2", { id }, group)));
    }
    groups.get(group).append(entry(path, title));
    if (path === "/credit/relay/create") groups.get(group).append(entry("many", "Share with many"));
  }
  byId("operations").replaceChildren(...groups.values());
}

export function show(path) {
  state.path = path;
  save();
  for (const entry of byId("operations").querySelectorAll("button")) {
    if (entry.dataset.path === path) entry.setAttribute("aria-current", "true");
    else entry.removeAttribute("aria-current");
  }
  byId("start").hidden = true;
  byId("one").hidden = path === "many";
  byId("many").hidden = path !== "many";
  if (path === "many") many.show();
  else one.show(path);
}

function bring() {
  const brought = takeFromAddress();
  if (brought.has("key")) state.key = brought.get("key");
  for (const [name, variable] of Object.entries(SECRETS)) {
    if (brought.has(name)) state.secrets[variable] = brought.get(name);
  }
}

async function start() {
  const kept = recall(OPERATIONS);
  const language = LANGUAGES.some(({ name }) => name === kept.language) ? kept.language : "python";
  Object.assign(state, { key: recallKey() ?? "", address: kept.address ?? "", inputs: kept.inputs, language });
  bring();
  prepareConnection();
  const { environment, operations, version } = await settings();
  state.served = OPERATIONS.filter(({ path }) => operations.includes(path));
  byId("environment").hidden = !environment;
  byId("environment").textContent = environment ?? "";
  byId("environment").classList.toggle("production", environment === "production");
  byId("version").textContent = version ? `plaid_relay_async ${version}` : "";
  prepareNavigation();
  one.prepare(show);
  many.prepare();
  if (!state.served.length) {
    byId("start").textContent = "This gateway serves no operation that this page knows.";
    return;
  }
  const known = state.served.includes(operationOf(kept.path)) || (kept.path === "many" && operations.includes("/credit/relay/create"));
  show(known ? kept.path : state.served[0].path);
}

window.addEventListener("hashchange", () => {
  bring();
  byId("key").value = state.key;
  show(state.path);
});
window.addEventListener("beforeunload", (event) => {
  if ([...state.unsaved].some((lost) => lost())) event.preventDefault();
});
await start();
