// What was held over the last minutes, as an SVG.

const WIDTH = 300;
const HEIGHT = 100;
const SHORTEST = 60; // seconds: the drawing spans what there is, between these two
const LONGEST = 300;
const GAP = 5; // seconds without an answer: the tab was hidden, or the server away

export class History {
  #points = [];

  constructor(svg) {
    this.svg = svg;
  }

  /** time in seconds, bytes */
  add(time, resident, full) {
    this.#points.push({ time, resident, full });
    this.#points = this.#points.filter((point) => point.time >= time - LONGEST);
  }

  /** Seconds that the drawing spans. */
  get span() {
    const [first, last] = [this.#points[0], this.#points.at(-1)];
    return first ? Math.min(LONGEST, Math.max(SHORTEST, last.time - first.time)) : SHORTEST;
  }

  get peak() {
    return Math.max(0, ...this.#points.map((point) => point.full));
  }

  draw() {
    const end = this.#points.at(-1)?.time ?? 0;
    const top = (this.peak || 1) * 1.08;
    const x = (time) => WIDTH * (1 - (end - time) / this.span);
    const place = (key) => (point) => [x(point.time), HEIGHT * (1 - point[key] / top)];
    for (const key of ["full", "resident"]) {
      const lines = this.#segments().map((points) => points.map(place(key)));
      this.svg.querySelector(`.${key}-line`).setAttribute("d", lines.map(line).join(""));
      this.svg.querySelector(`.${key}-area`).setAttribute("d", lines.map(area).join(""));
    }
  }

  #segments() {
    const segments = [];
    for (const point of this.#points) {
      const last = segments.at(-1);
      if (last && point.time - last.at(-1).time < GAP) last.push(point);
      else segments.push([point]);
    }
    return segments;
  }
}

const line = (points) => `M${points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L")}`;

const area = (points) => `${line(points)}L${points.at(-1)[0]},${HEIGHT}L${points[0][0]},${HEIGHT}Z`;
