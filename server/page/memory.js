// The panel of the KV cache: figures, chart, and how much of the pool is taken.

import { History } from "./history.js";
import { bytes, percent } from "./numbers.js";

const at = (id) => document.getElementById(id);
const history = new History(at("chart"));
const meter = document.querySelector(".pool .meter");

export function showMemory(stats) {
  const { resident_bytes: resident, full_bytes: full, pool_bytes: pool } = stats;
  at("resident").textContent = bytes(resident);
  at("full").textContent = bytes(full);
  at("saved").textContent = full > 0 ? percent(1 - resident / full) : "–";
  at("pool").textContent = pool === null ? "–" : bytes(pool);
  history.add(performance.now() / 1000, resident, full);
  history.draw();
  at("ago").textContent = `${minutes(history.span)} ago`;
  at("peak").textContent = history.peak ? `highest ${bytes(history.peak)}` : "";
  if (pool) showPool(resident, full, pool);
}

const minutes = (span) => (span < 90 ? `${Math.round(span)} s` : `${Math.round(span / 60)} min`);

/** The bar is the pool, or all that would be needed if that is more; then a line marks the pool's end. */
function showPool(resident, full, pool) {
  const width = Math.max(pool, full);
  const [wholeBar, residentBar, end] = meter.children;
  wholeBar.style.width = `${(100 * full) / width}%`;
  residentBar.style.width = `${(100 * Math.min(resident, pool)) / width}%`;
  end.hidden = full <= pool;
  end.style.left = `${(100 * pool) / width}%`;
  const held = `${percent(resident / pool)} of the pool is held; uncompressed it would be ${percent(full / pool)}.`;
  at("pool-text").textContent = full ? held : "Requests hold nothing of the pool.";
}
