// The panel of shared compressed prefixes: a row each, with a button that gives it up.

import { discard } from "./api.js";
import { drawBar } from "./bar.js";
import { age, bytes, count, total } from "./numbers.js";

const panel = document.getElementById("prefixes-panel");
const body = document.getElementById("prefixes");
const template = document.getElementById("prefix-row");
const problem = document.getElementById("prefixes-problem");
const rows = new Map(); // by the prefix's id

/** What GET /v1/kv/prefixes answers; null if there is nothing to list. `changed` is called after a drop. */
export function showPrefixes(list, changed) {
  const prefixes = list?.data ?? [];
  panel.hidden = prefixes.length === 0;
  document.getElementById("prefixes-count").textContent = list ? bytes(list.prefix_bytes) : "";
  const longest = Math.max(1, ...prefixes.map((prefix) => prefix.logical_tokens));
  const gone = new Set(rows.keys());
  prefixes.forEach((prefix, i) => {
    gone.delete(prefix.id);
    const row = rowOf(prefix, changed);
    if (body.children[i] !== row) body.insertBefore(row, body.children[i] ?? null);
    fill(row, prefix, longest);
  });
  for (const id of gone) {
    rows.get(id).remove();
    rows.delete(id);
  }
}

function rowOf(prefix, changed) {
  if (!rows.has(prefix.id)) {
    const row = template.content.cloneNode(true).firstElementChild;
    const button = row.querySelector("button");
    button.setAttribute("aria-label", `Drop ${named(prefix)} of ${count(prefix.logical_tokens)} tokens`);
    button.addEventListener("click", () => drop(prefix.id, button, changed));
    rows.set(prefix.id, row);
  }
  return rows.get(prefix.id);
}

const named = ({ policy, budget }) => policy + (budget === null ? "" : `:${budget}`);

function fill(row, prefix, longest) {
  const { logical_tokens: seen, kept_tokens: kept } = prefix;
  row.querySelector(".policy").textContent = named(prefix);
  row.querySelector(".tokens").textContent = `${count(kept)} of ${count(seen)}`;
  drawBar(row.querySelector(".bar"), kept / longest, seen / longest);
  row.querySelector(".bytes").textContent = bytes(prefix.bytes);
  row.querySelector(".hits").textContent = total(prefix.hits);
  row.querySelector(".age").textContent = age(prefix.age_seconds);
  row.querySelector(".idle").textContent = age(prefix.idle_seconds);
}

async function drop(id, button, changed) {
  button.disabled = true;
  problem.hidden = true;
  try {
    await discard(`v1/kv/prefixes/${encodeURIComponent(id)}`);
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
    button.disabled = false;
  }
  changed();
}
