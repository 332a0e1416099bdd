// Who hands KV to whom: a picture with lines as thick as their traffic, the pairs, the open tickets.

import { attribute, bodyOf, h, keyed, say, svg } from "./dom.js";
import { Table, put } from "./table.js";
import { age, bytes, count, percent, plural, rate, seconds } from "./units.js";

const WINDOW_S = 15; // for what is told as "now"
const DRAWN = 40; // lines that one can still tell apart
const ROW = 30;
const WIDTH = 460;
const EDGE = 130; // where names end and lines begin

const PAIRS = [
  ["way", "from, to", "wide"],
  ["over", "over"],
  ["now", "now", "num"],
  ["speed", "on the wire", "num"],
  ["hidden", "hidden", "num"],
  ["total", "since start", "num"],
];
const TICKETS = [
  ["request", "ticket of request", "wide"],
  ["holder", "held by"],
  ["state", "state"],
  ["blocks", "blocks", "num"],
  ["lease", "lease left", "num"],
];

export class Flow {
  constructor() {
    this.seen = []; // [at, pairs by name] of the last WINDOW_S
    this.picture = svg("svg", { class: "pairs", role: "img", preserveAspectRatio: "xMidYMin meet" });
    this.empty = h("p", { class: "quiet" }, "No KV has been handed over since this router started.");
    this.pairs = new Table("Pairs of replicas", PAIRS);
    this.open = h("p", {});
    this.tickets = new Table("Open tickets", TICKETS);
    const scrolled = scroll("Pairs of replicas", this.pairs.element);
    const tickets = scroll("Open tickets", this.tickets.element);
    tickets.classList.add("tickets");
    bodyOf("flow").append(this.picture, this.empty, scrolled, h("h3", {}, "Open tickets"), this.open, tickets);
  }

  update(overview) {
    const pairs = overview.pairs.map((pair) => ({ ...pair, name: `${pair.sender} → ${pair.receiver}` }));
    const rates = this.rates(overview.at, pairs);
    this.draw(pairs.slice(0, DRAWN), rates);
    this.empty.hidden = pairs.length > 0;
    this.pairs.element.hidden = pairs.length === 0;
    this.pairs.update(pairs, (pair) => pair.name, (cells, pair, row) => {
      attribute(row, "data-pair", pair.name);
      const now = rates.get(pair.name);
      put(cells, {
        way: pair.name,
        over: pair.transport,
        now: `${rate(now.handoffs)}, ${bytes(now.bytes, "/s")}`,
        speed: pair.seconds > 0 ? `${(pair.num_bytes / pair.seconds / 1e9).toPrecision(3)} GB/s` : "–",
        hidden: percent(Math.max(0, pair.seconds - pair.exposed_s), pair.seconds),
        total: `${count(pair.handoffs)}, ${bytes(pair.num_bytes)}`,
      });
    });
  }

  /** By pair: handoffs and bytes a second, over what was seen of late. */
  rates(at, pairs) {
    const now = new Map(pairs.map((pair) => [pair.name, pair]));
    if (this.seen.length && at < this.seen[this.seen.length - 1][0]) this.seen = [];
    this.seen.push([at, now]);
    while (at - this.seen[0][0] > WINDOW_S) this.seen.shift();
    const [from, old] = this.seen[0];
    const time = Math.max(1, at - from);
    return new Map(pairs.map((pair) => {
      const before = old.get(pair.name) ?? (this.seen.length > 1 ? { handoffs: 0, num_bytes: 0 } : pair);
      const grown = (key) => Math.max(0, pair[key] - before[key]) / time; // a restarted router counts anew
      return [pair.name, { handoffs: grown("handoffs"), bytes: grown("num_bytes") }];
    }));
  }

  draw(pairs, rates) {
    const left = [...new Set(pairs.map((pair) => pair.sender))].sort();
    const right = [...new Set(pairs.map((pair) => pair.receiver))].sort();
    const rows = Math.max(left.length, right.length);
    attribute(this.picture, "viewBox", `0 0 ${WIDTH} ${Math.max(1, rows) * ROW}`);
    this.picture.style.display = rows ? "" : "none";
    const y = (names, name) => (rows * ROW * (names.indexOf(name) + 0.5)) / names.length;
    const most = Math.max(1, ...[...rates.values()].map((each) => each.bytes));
    const shapes = [
      ...pairs.map((pair) => line(pair, y(left, pair.sender), y(right, pair.receiver), rates.get(pair.name), most)),
      ...left.map((name) => label(name, EDGE - 8, y(left, name), "end")),
      ...right.map((name) => label(name, WIDTH - EDGE + 8, y(right, name), "start")),
    ];
    keyed(this.picture, shapes, (shape) => shape.key, (shape) => svg(shape.tag), (element, shape) => {
      for (const [name, value] of Object.entries(shape.props)) attribute(element, name, value);
      if (shape.text) say(element, shape.text);
    });
    const told = pairs.map((pair) => `${pair.name}: ${count(pair.handoffs)}`).slice(0, 12).join("; ");
    attribute(this.picture, "aria-label", `Handoffs. ${told}`);
  }

  updateTickets(answer) {
    const held = answer.replicas.flatMap((one) =>
      (one.held?.tickets ?? []).map((ticket) => ({ ...ticket, holder: one.replica })),
    );
    const silent = answer.replicas.filter((one) => one.error).map((one) => one.replica);
    const note = silent.length ? `; ${silent.join(", ")} did not answer` : "";
    say(this.open, `${held.length ? plural(held.length, "ticket") : "No ticket"} open${note}`);
    this.tickets.element.hidden = held.length === 0;
    this.tickets.update(held, (ticket) => `${ticket.holder} ${ticket.id}`, (cells, ticket) => {
      put(cells, {
        request: ticket.request_id,
        holder: ticket.holder,
        state: ticket.state,
        blocks: count(ticket.num_blocks),
        lease: seconds(ticket.lease_left_s),
      });
      attribute(cells.state, "title", `${age(ticket.age_s)} old; ${ticket.story.join("; ")}`);
    });
  }
}

function line(pair, from, to, now, most) {
  const x = EDGE;
  const end = WIDTH - EDGE;
  const middle = WIDTH / 2;
  return {
    key: `line ${pair.name}`,
    tag: "path",
    props: {
      class: now.bytes > 0 ? "pair busy" : "pair",
      d: `M${x} ${from}C${middle} ${from} ${middle} ${to} ${end} ${to}`,
      "stroke-width": (1 + 7 * Math.sqrt(now.bytes / most)).toFixed(1),
    },
  };
}

function label(name, x, y, anchor) {
  const props = { x, y, "text-anchor": anchor, "dominant-baseline": "central" };
  return { key: `${anchor} ${name}`, tag: "text", props, text: name };
}

export function scroll(label, ...children) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${label}, scrollable` }, ...children);
}
