// The page: what it begins with, its operations, and which of them is shown.

import * as connection from "./connection.js";
import { byId, h } from "./dom.js";
import * as many from "./many.js";
import * as one from "./one.js";
import { OPERATIONS, operationOf } from "./operations.js";
import { LANGUAGES } from "./snippets.js";
import { save, state } from "./state.js";
import { recall, recallKey, takeFromAddress } from "./storage.js";

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

// Gives whether there was anything.
function bring() {
  const { key, ...tokens } = takeFromAddress(["key", ...Object.keys(SECRETS)]);
  state.key = key ?? state.key;
  for (const [name, token] of Object.entries(tokens)) state.secrets[SECRETS[name]] = token;
  return key !== undefined || Object.keys(tokens).length > 0;
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
  bring();
  connection.prepare(one.showCode);
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

window.addEventListener("hashchange", () => {
  if (!bring()) return;
  connection.showKey();
  show(state.path);
});
window.addEventListener("beforeunload", (event) => {
  if ([...state.unsaved].some((lost) => lost())) event.preventDefault();
});
await start();
