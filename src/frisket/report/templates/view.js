// Says what the token under the pointer or the arrow keys is. All text goes in as text, never as markup.
(() => {
  "use strict";
  const data = document.getElementById("mask-data");
  const inspector = document.getElementById("inspector");
  if (!data || !inspector) return;
  const rows = JSON.parse(data.textContent);
  const lists = new WeakMap();
  let current = null;

  for (const run of document.querySelectorAll(".run")) run.removeAttribute("title");

  const tokensOf = (segment) => {
    if (!lists.has(segment)) lists.set(segment, [...segment.querySelectorAll("i,b")]);
    return lists.get(segment);
  };

  const at = (runs, index) => {
    for (let i = 0; i < runs.length; i += 2) {
      if (index < runs[i + 1]) return runs[i];
      index -= runs[i + 1];
    }
    return undefined;
  };

  const weightText = (weight) => (weight === 0 ? "0 (not taught)" : weight < 0 ? `${weight} (pushed away)` : `${weight}`);

  const predictions = (row, index, list, place) => {
    const told = at(row.predicts, index);
    if (told === 0) return ["nothing"];
    if (told !== 1) return told.map(([piece, id, weight]) => `${piece}  (id ${id}, weight ${weight})`);
    const next = list[place + 1];
    return [`${next ? next.textContent : "the next token"}  (id ${row.ids[index + 1]}, weight ${at(row.weight, index + 1)})`];
  };

  const describe = (token, segment) => {
    const list = tokensOf(segment);
    const place = list.indexOf(token);
    const index = Number(segment.dataset.start) + place;
    const row = rows[Number(segment.dataset.row)];
    return [
      ["token", token.textContent],
      ["id", row.ids[index]],
      ["position", index + at(row.offset, index)],
      ["segment", at(row.segment, index)],
      ["provenance", at(row.from, index)],
      ["weight", weightText(at(row.weight, index))],
      ["by rule", at(row.rule, index)],
      ...predictions(row, index, list, place).map((text, i) => [i ? "" : "predicts", text]),
    ];
  };

  const hide = () => {
    if (current) current.classList.remove("here");
    current = null;
    inspector.hidden = true;
  };

  const show = (token) => {
    const segment = token.closest(".tokens");
    if (!segment || token === current) return;
    if (current) current.classList.remove("here");
    current = token;
    token.classList.add("here");
    const table = document.createElement("dl");
    for (const [name, text] of describe(token, segment)) {
      const dt = document.createElement("dt");
      const dd = document.createElement("dd");
      dt.textContent = name;
      dd.textContent = text;
      table.append(dt, dd);
    }
    inspector.replaceChildren(table);
    inspector.hidden = false;
    const box = token.getBoundingClientRect();
    const size = inspector.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, innerWidth - size.width - 8));
    const below = box.bottom + 8 + size.height <= innerHeight;
    inspector.style.left = `${left}px`;
    inspector.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - size.height - 8)}px`;
  };

  const tokenAt = (node) => (node instanceof Element ? node.closest(".tokens i, .tokens b") : null);

  document.addEventListener("mouseover", (event) => {
    const token = tokenAt(event.target);
    if (token) show(token);
    else if (current && !current.closest(".tokens").matches(":focus-visible")) hide();
  });
  document.addEventListener("click", (event) => {
    const token = tokenAt(event.target);
    if (token) show(token);
  });
  document.addEventListener("focusin", (event) => {
    if (event.target.matches(".tokens:focus-visible") && !event.target.contains(current)) move(event.target, 1);
  });
  document.addEventListener("focusout", (event) => {
    if (event.target.matches(".tokens")) hide();
  });
  addEventListener("scroll", () => { if (current && !current.closest(".tokens").matches(":focus-visible")) hide(); }, { passive: true });

  const move = (segment, step) => {
    const list = tokensOf(segment);
    let next = current && segment.contains(current) ? list.indexOf(current) + step : 0;
    while (list[next] && list[next].offsetParent === null) next += step;
    if (!list[next]) return;
    list[next].scrollIntoView({ block: "nearest" });
    show(list[next]);
  };

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const segment = event.target.closest ? event.target.closest(".tokens") : null;
    if (!segment) return;
    if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
    event.preventDefault();
    move(segment, event.key === "ArrowRight" ? 1 : -1);
  });
})();
