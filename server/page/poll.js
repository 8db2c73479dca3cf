// Asks again and again, a second after each answer, while someone can see the page.

import { Unauthorized } from "./api.js";

const PAUSE = 1000;

export class Poll {
  #timer = null;
  #busy = false;

  /** ask: async; done(answer), failed(error), locked() when a key is missing: then it waits for `now`. */
  constructor(ask, { done, failed, locked }) {
    Object.assign(this, { ask, done, failed, locked });
    document.addEventListener("visibilitychange", () => this.now());
  }

  async now() {
    clearTimeout(this.#timer);
    if (this.#busy || document.hidden) return;
    this.#busy = true;
    let again = true;
    try {
      this.done(await this.ask());
    } catch (error) {
      again = !(error instanceof Unauthorized);
      if (again) this.failed(error);
      else this.locked();
    }
    this.#busy = false;
    if (again) this.#timer = setTimeout(() => this.now(), PAUSE);
  }
}
