// How far an answer says the same as the first column's.

/**
 * text and other so far, and whether each is complete.
 * Returns {same: characters that agree, verdict: "same" | "differs" | "shorter" | null while it is open}.
 */
export function agreement(text, ended, other, otherEnded) {
  let same = 0;
  while (same < text.length && same < other.length && text[same] === other[same]) same++;
  const split = same < text.length && same < other.length;
  if (split || (same < text.length && otherEnded)) return { same: wordStart(text, same), verdict: "differs" };
  if (!ended || !otherEnded) return { same, verdict: null };
  return { same, verdict: text.length < other.length ? "shorter" : "same" };
}

/** Back to where the word began: half a number in another colour would mislead. */
function wordStart(text, at) {
  while (at > 0 && /\S/.test(text[at - 1]) && /\S/.test(text[at])) at--;
  return at;
}

/** "1 word", "12 words" */
export function words(text) {
  const found = text.split(/\s+/).filter(Boolean).length;
  return found === 1 ? "1 word" : `${found} words`;
}
