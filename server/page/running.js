// The panel of running requests: a row each, which grows and shrinks as its cache does.

import { drawBar } from "./bar.js";
import { bytes, bytesOf, count } from "./numbers.js";

const body = document.getElementById("running");
const template = document.getElementById("running-row");
const rows = new Map(); // by the request's id

export function showRunning(stats) {
  const longest = Math.max(1, ...stats.running.map((request) => request.logical_tokens));
  const gone = new Set(rows.keys());
  for (const request of stats.running) {
    gone.delete(request.id);
    fill(rowOf(request), request, longest);
  }
  for (const id of gone) {
    rows.get(id).remove();
    rows.delete(id);
  }
  document.getElementById("running-empty").hidden = rows.size > 0;
  document.getElementById("running-count").textContent = counts(stats);
}

function rowOf(request) {
  if (!rows.has(request.id)) {
    body.append(template.content.cloneNode(true));
    rows.set(request.id, body.lastElementChild);
  }
  return rows.get(request.id);
}

function fill(row, request, longest) {
  const { logical_tokens: seen, kept_tokens: kept, resident_bytes: resident, full_bytes: full } = request;
  row.querySelector(".code").textContent = request.id;
  row.querySelector(".policy").textContent = request.policy + (request.budget === null ? "" : `:${request.budget}`);
  row.dataset.stage = request.stage;
  row.querySelector(".tokens").textContent = tokens(request);
  row.querySelector(".bytes").textContent = resident < full ? bytesOf(resident, full) : bytes(full);
  drawBar(row.querySelector(".bar"), kept / longest, seen / longest);
}

function tokens({ stage, logical_tokens: seen, kept_tokens: kept }) {
  const held = kept < seen ? `${count(kept)} of ${count(seen)}` : count(seen);
  return stage === "prefill" ? `prefill ${held}` : held;
}

function counts({ running, requests_running: all, requests_waiting: waiting }) {
  const parts = [count(all)];
  if (all > running.length) parts.push(`${running.length} shown`);
  if (waiting) parts.push(`${count(waiting)} waiting`);
  return parts.join(" · ");
}
