// The page: what it begins with, its operations, and which of them is shown.

import * as connection from "./connection.js";
import { byId, h, showProblem } from "./dom.js";
import * as many from "./many.js";
import * as one from "./one.js";
import { OPERATIONS, operationOf } from "./operations.js";
import { LANGUAGES } from "./snippets.js";
import { save, state } from "./state.js";
import { recall, recallKey, takeCode } from "./storage.js";

const RELAY = OPERATIONS.filter(({ group }) => group === "Relay").map(({ path }) => path);
const SECRETS = { report_token: "REPORT_TOKEN", relay_token: "RELAY_TOKEN" };

async function settings() {
  try {
    const response = await fetch("/console/settings.json", { cache: "no-store", credentials: "omit" });
    const { environment, operations, version } = await response.json();
    return { environment, operations: operations ?? RELAY, version };
  } catch {
    return { environment: undefined, operations: RELAY, version: null };
  }
}

function prepareNavigation() {
  const narrow = matchMedia("(max-width: 55rem)"); // as in the style: the operations are above the form then
  const go = (path) => {
    show(path);
    if (narrow.matches) byId("work").scrollIntoView();
  };
  const entry = (path, title) =>
    h("button", { type: "button", "data-path": path, onclick: () => go(path) }, title);
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

function show(path) {
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

async function exchange(code) {
  try {
    const response = await fetch("/console/handover.json", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(code),
      cache: "no-store",
      credentials: "omit",
    });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

// Fill in the key and the tokens for which the address has a one-time code, and return whether there were any.
async function bring() {
  const code = takeCode();
  if (code === null) return false;
  const brought = await exchange(code);
  if (brought === null) {
    showProblem(byId("key"), "The link", "was used before or has expired: enter the key here");
    return false;
  }
  state.key = brought.key ?? state.key;
  for (const [name, variable] of Object.entries(SECRETS)) {
    state.secrets[variable] = brought[name] ?? state.secrets[variable];
  }
  connection.showKey();
  return true;
}

async function start() {
  const kept = recall(OPERATIONS);
  const language = LANGUAGES.some(({ name }) => name === kept.language) ? kept.language : "python";
  Object.assign(state, {
    key: recallKey() ?? "",
    address: kept.address ?? "",
    inputs: kept.inputs,
    language,
  });
  connection.prepare(one.showCode);
  await bring();
  const { environment, operations, version } = await settings();
  state.served = OPERATIONS.filter(({ path }) => operations.includes(path));
  state.environment = environment;
  connection.showEnvironment();
  byId("version").textContent = version ? `plaid_relay_async ${version}` : "";
  prepareNavigation();
  one.prepare(show);
  many.prepare();
  if (!state.served.length) {
    byId("start").textContent = "This gateway serves no operation that this page knows.";
    return;
  }
  const known =
    state.served.includes(operationOf(kept.path)) ||
    (kept.path === "many" && operations.includes("/credit/relay/create"));
  show(known ? kept.path : state.served[0].path);
}

window.addEventListener("hashchange", async () => {
  if (await bring()) show(state.path);
});
window.addEventListener("beforeunload", (event) => {
  if ([...state.unsaved].some((lost) => lost())) event.preventDefault();
});
await start();
