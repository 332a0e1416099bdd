// A line of the last minutes. Missing values are gaps, not zeros.

import { attribute, svg } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 24;

export function spark(label) {
  const area = svg("path", { class: "area" });
  const line = svg("path", { class: "line" });
  const element = svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
    area,
    line,
  );
  element.label = label;
  element.draw = { area, line };
  return element;
}

/** `values`, oldest first, at the right of `kept` places; `top` is the scale's end, at least. */
export function drawSpark(element, values, kept, top, format) {
  const known = values.filter((value) => value !== null);
  const most = Math.max(top, ...known);
  const runs = runsOf(values, kept, most || 1);
  attribute(element.draw.line, "d", runs.map((run) => `M${run.join("L")}`).join(""));
  attribute(element.draw.area, "d", runs.map(closed).join(""));
  const last = known.length ? format(known[known.length - 1]) : "none yet";
  attribute(element, "aria-label", `${element.label}: ${last}, most ${format(most)}`);
}

function runsOf(values, kept, most) {
  const runs = [];
  let run = null;
  values.forEach((value, place) => {
    if (value === null) {
      run = null;
      return;
    }
    const x = (WIDTH * (kept - values.length + place + 1)) / kept;
    const y = HEIGHT - 1 - ((HEIGHT - 2) * value) / most;
    if (run === null) runs.push((run = []));
    run.push(`${x.toFixed(1)} ${y.toFixed(1)}`);
  });
  // A single point would be no line.
  return runs.map((each) => (each.length === 1 ? [each[0], `${parseFloat(each[0]) + 0.7} ${each[0].split(" ")[1]}`] : each));
}

function closed(run) {
  const from = run[0].split(" ")[0];
  const to = run[run.length - 1].split(" ")[0];
  return `M${from} ${HEIGHT}L${run.join("L")}L${to} ${HEIGHT}Z`;
}
