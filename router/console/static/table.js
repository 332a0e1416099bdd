// A table that becomes a list of cards on a phone. Roles are named, as other ways of display lose them.

import { attribute, h, keyed, say } from "./dom.js";

export class Table {
  /** `columns`: [key, heading, kind]; kind "num" is set right, "wide" takes a card's whole line. */
  constructor(label, columns) {
    this.columns = columns;
    this.body = h("tbody", { role: "rowgroup" });
    const heads = columns.map(([, heading, kind]) =>
      h("th", { role: "columnheader", scope: "col", class: kind }, heading),
    );
    this.element = h(
      "table",
      { role: "table", "aria-label": label },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...heads)),
      this.body,
    );
  }

  /** `fill(cells, item, row)`: cells by column; strings are set with put(). */
  update(items, keyOf, fill) {
    keyed(this.body, items, keyOf, () => this.row(), (row, item) => fill(row.cells_, item, row));
  }

  row() {
    const cells = {};
    const row = h("tr", { role: "row" });
    for (const [key, heading, kind] of this.columns) {
      cells[key] = h("td", { role: "cell", class: kind, "data-label": heading });
      row.append(cells[key]);
    }
    row.cells_ = cells;
    return row;
  }
}

/** Texts of several cells at once. */
export function put(cells, texts) {
  for (const [key, text] of Object.entries(texts)) say(cells[key], text);
}

/** A dot and a word: never the colour alone. */
export function state(element, word, kind) {
  if (!element.dot) {
    element.classList.add("state");
    element.dot = h("span", { class: "dot", "aria-hidden": "true" });
    element.word = h("span", { class: "word" });
    element.append(element.dot, element.word);
  }
  attribute(element, "data-state", kind);
  say(element.word, word);
}
