// The view of one operation: its form, its code, and the response.

import { problemWith, problemWithAddress } from "./checks.js";
import { checkKey } from "./connection.js";
import { announce, byId, confirm, copy, download, h, secretField, showProblem } from "./dom.js";
import { createdThing, explain } from "./explain.js";
import { isPdf, parseRetryAfter, requestIdOf, send, tokensIn } from "./http.js";
import { NEXT, operationOf } from "./operations.js";
import { formatSeconds, formatSize, highlight, indentJson, maskTokens } from "./render.js";
import { LANGUAGES, snippet, variablesOf } from "./snippets.js";
import {
  addressOf,
  bodyToSend,
  earlierCall,
  plainInputsOf,
  recordCall,
  save,
  setText,
  state,
  textOf,
} from "./state.js";

let operation = null;
let entries = []; // [{input, field, container, touched}]
let showOperation = () => {};

export function prepare(show) {
  showOperation = show;
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("copy").addEventListener("click", (event) => copy(byId("code").textContent, event.currentTarget));
  prepareTabs();
  state.unsaved.add(() => sending || receivedTokens.some(({ copied }) => !copied));
}

export function show(path) {
  operation = operationOf(path);
  byId("title").textContent = operation.title;
  byId("path").textContent = `POST ${operation.path}`;
  byId("about").replaceChildren(
    `${operation.about} Called by ${operation.caller}. `,
    h("a", { href: operation.page, target: "_blank", rel: "noopener noreferrer" }, "Plaid’s documentation"),
  );
  entries = operation.inputs.map(createEntry);
  byId("inputs").replaceChildren(...entries.map(({ container }) => container));
  byId("not-offered").hidden = !operation.not_offered.length;
  byId("not-offered").textContent = `Fields without an input on this page: ${operation.not_offered.join(", ")}.`;
  byId("response").hidden = true;
  showCode();
}

// ---------------------------------------------------------------------------------------------- inputs

const KINDS = {
  token: "token",
  tokens: "tokens",
  identifier: "string",
  identifiers: "list of strings",
  text: "string",
  url: "URL",
  flag: "boolean",
  number: "whole number",
  choice: "one of a list",
};

function createEntry(input) {
  const id = `input-${input.name}`;
  const hint = h("p", { class: "hint", id: `${id}-hint` }, input.hint);
  const error = h("p", { class: "error", id: `${id}-error`, hidden: true });
  const attributes = {
    id,
    "aria-describedby": `${id}-hint ${id}-error`,
    "aria-required": input.required || undefined,
  };
  const { field, container: control } = createControl(input, attributes);
  const kind = `${input.list ? "list of one token" : KINDS[input.kind]}, ${input.required ? "required" : "optional"}`;
  const name = h("span", { class: "code" }, input.within ? `${input.within}.${input.name}` : input.name);
  const label = h("label", { for: id, class: input.kind === "flag" ? "tick" : null });
  if (input.kind === "flag") label.append(field);
  label.append(h("span", {}, name, " ", h("span", { class: "kind" }, kind)));
  const container = h("div", { class: "field" }, label, input.kind === "flag" ? null : control, hint, error);
  const entry = { input, field, container, touched: false };
  field.addEventListener("input", () => handleInput(entry));
  field.addEventListener("blur", () => {
    entry.touched ||= Boolean(textOf(operation, input));
    validate(entry);
  });
  return entry;
}

function createControl(input, attributes) {
  const text = textOf(operation, input);
  if (input.env) {
    const control = secretField(attributes, input.name, input.kind === "tokens" ? 3 : 0);
    control.field.value = text;
    return control;
  }
  const plain = { ...attributes, autocomplete: "off", spellcheck: "false", placeholder: input.example };
  let field;
  if (input.kind === "flag") field = h("input", { ...attributes, type: "checkbox", checked: text === true });
  else if (input.kind === "identifiers") field = h("textarea", { ...plain, rows: 3 });
  else if (input.kind === "choice")
    field = h("select", attributes, ...["", ...input.choices].map((choice) => h("option", {}, choice)));
  else
    field = h("input", {
      ...plain,
      type: input.kind === "url" ? "url" : "text",
      inputmode: input.kind === "number" ? "numeric" : null,
    });
  if (input.kind !== "flag") field.value = text;
  return { field, container: field };
}

function handleInput(entry) {
  const { input, field } = entry;
  entry.touched = true;
  setText(operation, input, input.kind === "flag" ? field.checked : field.value);
  validate(entry);
  save();
  showCode();
}

// A field that the user has not filled in yet shows no problem.
function validate(entry) {
  const { input, field, touched } = entry;
  return showProblem(field, input.name, touched ? problemWith(input, textOf(operation, input)) : null);
}

// ------------------------------------------------------------------------------------------------ code

function prepareTabs() {
  const tabs = LANGUAGES.map(({ name, title }) =>
    h(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${name}`,
        "aria-controls": "code-panel",
        onclick: () => selectLanguage(name),
      },
      title,
    ),
  );
  byId("languages").append(...tabs);
  byId("languages").addEventListener("keydown", (event) => {
    const index = LANGUAGES.findIndex(({ name }) => name === state.language);
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    selectLanguage(LANGUAGES.at(next % LANGUAGES.length).name);
    byId(`tab-${state.language}`).focus();
  });
}

function selectLanguage(language) {
  state.language = language;
  save();
  showCode();
}

export function showCode() {
  if (!operation) return;
  for (const { name } of LANGUAGES) {
    const selected = name === state.language;
    byId(`tab-${name}`).setAttribute("aria-selected", String(selected));
    byId(`tab-${name}`).tabIndex = selected ? 0 : -1;
  }
  byId("code-panel").setAttribute("aria-labelledby", `tab-${state.language}`);
  const address = problemWithAddress(addressOf()) ? location.origin : addressOf();
  const code = snippet(state.language, operation, plainInputsOf(operation), address);
  byId("code").replaceChildren(
    ...(code === null
      ? ["The package has no batch method for this operation; see Python."]
      : highlight(state.language, code)),
  );
  byId("copy").hidden = code === null;
  byId("code-note").textContent = code === null ? "" : describeCode();
}

function describeCode() {
  const variableName = (name) => (state.language === "bulk" && name === "RELAY_TOKEN" ? "RELAY_TOKENS" : name);
  const variables = variablesOf(operation, plainInputsOf(operation)).map(variableName);
  const reads = `Reads ${[variables.slice(0, -1).join(", "), variables.at(-1)].filter(Boolean).join(" and ")} from the environment.`;
  const examples = operation.inputs
    .filter((input) => input.required && !input.env && !textOf(operation, input).trim())
    .map(({ name }) => name);
  return examples.length ? `${reads} Example values, until you fill them in: ${examples.join(", ")}.` : reads;
}

// ------------------------------------------------------------------------------------------------ send

let sending = false;

async function submit() {
  if (sending || !(await isValid())) return;
  const sent = operation;
  const body = bodyToSend(sent);
  if (!(await mayRepeat(sent, body))) return;
  const stopWaiting = showWaiting();
  const response = await send(sent.path, body, state.key);
  stopWaiting();
  const explanation = explain(sent, response);
  if (explanation.kind === "succeeded" || explanation.kind === "unknown") recordCall(sent, body, explanation.kind);
  updateTokens(sent, body, response, explanation);
  // If another operation is shown by now, return to the one that was sent: its response may contain a token.
  if (operation !== sent) showOperation(sent.path);
  showResponse(sent, response, explanation);
}

async function isValid() {
  for (const entry of entries) entry.touched = true;
  const keyProblem = checkKey();
  const invalid = entries.filter(validate);
  if (!keyProblem && !invalid.length) return true;
  (keyProblem ? byId("key") : invalid[0].field).focus();
  const names = [...(keyProblem ? ["the gateway key"] : []), ...invalid.map(({ input }) => input.name)];
  announce(`Not sent: correct ${names.join(", ")}`);
  return false;
}

async function mayRepeat(sent, body) {
  const earlier = earlierCall(sent, body);
  if (earlier === undefined) return true;
  const thing = createdThing(sent);
  return earlier === "unknown"
    ? confirm(
        "Send it again?",
        `The outcome of the same call is unknown: it may have created ${thing}. Sending it again may create a second one.`,
        "Send again",
      )
    : confirm(
        "Create a second one?",
        `The same call has already created ${thing} on this page. Sending it again creates another.`,
        "Send again",
      );
}

function showWaiting() {
  const startedAt = performance.now();
  sending = true;
  byId("send").setAttribute("aria-disabled", "true");
  byId("sending").hidden = false;
  announce("Sending");
  const tick = () => (byId("elapsed").textContent = formatSeconds((performance.now() - startedAt) / 1000));
  tick();
  const timer = setInterval(tick, 100);
  return () => {
    clearInterval(timer);
    sending = false;
    byId("send").removeAttribute("aria-disabled");
    byId("sending").hidden = true;
  };
}

// ---------------------------------------------------------------------------------------------- response

const MAX_SHOWN = 100_000; // characters; a report may have millions
let pdfUrl = null; // the object URL of the PDF that can be saved

function showResponse(sent, response, explanation) {
  if (pdfUrl) URL.revokeObjectURL(pdfUrl);
  pdfUrl = null;
  const status = response.status === null ? "none" : String(response.status);
  const retryAfter = parseRetryAfter(response.headers);
  const facts = {
    Status: status,
    Time: formatSeconds(response.seconds),
    "Request ID": requestIdOf(response) ?? "none",
  };
  if (retryAfter !== null) facts["Retry-After"] = `${retryAfter} s`;
  byId("response-content").replaceChildren(
    h(
      "div",
      { class: `result ${explanation.kind}` },
      h("p", { class: "title" }, explanation.title),
      ...explanation.texts.map((text) => h("p", {}, text)),
    ),
    h(
      "dl",
      { class: "facts" },
      ...Object.entries(facts).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    ...createContent(response),
  );
  byId("response").hidden = false;
  byId("response").scrollIntoView({ block: "nearest" });
  announce(`${explanation.title}. Status ${status}. ${explanation.texts.join(" ")}`);
}

function createContent(response) {
  if (!response.bytes.length) return [];
  if (isPdf(response)) {
    if (!response.complete)
      return [h("p", {}, `${formatSize(response.bytes.length)} of a truncated PDF arrived.`)];
    pdfUrl = URL.createObjectURL(new Blob([response.bytes], { type: "application/pdf" }));
    return [
      h(
        "p",
        { class: "row" },
        h("a", { href: pdfUrl, download: "report.pdf" }, `Save the PDF (${formatSize(response.bytes.length)})`),
      ),
    ];
  }
  const text = response.json !== null ? indentJson(response.text) : response.text;
  const content = h("pre", { class: "code", tabindex: "0", "aria-label": "The response" });
  const draw = (masked) => {
    const visible = masked ? maskTokens(text) : text;
    content.replaceChildren(
      ...highlight("json", visible.slice(0, MAX_SHOWN)),
      visible.length > MAX_SHOWN ? "\n…" : "",
    );
  };
  draw(true);
  return [h("div", { class: "row small" }, ...createActions(response, text, draw)), content];
}

function createActions(response, text, draw) {
  const actions = [
    h("button", { type: "button", onclick: (event) => copy(text, event.currentTarget) }, "Copy response"),
    h(
      "button",
      { type: "button", onclick: () => download(response.bytes, "response.json", "application/json") },
      `Save response (${formatSize(response.bytes.length)})`,
    ),
  ];
  if (Object.keys(tokensIn(response)).length) {
    const toggle = h("button", { type: "button", "aria-pressed": "false" }, "Show tokens");
    toggle.addEventListener("click", () => {
      const pressed = toggle.getAttribute("aria-pressed") !== "true";
      toggle.setAttribute("aria-pressed", String(pressed));
      draw(!pressed);
    });
    actions.push(toggle);
  }
  if (text.length > MAX_SHOWN)
    actions.push(
      h("span", { class: "fine" }, "Only the beginning is shown. Save response saves the complete response."),
    );
  return actions;
}

// -------------------------------------------------------------------------------------- received tokens

let receivedTokens = []; // [{name, value, purpose, copied}]

function updateTokens(sent, body, response, explanation) {
  if (sent.path === "/credit/relay/remove" && explanation.kind === "succeeded")
    receivedTokens = receivedTokens.filter(({ value }) => value !== body.relay_token);
  for (const [name, value] of Object.entries(tokensIn(response))) {
    const purpose = body.secondary_client_id ? `for ${body.secondary_client_id}` : "";
    if (!receivedTokens.some((token) => token.value === value))
      receivedTokens.unshift({ name, value, purpose, copied: false });
  }
  showTokens();
}

function showTokens() {
  byId("tokens").hidden = !receivedTokens.length;
  byId("token-list").replaceChildren(...receivedTokens.map(createTokenItem));
}

function createTokenItem(token) {
  const served = NEXT[token.name].map(operationOf).filter((nextOperation) => state.served.includes(nextOperation));
  const copyButton = h(
    "button",
    { type: "button", "aria-label": `Copy ${token.name} ${token.purpose}` },
    "Copy",
  );
  copyButton.addEventListener("click", async () => {
    token.copied = (await copy(token.value, copyButton)) || token.copied;
  });
  const useButtons = served.map((nextOperation) =>
    h(
      "button",
      {
        type: "button",
        onclick: () => {
          state.secrets[nextOperation.inputs[0].env] = token.value;
          showOperation(nextOperation.path);
          byId("title").scrollIntoView({ block: "nearest" });
          byId("send").focus();
        },
      },
      nextOperation.title,
    ),
  );
  return h(
    "li",
    {},
    h("span", { class: "code" }, `${token.name} ${token.purpose}`),
    h("span", { class: "row small" }, copyButton, ...useButtons),
  );
}
