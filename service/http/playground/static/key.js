// The key, for servers that ask for one. This module alone has it: it is not stored, not in an
// address and not in the page, so a reload forgets it.

import { byId, element } from "./dom.js";

const VALID = /^[!-~]+$/; // what a header can carry
let key = "";

export const isUsed = () => key !== "";

// fetch, with the key. If the server refuses it, or asks for one, the page does.
export async function fetchWithKey(path, options = {}) {
  const used = key;
  const headers = used ? { ...options.headers, authorization: `Bearer ${used}` } : options.headers;
  const response = await fetch(path, { ...options, headers });
  if (used === key && response.status === 401) {
    show(used ? "The server does not accept this key." : "This server asks for a key.");
  }
  if (response.status === 401 || response.status === 403) byId("key-open").hidden = false;
  return response;
}

function show(why) {
  setShown(true);
  if (byId("key-why").textContent !== why) byId("key-why").textContent = why;
}

function hide() {
  setShown(false);
  byId("key-why").textContent = "";
}

function setShown(isShown) {
  byId("key-form").hidden = !isShown;
  byId("key-open").setAttribute("aria-expanded", String(isShown));
  byId("access").classList.toggle("shown", isShown);
  // An empty region would be one more stop for a screen reader.
  for (const [name, value] of [["role", "region"], ["aria-label", "Key"]]) {
    if (isShown) byId("access").setAttribute(name, value);
    else byId("access").removeAttribute(name);
  }
}

// Add the form; `changed` is called when there is another key, or none.
export function mount(changed) {
  const input = element("input", {
    id: "key", type: "text", autocomplete: "off", autocapitalize: "off", spellcheck: "false", "aria-describedby": "key-note",
  });
  const forget = element("button", { type: "button", id: "key-forget" }, "Forget it");
  const form = element("form", { id: "key-form", hidden: "" },
    element("label", { for: "key" }, "Key"), input,
    element("button", { class: "main" }, "Use it"), forget,
    element("p", { class: "quiet", id: "key-note" }, "This page keeps it until you reload or close it, and stores it nowhere."));
  byId("access").append(element("p", { id: "key-why", role: "alert" }), form);
  byId("key-open").hidden = true; // until the server asks for one
  const use = (value) => {
    key = value;
    input.value = "";
    forget.hidden = !key;
    byId("key-open").textContent = key ? "Key in use" : "Key";
    hide();
    byId("key-open").hidden = false;
    byId("key-open").focus();
    changed();
  };
  forget.hidden = true;
  forget.addEventListener("click", () => use(""));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const value = input.value.trim();
    if (VALID.test(value)) use(value);
    else show(value ? "A key has no spaces, and only letters, digits and signs of ASCII." : "Enter the key first.");
  });
  byId("key-open").addEventListener("click", () => {
    if (form.hidden) {
      show("");
      input.focus();
    } else hide();
  });
}
