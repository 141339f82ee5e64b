// The view of one operation: its form, its code, its answer.

import { isPdf, requestIdOf, retryAfter, send, tokensIn } from "./call.js";
import { problemWith, problemWithAddress } from "./checks.js";
import { checkKey } from "./connection.js";
import { ask, byId, copy, download, h, say, secretField, showProblem } from "./dom.js";
import { explain, thingOf } from "./explain.js";
import { TOKENS, operationOf } from "./operations.js";
import { coloured, laidOut, secondsOf, sizeOf, withoutTokens } from "./render.js";
import { LANGUAGES, snippet, variablesOf } from "./snippets.js";
import { addressOf, bodyToSend, madeBefore, note, plainOf, save, setText, state, textOf } from "./state.js";

let operation = null;
let fields = []; // [{input, field, whole, touched}]
let go = () => {}; // shows another operation

export function prepare(show) {
  go = show;
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("copy").addEventListener("click", (event) => copy(byId("code").textContent, event.currentTarget));
  prepareTabs();
  state.unsaved.add(() => sending || hand.some(({ taken }) => !taken));
}

export function show(path) {
  operation = operationOf(path);
  byId("title").textContent = operation.title;
  byId("path").textContent = `POST ${operation.path}`;
  byId("about").replaceChildren(
    `${operation.about} Called by ${operation.caller}. `,
    h("a", { href: operation.page, target: "_blank", rel: "noopener noreferrer" }, "Plaid’s page"),
  );
  fields = operation.inputs.map(fieldOf);
  byId("inputs").replaceChildren(...fields.map(({ whole }) => whole));
  byId("absent").hidden = !operation.absent.length;
  byId("absent").textContent = `Not offered here: ${operation.absent.join(", ")}.`;
  byId("answer").hidden = true;
  showCode();
}

// ---------------------------------------------------------------------------------------------- inputs

const KINDS = {
  token: "token",
  tokens: "tokens",
  word: "string",
  words: "list of strings",
  text: "string",
  url: "URL",
  flag: "boolean",
  days: "whole number",
  choice: "one of a list",
};

function fieldOf(input) {
  const id = `input-${input.name}`;
  const hint = h("p", { class: "hint", id: `${id}-hint` }, input.hint);
  const wrong = h("p", { class: "wrong", id: `${id}-wrong`, hidden: true });
  const attributes = {
    id,
    "aria-describedby": `${id}-hint ${id}-wrong`,
    "aria-required": input.required || undefined,
  };
  const { field, whole: control } = controlOf(input, attributes);
  const kind = `${input.list ? "list of one token" : KINDS[input.kind]}, ${input.required ? "required" : "optional"}`;
  const name = h("span", { class: "code" }, input.within ? `${input.within}.${input.name}` : input.name);
  const label = h("label", { for: id, class: input.kind === "flag" ? "tick" : null });
  if (input.kind === "flag") label.append(field);
  label.append(h("span", {}, name, " ", h("span", { class: "kind" }, kind)));
  const whole = h("div", { class: "field" }, label, input.kind === "flag" ? null : control, hint, wrong);
  const made = { input, field, whole, touched: false };
  field.addEventListener("input", () => changed(made));
  field.addEventListener("blur", () => {
    made.touched ||= Boolean(textOf(operation, input));
    mark(made);
  });
  return made;
}

function controlOf(input, attributes) {
  const text = textOf(operation, input);
  if (input.env) {
    const made = secretField(attributes, input.name, input.kind === "tokens" ? 3 : 0);
    made.field.value = text;
    return made;
  }
  const quiet = { ...attributes, autocomplete: "off", spellcheck: "false", placeholder: input.example };
  let field;
  if (input.kind === "flag") field = h("input", { ...attributes, type: "checkbox", checked: text === true });
  else if (input.kind === "words") field = h("textarea", { ...quiet, rows: 3 });
  else if (input.kind === "choice")
    field = h("select", attributes, ...["", ...input.choices].map((each) => h("option", {}, each)));
  else
    field = h("input", {
      ...quiet,
      type: input.kind === "url" ? "url" : "text",
      inputmode: input.kind === "days" ? "numeric" : null,
    });
  if (input.kind !== "flag") field.value = text;
  return { field, whole: field };
}

function changed(made) {
  const { input, field } = made;
  made.touched = true;
  setText(operation, input, input.kind === "flag" ? field.checked : field.value);
  mark(made);
  save();
  showCode();
}

// Nobody is told that a field is empty before they have had a chance to fill it in.
function mark(made) {
  const { input, field, touched } = made;
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
        onclick: () => choose(name),
      },
      title,
    ),
  );
  byId("languages").append(...tabs);
  byId("languages").addEventListener("keydown", (event) => {
    const at = LANGUAGES.findIndex(({ name }) => name === state.language);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(LANGUAGES.at(to % LANGUAGES.length).name);
    byId(`tab-${state.language}`).focus();
  });
}

function choose(language) {
  state.language = language;
  save();
  showCode();
}

export function showCode() {
  if (!operation) return;
  for (const { name } of LANGUAGES) {
    const chosen = name === state.language;
    byId(`tab-${name}`).setAttribute("aria-selected", String(chosen));
    byId(`tab-${name}`).tabIndex = chosen ? 0 : -1;
  }
  byId("code-panel").setAttribute("aria-labelledby", `tab-${state.language}`);
  const address = problemWithAddress(addressOf()) ? location.origin : addressOf();
  const code = snippet(state.language, operation, plainOf(operation), address);
  byId("code").replaceChildren(
    ...(code === null
      ? ["This operation has no batch of its own; see Python."]
      : coloured(state.language, code)),
  );
  byId("copy").hidden = code === null;
  byId("code-note").textContent = code === null ? "" : noteOn();
}

function noteOn() {
  const many = (name) => (state.language === "bulk" && name === "RELAY_TOKEN" ? "RELAY_TOKENS" : name);
  const variables = variablesOf(operation, plainOf(operation)).map(many);
  const read = `Reads ${[variables.slice(0, -1).join(", "), variables.at(-1)].filter(Boolean).join(" and ")} from the environment.`;
  const lacking = operation.inputs
    .filter((each) => each.required && !each.env && !textOf(operation, each).trim())
    .map(({ name }) => name);
  return lacking.length ? `${read} ${lacking.join(", ")}: an example, until you fill it in.` : read;
}

// ------------------------------------------------------------------------------------------------ send

let sending = false;

async function submit() {
  if (sending || !(await allIsWell())) return;
  const asked = operation;
  const body = bodyToSend(asked);
  if (!(await mayBeRepeated(asked, body))) return;
  const stop = showWaiting();
  const reply = await send(asked.path, body, state.key);
  stop();
  const told = explain(asked, reply);
  if (told.kind === "done" || told.kind === "unknown") note(asked, body, told.kind);
  take(asked, body, reply, told);
  // Somebody who has gone on to another operation meanwhile is told, too: it may be all that is known of a token.
  if (operation !== asked) go(asked.path);
  showAnswer(asked, reply, told);
}

async function allIsWell() {
  for (const made of fields) made.touched = true;
  const wrongKey = checkKey();
  const bad = fields.filter(mark);
  if (!wrongKey && !bad.length) return true;
  (wrongKey ? byId("key") : bad[0].field).focus();
  const names = [...(wrongKey ? ["the gateway key"] : []), ...bad.map(({ input }) => input.name)];
  say(`Not sent: correct ${names.join(", ")}`);
  return false;
}

async function mayBeRepeated(asked, body) {
  const before = madeBefore(asked, body);
  if (before === undefined) return true;
  const one = thingOf(asked);
  return before === "unknown"
    ? ask(
        "Send it again?",
        `Nobody can tell what became of the same call a moment ago: it may have made ${one}. Sent again, it may make a second one.`,
        "Send again",
      )
    : ask(
        "Make a second one?",
        `The same call has made ${one} on this page already. Sent again, it makes another.`,
        "Send again",
      );
}

function showWaiting() {
  const begun = performance.now();
  sending = true;
  byId("send").setAttribute("aria-disabled", "true");
  byId("sending").hidden = false;
  say("Sending");
  const tick = () => (byId("elapsed").textContent = secondsOf((performance.now() - begun) / 1000));
  tick();
  const timer = setInterval(tick, 100);
  return () => {
    clearInterval(timer);
    sending = false;
    byId("send").removeAttribute("aria-disabled");
    byId("sending").hidden = true;
  };
}

// ---------------------------------------------------------------------------------------------- answer

const MOST_SHOWN = 100_000; // characters; a report may have millions
let pdf = null; // the address of a PDF that can be saved

function showAnswer(asked, reply, told) {
  if (pdf) URL.revokeObjectURL(pdf);
  pdf = null;
  const status = reply.status === null ? "none" : String(reply.status);
  const wait = retryAfter(reply.headers);
  const facts = {
    Status: status,
    Time: secondsOf(reply.seconds),
    "Request id": requestIdOf(reply) ?? "none",
  };
  if (wait !== null) facts["Retry-After"] = `${wait} s`;
  byId("answer-here").replaceChildren(
    h(
      "div",
      { class: `verdict ${told.kind}` },
      h("p", { class: "title" }, told.title),
      ...told.texts.map((text) => h("p", {}, text)),
    ),
    h(
      "dl",
      { class: "facts" },
      ...Object.entries(facts).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    ...contentOf(asked, reply),
  );
  byId("answer").hidden = false;
  byId("answer").scrollIntoView({ block: "nearest" });
  say(`${told.title}. Status ${status}. ${told.texts.join(" ")}`);
}

function contentOf(asked, reply) {
  if (!reply.bytes.length) return [];
  if (isPdf(reply)) {
    if (!reply.whole) return [h("p", {}, `${sizeOf(reply.bytes.length)} of a PDF had arrived.`)];
    pdf = URL.createObjectURL(new Blob([reply.bytes], { type: "application/pdf" }));
    return [
      h(
        "p",
        { class: "row" },
        h("a", { href: pdf, download: "report.pdf" }, `Save the PDF (${sizeOf(reply.bytes.length)})`),
      ),
    ];
  }
  const json = reply.json !== null;
  const text = json ? laidOut(reply.text) : reply.text;
  const shown = h("pre", { class: "code", tabindex: "0", "aria-label": "The answer" });
  const draw = (hidden) => {
    const safe = hidden ? withoutTokens(text) : text;
    shown.replaceChildren(
      ...coloured("json", safe.slice(0, MOST_SHOWN)),
      safe.length > MOST_SHOWN ? "\n…" : "",
    );
  };
  draw(true);
  return [h("div", { class: "row small" }, ...actionsOf(reply, text, draw)), shown];
}

function actionsOf(reply, text, draw) {
  const actions = [
    h("button", { type: "button", onclick: (event) => copy(text, event.currentTarget) }, "Copy answer"),
    h(
      "button",
      { type: "button", onclick: () => download(reply.bytes, "answer.json", "application/json") },
      `Save answer (${sizeOf(reply.bytes.length)})`,
    ),
  ];
  if (Object.keys(tokensIn(reply)).length) {
    const toggle = h("button", { type: "button", "aria-pressed": "false" }, "Show tokens");
    toggle.addEventListener("click", () => {
      const pressed = toggle.getAttribute("aria-pressed") !== "true";
      toggle.setAttribute("aria-pressed", String(pressed));
      draw(!pressed);
    });
    actions.push(toggle);
  }
  if (text.length > MOST_SHOWN)
    actions.push(h("span", { class: "fine" }, "Only the beginning is shown; Save has all of it."));
  return actions;
}

// -------------------------------------------------------------------------------------- tokens in hand

let hand = []; // [{name, value, of, taken}]

function take(asked, body, reply, told) {
  if (asked.path === "/credit/relay/remove" && told.kind === "done")
    hand = hand.filter(({ value }) => value !== body.relay_token);
  for (const [name, value] of Object.entries(tokensIn(reply))) {
    const of = body.secondary_client_id ? `for ${body.secondary_client_id}` : "";
    if (!hand.some((each) => each.value === value)) hand.unshift({ name, value, of, taken: false });
  }
  showHand();
}

function showHand() {
  byId("hand").hidden = !hand.length;
  byId("hand-here").replaceChildren(...hand.map(handLine));
}

function handLine(each) {
  const { env, next } = TOKENS[each.name];
  const served = next.map(operationOf).filter((one) => state.served.includes(one));
  const copying = h("button", { type: "button", "aria-label": `Copy ${each.name} ${each.of}` }, "Copy");
  copying.addEventListener("click", async () => {
    each.taken = (await copy(each.value, copying)) || each.taken;
  });
  const using = served.map((one) =>
    h(
      "button",
      {
        type: "button",
        onclick: () => {
          state.secrets[env] = each.value;
          go(one.path);
          byId("title").scrollIntoView({ block: "nearest" });
          byId("send").focus();
        },
      },
      one.title,
    ),
  );
  return h(
    "li",
    {},
    h("span", { class: "code" }, `${each.name} ${each.of}`),
    h("span", { class: "row small" }, copying, ...using),
  );
}
