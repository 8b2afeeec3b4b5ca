// The mask view's hands: hover, click, keyboard, policies, filters, find. All text goes in as text, never as markup.
(() => {
  "use strict";
  const data = document.getElementById("mask-data");
  const inspector = document.getElementById("inspector");
  if (!data || !inspector) return;
  const facts = JSON.parse(data.textContent);
  const rows = facts.rows;
  const control = (id) => document.getElementById(id);
  const number = (value) => value.toLocaleString("en-US");
  const { START, STOP, SAMPLES, SOURCES } = maskDrawing;
  let shownPolicy = 0; // whose weights the tokens are coloured by
  let otherPolicy = null; // the one they are compared with
  let current = null; // the token that the inspector speaks of
  let looking = null; // the token whose view is lit
  let isRevealing = false;

  // ---- what is known of a token

  const expanded = new WeakMap();
  const list = (runs) => {
    if (!expanded.has(runs)) {
      const values = [];
      for (let i = 0; i < runs.length; i += 2) for (let n = 0; n < runs[i + 1]; n += 1) values.push(runs[i]);
      expanded.set(runs, values);
    }
    return expanded.get(runs);
  };
  const weightsOf = (row, policy) => list(row.policies[policy].weight);
  const positionIn = (row) => (place) => place + list(row.offset)[place];

  // A segment of the page is a section; its tokens stand in one or more blocks.
  const sections = rows.map((row, r) => row.segments.map((_, s) => document.getElementById(`segment-${r}-${s}`)));
  const lists = new WeakMap();
  const tokensOf = (section) => {
    if (!lists.has(section)) lists.set(section, [...section.querySelectorAll(".tokens i,.tokens b")]);
    return lists.get(section);
  };
  const eachSegment = (act) => sections.forEach((list, r) => list.forEach((section, s) => act(section, rows[r], r, s)));

  // Row, segment and place of a token of the page.
  const whereIs = (token) => {
    const { row, segment } = token.closest(".tokens").dataset;
    const [rowNumber, s] = [Number(row), Number(segment)];
    const offset = tokensOf(sections[rowNumber][s]).indexOf(token);
    return { rowNumber, segment: s, row: rows[rowNumber], place: rows[rowNumber].segments[s][START] + offset };
  };
  const tokenOf = (rowNumber, place) => {
    const segment = maskDrawing.segmentOf(rows[rowNumber], place);
    return tokensOf(sections[rowNumber][segment])[place - rows[rowNumber].segments[segment][START]];
  };

  const weightText = (weight) => (weight === 0 ? "0 (not taught)" : weight < 0 ? `${weight} (pushed away)` : `${weight}`);

  const MOST_TARGETS = 6;
  const targetsText = ({ row, rowNumber, place }, policy) => {
    const told = list(row.policies[policy].predicts)[place];
    if (told === 0) return "nothing";
    if (told === 1) {
      const text = tokenOf(rowNumber, place + 1).textContent;
      return `${text}  (id ${row.ids[place + 1]}, weight ${weightsOf(row, policy)[place + 1]})`;
    }
    const lines = told.slice(0, MOST_TARGETS).map(([piece, id, weight]) => `${piece}  (id ${id}, weight ${weight})`);
    return [...lines, ...(told.length > MOST_TARGETS ? [`and ${told.length - MOST_TARGETS} more`] : [])].join("\n");
  };

  const segmentText = ({ row, segment }) => {
    const [id, parent, , , samples] = row.segments[segment];
    const below = parent === -1 ? "root" : `child of ${row.segments[parent][0]}`;
    return `${id}, ${below}${samples > 1 ? `, shared by ${samples} samples` : ""}`;
  };

  const seenText = ({ row, segment, place }) => {
    const seen = maskDrawing.seenTokens(row, segment, place);
    const told = `${number(seen)} of ${number(maskDrawing.realTokens(row))} tokens of the row`;
    const [near, windowed, layers] = row.window ?? [Infinity];
    return seen <= near ? told : `${told}\nthe nearest ${number(near)} of them in ${windowed} of ${layers} layers (sliding window)`;
  };

  const ofPolicy = (at, policy) => [
    ...(facts.policies.length > 1 ? [["", facts.policies[policy]]] : []),
    ["weight", weightText(weightsOf(at.row, policy)[at.place])],
    ["by the rules", facts.rules[list(at.row.policies[policy].rule)[at.place]].map((rule, i) => (i ? `→ ${rule}` : rule)).join("\n")],
    ["predicts", targetsText(at, policy)],
  ];

  const describe = (token, at) => [
    ["token", token.textContent],
    ["id", at.row.ids[at.place]],
    ["provenance", facts.from[list(at.row.from)[at.place]].replaceAll("_", " ")],
    ["position", positionIn(at.row)(at.place)],
    ["segment", segmentText(at)],
    ["sees", seenText(at)],
    ...ofPolicy(at, shownPolicy),
    ...(otherPolicy === null ? [] : ofPolicy(at, otherPolicy)),
  ];

  // ---- the inspector

  const sides = [...document.querySelectorAll(".side")];

  const markPlace = (at) => {
    clearMarks();
    const side = sides[at.rowNumber];
    const mark = side.querySelector(".query");
    if (!mark) return;
    mark.hidden = false;
    mark.style.top = `${(100 * (at.place + 0.5)) / maskDrawing.realTokens(at.row)}%`;
    side.querySelector(`.node[data-segment="${at.segment}"]`)?.classList.add("on");
  };

  const clearMarks = () => {
    for (const mark of document.querySelectorAll(".query")) mark.hidden = true;
    for (const node of document.querySelectorAll(".node.on")) node.classList.remove("on");
  };

  const hide = () => {
    if (current) current.removeAttribute("data-here");
    current = null;
    inspector.hidden = true;
    clearMarks();
  };

  const show = (token) => {
    if (token === current) return;
    if (current) hide();
    current = token;
    token.setAttribute("data-here", "");
    const at = whereIs(token);
    const table = document.createElement("dl");
    for (const [name, text] of describe(token, at)) {
      const dt = document.createElement("dt");
      const dd = document.createElement("dd");
      dt.textContent = name || text;
      dd.textContent = text;
      if (name) table.append(dt, dd);
      else {
        dt.className = "policy"; // a heading over what follows
        table.append(dt);
      }
    }
    inspector.replaceChildren(table);
    inspector.hidden = false;
    markPlace(at);
    const box = token.getBoundingClientRect();
    const size = inspector.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, innerWidth - size.width - 8));
    const isBelow = box.bottom + 8 + size.height <= innerHeight;
    inspector.style.left = `${left}px`;
    inspector.style.top = `${isBelow ? box.bottom + 8 : Math.max(8, box.top - size.height - 8)}px`;
  };

  // ---- what a token sees: the rest of its row is dimmed

  const lookAway = () => {
    if (!looking) return;
    const row = looking.closest(".row");
    row.classList.remove("looking");
    for (const element of row.querySelectorAll("[data-dim]")) element.removeAttribute("data-dim");
    looking.removeAttribute("data-looking");
    looking = null;
  };

  const look = (token) => {
    const again = token === looking;
    lookAway();
    if (again) return;
    looking = token;
    const { row, rowNumber, segment, place } = whereIs(token);
    const seen = new Set([segment, ...maskDrawing.ancestors(row, segment)]);
    sections[rowNumber].forEach((section, s) => section.toggleAttribute("data-dim", !seen.has(s)));
    let block = token.closest(".tokens");
    for (const later of tokensOf(sections[rowNumber][segment]).slice(place + 1 - row.segments[segment][START])) {
      if (!block.contains(later)) break;
      later.setAttribute("data-dim", "");
    }
    while ((block = block.nextElementSibling)) block.setAttribute("data-dim", ""); // a block that is later as a whole
    token.setAttribute("data-looking", "");
    token.closest(".row").classList.add("looking");
  };

  // ---- two policies

  const classOf = (weight) => {
    if (weight === 0) return "p0";
    const step = Math.ceil((facts.levels * Math.abs(weight)) / facts.scale - 1e-9);
    return `${weight < 0 ? "n" : "p"}${Math.min(Math.max(step, 1), facts.levels)}`;
  };

  // Weights of a row under the policy that is shown, and under the one beside it: what the tokens look like.
  const looks = (row) => [weightsOf(row, shownPolicy), otherPolicy === null ? null : weightsOf(row, otherPolicy)];

  const paintSegment = (section, start, [mine, others], [mineBefore, othersBefore]) => {
    const tokens = tokensOf(section);
    let taught = 0, differing = 0, place = start;
    for (const run of section.querySelectorAll(".run")) {
      const before = [taught, differing];
      for (const end = place + run.childElementCount; place < end; place += 1) {
        const weight = mine[place];
        const differs = others !== null && others[place] !== weight;
        const differed = othersBefore !== null && othersBefore[place] !== mineBefore[place];
        if (weight !== mineBefore[place]) tokens[place - start].className = classOf(weight);
        if (differs !== differed) tokens[place - start].toggleAttribute("data-differs", differs);
        taught += weight !== 0;
        differing += differs;
      }
      run.classList.toggle("none", taught === before[0]);
      run.classList.toggle("same", differing === before[1]);
    }
    section.classList.toggle("empty", taught === 0);
    section.classList.toggle("same", differing === 0);
    section.querySelector(".taught").textContent = number(taught);
    return taught;
  };

  const showPolicies = (policy, other) => {
    const before = rows.map(looks);
    const taught = rows.map(() => 0);
    [shownPolicy, otherPolicy] = [policy, other];
    eachSegment((section, row, r, s) => {
      taught[r] += paintSegment(section, row.segments[s][START], looks(row), before[r]);
    });
    document.querySelectorAll(".row > summary .taught").forEach((place, i) => { place.textContent = number(taught[i]); });
    redrawSides();
    tellDifference();
    fillTotals();
    hide();
  };

  const filters = { "only-taught": document.querySelector(".taught-only"), "only-differing": document.querySelector(".differing-only") };
  const filter = () => {
    for (const [name, input] of Object.entries(filters)) control("mask-view").classList.toggle(name, input?.checked ?? false);
  };
  const showAll = () => {
    document.querySelector(".show-all").checked = true;
    filter();
  };

  const tellDifference = () => {
    const differing = document.querySelector(".differing-only");
    differing.disabled = otherPolicy === null;
    if (otherPolicy === null && differing.checked) showAll();
    control("differing").textContent = otherPolicy === null ? "" : differenceText();
  };

  const differenceText = () => {
    let tokens = 0, mine = 0, others = 0, both = 0;
    for (const row of rows) {
      const [a, b] = [weightsOf(row, shownPolicy), weightsOf(row, otherPolicy)];
      const end = maskDrawing.realTokens(row);
      tokens += end;
      for (let i = 0; i < end; i += 1) {
        if (a[i] === b[i]) continue;
        if (b[i] === 0) mine += 1;
        else if (a[i] === 0) others += 1;
        else both += 1;
      }
    }
    const [a, b] = [facts.policies[shownPolicy], facts.policies[otherPolicy]];
    const parts = [[mine, `taught only by “${a}”`], [others, `taught only by “${b}”`], [both, "with another weight"]];
    const told = parts.filter(([count]) => count).map(([count, text]) => `${number(count)} ${text}`);
    return `${number(mine + others + both)} of ${number(tokens)} tokens differ${told.length ? ": " : ""}${told.join(", ")}.`;
  };

  const fillTotals = () => {
    const source = control("source")?.value ?? "";
    const lines = facts.totals[shownPolicy]?.[source === "" ? 0 : Number(source) + 1] ?? [];
    control("totals").tBodies[0].replaceChildren(...lines.map((line) => {
      const tr = document.createElement("tr");
      line.slice(0, 5).forEach((text, i) => {
        const cell = document.createElement(i ? "td" : "th");
        cell.textContent = text;
        tr.append(cell);
      });
      const [share, track, fill] = ["td", "span", "span"].map((name) => document.createElement(name));
      share.className = "wide";
      track.className = "track";
      fill.className = "fill";
      fill.style.width = `${line[5]}%`;
      track.append(fill);
      share.append(track);
      tr.append(share);
      return tr;
    }));
  };

  // ---- one source; one sample

  const showSource = (source) => {
    const isShown = (segment) => source === "" || segment[SOURCES].includes(Number(source));
    eachSegment((section, row, _, s) => { section.hidden = !isShown(row.segments[s]); });
    document.querySelectorAll(".row").forEach((row, i) => { row.hidden = !rows[i].segments.some(isShown); });
    fillTotals();
  };

  // Samples called so; else those whose place ends so; else those that hold the text.
  const samplesLike = (text) => {
    const tests = [
      ([id, place]) => id === text || place === text,
      ([, place]) => place.endsWith(`/${text}`) || place.endsWith(`:${text}`),
      ([id, place]) => id.includes(text) || place.includes(text),
    ];
    for (const test of tests) {
      const found = facts.samples.filter(test);
      if (found.length) return found;
    }
    return [];
  };

  // Where the controls stick to the top, the rest keeps clear of them.
  const controls = document.querySelector(".controls");
  const fitBar = () => {
    const height = getComputedStyle(controls).position === "sticky" ? controls.offsetHeight : 0;
    control("mask-view").style.setProperty("--bar", `${height}px`);
  };
  new ResizeObserver(fitBar).observe(controls);

  const reveal = (rowNumber, segment) => {
    const section = sections[rowNumber][segment];
    if (section.hidden && control("source")) {
      control("source").value = "";
      showSource("");
    }
    section.closest(".row").open = true;
    if (section.offsetParent === null) showAll();
    fitBar();
    // What comes near is laid out and drawn in the next frames, which may push the segment on.
    const settle = (frames) => {
      section.scrollIntoView({ block: "start", behavior: "instant" });
      if (frames) requestAnimationFrame(() => settle(frames - 1));
      else markPlace({ row: rows[rowNumber], rowNumber, segment, place: rows[rowNumber].segments[segment][START] });
    };
    settle(5);
    for (const old of document.querySelectorAll(".segment.found")) old.classList.remove("found");
    section.classList.add("found");
    isRevealing = true; // the place itself is shown; the inspector waits for a key
    section.querySelector(".tokens").focus({ preventScroll: true });
    isRevealing = false;
  };

  let asked = { text: "", next: 0 };
  const find = (text) => {
    const found = text ? samplesLike(text) : [];
    asked = { text, next: asked.text === text && found.length ? asked.next % found.length : 0 };
    if (!found.length) {
      control("found").textContent = text ? `No sample “${text}” on this page. Any other: frisket view RECIPE --id ${text}` : "";
      return;
    }
    const [id, place, , rowNumber, segment] = found[asked.next];
    asked.next += 1;
    const more = found.length > 1 ? ` (${asked.next} of ${found.length}; Enter for the next)` : "";
    control("found").textContent = `${place || id}${more}`;
    reveal(rowNumber, segment);
    if (more) control("find").focus({ preventScroll: true });
  };

  // ---- the tree and the mask at the side of a row

  const caption = (text) => {
    const element = document.createElement("figcaption");
    element.textContent = text;
    return element;
  };

  const treeText = (row) => {
    if (row.segments.some((segment) => segment[SAMPLES] > 1)) return "a shared prefix stands once";
    return row.segments.some((_, s) => maskDrawing.ancestors(row, s).length) ? "each sample sees those before it" : "one line a sample";
  };

  const drawSide = (side, rowNumber) => {
    const row = rows[rowNumber];
    const mask = document.createElement("figure"), frame = document.createElement("div");
    const canvas = document.createElement("canvas"), query = document.createElement("div");
    mask.className = "mask";
    frame.className = "frame";
    query.className = "query";
    query.hidden = true;
    frame.append(canvas, query);
    mask.append(frame);
    const tree = document.createElement("figure");
    tree.className = "tree";
    const title = (s) => {
      const segment = row.segments[s];
      return `segment ${segmentText({ row, segment: s })} · ${number(segment[STOP] - segment[START])} tokens`;
    };
    const hueOf = (s) => sections[rowNumber][s].style.getPropertyValue("--hue");
    const svg = maskDrawing.drawTree(row, { positionOf: positionIn(row), weights: weightsOf(row, shownPolicy), hueOf, titleOf: title });
    svg.setAttribute("aria-label", `tree of ${row.segments.length} segments; arrow keys choose one, Enter goes to it`);
    tree.append(svg);
    side.replaceChildren(mask, tree);
    const block = maskDrawing.paintMask(row, canvas);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "attention mask of the row");
    const scale = block === 1 ? "One cell is one token." : `One pixel is ${block} × ${block} tokens.`;
    mask.append(caption(`Attention mask: a line is a token, its columns what it sees. ${scale}${maskDrawing.windowText(row)}`));
    tree.append(caption(`Tree: width is tokens, ${treeText(row)}; click to go there.`));
  };

  const redrawSides = () => sides.forEach((side, i) => { if (side.childElementCount) drawSide(side, i); });

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      const side = entry.target.querySelector(".side");
      if (side.dataset.row in rows && rows[side.dataset.row].segments.length) drawSide(side, Number(side.dataset.row));
    }
  }, { rootMargin: "600px" });
  for (const row of document.querySelectorAll(".row")) near.observe(row);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawSides);

  const chooseNode = (svg, step) => {
    const nodes = [...svg.querySelectorAll(".node")];
    const chosen = nodes.findIndex((node) => node.classList.contains("on"));
    const next = Math.min(Math.max(chosen + step, 0), nodes.length - 1);
    for (const node of nodes) node.classList.toggle("on", node === nodes[next]);
    nodes[next].scrollIntoView({ block: "nearest", behavior: "instant" });
  };
  const goToNode = (node) => reveal(Number(node.closest(".side").dataset.row), Number(node.dataset.segment));

  // ---- events

  const tokenAt = (node) => (node instanceof Element ? node.closest(".tokens i, .tokens b") : null);
  const isFocused = () => current && current.closest(".tokens").matches(":focus-visible");

  document.addEventListener("mouseover", (event) => {
    const token = tokenAt(event.target);
    if (token) show(token);
    else if (current && !isFocused()) hide();
  });
  document.addEventListener("click", (event) => {
    const token = tokenAt(event.target);
    const node = event.target instanceof Element ? event.target.closest(".node") : null;
    if (token) {
      show(token);
      look(token);
    } else if (node) goToNode(node);
    else if (event.target instanceof HTMLCanvasElement && event.target.closest(".frame")) {
      const side = event.target.closest(".side"), box = event.target.getBoundingClientRect();
      const row = rows[side.dataset.row];
      const place = Math.floor((maskDrawing.realTokens(row) * (event.clientY - box.top)) / box.height);
      const chosen = tokenOf(Number(side.dataset.row), Math.min(Math.max(place, 0), maskDrawing.realTokens(row) - 1));
      chosen.scrollIntoView({ block: "center", behavior: "instant" });
      if (chosen !== looking) look(chosen);
      show(chosen);
    }
  });
  document.addEventListener("focusin", (event) => {
    if (!isRevealing && event.target.matches(".tokens:focus-visible") && !event.target.contains(current)) {
      hide();
      move(event.target, 0);
    }
  });
  document.addEventListener("focusout", (event) => {
    if (event.target.matches(".tokens")) hide();
  });
  addEventListener("scroll", () => { if (current && !isFocused()) hide(); }, { passive: true });

  // To the token of the segment `step` places on, over those that a filter hides; to an end where step is infinite.
  const move = (block, step) => {
    const shown = tokensOf(block.parentElement).filter((token) => token.offsetParent !== null);
    const start = current ? shown.indexOf(current) : -1;
    const next = start === -1 ? shown.find((token) => block.contains(token)) : shown[Math.min(Math.max(start + step, 0), shown.length - 1)];
    if (!next) return;
    next.closest(".tokens").focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest", behavior: "instant" });
    show(next);
  };

  const STEPS = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      if (looking) lookAway();
      else hide();
      return;
    }
    const target = event.target instanceof Element ? event.target : document.body;
    const block = target.closest(".tokens"), svg = target.closest(".tree svg");
    if (target.id === "find" && event.key === "Enter") find(target.value.trim());
    else if (block && event.key in STEPS) move(block, STEPS[event.key]);
    else if (block && event.key === "Enter" && current && block.contains(current)) look(current);
    else if (svg && event.key in { ArrowDown: 0, ArrowUp: 0 }) chooseNode(svg, event.key === "ArrowDown" ? 1 : -1);
    else if (svg && event.key === "Enter" && svg.querySelector(".node.on")) goToNode(svg.querySelector(".node.on"));
    else return;
    event.preventDefault();
  });

  const choice = (select) => (select.value === "" ? null : Number(select.value));
  const onPolicy = () => {
    const other = choice(control("policy-b"));
    const policy = Number(control("policy-a").value);
    showPolicies(policy, other === policy ? null : other);
  };
  for (const id of ["policy-a", "policy-b"]) control(id)?.addEventListener("change", onPolicy);
  for (const input of document.querySelectorAll(".filter input")) input.addEventListener("change", filter);
  control("source")?.addEventListener("change", (event) => showSource(event.target.value));

  for (const run of document.querySelectorAll(".run")) run.removeAttribute("title");
  if (facts.open !== null) find(facts.open);
})();
