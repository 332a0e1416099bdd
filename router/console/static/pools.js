// Each pool, each replica: what it does, how full it is. One that dies shows as down, then as gone.

import { announce, attribute, bodyOf, h, keyed, say } from "./dom.js";
import { Table, put, state } from "./table.js";
import { count, percent, plural } from "./units.js";

const GONE_S = 15; // a row stays for so long after its replica
const COLUMNS = [
  ["name", "replica", "wide"],
  ["state", "state"],
  ["running", "running", "num"],
  ["waiting", "waiting", "num"],
  ["kv", "KV used, cached", "meter-cell"],
  ["tickets", "tickets", "num"],
  ["hits", "prefix hits", "num"],
  ["off", "predictions off", "num"],
];
const KINDS = { up: "good", draining: "busy", connecting: "waiting", down: "bad", gone: "bad" };

export class Pools {
  constructor() {
    this.empty = h("p", { class: "quiet" }, "No replica is registered. A worker registers when it has loaded its model.");
    this.list = h("div", {});
    bodyOf("pools").append(this.empty, this.list);
    this.known = new Map(); // replica -> {pool, told, state, at}
  }

  update(overview) {
    const pools = this.withGone(overview);
    keyed(this.list, pools, (pool) => pool.name, makePool, updatePool);
    this.empty.hidden = pools.length > 0;
  }

  /** Replicas that have left since, for GONE_S, in their pools. */
  withGone(overview) {
    const pools = overview.pools.map((pool) => ({ ...pool, replicas: [...pool.replicas] }));
    const here = new Set();
    for (const pool of pools) {
      for (const told of pool.replicas) {
        here.add(told.id);
        this.note(pool, told, overview.at);
      }
    }
    for (const [name, last] of this.known) {
      if (here.has(name)) continue;
      if (last.state !== "gone") announce(`${name} is gone`);
      if (last.state !== "gone") Object.assign(last, { state: "gone", at: overview.at });
      if (overview.at - last.at > GONE_S) this.known.delete(name);
      else addTo(pools, last);
    }
    return pools;
  }

  note(pool, told, at) {
    const last = this.known.get(told.id);
    if (last && last.state !== told.state) announce(`${told.id} is ${told.state}`);
    this.known.set(told.id, { pool, told, state: told.state, at });
  }
}

function addTo(pools, last) {
  let pool = pools.find((each) => each.name === last.pool.name);
  if (!pool) pools.push((pool = { ...last.pool, up: 0, replicas: [] }));
  pool.replicas.push({ ...last.told, state: "gone" });
}

function makePool(pool) {
  const table = new Table(`Replicas of ${pool.name}`, COLUMNS);
  const title = h("h3", {}, h("span", {}), h("small", {}));
  const box = h("div", { class: "pool", "data-pool": pool.name }, title, table.element);
  return Object.assign(box, { table, name_: title.firstChild, note: title.lastChild });
}

function updatePool(box, pool) {
  say(box.name_, pool.name);
  const roles = pool.roles.join(" and ");
  const role = roles === pool.name ? "" : `${roles}, `;
  say(box.note, ` ${role}${pool.up} of ${plural(pool.replicas.length, "replica")} up`);
  box.table.update(pool.replicas, (told) => told.id, (cells, told, row) => fill(cells, told, row, pool));
}

function fill(cells, told, row, pool) {
  attribute(row, "data-replica", told.id);
  attribute(row, "data-state", told.state);
  if (!cells.name.title_) {
    cells.name.title_ = h("strong", {});
    cells.name.more = h("span", { class: "quiet" });
    cells.name.append(cells.name.title_, " ", cells.name.more);
  }
  say(cells.name.title_, told.id);
  say(cells.name.more, details(told, pool));
  state(cells.state, told.state, KINDS[told.state]);
  const there = told.blocks_total > 0 && told.state !== "gone";
  meter(cells.kv, told, there);
  put(cells, {
    running: there ? `${told.running} / ${told.seqs_limit || told.max_seqs || "–"}` : "–",
    waiting: there ? waiting(told) : "–",
    tickets: there ? count(told.tickets_open) : "–",
    hits: there ? percent(told.hit_tokens, told.query_tokens) : "–",
    off: off(told),
  });
}

/** What tells replicas of a pool apart, or from what one expects. */
function details(told, pool) {
  const parts = [];
  if (pool.roles.length > 1) parts.push(told.role);
  if (told.hardware !== "cpu") parts.push(told.hardware);
  const ranks = Math.max(told.tensor_ranks, told.expert_ranks);
  if (ranks > 1) parts.push(`${ranks} ranks`);
  if (told.preemptions) parts.push(plural(told.preemptions, "preemption"));
  if (told.quarantined.length) parts.push(`no pair with ${told.quarantined.join(", ")}`);
  return parts.join(", ");
}

function waiting(told) {
  const tokens = told.waiting_tokens || told.given_tokens;
  return tokens ? `${told.waiting}, ${count(tokens)} tok` : String(told.waiting);
}

/** How far off predicted step times are, the worst kind. */
function off(told) {
  const known = told.predictions.filter((each) => each.count > 0);
  return known.length ? percent(Math.max(...known.map((each) => each.error))) : "–";
}

function meter(cell, told, there) {
  if (!cell.bar) {
    cell.used = h("span", { class: "used" });
    cell.cached = h("span", { class: "cached" });
    cell.bar = h(
      "span",
      { class: "meter", role: "meter", "aria-valuemin": "0", "aria-valuemax": "100" },
      cell.used,
      cell.cached,
    );
    cell.said = h("span", { class: "meter-text" });
    cell.append(cell.bar, cell.said);
  }
  const total = there ? told.blocks_total : 1;
  const used = there ? told.blocks_used : 0;
  const cached = there ? told.blocks_cached : 0;
  cell.used.style.width = `${(100 * used) / total}%`;
  cell.cached.style.width = `${(100 * cached) / total}%`;
  attribute(cell.bar, "aria-valuenow", Math.round((100 * used) / total));
  const tokens = `${count(used * told.block_size)} of ${count(total * told.block_size)} tokens used`;
  attribute(cell.bar, "aria-label", there ? `KV of ${told.id}: ${tokens}` : `KV of ${told.id}: not known`);
  attribute(cell.bar, "title", there ? tokens : null);
  say(cell.said, there ? `${percent(used, total)}, ${percent(cached, total)}` : "–");
}
