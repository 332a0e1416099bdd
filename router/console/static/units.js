// Numbers as people read them: three digits that count, and always a unit.

const SI = ["", "k", "M", "G", "T", "P"];
const SPACE = "\u202f"; // narrow, and never a line's end

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1e-3) return value === 0 ? `0${SPACE}ms` : `${digits(value * 1e6)}${SPACE}µs`;
  if (value < 1) return `${digits(value * 1e3)}${SPACE}ms`;
  if (value < 120) return `${digits(value)}${SPACE}s`;
  return age(value);
}

/** Whole units, for what grows while one looks at it. */
export function age(value) {
  if (value < 60) return `${Math.floor(value)}${SPACE}s`;
  if (value < 3600) return `${Math.floor(value / 60)}${SPACE}min`;
  if (value < 48 * 3600) return `${Math.floor(value / 3600)}${SPACE}h`;
  return `${Math.floor(value / 86400)}${SPACE}d`;
}

export function bytes(value, per = "") {
  return `${scaled(value)}B${per}`;
}

/** 1234567 -> 1.23 M */
export function count(value) {
  return value < 10000 ? String(Math.round(value)) : scaled(value).trim();
}

export function rate(value, per = "s") {
  return `${digits(value)}${SPACE}/${per}`;
}

export function percent(part, whole = 1) {
  return whole ? `${digits((100 * part) / whole, 2)}${SPACE}%` : "–";
}

export function signed(part) {
  return `${part > 0 ? "+" : part < 0 ? "−" : ""}${percent(Math.abs(part))}`;
}

export function clock(unix) {
  return new Date(unix * 1000).toLocaleTimeString([], { hour12: false });
}

export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

function scaled(value) {
  let power = 0;
  while (value >= 999.5 && power < SI.length - 1) {
    value /= 1000;
    power += 1;
  }
  return `${digits(value)}${SPACE}${SI[power]}`;
}

export function digits(value, most = 3) {
  if (value === 0) return "0";
  const whole = Math.max(0, Math.floor(Math.log10(Math.abs(value))) + 1);
  return value.toFixed(Math.min(2, Math.max(0, most - Math.max(1, whole))));
}
