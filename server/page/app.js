// Starts the page: asks for the statistics and hands them to the panels.

import { get } from "./api.js";
import { offer, setUp } from "./compare.js";
import { askForKey, onKey, showKeyButton } from "./key.js";
import { showMemory } from "./memory.js";
import { Poll } from "./poll.js";
import { showPrefixes } from "./prefixes.js";
import { showRunning } from "./running.js";
import { showTotals } from "./totals.js";

const at = (id) => document.getElementById(id);
let model = "";

function say(state, text) {
  if (at("status").dataset.state === state) return;
  at("status").dataset.state = state;
  at("status").textContent = text;
}

function note(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

async function ask() {
  const stats = await get("v1/kv/stats");
  await offer(stats.model);
  const prefixes = stats.prefix_bytes ? await get("v1/kv/prefixes") : null;
  return { ...stats, prefixes };
}

function done(stats) {
  model = stats.model;
  at("model").textContent = model;
  document.title = `${model} · kvserve`;
  say("live", "live");
  note(stats.enabled ? "" : "This server was not started with kvserve's scheduler: it serves every request uncompressed.");
  showKeyButton();
  showMemory(stats);
  showRunning(stats);
  showTotals(stats);
  showPrefixes(stats.prefixes, () => poll.now());
}

function failed(error) {
  say("failed", "no answer");
  note(`The server does not answer: ${error.message}`);
}

function locked() {
  say("locked", "locked");
  showKeyButton(true);
  askForKey();
}

const poll = new Poll(ask, { done, failed, locked });
setUp(() => model);
onKey(() => poll.now());
poll.now();
