// Elements, and how a part of the page becomes another one.
//
// What is shown is made anew from what is known, and then merged into what stands there: so nothing
// loses its focus, its place or its selection because something else changed. Texts become text
// nodes and nothing else; whatever a client sends is a text.

/** An element. Attributes that are null, undefined or false are left out; so are such children. */
export function h(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for a drawing. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? '' : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child);
  }
  return node;
}

/** Show these nodes in a container, in place of what it has; what is the same stays as it is. */
export function show(container, ...nodes) {
  const wanted = document.createElement(container.nodeName);
  filled(wanted, {}, nodes);
  mergeChildren(container, wanted);
}

function merge(node, wanted) {
  if (node.nodeType === Node.TEXT_NODE) {
    if (node.data !== wanted.data) node.data = wanted.data;
    return;
  }
  const revision = node.dataset?.revision;
  for (const { name } of [...node.attributes]) {
    // Whether it is open is the reader's business.
    if (!wanted.hasAttribute(name) && name !== 'open') node.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (node.getAttribute(name) !== value && name !== 'open') node.setAttribute(name, value);
  }
  if (revision !== undefined && revision !== node.dataset.revision) node.classList.add('fresh');
  mergeChildren(node, wanted);
}

function mergeChildren(node, wanted) {
  const keyed = new Map();
  for (const child of node.children) {
    if (child.dataset.key !== undefined) keyed.set(child.dataset.key, child);
  }
  let place = node.firstChild;
  for (const next of [...wanted.childNodes]) {
    const key = next.dataset?.key;
    let found = null;
    if (key !== undefined) {
      found = keyed.get(key);
      keyed.delete(key);
    } else {
      // What has a key stays for who has the same; what is passed over here is removed at the end.
      if (place && place.nodeName === next.nodeName && place.dataset?.key === undefined) {
        found = place;
      }
    }
    if (!found || found.nodeName !== next.nodeName) {
      node.insertBefore(next, place);
      continue;
    }
    if (found === place) {
      place = place.nextSibling;
    } else {
      // Gone ones before it are taken out first, so that what stays need not be moved.
      while (place && place !== found && isGone(place, keyed, wanted)) {
        const gone = place;
        place = place.nextSibling;
        gone.remove();
      }
      if (place === found) place = place.nextSibling;
      else node.insertBefore(found, place);
    }
    merge(found, next);
  }
  while (place) {
    const gone = place;
    place = place.nextSibling;
    gone.remove();
  }
}

function isGone(node, keyed, wanted) {
  const key = node.dataset?.key;
  if (key === undefined) return false;
  return ![...wanted.children].some((each) => each.dataset.key === key);
}

/** Where a client's URL leads, if it may be followed at all: only to the web. */
export function safeUrl(text) {
  try {
    const url = new URL(text);
    return url.protocol === 'http:' || url.protocol === 'https:' ? url.href : null;
  } catch {
    return null;
  }
}

/** A link to what a client named, or its text alone where it leads nowhere. */
export function outside(text, label = text) {
  const url = safeUrl(text);
  if (!url) return h('span', { class: 'dim' }, text);
  return h('a', { href: url, rel: 'noopener noreferrer', target: '_blank', title: text }, label);
}

/** A long name, which may be broken after the marks in it. */
export function breakable(text) {
  return text.split(/(?<=[:.@/])/).flatMap((part, at) => (at ? [h('wbr'), part] : [part]));
}

/** A table that stays one to a screen reader where it is shown as cards. */
export function table(caption, columns, rows) {
  return h('table', { role: 'table', class: `of-${caption.toLowerCase()}` },
    h('caption', {}, caption),
    h('colgroup', {}, columns.map(() => h('col'))),
    h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' },
      columns.map((name) => h('th', { role: 'columnheader', scope: 'col' }, name)))),
    h('tbody', { role: 'rowgroup' }, rows.map(({ key, cells, ...attributes }) =>
      h('tr', { role: 'row', 'data-key': key, ...attributes }, cells.map((cell, at) =>
        h('td', { role: 'cell', 'data-label': columns[at] },
          h('div', {}, cell)))))));
}
