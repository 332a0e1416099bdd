// The newest requests. Each opens what the router knows of it.

import { attribute, bodyOf, h, say } from "./dom.js";
import { scroll } from "./flow.js";
import { Table, put, state } from "./table.js";
import { age, count, seconds } from "./units.js";

const COLUMNS = [
  ["id", "request", "wide"],
  ["outcome", "outcome"],
  ["slo", "class"],
  ["tokens", "tokens in, out", "num"],
  ["ttft", "TTFT", "num"],
  ["gap", "first gap", "num"],
  ["total", "in all", "num"],
  ["way", "way"],
  ["age", "age", "num"],
];
const SHOWN = {
  all: () => true,
  running: (one) => !one.outcome,
  failed: (one) => one.outcome && one.outcome !== "ok",
};

export class Requests {
  /** `open(id)`: shows one of them. */
  constructor(open) {
    this.filter = "all";
    this.answer = { requests: [] };
    this.table = new Table("Newest requests", COLUMNS);
    this.empty = h("p", { class: "quiet" });
    bodyOf("requests").append(this.tools(open), scroll("Newest requests", this.table.element, this.empty));
  }

  tools(open) {
    const filters = [["all", "All"], ["running", "Under way"], ["failed", "Failed"]].map(([value, text]) => {
      const input = h("input", { type: "radio", name: "filter", value, checked: value === "all" });
      input.addEventListener("change", () => {
        this.filter = value;
        this.update(this.answer);
      });
      return h("label", {}, input, h("span", {}, text));
    });
    const find = h("input", { type: "search", "aria-label": "Id of a request", placeholder: "x-request-id or id of an answer", size: "1" });
    const form = h("form", { class: "find", role: "search" }, find, h("button", {}, "Open"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (find.value.trim()) open(find.value.trim());
    });
    return h("div", { class: "tools" }, h("fieldset", { class: "choice" }, h("legend", { class: "unseen" }, "Show"), ...filters), form);
  }

  update(answer) {
    this.answer = answer;
    const shown = answer.requests.filter(SHOWN[this.filter]);
    this.empty.hidden = shown.length > 0;
    say(this.empty, answer.requests.length ? "None of these." : "No request has come yet. The chat below sends one.");
    this.table.element.hidden = shown.length === 0;
    this.table.update(shown, (one) => one.worker_id || one.id, fill);
  }
}

function fill(cells, one, row) {
  const id = one.id || one.worker_id;
  if (!cells.id.link) {
    cells.id.link = h("a", { class: "id", href: `#request/${encodeURIComponent(one.worker_id || id)}`, title: id }, id);
    cells.id.append(cells.id.link);
  }
  attribute(row, "data-request", id);
  state(cells.outcome, one.outcome || "under way", kindOf(one));
  attribute(cells.outcome, "title", one.error || null);
  put(cells, {
    slo: one.slo_class || "–",
    tokens: `${count(one.prompt_tokens)}, ${count(one.output_tokens)}`,
    ttft: seconds(one.ttft_s),
    gap: seconds(one.first_gap_s),
    total: seconds(one.total_s),
    way: way(one),
    age: age(one.age_s),
  });
}

export function kindOf(one) {
  if (!one.outcome) return "busy";
  return one.outcome === "ok" ? "good" : one.outcome === "cancelled" ? "waiting" : "bad";
}

export function way(one) {
  if (!one.prefill) return "–";
  return !one.decode || one.prefill === one.decode ? one.prefill : `${one.prefill} → ${one.decode}`;
}
