// A bar of kept tokens inside a bar of seen tokens.

/** Shares of the whole width, 0 to 1. */
export function drawBar(bar, kept, seen) {
  bar.querySelector(".seen").style.width = `${100 * seen}%`;
  bar.querySelector(".kept").style.width = `${100 * kept}%`;
}
