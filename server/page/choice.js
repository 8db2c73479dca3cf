// What is chosen in one column: policy, budget, parameters.

const SHORT = /^([^:]+):?(.*)$/;

export class Choice {
  #cards = new Map();

  constructor(root, number) {
    const find = (selector) => root.querySelector(selector);
    this.name = find(".name");
    this.budget = find(".budget");
    this.parameters = find(".parameters");
    this.idea = find(".idea");
    this.known = find(".known");
    this.details = find("details");
    this.name.setAttribute("aria-label", `Policy ${number}`);
    this.budget.setAttribute("aria-label", `Budget ${number}`);
    this.name.addEventListener("change", () => this.#chosen());
  }

  /** The installed policies, as /v1/kv/policies lists them; "name:budget" to begin with. */
  offer(cards, wanted) {
    const [, name, budget] = SHORT.exec(wanted);
    this.#cards = new Map(cards.map((card) => [card.name, card]));
    this.name.replaceChildren(...cards.map(option));
    this.name.value = name;
    this.budget.value = budget;
    this.#chosen();
  }

  get #card() {
    return this.#cards.get(this.name.value);
  }

  #chosen() {
    const card = this.#card;
    const properties = Object.entries(card?.parameters.properties ?? {}).filter(([name]) => name !== "budget");
    this.name.title = card?.paper ?? "";
    this.idea.textContent = (card?.idea ?? "").replaceAll("`", "");
    this.idea.title = card?.idea ?? "";
    this.budget.disabled = !card?.budgeted;
    this.budget.closest("label").classList.toggle("unused", this.budget.disabled);
    this.details.hidden = properties.length === 0;
    const [first] = properties.filter(([, about]) => about.type === "integer").concat(properties);
    this.parameters.placeholder = first ? JSON.stringify({ [first[0]]: first[1].default }) : "";
    this.known.replaceChildren(...properties.map(parameter));
  }

  /** The value of `kv_policy`. Throws Error with what to correct. */
  value() {
    const card = this.#card;
    const policy = { name: this.name.value };
    if (card?.budgeted && this.budget.value.trim()) policy.budget = numberOf(this.budget.value);
    if (!this.details.hidden && this.parameters.value.trim()) Object.assign(policy, objectOf(this.parameters.value));
    return policy;
  }

  /** As users write it: name or name:budget. */
  get short() {
    const budget = this.budget.disabled ? "" : this.budget.value.trim();
    return this.name.value + (budget && `:${budget}`);
  }

  lock(locked) {
    for (const field of [this.name, this.parameters]) field.disabled = locked;
    this.budget.disabled = locked || !this.#card?.budgeted;
  }
}

function option(card) {
  const made = new Option(card.name, card.name);
  made.disabled = card.supported === false;
  made.title = card.reason ?? card.idea;
  return made;
}

/** `window=32`, with what the schema says of it. */
function parameter([name, about]) {
  const made = document.createElement("code");
  made.textContent = `${name}=${JSON.stringify(about.default)}`;
  made.title = about.description ?? "";
  return made;
}

function numberOf(text) {
  const number = Number(text);
  if (!Number.isFinite(number)) throw new Error(`${text} is not a budget: write a fraction such as 0.25, or a number of tokens.`);
  return number;
}

function objectOf(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw new Error(`The parameters are not JSON: ${error.message}`);
  }
  if (found === null || typeof found !== "object" || Array.isArray(found)) {
    throw new Error('The parameters must be an object, such as {"window": 64}.');
  }
  return found;
}
