// The server's HTTP API. Addresses are relative to the page, so that a path prefix in front of both does not matter.

const SLOT = "kvserve-key";

export class Unauthorized extends Error {}

export const hasKey = () => sessionStorage.getItem(SLOT) !== null;

export const keepKey = (key) => sessionStorage.setItem(SLOT, key);

function headers() {
  const key = sessionStorage.getItem(SLOT);
  return key === null ? {} : { Authorization: `Bearer ${key}` };
}

/** The server's own message, wherever this kind of error has it. */
function messageOf(text, response) {
  try {
    const body = JSON.parse(text);
    return body.error?.message ?? body.message ?? body.detail ?? JSON.stringify(body.error ?? body);
  } catch {
    return text.trim().slice(0, 500) || `HTTP ${response.status} ${response.statusText}`;
  }
}

async function checked(response) {
  if (response.status === 401) throw new Unauthorized("The server wants an API key.");
  if (!response.ok) throw new Error(messageOf(await response.text(), response));
  return response;
}

const answer = async (path) => checked(await fetch(path, { headers: headers() }));

export async function get(path) {
  return (await answer(path)).json();
}

export async function discard(path) {
  await checked(await fetch(path, { method: "DELETE", headers: headers() }));
}

/** One of the page's own files. */
export async function text(path) {
  return (await answer(path)).text();
}

/** The events of a streamed answer, as they come. */
export async function* stream(path, body, signal) {
  const response = await checked(
    await fetch(path, {
      method: "POST",
      headers: { ...headers(), "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    }),
  );
  for await (const line of lines(response.body)) {
    if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
    const event = JSON.parse(line.slice(6));
    if (event.error) throw new Error(event.error.message ?? String(event.error));
    yield event;
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const found = (rest + part.value).split("\n");
    rest = found.pop();
    yield* found.map((line) => line.trimEnd());
  }
  if (rest) yield rest;
}
