// The comparison: one prompt, up to four columns.

import { get } from "./api.js";
import { Column } from "./column.js";
import { startFor } from "./samples.js";

const MOST = 4;

const at = (id) => document.getElementById(id);
const columns = [];
let cards = null;
let samples = {};
let policies = [];
let abort = null;
let numbered = 0;

/** Load the policies once there is access, and show what suits the model. */
export async function offer(model) {
  if (cards) return;
  ({ data: cards } = await get("v1/kv/policies"));
  ({ samples, policies } = startFor(model));
  for (const wanted of usable().slice(0, MOST)) add(wanted);
  at("sample").replaceChildren(...Object.keys(samples).map((name) => new Option(name, name)));
  if (!at("prompt").value) await fillIn();
  at("run").disabled = false;
}

function usable() {
  const names = new Set(cards.filter((card) => card.supported !== false).map((card) => card.name));
  return policies.filter((wanted) => names.has(wanted.split(":")[0]));
}

function add(wanted) {
  const column = new Column(++numbered);
  columns.push(column);
  at("columns").append(column.root);
  column.choice.offer(cards, wanted);
  column.root.querySelector(".remove").addEventListener("click", () => remove(column));
  recount();
  return column;
}

function remove(column) {
  columns.splice(columns.indexOf(column), 1);
  column.root.remove();
  recount();
  show();
}

function recount() {
  at("columns").dataset.count = columns.length;
  at("add").disabled = abort !== null || columns.length >= MOST;
  for (const { root } of columns) root.querySelector(".remove").disabled = abort !== null || columns.length < 2;
}

const show = () => columns.forEach((column) => column.show(columns[0]));

// -- a run --------------------------------------------------------------------------------------------

async function run(model) {
  abort = new AbortController();
  lock(true);
  at("progress").textContent = "Running";
  const question = {
    model,
    messages: [{ role: "user", content: at("prompt").value }],
    max_tokens: at("length").valueAsNumber,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  };
  const { signal } = abort;
  await Promise.all(columns.map((column) => column.run(question, signal, soon)));
  show();
  abort = null;
  lock(false);
  at("progress").textContent = outcome();
}

function outcome() {
  const ended = columns.filter((column) => column.ended).length;
  if (ended === columns.length) return "Done";
  return columns.some((column) => column.state === "cancelled") ? "Cancelled" : `${columns.length - ended} failed`;
}

function lock(locked) {
  const [off, on] = locked ? [at("run"), at("cancel")] : [at("cancel"), at("run")];
  on.disabled = false;
  if (document.activeElement === off) on.focus({ preventScroll: true });
  off.disabled = true;
  columns.forEach((column) => column.choice.lock(locked));
  recount();
}

/** Draw at the next frame, however many pieces of text arrive until then. */
let due = false;
function soon() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    show();
  });
}

// -- the form -----------------------------------------------------------------------------------------

/** `model`: a function that gives the name to ask for. */
export function setUp(model) {
  at("run").disabled = true;
  at("sample").addEventListener("change", fillIn);
  at("compare").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!abort) run(model());
  });
  at("compare").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("compare").requestSubmit();
  });
  at("cancel").addEventListener("click", () => abort?.abort());
  at("add").addEventListener("click", () => add(unused()).choice.name.focus());
}

const unused = () => {
  const used = new Set(columns.map((column) => column.choice.name.value));
  return usable().find((wanted) => !used.has(wanted.split(":")[0])) ?? usable()[0];
};

async function fillIn() {
  const chosen = at("sample").value;
  const { prompt, tokens } = samples[chosen];
  const text = await prompt();
  if (at("sample").value !== chosen) return; // another one while this one was loading
  at("prompt").value = text;
  at("length").value = tokens;
  at("prompt").scrollTop = at("prompt").scrollHeight;
}
