// The panel of what each policy did since the server started.

import { drawBar } from "./bar.js";
import { percent, seconds, total } from "./numbers.js";

const body = document.getElementById("policies");
const template = document.getElementById("policy-row");
const FIELDS = ["requests", "tokens_evicted", "tokens_merged", "compactions", "pressure_compactions", "blocks_freed"];

export function showTotals(stats) {
  const policies = Object.entries(stats.policies);
  while (body.children.length < policies.length) body.append(template.content.cloneNode(true));
  policies.forEach(([name, totals], i) => fill(body.children[i], name, totals));
  document.getElementById("policies-empty").hidden = policies.length > 0;
  document.getElementById("events").textContent = events(stats);
}

function fill(row, name, totals) {
  row.querySelector("th").textContent = name;
  for (const field of FIELDS) {
    const cell = row.querySelector(`[data-of=${field}]`);
    cell.textContent = total(totals[field]);
    cell.classList.toggle("muted", totals[field] === 0);
  }
  row.querySelector("[data-of=seconds]").textContent = totals.compactions ? seconds(totals.compaction_seconds) : "–";
  const kept = name === "full" ? 1 : totals.kept_fraction;
  row.querySelector(".tokens").textContent = kept === null ? "–" : percent(kept);
  drawBar(row.querySelector(".bar"), kept ?? 0, kept === null ? 0 : 1);
}

function events({ preemptions_avoided: avoided, rejections }) {
  const parts = Object.entries(rejections).filter(([, times]) => times > 0);
  const refused = parts.map(([reason, times]) => `${reason.replaceAll("_", " ")} ${total(times)}`).join(", ");
  return [avoided ? `Preemptions avoided: ${total(avoided)}.` : "", refused ? `Refused requests: ${refused}.` : ""].join(" ");
}
