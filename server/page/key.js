// The dialog that asks for the API key.

import { hasKey, keepKey } from "./api.js";

const dialog = document.getElementById("key");
const value = document.getElementById("key-value");
const text = document.getElementById("key-text");

/** Ask, unless the question is already open. */
export function askForKey() {
  if (dialog.open) return;
  if (hasKey()) text.textContent = "The server did not accept this key.";
  value.value = "";
  dialog.showModal();
}

/** Call `use` whenever a key has been given. */
export function onKey(use) {
  document.getElementById("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepKey(value.value.trim());
    dialog.close();
    use();
  });
  document.getElementById("change-key").addEventListener("click", () => dialog.showModal());
}

export function showKeyButton(wanted = false) {
  document.getElementById("change-key").hidden = !wanted && !hasKey();
}
