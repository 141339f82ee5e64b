// Makes elements. Text is text: nothing here, or anywhere on this page, reads data as HTML.

/** Make an element with attributes; one that begins with `on` is a listener. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/**
 * Show what is wrong with a field on the line below it, or that nothing is.
 * @param problem words that follow the name, or null
 * @returns the problem
 */
export function showProblem(field, name, problem) {
  const line = byId(`${field.id}-wrong`);
  field.setAttribute("aria-invalid", String(Boolean(problem)));
  line.hidden = !problem;
  line.textContent = problem ? `${name} ${problem}` : "";
  return problem;
}

/** Copy a text, and say so on the button for a moment. */
export async function copy(text, button) {
  const before = (button.dataset.label ??= button.textContent);
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Couldn’t copy";
  }
  say(button.textContent);
  setTimeout(() => (button.textContent = before), 1500);
  return button.textContent === "Copied";
}

/** Tell a screen reader, once. */
export function say(text) {
  const region = byId("said");
  // The same words again would not be read.
  region.textContent = region.textContent === text ? `${text}\u00a0` : text;
}

/** Give something to be saved as a file. */
export function download(content, name, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Ask a question in a dialog; give whether the answer was to go on. */
export function ask(title, text, go) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { "aria-labelledby": "ask-title", "aria-describedby": "ask-text" },
      h("h2", { id: "ask-title" }, title),
      h("p", { id: "ask-text" }, text),
      h(
        "form",
        { method: "dialog", class: "row" },
        h("button", { value: "no", class: "primary", autofocus: true }, "Don’t"),
        h("button", { value: "go", class: "danger" }, go),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "go");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A field for a secret, hidden until somebody asks to see it. */
export function secretField(attributes, label, lines = 0) {
  // No password field: a browser would offer to keep its content.
  const quiet = { autocomplete: "off", spellcheck: "false", autocapitalize: "off", autocorrect: "off" };
  const field = lines
    ? h("textarea", { ...quiet, rows: lines, class: "masked", ...attributes })
    : h("input", { ...quiet, type: "text", class: "masked", ...attributes });
  const button = h(
    "button",
    { type: "button", class: "quiet", "aria-pressed": "false", "aria-label": `Show ${label}` },
    "Show",
  );
  button.addEventListener("click", () => {
    const hidden = field.classList.toggle("masked");
    button.setAttribute("aria-pressed", String(!hidden));
    button.textContent = hidden ? "Show" : "Hide";
  });
  return { field, whole: h("div", { class: "beside" }, field, button) };
}
