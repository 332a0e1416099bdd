// One request: where its time went, what was predicted, and the ways it did not take.

import { attribute, byId, h, say } from "./dom.js";
import { ask } from "./ask.js";
import { kindOf, way } from "./requests.js";
import { Table, put, state } from "./table.js";
import { age, count, plural, seconds } from "./units.js";

export class Detail {
  constructor() {
    this.dialog = byId("detail");
    this.title = h("h2", { id: "detail-title", tabindex: "-1" });
    this.body = h("div", { class: "body" });
    const close = h("button", { type: "button", class: "close" }, "Close");
    close.addEventListener("click", () => this.dialog.close());
    this.dialog.append(h("div", { class: "bar" }, this.title, close), this.body);
    this.dialog.addEventListener("close", () => {
      if (location.hash.startsWith("#request/")) history.replaceState(null, "", location.pathname + location.search);
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // outside of it
    });
  }

  async open(id) {
    this.id = id;
    say(this.title, id);
    this.body.replaceChildren(h("p", { class: "quiet" }, "Asking the router."));
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.scrollTop = 0;
    let found;
    try {
      const answer = await ask(`api/request/${encodeURIComponent(id)}`);
      found = answer.requests.map(told);
    } catch (error) {
      found = [h("p", { class: "warn" }, error.message)];
    }
    if (this.id === id) this.body.replaceChildren(...found); // else another was opened meanwhile
  }
}

function told(one) {
  const parts = [summary(one.summary)];
  if (one.ttft) parts.push(waterfall("Time to first token", one.ttft));
  if (one.first_gap) parts.push(waterfall("First token to second", one.first_gap));
  if (one.compared.length) parts.push(compared(one.compared));
  parts.push(...one.choices.map(choice));
  parts.push(story(one));
  return h("article", { "data-request": one.summary.id }, ...parts);
}

function summary(one) {
  const outcome = h("p", { class: "outcome" });
  state(outcome, one.outcome || "under way", kindOf(one));
  const facts = [
    `class ${one.slo_class || "none"}`,
    one.tenant && `tenant ${one.tenant}`,
    `${count(one.prompt_tokens)} tokens in, ${count(one.output_tokens)} out`,
    `${seconds(one.total_s)} in all, ${age(one.age_s)} ago`,
    `on ${way(one)}`,
  ];
  const names = [...one.also, one.worker_id].filter((name) => name && name !== one.id);
  return h(
    "section",
    { class: "summary" },
    outcome,
    one.error ? h("p", { class: "warn" }, one.error) : null,
    h("p", {}, facts.filter(Boolean).join("; ")),
    names.length ? h("p", { class: "quiet id" }, `also ${names.join(", ")}`) : null,
  );
}

/** Rows of one time axis: each part begins where the one before it ended. */
function waterfall(title, poured) {
  let before = 0;
  const rows = poured.parts.map((part) => {
    const bar = h("span", { class: "part" });
    bar.style.left = `${(100 * before) / (poured.total_s || 1)}%`;
    bar.style.width = `${(100 * part.seconds) / (poured.total_s || 1)}%`;
    if (part.seconds === 0) bar.hidden = true;
    before += part.seconds;
    return h(
      "li",
      { "data-part": part.name },
      h("span", { class: "name" }, part.name),
      h("span", { class: "num" }, seconds(part.seconds)),
      h("span", { class: "track", "aria-hidden": "true" }, bar),
    );
  });
  return h("section", { class: "waterfall" }, h("h3", {}, `${title} `, h("small", {}, seconds(poured.total_s))), h("ol", {}, ...rows));
}

function compared(rows) {
  const table = new Table("Predicted and actual", [
    ["what", "what", "wide"],
    ["predicted", "predicted", "num"],
    ["actual", "actual", "num"],
  ]);
  const shown = (row, key) => (row.unit === "s" ? seconds(row[key]) : `${count(row[key])} ${row.unit}`);
  table.update(rows, (row) => row.name, (cells, row) => {
    put(cells, { what: row.name, predicted: shown(row, "predicted"), actual: shown(row, "actual") });
  });
  return h("section", {}, h("h3", {}, "Predicted and actual"), table.element);
}

function choice(one) {
  const what = one.moving ? "move" : one.phase;
  const where = one.replica ? `on ${one.replica}` : "nobody can take it";
  const parts = [h("h3", {}, `${what[0].toUpperCase()}${what.slice(1)} `, h("small", {}, `${where}, decided at ${seconds(one.at_s)}`))];
  if (one.timing) parts.push(h("p", {}, timing(one.timing)));
  if (one.candidates.length) parts.push(candidates(one));
  if (one.refused.length) parts.push(h("p", { class: "quiet" }, `Not considered: ${refused(one.refused)}`));
  return h("section", { class: "decision", "data-phase": one.phase }, ...parts);
}

function timing(told) {
  return (
    `Bound ${told.timing}: beside ${seconds(told.prefill_left_s)} of prefill ${seconds(told.gain_s)} of ` +
    `${seconds(told.transfer_s)} of transfer would hide; it wants ${count(told.wanted_tokens)} of ${count(Number(told.free_tokens))} free tokens.`
  );
}

function refused(all) {
  const why = new Map();
  for (const one of all) why.set(one.why, [...(why.get(one.why) ?? []), one.replica]);
  return [...why].map(([reason, names]) => `${names.join(", ")} (${reason.replaceAll("_", " ")})`).join("; ");
}

function candidates(one) {
  const fetches = one.phase === "decode";
  const weighed = one.candidates.some((each) => each.way);
  const table = new Table(`Candidates for ${one.phase}`, [
    ["replica", "candidate", "wide"],
    ["mark", ""],
    ["wait", "wait", "num"],
    ...(fetches ? [["transfer", "transfer", "num"]] : []),
    ["work", "work", "num"],
    ...(weighed ? [["gap", "gap", "num"], ["itl", "ITL", "num"], ["after", "after", "num"]] : []),
    ["cost", "cost", "num"],
    ["cached", "cached", "num"],
  ]);
  const places = one.candidates.map((each, place) => ({ ...each, place }));
  table.update(places, (each) => each.place, (cells, each, row) => {
    const mark = markOf(one, each.place);
    attribute(row, "data-mark", mark || null);
    put(cells, {
      replica: whither(each),
      mark,
      wait: seconds(each.wait_s),
      work: seconds(each.work_s),
      cost: seconds(each.cost_s),
      cached: `${count(each.cached_tokens)} tok`,
      ...(fetches ? { transfer: seconds(each.transfer_s) } : {}),
      ...(weighed ? { gap: seconds(each.way?.gap_s), itl: seconds(each.way?.itl_s), after: seconds(each.way?.after_s) } : {}),
    });
  });
  return table.element;
}

function markOf(one, place) {
  if (one.taken === place) return "chosen";
  return one.otherwise === place ? "the way not taken" : "";
}

function whither(each) {
  if (!each.way) return each.replica;
  return each.way.alone ? `${each.replica} alone` : `${each.replica} → ${each.way.decode || "?"}`;
}

function story(one) {
  const lines = one.story.map((line) =>
    h("li", {}, h("span", { class: "num" }, seconds(line.at_s)), h("span", {}, line.what)),
  );
  if (one.left_out) lines.push(h("li", {}, h("span", {}), h("span", {}, `${plural(one.left_out, "event")} more were not kept`)));
  return h("section", { class: "story" }, h("h3", {}, "What happened"), h("ol", {}, ...lines));
}
