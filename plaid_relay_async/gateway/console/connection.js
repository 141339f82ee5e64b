// The top of the page: the gateway key, the gateway's address for the code, and where calls go.

import { problemWithAddress, problemWithKey } from "./checks.js";
import { byId, secretField, showProblem } from "./dom.js";
import { addressOf, save, state } from "./state.js";
import { forgetKey, loadKey, saveKey } from "./storage.js";

/** @param onAddressChange called after each change of the address */
export function prepare(onAddressChange) {
  prepareKey();
  prepareAddress(onAddressChange);
}

function prepareKey() {
  const { field, container } = secretField(
    { id: "key", "aria-describedby": "key-hint key-error" },
    "the key",
  );
  byId("key-field").append(container);
  showKey();
  field.addEventListener("input", () => {
    state.key = field.value.trim();
    if (byId("remember").checked) saveKey(state.key);
    checkKey();
  });
  byId("remember").checked = loadKey() !== null;
  byId("remember").addEventListener("change", ({ target }) =>
    target.checked ? saveKey(state.key) : forgetKey(),
  );
}

export const showKey = () => (byId("key").value = state.key);

/** Show the problem with the key, if any, and return it; null if the key is valid. */
export const checkKey = () => showProblem(byId("key"), "The gateway key", problemWithKey(state.key));

function prepareAddress(onChange) {
  const field = byId("address");
  byId("own-address").textContent = location.origin;
  field.placeholder = location.origin;
  field.value = addressOf();
  field.addEventListener("input", () => {
    state.address = field.value.trim();
    showProblem(field, "The address", problemWithAddress(addressOf()));
    save();
    onChange();
  });
}

const ENVIRONMENTS = {
  production: ["Production", "Calls go to Plaid’s production environment: real reports and real partners."],
  sandbox: ["Sandbox", "Calls go to Plaid’s sandbox, which has test data only."],
  other: ["Not Plaid", "The gateway forwards to an address that isn’t Plaid’s, such as a simulator."],
  unreported: [
    "Unknown environment",
    "The gateway did not report where calls go. Reload this page.",
  ],
};

/** Show where calls go. */
export function showEnvironment() {
  const name = state.environment === undefined ? "unreported" : (state.environment ?? "other");
  const [badge, meaning] = ENVIRONMENTS[name];
  byId("environment").textContent = badge;
  byId("environment").classList.toggle("production", name === "production");
  byId("environment-meaning").textContent = meaning;
  byId("send").textContent = name === "production" ? "Send to production" : "Send";
}
