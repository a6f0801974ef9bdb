// Puts values into elements that are there already, and only where they are others: nothing flickers, and focus and scroll
// stay. What comes from outside comes in as text.
import { ago, UNKNOWN } from "./units.js";

export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
  return element;
}

export function set(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// The one child of this kind that an element has
export function only(parent, tag) {
  const child = parent.firstElementChild;
  if (child?.localName === tag && parent.childNodes.length === 1) return child;
  const made = document.createElement(tag);
  parent.replaceChildren(made);
  return made;
}

export function many(parent, tag, number) {
  while (parent.children.length > number) parent.lastElementChild.remove();
  while (parent.children.length < number) parent.append(document.createElement(tag));
  return [...parent.children];
}

export function putData(element, value, format) {
  if (value === null || value === undefined) return put(element, UNKNOWN);
  const data = only(element, "data");
  set(data, "value", String(value));
  set(data, "title", String(value));
  return put(data, format(value));
}

export function putTime(element, at, format = ago) {
  if (!at) return put(element, UNKNOWN);
  const time = only(element, "time");
  set(time, "datetime", at);
  set(time, "title", new Date(at).toString());
  return put(time, format(at));
}

// A table's columns: how each puts its field of an item into a cell
export const toTheRight = (write) => Object.assign(write, { number: true });
export const text = (field) => (cell, item) => put(cell, item[field] ?? UNKNOWN);
export const code = (field) => (cell, item) => put(only(cell, "code"), item[field] ?? UNKNOWN);
export const time = (field) => (cell, item) => putTime(cell, item[field]);
export const data = (field, format) => toTheRight((cell, item) => putData(cell, item[field], format));

export function fill(table, items, columns) {
  const headings = [...table.tHead.rows[0].cells].map((heading) => heading.textContent);
  many(table.tBodies[0], "tr", items.length).forEach((row, place) => {
    columns.forEach((column, index) => {
      const cell = row.children[index] ?? row.appendChild(document.createElement(index ? "td" : "th"));
      if (!index) cell.scope = "row";
      cell.dataset.heading = headings[index];
      cell.classList.toggle("number", Boolean(column.number));
      column(cell, items[place]);
    });
  });
  table.hidden = items.length === 0;
  if (table.nextElementSibling?.className === "empty") table.nextElementSibling.hidden = items.length > 0;
}

export function define(list, facts) {
  many(list, "div", facts.length).forEach((entry, place) => {
    const [name, write] = facts[place];
    put(entry.children[0] ?? entry.appendChild(document.createElement("dt")), name);
    write(entry.children[1] ?? entry.appendChild(document.createElement("dd")));
  });
}
