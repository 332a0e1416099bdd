// What each service class is promised, and what it gets.

import { attribute, bodyOf, h, keyed, say } from "./dom.js";
import { drawSpark, spark } from "./spark.js";
import { count, percent, plural, rate, seconds } from "./units.js";

export class Classes {
  update(overview) {
    keyed(bodyOf("classes"), overview.classes, (each) => each.name, make, (box, each) => {
      update(box, each, overview.history.kept);
    });
  }
}

function make(each) {
  const parts = {
    number: h("p", { class: "number" }),
    promise: h("small", {}),
    note: h("p", { class: "quiet" }),
    times: h("p", { class: "quiet" }),
    spark: spark(`${each.name}, part within targets`),
  };
  const title = h("h3", {}, each.name, " ", parts.promise);
  const box = h("div", { class: "class", "data-class": each.name }, title, parts.number, parts.spark, parts.times, parts.note);
  return Object.assign(box, { parts });
}

function update(box, each, kept) {
  const { parts } = box;
  const recent = each.recent;
  attribute(box, "data-idle", recent.ended ? null : "");
  say(parts.promise, promise(each));
  say(parts.number, percent(recent.good, recent.ended));
  drawSpark(parts.spark, recent.attained, kept, 1, percent);
  say(parts.times, each.latency ? times(each) : "no request ended in the last 5 min");
  say(parts.note, counts(each));
}

function promise(each) {
  const parts = [];
  if (each.ttft_s !== null) parts.push(`TTFT ≤ ${seconds(each.ttft_s)}`);
  if (each.itl_s !== null) parts.push(`ITL ≤ ${seconds(each.itl_s)}`);
  if (each.background) parts.push("background");
  if (each.default) parts.push("default");
  return parts.join(", ");
}

function times({ latency }) {
  const pair = (name) => `${seconds(latency[`${name}_p50_s`])} p50, ${seconds(latency[`${name}_p95_s`])} p95`;
  return `TTFT ${pair("ttft")}; ITL ${pair("itl")}; of ${plural(latency.requests, "request")}`;
}

function counts(each) {
  const missed = Object.entries(each.results).filter(([kind, number]) => kind !== "good" && number);
  const parts = [
    `goodput ${rate(each.recent.goodput_s)}`,
    `${count(each.queued)} queued`,
    `${count(each.good)} of ${count(each.ended)} good since start`,
    ...missed.map(([kind, number]) => `${count(number)} ${kind.replaceAll("_", " ")}`),
  ];
  return parts.join(", ");
}
