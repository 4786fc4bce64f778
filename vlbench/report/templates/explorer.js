// The explorer is an extra: without this script the first entries stand as they were drawn.
{
  const root = document.getElementById("query-explorer");
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const state = { claim: 0, metric: 0, entry: 0, seed: 0 };
  let seq = 0;

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const draw = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const number = (value, digits = 1) => value.toFixed(digits).replace("-", "\u2212");
  const signed = (value, digits = 1) => (value > 0 ? "+" : "") + number(value, digits);
  const seconds = (start, end) => `${Number(start.toFixed(1))}\u2013${Number(end.toFixed(1))} s`;

  const claim = () => data.claims[state.claim];
  const list = () => claim().lists[state.metric];

  // --- one query -----------------------------------------------------------------------------------------------------

  const lane = (kind, name, note, length, bands, bars, steps) => {
    const high = (kind === "gold" ? 12 : 32) + (steps ? 30 : 2), scale = 1000 / length;
    const svg = draw("svg", {
      viewBox: `0 0 1000 ${high}`, preserveAspectRatio: "none", style: `height:${high}px`, role: "img",
      "aria-label": `${name}: ${note}`,
    });
    const rect = (cls, start, end, y, height) => svg.append(draw("rect", {
      class: cls, x: (start * scale).toFixed(1), y, height, width: Math.max((end - start) * scale, 2).toFixed(1),
    }));
    for (const [start, end] of kind === "gold" ? [] : bands) rect("band", start, end, 0, high);
    bars.forEach(([start, end], rank) => rect(kind === "gold" ? "bar r0" : `bar r${rank}`, start, end,
      kind === "gold" ? 2 : 2 + 6 * rank, kind === "gold" ? 8 : 5));
    if (steps) {
      const wide = 1000 / steps.length;
      const path = [...steps].map((letter, place) =>
        `V${(-26 * letters.indexOf(letter) / 63).toFixed(1)}H${((place + 1) * wide).toFixed(1)}`).join("");
      svg.append(draw("path", { class: "saliency", transform: `translate(0 ${high - 2})`, d: `M0 0${path}V0Z` }));
    }
    return make("div", { class: `lane ${kind}` },
      make("p", { class: "lane-name" }, make("b", {}, name), " ", make("span", {}, note)), svg);
  };

  const card = () => {
    const entry = list()[state.entry];
    if (!entry) return make("p", {}, "No query moved.");
    const [place, change, typical] = entry, query = data.queries[place], metric = data.metrics[state.metric];
    const scores = query.scores[state.metric], lanes = make("div", { class: "timeline" });
    if (query.gold !== null || query.marks) {
      const note = query.gold && query.gold.length ? query.gold.map((w) => seconds(...w)).join(", ") : "no annotated window";
      lanes.append(lane("gold", "Ground truth", note, query.length, [], query.gold || [], query.marks));
    }
    for (const [arm, weight] of claim().arms) {
      const run = data.runs[arm][state.seed], row = run ? run[place] : 0, values = scores ? scores[arm] : [];
      const notes = [`seed ${data.seeds[state.seed]}`];
      if (values.length) {
        const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
        const others = values.length > 1 ? ` (mean of ${values.length} seeds ${number(mean / 10)})` : "";
        notes[0] += `: ${metric.title} ${number(values[state.seed] / 10)}${others}`;
      }
      const bars = [];
      if (row) for (let at = 0; at < row[0].length; at += 3) bars.push([row[0][at] / 10, row[0][at + 1] / 10]);
      if (bars.length) notes.push(`first window ${seconds(...bars[0])}`);
      if (row && row[2] !== null) notes.push(`overlap ${(row[2] / 100).toFixed(2)}`);
      if (!row) notes.push("its predictions are not in the store");
      const name = claim().arms.length > 2 ? `${signed(weight, 2)} \u00d7 ${data.arms[arm]}` : data.arms[arm];
      lanes.append(lane(weight < 0 ? "minus" : "plus", name, notes.join(", "), query.length, query.gold || [], bars, row ? row[1] : ""));
    }
    lanes.append(make("p", { class: "axis" }, make("span", {}, "0 s"), make("span", {}, `${Number(query.length.toFixed(1))} s`)));
    const chosen = state.seed === typical ? "the seed closest to the mean difference" : "chosen by hand";
    return make("article", { class: "query" },
      make("h3", {}, query.text),
      make("p", { class: "moved-by" }, `${claim().plus} \u2212 ${claim().minus}: ${signed(change)} points on ${metric.title}`),
      make("p", { class: "where" }, `${query.video} \u00b7 query ${query.id} \u00b7 ${Number(query.length.toFixed(1))} s \u00b7 seed ${data.seeds[state.seed]}, ${chosen}`),
      lanes);
  };

  // --- the controls --------------------------------------------------------------------------------------------------

  const select = (label, texts, changed) => {
    const id = `explorer-${++seq}`, box = make("select", { id });
    texts.forEach((text, place) => box.append(make("option", { value: place }, text)));
    box.addEventListener("change", () => changed(Number(box.value)));
    return [make("div", { class: "control" }, make("label", { for: id }, label), box), box];
  };
  const [whichBox, which] = select("Difference", data.claims.map((x) => `${x.name}: ${x.plus} \u2212 ${x.minus}`),
    (place) => show({ claim: place, entry: 0 }));
  const [metricBox, metric] = select("Metric", data.metrics.map((x) => x.title), (place) => show({ metric: place, entry: 0 }));
  const [seedBox, seed] = select("Run", data.seeds.map((x) => `seed ${x}`), (place) => show({ seed: place }, true));
  const lists = make("div", { class: "lists" }), picked = make("div", { class: "picked" });
  const said = make("p", { class: "said", role: "status" });

  const group = (title, entries) => {
    if (!entries.length) return "";
    const id = `explorer-${++seq}`, items = make("ul", { "aria-labelledby": id });
    for (const [entry, place] of entries) {
      const query = data.queries[entry[0]];
      const button = make("button", { type: "button", title: query.text },
        make("span", { class: "change" }, signed(entry[1])), make("span", { class: "words" }, query.text));
      if (place === state.entry) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => {
        show({ entry: place });
        picked.scrollIntoView({ block: "nearest" }); // on a narrow page it stands below the list
      });
      items.append(make("li", {}, button));
    }
    return make("div", {}, make("h3", { id }, title), items);
  };

  function show(change, keepSeed = false) {
    Object.assign(state, change);
    const entry = list()[state.entry];
    if (!keepSeed && entry) state.seed = entry[2];
    [which.value, metric.value, seed.value] = [state.claim, state.metric, state.seed];
    const focused = lists.contains(document.activeElement);
    const entries = list().map((found, place) => [found, place]);
    lists.replaceChildren(
      group("Gained most, points", entries.filter(([found]) => found[1] > 0)),
      group("Lost most, points", entries.filter(([found]) => found[1] < 0)));
    picked.replaceChildren(card());
    said.textContent = picked.querySelector(".moved-by")?.textContent ?? "";
    if (focused) lists.querySelector("[aria-current]")?.focus();
  }
  lists.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show({ entry: Math.min(Math.max(state.entry + step, 0), list().length - 1) });
  });
  root.replaceChildren(make("div", { class: "controls" }, whichBox, metricBox, seedBox), lists, picked, said);
  root.classList.add("live");
  show({});

  // from a row of a comparison table to its queries
  data.metrics.forEach((found, place) => {
    const key = found.key.toLowerCase().replace(/[^a-z0-9]+/g, "-");
    for (const caption of [`caption-primary-${key}`, `caption-effects-${key}`]) {
      const table = document.getElementById(caption)?.closest("table");
      for (const row of table ? table.tBodies[0].rows : []) {
        const cell = row.cells[0], names = [cell.textContent.trim(), cell.dataset.v];
        const at = data.claims.findIndex((x) => names.includes(x.name));
        if (at < 0) continue;
        const link = make("a", { href: "#queries", class: "peek", "aria-label": `${data.claims[at].name}: its queries` }, "queries");
        link.addEventListener("click", () => show({ claim: at, metric: place, entry: 0 }));
        cell.append(" ", link);
      }
    }
  });
}
