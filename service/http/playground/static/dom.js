// Builds elements without innerHTML, which the page's policy forbids.

export const byId = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== undefined));
  return node;
}

export const percent = (p, places = 1) => {
  if (p > 0.9999) return "> 99.99 %";
  const text = (100 * p).toFixed(p > 0.99 ? 2 : places);
  return p > 0 && Number(text) === 0 ? `< ${(10 ** -places).toFixed(places)} %` : `${text} %`;
};
