// The top of the page: the gateway's key, its address, and what it forwards to.

import { problemWithAddress, problemWithKey } from "./checks.js";
import { byId, secretField, showProblem } from "./dom.js";
import { addressOf, save, state } from "./state.js";
import { forgetKey, keepKey, recallKey } from "./storage.js";

/** @param addressChanged called after each change of the address */
export function prepare(addressChanged) {
  prepareKey();
  prepareAddress(addressChanged);
}

function prepareKey() {
  const { field, whole } = secretField({ id: "key", "aria-describedby": "key-hint key-wrong" }, "the key");
  byId("key-here").append(whole);
  showKey();
  field.addEventListener("input", () => {
    state.key = field.value.trim();
    if (byId("remember").checked) keepKey(state.key);
    checkKey();
  });
  byId("remember").checked = recallKey() !== null;
  byId("remember").addEventListener("change", ({ target }) =>
    target.checked ? keepKey(state.key) : forgetKey(),
  );
}

export const showKey = () => (byId("key").value = state.key);

/** Show what is wrong with the key, and give it; null where nothing is. */
export const checkKey = () => showProblem(byId("key"), "The gateway key", problemWithKey(state.key));

function prepareAddress(changed) {
  const field = byId("address");
  byId("own").textContent = location.origin;
  field.placeholder = location.origin;
  field.value = addressOf();
  field.addEventListener("input", () => {
    state.address = field.value.trim();
    showProblem(field, "The address", problemWithAddress(addressOf()));
    save();
    changed();
  });
}

const ENVIRONMENTS = {
  production: ["Production", "Calls go to Plaid’s production: real people’s reports, real partners."],
  sandbox: ["Sandbox", "Calls go to Plaid’s sandbox: test data alone."],
  other: ["Not Plaid itself", "The gateway forwards to an address that isn’t Plaid’s, such as a simulator."],
  untold: ["Unknown environment", "The gateway didn’t say where calls go: reload this page."],
};

/** Say where calls go. */
export function showEnvironment() {
  const name = state.environment === undefined ? "untold" : (state.environment ?? "other");
  const [badge, meaning] = ENVIRONMENTS[name];
  byId("environment").textContent = badge;
  byId("environment").classList.toggle("production", name === "production");
  byId("environment-meaning").textContent = meaning;
  byId("send").textContent = name === "production" ? "Send to production" : "Send";
}
