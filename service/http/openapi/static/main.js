// Loads the document and lists its operations; the contents of each are made when it is opened.

import { byId, element } from "../playground/dom.js";
import * as key from "../playground/key.js";
import { operation } from "./operation.js";
import { text, use } from "./schema.js";

const METHODS = ["get", "post", "head", "options"];
const listed = []; // an operation's elements, and the words that find it

// A path whose lines may break before each slash.
const parts = (path) => path.split(/(?=\/)/).flatMap((part) => [element("wbr"), part]);

function add(method, path, described, group) {
  const verb = method.toUpperCase();
  const id = described.operationId;
  const details = element("details", { class: "operation", id },
    element("summary", {},
      element("span", { class: `method ${method}` }, verb), element("code", {}, ...parts(path)),
      element("span", { class: "quiet" }, described.summary)));
  details.addEventListener("toggle", () => details.append(operation(verb, path, described)), { once: true });
  const link = element("li", {}, element("a", { href: `#${id}` }, element("span", { class: "method" }, verb), ...parts(path)));
  group.section.append(details);
  group.list.append(link);
  const words = [verb, path, id, described.summary, described.description, ...Object.keys(described.responses)];
  listed.push({ details, link, group, words: words.join(" ").toLowerCase(), isMinor: method === "head" || method === "options" });
}

function group(name) {
  const made = {
    section: element("div", { class: "operations" }, element("h2", {}, name)),
    list: element("ul", {}),
  };
  made.links = element("div", {}, element("h2", {}, name), made.list);
  byId("operations").append(made.section);
  byId("index").append(made.links);
  return made;
}

function filter() {
  const words = byId("filter").value.toLowerCase().split(" ");
  const groups = new Map();
  for (const each of listed) {
    const isShown = (byId("minor").checked || !each.isMinor) && words.every((word) => each.words.includes(word));
    each.details.hidden = each.link.hidden = !isShown;
    groups.set(each.group, groups.get(each.group) || isShown);
  }
  for (const [each, isShown] of groups) each.section.hidden = each.links.hidden = !isShown;
  byId("none").hidden = [...groups.values()].some(Boolean);
}

// Open the operation that the address names.
function follow() {
  const details = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!details?.matches(".operation")) return;
  if (details.hidden) {
    byId("filter").value = "";
    byId("minor").checked = true;
    filter();
  }
  details.open = true;
  details.scrollIntoView();
  details.querySelector("summary").focus({ preventScroll: true });
}

async function start() {
  const response = await fetch("openapi.json");
  const api = await response.json();
  use(api);
  byId("title").textContent = `${api.info.title} ${api.info.version}`;
  byId("about").replaceChildren(...text(api.info.description));
  const groups = new Map(api.tags.map(({ name }) => [name, group(name)]));
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((each) => item[each])) {
      add(method, path, item[method], groups.get(item[method].tags[0]));
    }
  }
  filter();
  byId("filter").addEventListener("input", filter);
  byId("minor").addEventListener("change", filter);
  addEventListener("hashchange", follow);
  follow();
  document.documentElement.dataset.ready = "";
}

key.mount(() => dispatchEvent(new Event("key")));
start().catch(() => {
  byId("about").replaceChildren(element("p", { class: "status failed" }, "The document cannot be loaded; reload the page to try again."));
});
