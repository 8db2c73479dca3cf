// One column of the comparison: what is asked, and what comes back.

import { agreement, words } from "./agreement.js";
import { Answer } from "./answer.js";
import { drawBar } from "./bar.js";
import { Choice } from "./choice.js";
import { bytes, bytesOf, count, seconds } from "./numbers.js";

const template = document.getElementById("column");

export class Column {
  answer = null;
  state = "empty"; // empty | running | done | cancelled | failed

  constructor(number) {
    this.root = template.content.cloneNode(true).firstElementChild;
    this.root.querySelector("legend").textContent = `Column ${number}`;
    this.choice = new Choice(this.root, number);
    this.output = this.root.querySelector(".answer");
    this.output.setAttribute("aria-label", `Answer ${number}`);
  }

  find(name) {
    return this.root.querySelector(`[data-of=${name}]`);
  }

  get ended() {
    return this.state === "done";
  }

  /** Ask and show; `changed` after each piece of text. Never throws: what goes wrong is shown here. */
  async run(question, signal, changed) {
    const answer = new Answer();
    this.answer = answer;
    this.#enter("running");
    this.#fail("");
    this.#measure();
    try {
      const body = { ...question, kv_policy: this.choice.value() };
      await answer.read(body, signal, () => (this.#measure(), changed()));
      this.#enter("done");
    } catch (error) {
      this.#enter(signal.aborted ? "cancelled" : "failed");
      if (!signal.aborted) this.#fail(error.message);
    }
    changed();
  }

  #enter(state) {
    this.state = state;
    this.root.dataset.state = state;
    this.output.scrollTop = 0;
  }

  #fail(message) {
    const place = this.root.querySelector(".error");
    place.textContent = message;
    place.hidden = !message;
  }

  /** The text, the part that is not as in `reference` marked; the reference itself has none. */
  show(reference) {
    if (!this.answer) return;
    const { text } = this.answer;
    const found =
      reference?.answer && reference !== this
        ? agreement(text, this.ended, reference.answer.text, reference.ended)
        : { same: text.length, verdict: null };
    const mark = document.createElement("mark");
    mark.textContent = text.slice(found.same);
    this.output.replaceChildren(text.slice(0, found.same), ...(mark.textContent ? [mark] : []));
    if (this.state === "running") this.output.scrollTop = this.output.scrollHeight;
    this.#judge(found, reference);
  }

  #judge({ same, verdict }, reference) {
    const place = this.root.querySelector(".verdict");
    const first = reference?.choice.short;
    const said = {
      same: `same as ${first}`,
      shorter: `stops earlier than ${first}`,
      differs: `differs from ${first} after ${words(this.answer.text.slice(0, same))}`,
    };
    place.dataset.verdict = verdict ?? "";
    place.textContent = this.state === "cancelled" ? "cancelled" : (said[verdict] ?? "");
  }

  #measure() {
    const { first, speed, usage } = this.answer;
    this.find("first").textContent = first === null ? "–" : seconds(first);
    this.find("speed").textContent = speed === null ? "–" : `${speed.toFixed(speed < 9.95 ? 1 : 0)} tokens/s`;
    const bar = this.root.querySelector(".bar");
    const cache = usage?.kv_cache;
    if (cache) {
      const { logical_tokens: seen, kept_tokens: kept, resident_bytes: resident, full_bytes: full } = cache;
      this.find("kept").textContent = `${count(kept)} of ${count(seen)} tokens`;
      this.find("kept").title = `${count(cache.evicted_tokens)} evicted, ${count(cache.merged_tokens)} merged, ${count(cache.compactions)} compactions`;
      this.find("bytes").textContent = resident < full ? bytesOf(resident, full) : bytes(full);
      drawBar(bar, seen ? kept / seen : 0, 1);
    } else {
      this.find("kept").textContent = usage ? `all ${count(usage.total_tokens)} tokens` : "–";
      this.find("kept").title = "";
      this.find("bytes").textContent = usage ? "uncompressed" : "–";
      drawBar(bar, usage ? 1 : 0, usage ? 1 : 0);
    }
  }
}
