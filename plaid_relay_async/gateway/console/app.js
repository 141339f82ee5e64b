// Starts the page: loads its settings, builds the navigation, and shows an operation.

import * as connection from "./connection.js";
import { byId, h, showProblem } from "./dom.js";
import * as manyView from "./many-view.js";
import * as operationView from "./operation-view.js";
import { OPERATIONS, operationOf } from "./operations.js";
import { LANGUAGES } from "./snippets.js";
import { save, state } from "./state.js";
import { loadKey, loadPlain, takeCode } from "./storage.js";

const RELAY = OPERATIONS.filter(({ group }) => group === "Relay").map(({ path }) => path);
const SECRETS = { report_token: "REPORT_TOKEN", relay_token: "RELAY_TOKEN" };

async function loadSettings() {
  try {
    const response = await fetch("/console/settings.json", { cache: "no-store", credentials: "omit" });
    const { environment, operations, version } = await response.json();
    return { environment, operations: operations ?? RELAY, version };
  } catch {
    return { environment: undefined, operations: RELAY, version: null };
  }
}

function prepareNavigation() {
  const narrow = matchMedia("(max-width: 55rem)"); // as in the stylesheet, which then puts the operations first
  const select = (path) => {
    show(path);
    if (narrow.matches) byId("work").scrollIntoView();
  };
  const entry = (path, title) =>
    h("button", { type: "button", "data-path": path, onclick: () => select(path) }, title);
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
  byId("loading").hidden = true;
  byId("single").hidden = path === "many";
  byId("many").hidden = path !== "many";
  if (path === "many") manyView.show();
  else operationView.show(path);
}

async function exchangeCode(code) {
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

// Fill in the key and the tokens for the one-time code in the address, and return whether the code was valid.
async function fillInFromCode() {
  const code = takeCode();
  if (code === null) return false;
  const values = await exchangeCode(code);
  if (values === null) {
    showProblem(byId("key"), "The link", "was used before or has expired; enter the key here");
    return false;
  }
  state.key = values.key ?? state.key;
  for (const [name, variable] of Object.entries(SECRETS)) {
    state.secrets[variable] = values[name] ?? state.secrets[variable];
  }
  connection.showKey();
  return true;
}

async function start() {
  const stored = loadPlain(OPERATIONS);
  const language = LANGUAGES.some(({ name }) => name === stored.language) ? stored.language : "python";
  Object.assign(state, {
    key: loadKey() ?? "",
    address: stored.address ?? "",
    inputs: stored.inputs,
    language,
  });
  connection.prepare(operationView.showCode);
  await fillInFromCode();
  const { environment, operations, version } = await loadSettings();
  state.served = OPERATIONS.filter(({ path }) => operations.includes(path));
  state.environment = environment;
  connection.showEnvironment();
  byId("version").textContent = version ? `plaid_relay_async ${version}` : "";
  prepareNavigation();
  operationView.prepare(show);
  manyView.prepare();
  if (!state.served.length) {
    byId("loading").textContent = "This gateway serves no operation that this page supports.";
    return;
  }
  const isServed =
    state.served.includes(operationOf(stored.path)) ||
    (stored.path === "many" && operations.includes("/credit/relay/create"));
  show(isServed ? stored.path : state.served[0].path);
}

window.addEventListener("hashchange", async () => {
  if (await fillInFromCode()) show(state.path);
});
window.addEventListener("beforeunload", (event) => {
  if ([...state.unsaved].some((wouldLose) => wouldLose())) event.preventDefault();
});
await start();
