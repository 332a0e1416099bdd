// The few numbers to look at first, each with its last three minutes.

import { byId, h, say } from "./dom.js";
import { drawSpark, spark } from "./spark.js";
import { bytes, count, percent, rate, seconds } from "./units.js";

const TILES = [
  ["requests", "Requests", (o) => rate(o.rates.requests_s), (o) => `${count(o.in_flight)} in flight`, "requests_s", rate],
  ["tokens", "Tokens", (o) => rate(o.rates.tokens_s), (o) => `${count(o.requests)} requests so far`, "tokens_s", rate],
  ["queue", "Queued", (o) => count(queued(o)), (o) => `${count(o.in_flight)} let in`, "queued", count],
  ["good", "Within targets", (o) => percent(...attained(o)), goodput, null, null],
  ["ttft", "TTFT, p95", (o) => seconds(worst(o, "ttft_p95_s")), (o) => `p50 ${seconds(worst(o, "ttft_p50_s"))}`, null, null],
  ["kv", "KV handed over", (o) => bytes(o.rates.bytes_s, "/s"), (o) => `${rate(o.rates.handoffs_s)} handoffs`, "bytes_s", (v) => bytes(v, "/s")],
];

export class Now {
  constructor() {
    this.tiles = TILES.map(([key, label, value, more, series, format]) => {
      const tile = { value, more, series, format, number: h("p", { class: "number" }), note: h("p", { class: "quiet" }) };
      tile.spark = series ? spark(label) : null;
      const box = h("div", { class: "tile", id: `now-${key}` }, h("h3", {}, label), tile.number, tile.note);
      if (tile.spark) box.append(tile.spark);
      byId("now").append(box);
      return tile;
    });
  }

  update(overview) {
    for (const tile of this.tiles) {
      say(tile.number, tile.value(overview));
      say(tile.note, tile.more(overview));
      if (tile.spark) drawSpark(tile.spark, overview.history[tile.series], overview.history.kept, 0, tile.format);
    }
  }
}

function queued(overview) {
  return overview.classes.reduce((sum, each) => sum + each.queued, 0);
}

/** Of all that ended in the last minute. */
function attained(overview) {
  const sum = (key) => overview.classes.reduce((total, each) => total + each.recent[key], 0);
  return [sum("good"), sum("ended")];
}

function goodput(overview) {
  const sum = overview.classes.reduce((total, each) => total + each.recent.goodput_s, 0);
  return `goodput ${rate(sum)}`;
}

/** Of the class that waits longest. */
function worst(overview, key) {
  const found = overview.classes.map((each) => each.latency?.[key]).filter((value) => value != null);
  return found.length ? Math.max(...found) : null;
}
