// Creates elements. Text stays text: no code of this page parses data as HTML.

/** Create an element with attributes; an attribute whose name begins with `on` is an event listener. */
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
 * Show the problem with a field on the line below it, or hide that line.
 * @param problem words that follow the name, or null
 * @returns the problem
 */
export function showProblem(field, name, problem) {
  const line = byId(`${field.id}-error`);
  field.setAttribute("aria-invalid", String(Boolean(problem)));
  line.hidden = !problem;
  line.textContent = problem ? `${name} ${problem}` : "";
  return problem;
}

/** Copy a text to the clipboard, and show the result on the button for 1.5 seconds. */
export async function copy(text, button) {
  const label = (button.dataset.label ??= button.textContent);
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copying failed";
  }
  announce(button.textContent);
  setTimeout(() => (button.textContent = label), 1500);
  return button.textContent === "Copied";
}

/** Have a screen reader read a text once. */
export function announce(text) {
  const region = byId("announcement");
  // A screen reader does not read an unchanged text again.
  region.textContent = region.textContent === text ? `${text}\u00a0` : text;
}

/** Offer content to be saved as a file. */
export function download(content, name, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Ask for confirmation in a dialog, and return whether it was given. */
export function confirm(title, text, action) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { "aria-labelledby": "dialog-title", "aria-describedby": "dialog-text" },
      h("h2", { id: "dialog-title" }, title),
      h("p", { id: "dialog-text" }, text),
      h(
        "form",
        { method: "dialog", class: "row" },
        h("button", { value: "cancel", class: "primary", autofocus: true }, "Cancel"),
        h("button", { value: "confirm", class: "danger" }, action),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "confirm");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Create a field for a secret, which is masked until its button is pressed. */
export function secretField(attributes, label, lines = 0) {
  // This is not a password field, because a browser would offer to store its content.
  const plain = { autocomplete: "off", spellcheck: "false", autocapitalize: "off", autocorrect: "off" };
  const field = lines
    ? h("textarea", { ...plain, rows: lines, class: "masked", ...attributes })
    : h("input", { ...plain, type: "text", class: "masked", ...attributes });
  const button = h(
    "button",
    { type: "button", class: "quiet", "aria-pressed": "false", "aria-label": `Show ${label}` },
    "Show",
  );
  button.addEventListener("click", () => {
    const masked = field.classList.toggle("masked");
    button.setAttribute("aria-pressed", String(!masked));
    button.textContent = masked ? "Show" : "Hide";
  });
  return { field, container: h("div", { class: "beside" }, field, button) };
}
