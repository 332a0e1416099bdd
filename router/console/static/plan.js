// What the planner wants, why, and what it did not choose.

import { attribute, bodyOf, h, keyed, say } from "./dom.js";
import { Table, put } from "./table.js";
import { age, clock, count, percent, plural, rate } from "./units.js";

const MODES = { off: "off", advise: "advises; nobody acts on it", apply: "its sizes are applied" };
const STALE = 4; // intervals without a plan, after which it is called old

export class Plan {
  constructor() {
    this.empty = h("p", { class: "quiet" });
    this.head = h("p", {});
    this.pools = new Table("Sizes", [
      ["pool", "pool", "wide"],
      ["up", "up", "num"],
      ["wanted", "wanted", "num"],
      ["note", ""],
    ]);
    this.expects = h("p", { class: "quiet" });
    this.reasons = h("ul", { class: "reasons" });
    this.rejected = h("ul", { class: "reasons" });
    this.others = h("summary", {}, "Not chosen");
    this.details = h("details", {}, this.others, this.rejected);
    this.told = h("div", {}, this.head, this.pools.element, h("h3", {}, "Why"), this.reasons, this.expects, this.details);
    this.told.hidden = true;
    bodyOf("plan").append(this.empty, this.told);
    this.now = Date.now() / 1000;
  }

  /** The router's clock, which the plan's stands beside. */
  at(overview) {
    this.now = overview.at;
    this.known = overview.pools;
  }

  update(answer) {
    const published = answer.plan;
    this.empty.hidden = published !== null;
    this.told.hidden = published === null;
    if (published === null) {
      say(this.empty, answer.error || "No plan yet. With planner.mode advise or apply in cluster.yaml a planner publishes one every few seconds.");
      return;
    }
    const plan = published.plan ?? {};
    this.headline(published, plan);
    this.sizes(published, plan, answer.by_hand ?? {});
    list(this.reasons, plan.reasons ?? []);
    say(this.expects, expects(plan));
    const rejected = (plan.rejected ?? []).map((each) => `${each.choice}: ${each.why}`);
    this.details.hidden = rejected.length === 0;
    say(this.others, `Not chosen: ${plural(rejected.length, "other way")}`);
    list(this.rejected, rejected);
  }

  headline(published, plan) {
    const old = Math.max(0, this.now - published.at);
    const late = published.every_s > 0 && old > STALE * published.every_s;
    const parts = [`Mode ${published.mode}: ${MODES[published.mode] ?? ""}`];
    parts.push(`planned ${age(old)} ago, at ${clock(published.at)}`);
    if (plan.feasible === false) parts.push("its goal is out of reach with what it may have");
    if (late) parts.push("the planner has fallen silent");
    say(this.head, `${parts.join("; ")}.`);
    attribute(this.head, "class", late || plan.feasible === false ? "warn" : null);
  }

  sizes(published, plan, byHand) {
    const names = Object.keys(published.pools).sort();
    this.pools.update(names, (name) => name, (cells, name) => {
      const seen = published.seen?.[name];
      const here = this.known?.find((pool) => pool.name === name);
      const does = (plan.pools ?? []).find((pool) => pool.name === name);
      const notes = [];
      if (seen?.starting?.length) notes.push(`${seen.starting.length} starting`);
      if (seen?.draining) notes.push(`${seen.draining} draining`);
      if (does?.start) notes.push(`start ${does.start}`);
      if (does?.stop) notes.push(`stop ${does.stop}`);
      if (does?.flip) notes.push(does.flip > 0 ? `${does.flip} to prefill` : `${-does.flip} to decode`);
      if (published.as_prefill?.[name]) notes.push(`${published.as_prefill[name]} as prefill`);
      if (byHand[name]) notes.push(`asked for by hand: ${byHand[name].replicas}`);
      put(cells, {
        pool: name,
        up: String(here?.up ?? seen?.up ?? 0),
        wanted: String(published.pools[name]),
        note: notes.join(", "),
      });
    });
  }
}

function expects(plan) {
  const parts = [];
  if (plan.inputs) {
    parts.push(`offered now ${rate(plan.inputs.offered)}, ${count(plan.inputs.queued)} queued`);
    for (const [role, input] of Object.entries(plan.inputs.roles ?? {})) {
      parts.push(`${role}: ${rate(input.rate)} foreseen, ${input.way}`);
    }
  }
  if (plan.prediction) {
    const said = plan.prediction;
    parts.push(`expects ${percent(said.attainment)} within targets of a goal of ${percent(plan.goal)}`);
    parts.push(`prefill ${percent(said.prefill_busy)} busy, decode ${percent(said.decode_busy)}`);
  }
  return parts.length ? `${parts.join("; ")}.` : "";
}

function list(element, lines) {
  keyed(element, lines.map((text, place) => ({ text, place })), (each) => each.place, () => h("li", {}), (li, each) => say(li, each.text));
}
