// Numbers as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const count = (value) => whole.format(value);

/** 1,234 up to 99,999, then 123.5K: totals grow without end. */
export const total = (value) => (value < 1e5 ? whole : short).format(value);

export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)}\u00a0%`;

function unitOf(value) {
  return Math.min(UNITS.length - 1, Math.max(0, Math.floor(Math.log2(Math.max(1, value)) / 10)));
}

function inUnit(value, unit) {
  const number = value / 1024 ** unit;
  return number.toFixed(unit === 0 || number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2);
}

export function bytes(value) {
  return `${inUnit(value, unitOf(value))} ${UNITS[unitOf(value)]}`;
}

/** Both in the unit of the second: "0.50 of 3.00 MiB". */
export function bytesOf(part, all) {
  const unit = unitOf(all);
  return `${inUnit(part, unit)} of ${inUnit(all, unit)} ${UNITS[unit]}`;
}

/** In the largest unit of which it has one: "45 s", "12 min", "3 h", "2 d". */
export function age(value) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"]];
  const [size, unit] = units.find(([size]) => value >= size) ?? [1, "s"];
  return `${Math.floor(value / size)} ${unit}`;
}

export function seconds(value) {
  if (value < 0.9995) return `${(1000 * value).toFixed(value < 0.00995 ? 1 : 0)} ms`;
  return value < 99.95 ? `${value.toFixed(value < 9.995 ? 2 : 1)} s` : `${count(value)} s`;
}
