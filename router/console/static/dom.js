// Elements, and rows that stay the same element while what they show changes: so focus, selection and
// screen readers are not disturbed once a second.

const SVG = "http://www.w3.org/2000/svg";

/** h("p", {class: "quiet", onclick: f}, "text", node, ...) */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function byId(id) {
  return document.getElementById(id);
}

export function bodyOf(section) {
  return document.querySelector(`#${section} > .body`);
}

/** Sets the text where it is another one. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function attribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** One child of `parent` for each item, in their order. `make(item)` gives a new child,
 *  `update(child, item)` is called for each. Children that stay are never taken out of the page. */
export function keyed(parent, items, keyOf, make, update) {
  parent.known ??= new Map();
  const wanted = new Set(items.map(keyOf));
  for (const [key, child] of parent.known) {
    if (!wanted.has(key)) {
      child.remove();
      parent.known.delete(key);
    }
  }
  let before = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = parent.known.get(key);
    if (child === undefined) {
      child = make(item);
      parent.known.set(key, child);
      parent.insertBefore(child, before);
    } else if (child === before) before = before.nextElementSibling;
    else parent.insertBefore(child, before);
    update(child, item);
  }
}

/** Read out by screen readers when they are done with what they say. */
export function announce(text) {
  say(byId("said"), text);
}
