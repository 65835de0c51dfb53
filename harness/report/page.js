// THE PAGE: the view in the address, tables to filter and compare, hints on points, definitions. All of it reads without.
"use strict";
const make = (tag, props = {}, ...children) => {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(props)) k in e ? (e[k] = v) : e.setAttribute(k, v);
  e.append(...children);
  return e;
};

// ---- the view in the address: #ablate.filter=R&ablate.base=rnn&text=...
const view = (() => {
  const now = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  return {
    has: key => now.has(key),
    get: key => now.get(key) ?? "",
    set(pairs) {
      for (const [k, v] of Object.entries(pairs)) v === undefined ? now.delete(k) : now.set(k, v);
      history.replaceState(null, "", `${location.pathname}${location.search}${now.size ? "#" + now : ""}`);
    },
  };
})();
addEventListener("hashchange", () => { if (location.hash.includes("=")) location.reload(); }); // another view was pasted

// ---- hints: the point nearest to the pointer, or stepped to by arrow keys, says itself
(() => {
  const hint = make("div", { id: "hint", role: "status", hidden: true }), NEAR = 22, CHARTS = "svg.chart, svg.track, .hold svg";
  document.body.append(hint);
  let chart = null, points = [], at = -1;
  const titleOf = e => [...e.children].find(c => c.tagName === "title");
  const said = p => p.dataset.said || "";
  function enter(svg) {
    if (chart !== svg) leave();
    chart = svg;
    for (const t of svg.querySelectorAll("title")) { // the browser's own hint would come too, later
      t.parentNode.dataset.said = t.textContent;
      t.remove();
    }
    points = [...svg.querySelectorAll("circle")].filter(said);
  }
  function leave() {
    points[at]?.classList.remove("on");
    hint.hidden = true;
    [chart, points, at] = [null, [], -1];
  }
  function show(k) {
    points[at]?.classList.remove("on");
    at = k;
    hint.hidden = k < 0;
    if (k < 0) return;
    points[k].classList.add("on");
    hint.textContent = said(points[k]);
    const box = points[k].getBoundingClientRect(), wide = hint.offsetWidth, tall = hint.offsetHeight;
    const left = Math.max(4, Math.min(box.x + box.width / 2 - wide / 2, document.documentElement.clientWidth - wide - 4));
    hint.style.left = `${left + scrollX}px`;
    hint.style.top = `${(box.y > tall + 10 ? box.y - tall - 6 : box.bottom + 6) + scrollY}px`;
  }
  document.addEventListener("pointermove", e => {
    const svg = e.target.closest?.(CHARTS);
    if (!svg) { if (chart && document.activeElement !== chart) leave(); return; }
    if (svg !== chart) enter(svg);
    let best = -1, least = NEAR ** 2;
    points.forEach((p, k) => {
      const b = p.getBoundingClientRect(), d = (b.x + b.width / 2 - e.clientX) ** 2 + (b.y + b.height / 2 - e.clientY) ** 2;
      if (d < least) [best, least] = [k, d];
    });
    if (best !== at) show(best);
  });
  document.addEventListener("keydown", e => {
    const svg = e.target.closest?.(CHARTS);
    if (!svg) return;
    if (svg !== chart) enter(svg);
    const last = points.length - 1;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at < 0 ? last : at - 1, ArrowUp: at < 0 ? last : at - 1, Home: 0, End: last }[e.key];
    if (e.key === "Escape") show(-1);
    if (to === undefined || last < 0) return;
    show(Math.max(0, Math.min(last, to)));
    e.preventDefault();
  });
  document.addEventListener("focusout", e => { if (e.target === chart) leave(); });
})();

// ---- what a name, a term and a number mean, in one box; without script the same links lead to the same words
const about = (() => {
  const box = make("div", { id: "about", popover: "auto", tabIndex: -1 });
  document.body.append(box);
  if (!box.showPopover) return () => false;
  const shut = make("button", { type: "button", className: "shut", textContent: "×", ariaLabel: "Close" });
  shut.addEventListener("click", () => box.hidePopover());
  return (...parts) => {
    box.replaceChildren(shut, ...parts);
    box.showPopover();
    box.scrollTop = 0;
    box.focus();
    return true;
  };
})();
document.addEventListener("click", e => {
  const link = e.target.closest?.("a.term, a.variant");
  const goal = link && document.getElementById(decodeURIComponent(link.hash.slice(1)));
  if (!goal) return;
  const parts = goal.tagName === "DT" ? [make("h3", { textContent: goal.textContent }), make("p", { textContent: goal.nextElementSibling.textContent })]
    : [...goal.cloneNode(true).children];
  const held = link.matches(".variant") ? link.textContent.split(":")[1] : "";
  if (held) parts.splice(1, 0, make("p", { textContent: `Held at every step: ${held.replaceAll("=", " = ").replaceAll(",", ", ")}. What is held has no weights.` }));
  const row = link.closest("tr");
  if (row?.dataset.command) parts.push(make("p", { className: "small", textContent: "This row again:" }), make("code", { textContent: row.dataset.command }));
  if (about(...parts)) e.preventDefault();
});

// ---- tables: sorted, filtered, compared with another baseline, walked through by arrow keys
for (const t of document.querySelectorAll("table.main")) {
  const id = t.id.replace(/-table$/, ""), body = t.tBodies[0], heads = [...t.tHead.rows[0].cells], first = [...body.rows];
  const live = document.getElementById(t.id + "-live"), compared = "t" in t.dataset;
  const was = new Map(first.map(r => [r, [...r.cells].map(c => [...c.childNodes])]));
  const state = { sort: 0, filter: view.get(id + ".filter"), differs: view.get(id + ".differs") === "1", base: t.dataset.planned || "" };
  const remember = () => view.set({ [id + ".sort"]: state.sort || undefined, [id + ".filter"]: state.filter || undefined,
    [id + ".differs"]: state.differs ? "1" : undefined, [id + ".base"]: state.base !== (t.dataset.planned || "") ? state.base : undefined });

  // sort: +k by column k - 1 upwards, -k downwards
  function sort(order) {
    state.sort = order;
    const c = Math.abs(order) - 1, s = Math.sign(order), th = heads[c];
    heads.forEach(h => h.removeAttribute("aria-sort"));
    if (!th) { body.append(...first); return; }
    const n = "n" in th.dataset, key = r => r.cells[c].dataset.v || "";
    th.setAttribute("aria-sort", s > 0 ? "ascending" : "descending");
    body.append(...[...first].sort((p, q) => {
      const x = key(p), y = key(q);
      if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1);
      return s * (n ? x - y : x.localeCompare(y, "en", { numeric: true })) || first.indexOf(p) - first.indexOf(q);
    }));
    live.textContent = `Sorted by ${th.dataset.name}, ${s > 0 ? "ascending" : "descending"}; rows without a value are last.`;
    if (by) by.value = `${order}`;
  }
  heads.forEach((th, c) => {
    if (!th.querySelector("span")) return;
    const b = make("button", { type: "button" }, ...[...th.childNodes].filter(e => !e.matches?.("a")));
    th.prepend(b);
    b.addEventListener("click", () => { sort(th.getAttribute("aria-sort") === "ascending" ? -c - 1 : c + 1); remember(); });
  });

  // filter: rows whose text has every word; columns that say the same in all rows that are left
  const tell = make("output", { className: "small" });
  function filter() {
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    for (const r of first) r.hidden = !words.every(w => r.textContent.toLowerCase().includes(w));
    const left = first.filter(r => !r.hidden);
    heads.forEach((th, c) => {
      const same = state.differs && c > 0 && left.length > 1 && new Set(left.map(r => r.cells[c].querySelector("b, svg")?.outerHTML ?? "")).size < 2;
      for (const r of [t.tHead.rows[0], ...first, ...(t.tFoot?.rows ?? [])]) r.cells[c].hidden = same;
    });
    const gone = heads.filter(th => th.hidden).length;
    tell.textContent = (words.length ? `${left.length} of ${first.length} rows` : "") + (gone ? `${words.length ? ", " : ""}${gone} equal column${gone > 1 ? "s" : ""} hidden` : "");
  }

  // another baseline: each difference again from the seeds that both have; p stays with what was planned
  const logs = new Map(first.filter(r => r.dataset.logs).map(r => [r.cells[0].dataset.v, JSON.parse(r.dataset.logs)]));
  const bare = name => name.split(" ")[0], alone = name => [...logs.keys()].filter(n => bare(n) === bare(name)).length < 2;
  const short = name => (alone(name) ? bare(name) : name); // its engine too where a variant has several
  const quantiles = compared ? JSON.parse(t.dataset.t) : [];
  const sign = (x, digits) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
  const pct = x => { const p = 100 * Math.expm1(Math.min(x, 50)); return `${sign(p, Math.abs(p) < 99.95 ? 1 : 0)} %`; };
  function difference(one, other) {
    const d = Object.keys(one).filter(s => s in other).map(s => one[s] - other[s]), n = d.length, mean = d.reduce((a, b) => a + b, 0) / n;
    const half = n > 1 ? quantiles[n - 2] * Math.sqrt(d.reduce((a, b) => a + (b - mean) ** 2, 0) / (n - 1) / n) : NaN;
    return { n, mean, low: mean - half, high: mean + half };
  }
  function compare() {
    const column = name => heads.findIndex(th => th.dataset.kind === name), planned = state.base === t.dataset.planned, of = logs.get(state.base);
    const at = { delta: column("delta"), verdict: column("verdict"), dots: column("dots") };
    heads[at.delta].querySelector("span").textContent = planned ? heads[at.delta].dataset.name : `difference to ${short(state.base)}`;
    for (const r of first) {
      const d = r.cells[at.delta], v = r.cells[at.verdict], own = logs.get(r.cells[0].dataset.v);
      for (const c of [at.delta, at.verdict]) r.cells[c].replaceChildren(...was.get(r)[c]);
      d.dataset.key ??= d.dataset.v;
      v.dataset.key ??= v.dataset.v;
      [d.dataset.v, v.dataset.v] = [d.dataset.key, v.dataset.key];
      if (planned) continue;
      const found = own && own !== of ? difference(own, of) : { n: 0 };
      const note = lines => lines.map(textContent => make("small", { textContent }));
      d.dataset.v = found.n ? `${found.mean}` : "";
      v.dataset.v = "";
      d.replaceChildren(...(found.n ? [make("span", {}, make("b", { textContent: pct(found.mean) }), ...note([
        found.n > 1 ? `[${pct(found.low)}, ${pct(found.high)}]` : "no interval", `${sign(found.mean, 3)} nats, n = ${found.n}`]))] : []));
      const where = found.low === 0 && found.high === 0 ? "equal" : found.low > 0 ? "above 0" : found.high < 0 ? "below 0" : "interval holds 0";
      v.replaceChildren(...(found.n > 1 ? [make("span", {}, make("b", { textContent: where }), ...note(["no p: not planned"]))] : []));
    }
    const x = of && (Object.values(of).reduce((a, b) => a + b, 0) / Object.keys(of).length - t.dataset.low) / (t.dataset.high - t.dataset.low);
    for (const line of t.querySelectorAll("line.base")) for (const end of ["x1", "x2"]) line.setAttribute(end, `${(100 * x).toFixed(2)}%`);
    if (Math.abs(state.sort) - 1 === at.delta || Math.abs(state.sort) - 1 === at.verdict) sort(state.sort);
    filter();
  }

  // what stands above it
  const bar = make("div", { className: "bar-of", role: "group", ariaLabel: `View of: ${t.caption.textContent}` });
  let by;
  if (first.length > 3) {
    const words = make("input", { type: "search", value: state.filter, size: 14, placeholder: "e.g. gru:R" });
    words.addEventListener("input", () => { state.filter = words.value.trim(); filter(); remember(); });
    const differs = make("input", { type: "checkbox", checked: state.differs });
    differs.addEventListener("change", () => { state.differs = differs.checked; filter(); remember(); });
    by = make("select", {}, make("option", { value: "0", textContent: "as measured" }), ...heads.flatMap((th, c) => [1, -1].map(s =>
      make("option", { value: `${s * (c + 1)}`, textContent: `${th.dataset.name} ${s > 0 ? "↑" : "↓"}` }))));
    by.addEventListener("change", () => { sort(+by.value); remember(); });
    bar.append(make("label", {}, "Rows with ", words), make("label", { className: "phone" }, "Sorted by ", by),
      make("label", {}, differs, " only columns that differ"));
    if (compared && logs.size > 1 && logs.has(t.dataset.planned)) {
      const base = make("select", {}, ...[...logs.keys()].map(name => make("option", { value: name, textContent: short(name) + (name === t.dataset.planned ? " (planned)" : "") })));
      if (logs.has(view.get(id + ".base"))) state.base = view.get(id + ".base");
      base.value = state.base;
      base.addEventListener("change", () => { state.base = base.value; compare(); remember(); });
      bar.append(make("label", {}, "Differences to ", base));
    }
    bar.append(tell);
    t.parentNode.before(bar);
  }
  const wanted = Math.trunc(+view.get(id + ".sort"));
  if (wanted && heads[Math.abs(wanted) - 1]) sort(wanted);
  if (state.base !== (t.dataset.planned || "")) compare(); else filter();

  // a number says where it comes from: one stop for Tab, arrows from cell to cell, Enter or a click asks
  const cells = r => [...r.cells].filter(c => !c.hidden), rows = () => [...body.rows].filter(r => !r.hidden);
  let stop = first[0]?.cells[1];
  if (stop) stop.tabIndex = 0;
  function go(c) {
    if (!c) return;
    stop.tabIndex = -1;
    stop = c;
    c.tabIndex = 0;
    c.focus();
  }
  function ask(c) {
    const th = heads[c.cellIndex], r = c.parentNode, term = th.querySelector("a.term"), row = r.cells[0].dataset.v;
    const dt = term && document.getElementById(term.hash.slice(1)), command = r.dataset.command || t.dataset.command;
    const lines = [...c.querySelectorAll("b, small")].map(e => e.textContent).join("; ");
    if (!lines) return;
    const parts = [make("h3", { textContent: `${th.dataset.name}, ${row}` }), make("p", { textContent: lines })];
    if (dt) parts.push(make("p", { textContent: dt.nextElementSibling.textContent }));
    if (th.dataset.column) parts.push(make("p", { className: "small", textContent: `In ${t.dataset.file}, column ${th.dataset.column}.` }));
    if (command) parts.push(make("p", { className: "small", textContent: "The command that makes it:" }), make("code", { textContent: command }));
    about(...parts);
  }
  body.addEventListener("click", e => {
    const c = e.target.closest("td");
    if (c && !e.target.closest("a, button") && getSelection().isCollapsed) { go(c); ask(c); }
  });
  body.addEventListener("keydown", e => {
    const c = e.target.closest("td");
    if (!c || e.target !== c) return;
    const own = cells(c.parentNode), k = own.indexOf(c), all = rows(), r = all.indexOf(c.parentNode), other = d => all[r + d] && cells(all[r + d])[k];
    const to = { ArrowRight: own[k + 1], ArrowLeft: k > 1 ? own[k - 1] : null, ArrowDown: other(1), ArrowUp: other(-1), Home: own[1], End: own.at(-1) };
    if (e.key in to) { go(to[e.key]); e.preventDefault(); }
    if (e.key === "Enter" || e.key === " ") { ask(c); e.preventDefault(); }
  });
}
