// What a row's tokens see, the row's tree and its attention mask: from segments and parents alone.
const maskDrawing = (() => {
  "use strict";
  const SIDE = 200;
  const SVG = "http://www.w3.org/2000/svg";

  // A segment: number in the micro-batch, parent's index in the row (-1 = root), start, stop, samples, sources.
  const PARENT = 1, START = 2, STOP = 3, SAMPLES = 4, SOURCES = 5;

  const segmentOf = (row, place) => {
    let low = 0, high = row.segments.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (row.segments[middle][START] <= place) low = middle;
      else high = middle - 1;
    }
    return low;
  };

  // The segments that a segment sees whole.
  const ancestors = (row, segment) => {
    const found = [];
    for (let s = row.segments[segment][PARENT]; s !== -1; s = row.segments[s][PARENT]) found.push(s);
    return found;
  };

  // How many tokens one sees that stands at a place of a segment, in layers without a window.
  const seenTokens = (row, segment, place) => {
    const whole = ancestors(row, segment).reduce((sum, s) => sum + row.segments[s][STOP] - row.segments[s][START], 0);
    return whole + place + 1 - row.segments[segment][START];
  };

  const realTokens = (row) => (row.segments.length ? row.segments[row.segments.length - 1][STOP] : 0);

  // Pairs of (query, key) that are seen, counted in square blocks of tokens.
  const seenPairs = (row) => {
    const tokens = realTokens(row);
    const block = Math.max(1, Math.ceil(tokens / SIDE));
    const cells = Math.ceil(tokens / block);
    const counts = new Float64Array(cells * cells);
    const add = (query, from, to, times) => {
      for (let key = Math.floor(from / block); key * block < to; key += 1) {
        counts[query * cells + key] += times * (Math.min(to, (key + 1) * block) - Math.max(from, key * block));
      }
    };
    row.segments.forEach((segment, number) => {
      const [from, to] = [segment[START], segment[STOP]];
      for (let query = Math.floor(from / block); query * block < to; query += 1) {
        const first = Math.max(from, query * block), end = Math.min(to, (query + 1) * block);
        for (const s of ancestors(row, number)) add(query, row.segments[s][START], row.segments[s][STOP], end - first);
        for (let place = first; place < end; place += 1) add(query, from, place + 1, 1);
      }
    });
    return { counts, cells, block, tokens };
  };

  // One colour channel set for a style such as "rgb(14, 138, 160)".
  const channels = (element, property) => getComputedStyle(element)[property].match(/[\d.]+/g).map(Number);

  const paintMask = (row, canvas) => {
    const { counts, cells, block, tokens } = seenPairs(row);
    const context = canvas.getContext("2d");
    canvas.width = canvas.height = Math.max(1, cells);
    const image = context.createImageData(canvas.width, canvas.height);
    const [red, green, blue] = channels(canvas, "color");
    const size = (cell) => Math.min(block, tokens - cell * block);
    for (let query = 0; query < cells; query += 1) {
      for (let key = 0; key < cells; key += 1) {
        const share = counts[query * cells + key] / (size(query) * size(key));
        if (share === 0) continue;
        image.data.set([red, green, blue, 70 + 185 * share], 4 * (query * cells + key));
      }
    }
    context.putImageData(image, 0, 0);
    return block;
  };

  // What the mask does not draw: some layers may see less.
  const windowText = ({ window: known }) =>
    known === null ? "" : ` ${known[1]} of ${known[2]} layers see the nearest ${known[0].toLocaleString("en-US")} tokens only.`;

  const shape = (name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };

  // Lines (from, to) of each segment where every leaf of the tree has one line, and depth of each segment's end.
  const places = (row, positionOf) => {
    const lines = row.segments.map(() => null);
    const isParent = new Set(row.segments.map((segment) => segment[PARENT]));
    let next = 0;
    row.segments.forEach((segment, number) => {
      if (isParent.has(number)) return;
      for (let s = number; s !== -1; s = row.segments[s][PARENT]) {
        lines[s] = lines[s] ? [lines[s][0], next + 1] : [next, next + 1];
      }
      next += 1;
    });
    const depth = Math.max(1, ...row.segments.map((segment) => positionOf(segment[STOP] - 1) + 1));
    return { lines, count: next, depth };
  };

  const taughtRuns = function* (weights, from, to) {
    for (let first = from, end; first < to; first = end) {
      end = first + 1;
      while (end < to && Math.sign(weights[end]) === Math.sign(weights[first])) end += 1;
      if (weights[first] !== 0) yield [first, end];
    }
  };

  // A bar for each segment, from its first position to its last, beside the bars of all samples that go through it.
  const drawTree = (row, { positionOf, weights, hueOf, titleOf }) => {
    const { lines, count, depth } = places(row, positionOf);
    const line = Math.max(4, Math.min(18, 420 / Math.max(1, count)));
    const height = Math.ceil(line * count);
    const svg = shape("svg", { viewBox: `0 0 ${SIDE} ${height}`, width: SIDE, height, tabindex: "0", role: "group" });
    const x = (position) => (position / depth) * SIDE;
    row.segments.forEach((segment, number) => {
      const [from, to] = [positionOf(segment[START]), positionOf(segment[STOP] - 1) + 1];
      const top = lines[number][0] * line + 0.5, tall = (lines[number][1] - lines[number][0]) * line - 1;
      const node = shape("g", { class: "node", "data-segment": number, style: `--hue:${hueOf(number)}` });
      const title = shape("title", {});
      title.textContent = titleOf(number);
      node.append(title, shape("rect", { x: x(from), y: top, width: Math.max(1.5, x(to) - x(from) - 0.7), height: tall, rx: 1 }));
      for (const [first, end] of taughtRuns(weights, segment[START], segment[STOP])) {
        const left = x(positionOf(first)), width = Math.max(1, x(positionOf(end - 1) + 1) - left - 0.7);
        const kind = weights[first] < 0 ? "pushed" : "teaches";
        node.append(shape("rect", { class: kind, x: left, y: top + 1, width, height: Math.max(1, tall - 2) }));
      }
      if (segment[SAMPLES] > 1 && tall >= 14 && x(to) - x(from) >= 26) {
        const text = shape("text", { x: x(from) + 4, y: top + tall / 2 + 4 });
        text.textContent = `×${segment[SAMPLES]}`;
        node.append(text);
      }
      svg.append(node);
    });
    return svg;
  };

  return { START, STOP, SAMPLES, SOURCES, segmentOf, ancestors, seenTokens, realTokens, paintMask, windowText, drawTree };
})();
