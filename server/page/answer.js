// One streamed chat completion, its text and its times.

import { stream } from "./api.js";

export class Answer {
  text = "";
  chunks = 0;
  usage = null;
  first = null; // seconds from sending to the first text
  #begun = performance.now();
  #last = null;

  /** Fills itself; calls `changed` after each event. Throws what `stream` throws. */
  async read(body, signal, changed) {
    for await (const event of stream("v1/chat/completions", body, signal)) {
      this.usage = event.usage ?? this.usage;
      this.#take(event.choices?.[0]?.delta ?? {});
      changed();
    }
  }

  #take(delta) {
    const text = (delta.reasoning ?? delta.reasoning_content ?? "") + (delta.content ?? "");
    if (!text) return;
    this.text += text;
    this.chunks += 1;
    this.#last = (performance.now() - this.#begun) / 1000;
    this.first ??= this.#last;
  }

  /** Tokens per second after the first; null before there are two. Until the end a chunk counts as a token. */
  get speed() {
    const tokens = this.usage?.completion_tokens ?? this.chunks;
    const time = this.#last - this.first;
    return tokens > 1 && time > 0 ? (tokens - 1) / time : null;
  }
}
