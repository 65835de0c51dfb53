// THE LABORATORY: what is typed, each network's answer, a gate held, a letter looked at. The view is in the address.
const LAB = JSON.parse(document.getElementById("lab-data")?.textContent || "{}");
if (LAB.nets?.length) (() => {
  const data = LAB;
  const $ = id => document.getElementById("lab-" + id), letters = data.letters, MOST = 160;
  const number = new Map(letters.map((c, i) => [c, i])), spaced = { " ": "␣", "\n": "↵", "\t": "⇥" };
  const nets = new Map(data.nets.map(spec => [spec.name, new Net(spec, letters.length)]));
  const first = [...nets.values()].find(n => Object.keys(n.gates).length) || [...nets.values()][0];
  const hueOf = gate => (gate === "R" || gate === "Z" ? gate : "other");
  const state = { text: data.start, shown: data.shown, which: first.name, hold: {}, at: 0, order: "time", heat: 0 };

  const svg = (tag, props = {}, text) => {
    const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [k, v] of Object.entries(props)) e.setAttribute(k, v);
    if (text !== undefined) e.textContent = text;
    return e;
  };
  // Few values, as attributes with a rule each: a style for every letter takes the browser three times as long.
  const put = (e, name, value) => { if (e.dataset[name] !== value) e.dataset[name] = value; };
  const show = c => (c.length > 1 ? "�" : spaced[c] ?? c);
  const ppl = x => (x < 100 ? x.toFixed(2) : x < 1e4 ? x.toFixed(0) : x.toExponential(1));
  const spell = hold => Object.entries(hold).map(([g, v]) => `${g}=${v}`).join(",");
  const best = p => draw(p, 0);
  // As the text was read: what the vocabulary lacks in lower case, else as a space, several of them as one.
  const plain = text => {
    const out = [];
    let made = false; // whether the last of them is such a space
    for (const c of text) {
      const known = number.get(c) ? c : number.get(c.toLowerCase()) ? c.toLowerCase() : "";
      if (known && !(known === " " && made)) out.push(known);
      else if (!known && number.get(" ") && out.length && out.at(-1) !== " ") out.push(" ");
      made = known ? made && known === " " : out.at(-1) === " ";
    }
    return out.slice(0, MOST);
  };
  const encode = text => text.map(c => number.get(c) ?? 0);
  let text = plain(state.text);

  // ---- the view in the address: #text=...&show=a b&of=gru&hold=Z=0.5&at=12
  function remember() {
    view.set({ text: text.join(""), show: state.shown.join(" "), of: state.which, hold: spell(state.hold) || undefined, at: `${state.at}` });
  }
  function recall() {
    if (view.has("text")) text = plain(view.get("text"));
    const known = view.get("show").split(" ").filter(n => nets.has(n));
    if (known.length) state.shown = known;
    if (nets.has(view.get("of"))) state.which = view.get("of");
    for (const part of view.get("hold").split(",")) { // of that network: it is chosen first
      const [g, v] = part.split("=");
      if (g in nets.get(state.which).gates && v >= 0 && v <= 1 && v !== "") state.hold[g] = +v;
    }
    state.at = view.has("at") ? Math.min(+view.get("at") || 0, text.length) : text.length;
  }

  // ---- rows: one a network, its letters made once and changed in place
  const rows = new Map();
  function row(name) {
    if (rows.has(name)) return rows.get(name);
    const net = nets.get(name), strong = make("strong"), small = make("small");
    const strip = make("div", { className: "letters" }), stack = make("div", { className: "stack" }), back = make("div");
    const title = make("div", { className: "name" }, make("span", { textContent: net.about || name }), strong, small,
      make("small", { textContent: "perplexity" }));
    const whole = make("div", { className: "net h-" + net.hue }, title, strip, make("div", { className: "next" }, stack, back));
    const made = { whole, strong, small, strip, stack, back, spans: [] };
    const at = e => { const t = made.spans.indexOf(e.target); if (t > 0) look(t); };
    strip.addEventListener("pointerover", at);
    strip.addEventListener("click", at);
    rows.set(name, made);
    return made;
  }
  // Rows are filled in slices, three a frame: a letter typed waits for none of them. One that waits keeps its place.
  const queue = new Map();
  let booked = 0;
  function soon(name, work) {
    queue.set(name, work === mark && queue.get(name) === renew ? renew : work);
    booked ||= requestAnimationFrame(slice);
  }
  function slice() {
    for (const [name, work] of [...queue].slice(0, 3)) {
      queue.delete(name);
      if (state.shown.includes(name)) work(name);
    }
    booked = queue.size ? requestAnimationFrame(slice) : 0;
    if (!booked) tell();
  }
  const renew = name => { fill(name); mark(name); };
  function frame() {
    $("rows").replaceChildren(...state.shown.map(name => row(name).whole));
    for (const chip of $("chips").children) chip.setAttribute("aria-pressed", state.shown.includes(chip.dataset.name));
  }
  const read = name => nets.get(name).held(name === state.which ? state.hold : {}).forward(encode(text));
  function fill(name) {
    const r = row(name), net = read(name);
    while (r.spans.length <= text.length) r.strip.append(r.spans[r.spans.push(make("span")) - 1]);
    while (r.spans.length > text.length + 1) r.spans.pop().remove();
    r.spans.forEach((s, t) => {
      const guess = t === text.length, c = guess ? (t ? letters[best(net.next(t - 1))] : "") : text[t]; // its own guess goes on
      if (s.textContent !== show(c)) { s.textContent = show(c); s.classList.toggle("gap", c === " "); }
      s.classList.toggle("guess", guess);
      put(s, "bits", guess ? "0" : `${Math.round(2 * Math.min(net.bits(t), 9))}`);
    });
    const held = name === state.which && Object.keys(state.hold).length;
    r.small.textContent = held ? "held: " + spell(state.hold) : net.about ? name : "";
    r.strong.textContent = text.length > 1 ? ppl(net.perplexity()) : "–";
    r.strong.dataset.value = net.perplexity();
  }
  // The letter looked at: its surprise, what was expected there, how far back the network looked.
  function mark(name) {
    const r = row(name), net = read(name), t = state.at, typed = t < text.length, p = t > 0 ? net.next(t - 1) : null;
    const letter = p && (typed ? net.read[t] : best(p)), norms = p ? net.reach(t, letter) : [], most = norms[t - 1] || 1;
    let sum = 0, far = 0, part = 0;
    for (const x of norms) sum += x;
    while (far < norms.length && part < 0.9 * sum) part += norms[norms.length - 1 - far++];
    point(r, t);
    r.spans.forEach((s, k) => put(s, "share", k < t ? `${Math.round(12 * Math.min(1, Math.sqrt(norms[k] / most)))}` : "0"));
    const order = p ? Array.from(p.keys()).sort((a, b) => p[b] - p[a]).slice(0, 6) : [];
    r.stack.replaceChildren(...order.map((c, rank) => {
      const s = make("span", { textContent: p[c] > 0.055 ? show(letters[c]) : "", className: typed && c === letter ? "hit" : "",
        title: `${show(letters[c])} ${(100 * p[c]).toFixed(1)} %` });
      s.style.width = 100 * p[c] + "%";
      put(s, "rank", `${rank}`);
      return s;
    }));
    const said = !p ? "" : typed ? `${net.bits(t).toFixed(1)} bits for “${show(text[t])}”`
      : `next “${show(letters[letter])}”, ${(100 * p[letter]).toFixed(0)} %`;
    r.back.textContent = p ? `${said}; looks back ${far} letter${far === 1 ? "" : "s"}` : "";
  }
  function point(r, t) {
    if (r.on !== r.spans[t]) {
      r.on?.classList.remove("on");
      (r.on = r.spans[t])?.classList.add("on");
    }
  }
  function look(t) {
    state.at = Math.max(0, Math.min(t, text.length));
    for (const name of state.shown) { point(row(name), state.at); soon(name, mark); }
    for (const s of document.querySelectorAll(".under")) [...s.children].forEach((e, k) => e.classList.toggle("on", k === state.at));
    tell();
    later("remember", remember, 250);
  }
  function tell() { // what a screen reader says of the rows
    const c = text[state.at] ?? "the next";
    const said = state.shown.map(name => `${nets.get(name).about || name} perplexity ${row(name).strong.textContent}, ${row(name).back.textContent}`);
    const values = { valuemin: 1, valuemax: text.length + 1, valuenow: state.at + 1,
      valuetext: `letter ${state.at + 1}, ${c === " " ? "space" : c}: ${queue.size ? "…" : said.join("; ")}` };
    for (const [k, v] of Object.entries(values)) $("rows").setAttribute("aria-" + k, v);
  }
  const waiting = new Map(); // what is not needed at once
  function later(name, work, ms) { clearTimeout(waiting.get(name)); waiting.set(name, setTimeout(work, ms)); }

  // ---- hold a gate
  const finite = p => (p < 1e6 ? p : 1e6), curves = new Map(); // off the picture is off the picture
  function curve(gate) { // perplexity on held-out text at every tenth of the slider, the other gates as they are
    const rest = { ...state.hold };
    delete rest[gate];
    const key = `${state.which} ${gate} ${spell(rest)}`;
    if (!curves.has(key)) {
      const net = new Net(data.nets.find(n => n.name === state.which), letters.length);
      const on = hold => finite(net.held(hold).forward(data.heldout).perplexity());
      curves.set(key, { free: on(rest), points: Array.from({ length: 11 }, (_, k) => on({ ...rest, [gate]: k / 10 })) });
    }
    return curves.get(key);
  }
  const between = (points, v) => {
    const k = Math.min(9, Math.floor(v * 10 + 1e-9)), w = v * 10 - k;
    return points[k] ** (1 - w) * points[k + 1] ** w;
  };
  function slider(gate) {
    const net = nets.get(state.which), box = make("input", { type: "checkbox" }), out = make("output");
    const range = make("input", { type: "range", min: 0, max: 1, step: 0.01, value: state.hold[gate] ?? 0.5 });
    range.setAttribute("aria-label", `Hold ${gate} at`);
    range.dataset.gate = gate;
    const plot = svg("svg", { width: "100%", height: 96, role: "img", tabindex: 0 });
    const top = make("div", { className: "top" }, make("label", {}, box, " hold ", make("i", { textContent: gate })), out);
    const ends = make("div", { className: "ends" }, make("span", { textContent: "0" }), make("span", { textContent: "◂ drag ▸" }),
      make("span", { textContent: "1" }));
    const one = make("div", { className: "hold h-" + hueOf(gate) }, top, plot, range, ends);
    const set = value => {
      if (value === undefined) delete state.hold[gate]; else state.hold[gate] = value;
      if (state.shown.includes(state.which)) { fill(state.which); mark(state.which); } else read(state.which);
      for (const other of $("holds").children) other.say();
      compose();
      later("plots", () => { for (const other of $("holds").children) other.plot(); strips(); remember(); }, 60);
    };
    box.addEventListener("change", () => set(box.checked ? +range.value : undefined));
    range.addEventListener("input", () => set(+range.value));
    plot.addEventListener("keydown", e => { // the ring that the arrows have come to is taken up
      const ring = plot.querySelector(".dot.on");
      if (ring && (e.key === "Enter" || e.key === " ")) { take(+ring.dataset.value); e.preventDefault(); }
    });
    const take = value => { range.value = value; set(value); };
    one.say = () => {
      box.checked = gate in state.hold;
      range.setAttribute("aria-valuetext", box.checked ? `${gate} held at ${state.hold[gate].toFixed(2)}: perplexity ${
        ppl(between(one.points, state.hold[gate]))} on held-out text` : `${gate} is free; an arrow key holds it`);
      out.textContent = box.checked ? `held at ${state.hold[gate].toFixed(2)}` : "free: the network decides";
      for (const now of plot.querySelectorAll(".now")) {
        now.setAttribute("cx", `${100 * (state.hold[gate] ?? 0)}%`);
        now.setAttribute("visibility", box.checked ? "visible" : "hidden");
        now.setAttribute("cy", one.y ? one.y(between(one.points, state.hold[gate] ?? 0)) : 0);
      }
    };
    one.plot = () => {
      const { free, points } = curve(gate), alone = !Object.keys(state.hold).some(g => g !== gate);
      const marks = alone ? Object.entries(net.lesions).filter(([k]) => k.startsWith(gate + "="))
        .map(([k, [p, n]]) => [+k.split("=")[1], finite(p), n]) : [];
      const all = [...points, ...marks.map(m => m[1]), free], low = Math.log(Math.min(...all)), high = Math.log(Math.max(...all));
      const y = v => 78 - (56 * (Math.log(v) - low)) / (high - low || 1), x = v => 100 * v + "%";
      Object.assign(one, { y, points });
      plot.replaceChildren(svg("line", { class: "base", x1: 0, x2: "100%", y1: y(free), y2: y(free) }));
      for (let k = 0; k < 10; k++)
        plot.append(svg("line", { class: "curve", x1: x(k / 10), x2: x((k + 1) / 10), y1: y(points[k]), y2: y(points[k + 1]) }));
      for (const [v, p, n] of marks) {
        const dot = svg("circle", { class: "dot", cx: x(v), cy: y(p), r: 5, "data-value": v });
        dot.addEventListener("click", () => take(v));
        dot.append(svg("title", {}, `measured: ${gate} held at ${v} after training, held-out perplexity ${p}, ${n} network${n > 1 ? "s" : ""}; Enter or a click holds it there`));
        const side = v < 0.2 ? "start" : v > 0.8 ? "end" : "middle";
        plot.append(dot, svg("text", { x: x(v), y: y(p) + (p < between(points, v) && Math.abs(y(p) + 15 - y(free)) > 11 ? 19 : -10), "text-anchor": side }, p.toFixed(1)));
      }
      plot.append(svg("text", { x: "100%", y: y(free) + 15, "text-anchor": "end" }, `free: ${free.toFixed(1)}`), svg("circle", { class: "now", r: 6 }));
      plot.setAttribute("aria-label", `Perplexity on held-out text as ${gate} goes from 0 to 1: ${points.map(p => p.toFixed(1)).join(", ")}; ${free.toFixed(1)} where it is free`);
      one.say();
    };
    one.plot();
    return one;
  }

  // ---- what it writes: the same draws for the same seed, so that what changes is what the reader changed
  let seed = 1;
  function compose() {
    let s = (seed * 2654435761) >>> 0;
    const random = () => (s = (Math.imul(s ^ (s >>> 15), s | 1) + 0x6d2b79f5) >>> 0) / 2 ** 32;
    const net = nets.get(state.which).held(state.hold), from = text.length ? encode(text) : [data.heldout[0]];
    $("writes-name").textContent = net.about || state.which;
    $("writes").textContent = "… " + net.write(from, 90, state.heat, random).map(c => letters[c]).join("");
  }

  // ---- inside: letters across, units down
  function strips() {
    const net = read(state.which), h = net.hidden, T = text.length, keeps = net.keeps in net.gates ? net.keeps : "";
    const units = Array.from({ length: h }, (_, u) => u);
    const times_ = units.map(u => {
      let log = 0;
      for (let t = 0; keeps && t < T; t++) log += Math.log(Math.max(net.gate(keeps, t)[u], 1e-30));
      return -T / Math.min(log, -1e-9);
    });
    if (state.order === "time" && keeps) units.sort((a, b) => times_[b] - times_[a]);
    const sorted = [...times_].sort((a, b) => a - b), colors = getComputedStyle(document.documentElement);
    const long = x => (x > 999 ? "ever" : x.toFixed(1));
    $("strips").replaceChildren(...Object.keys(net.gates).map(gate => {
      const canvas = make("canvas", { width: Math.max(T, 1), height: h, role: "img" }), ink = canvas.getContext("2d");
      ink.fillStyle = colors.getPropertyValue("--" + hueOf(gate)).trim(); // read back as #rrggbb
      const hue = parseInt(ink.fillStyle.slice(1), 16), image = ink.createImageData(canvas.width, h), pixels = image.data;
      let sum = 0;
      for (let t = 0; t < T; t++) {
        const v = net.gate(gate, t);
        for (let y = 0; y < h; y++) {
          const at = 4 * (y * canvas.width + t), x = v[units[y]];
          sum += x;
          [pixels[at], pixels[at + 1], pixels[at + 2], pixels[at + 3]] = [hue >> 16, (hue >> 8) & 255, hue & 255, 255 * x]; // clamped
        }
      }
      ink.putImageData(image, 0, 0);
      const fixed = state.hold[gate];
      const mean = fixed !== undefined ? `held at ${fixed.toFixed(2)}` : `open ${((100 * sum) / Math.max(1, T * h)).toFixed(0)} % on average`;
      const span = gate === keeps && T && fixed === undefined
        ? `; half of the units keep for less than ${long(sorted[h >> 1])} letters, the longest for ${long(sorted[h - 1])}` : "";
      canvas.setAttribute("aria-label", `Gate ${gate}, ${h} units by ${T} letters: ${mean}${span}`);
      const under = text.map((c, k) => make("span", { textContent: show(c), className: k === state.at ? "on" : "" }));
      return make("div", { className: "strip h-" + hueOf(gate) }, make("p", {}, make("i", { textContent: gate }), mean + span), canvas,
        make("div", { className: "under", ariaHidden: "true" }, ...under));
    }));
    if (!Object.keys(net.gates).length) $("strips").replaceChildren(make("p", { className: "small", textContent: "It has no gate that is free." }));
  }

  // ---- together
  function typed() {
    text = plain($("text").value);
    for (const name of state.shown) soon(name, renew);
    look(text.length);
    later("compose", compose, 60);
    later("strips", strips, 200);
  }
  function choose() {
    state.hold = Object.fromEntries(Object.entries(state.hold).filter(([g]) => g in nets.get(state.which).gates));
    $("holds").replaceChildren(...Object.keys(nets.get(state.which).gates).map(slider));
    compose();
    strips();
    for (const name of state.shown) fill(name);
    look(state.at);
  }
  recall();
  document.getElementById("lab").hidden = $("play").hidden = false;
  $("text").value = text.join("");
  for (const [name, net] of nets) {
    const chip = make("button", { type: "button", textContent: net.about ? `${net.about} (${name})` : name, className: "chip h-" + net.hue });
    chip.dataset.name = name;
    chip.addEventListener("click", () => {
      state.shown = [...nets.keys()].filter(n => (n === name) !== state.shown.includes(n));
      frame();
      for (const n of state.shown) fill(n);
      look(state.at);
    });
    $("chips").append(chip);
    if (Object.keys(net.gates).length) $("which").append(make("option", { textContent: net.about ? `${net.about} (${name})` : name, value: name }));
  }
  $("which").value = state.which;
  $("text").addEventListener("input", typed);
  $("rows").addEventListener("keydown", e => {
    const to = { ArrowLeft: state.at - 1, ArrowRight: state.at + 1, ArrowUp: state.at - 1, ArrowDown: state.at + 1, Home: 1, End: text.length }[e.key];
    if (to !== undefined) { look(to); e.preventDefault(); }
  });
  $("which").addEventListener("change", e => {
    const old = state.which;
    state.which = e.target.value;
    if (state.shown.includes(old)) fill(old);
    choose();
  });
  $("order").addEventListener("change", e => { state.order = e.target.value; strips(); });
  $("temperature").addEventListener("input", e => {
    state.heat = +e.target.value;
    $("degrees").textContent = state.heat ? state.heat.toFixed(1) : "0, the likeliest";
    compose();
  });
  $("again").addEventListener("click", () => { seed++; compose(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", strips);
  frame();
  choose();
})();

// ---- tasks: an example of each, the reader's answer, then every network's. Cells are coloured by the answer they stand for.
if (LAB.tasks?.length) (() => {
  const $ = id => document.getElementById("lab-" + id), tasks = LAB.tasks, made = new Map(), tally = new Map();
  const start = tasks.findIndex(t => t.name === view.get("task"));
  const state = { task: Math.max(start, 0), example: Math.max(0, Math.trunc(+view.get("example")) || 0), given: -1 };
  const task = () => tasks[state.task], example = () => task().examples[state.example % task().examples.length];
  const nets = t => {
    if (!made.has(t)) made.set(t, t.nets.map(spec => new Net(spec, t.inputs.length, t.answers.length)));
    return made.get(t);
  };
  const shades = t => {
    const own = t.answers.map(a => a.toLowerCase()), said = a => a.toLowerCase();
    return label => {
      const exact = own.indexOf(said(label));
      return exact >= 0 ? exact : label.length > 4 && label[0] === "(" ? -1 : own.findIndex(a => label.includes(a));
    };
  };
  function cell(t, label, more = "") {
    const k = shades(t)(label), e = make("span", { className: `cell ${more}`, textContent: label });
    if (k >= 0) e.dataset.shade = `${k % 8}`;
    if (t.answers.includes(label.toLowerCase()) && label !== label.toLowerCase()) e.classList.add("marked");
    return e;
  }
  // By which key an answer is given: its own sign, the last of it, or its place.
  function keysOf(t) {
    const own = t.answers, last = own.map(a => a.at(-1)), alone = own.every(a => a.length === 1);
    if (alone || (new Set(last).size === own.length && last.every(c => /[a-z0-9]/.test(c)))) return last;
    return own.length < 10 ? own.map((_, k) => `${k + 1}`) : [];
  }
  const count = (net, right) => {
    const found = tally.get(net) ?? tally.set(net, [0, 0]).get(net);
    if (right !== undefined) { found[0] += right; found[1]++; }
    return found[1] ? `${found[0]} of ${found[1]} right` : "";
  };
  function draw() {
    const t = task(), x = example(), keys = keysOf(t), last = x.asked.length - 1, right = x.answers[last];
    const done = state.given >= 0, own = new Map(x.asked.map((at, k) => [at, k]));
    $("asked").textContent = t.about;
    $("cells").replaceChildren(...x.inputs.map((s, at) => {
      const e = cell(t, t.inputs[s], own.has(at) ? "asked" : "");
      if (at === x.inputs.length - 1) e.classList.add("now");
      return e;
    }), cell(t, done ? t.answers[right] : "?", "reply"));
    $("cells").setAttribute("aria-label", `Input: ${x.inputs.map(s => t.inputs[s]).join(", ")}; the answer is ${done ? t.answers[right] : "asked"}`);
    $("answers").replaceChildren(...t.answers.map((a, k) => {
      const b = make("button", { type: "button", className: "cell", disabled: done }, make("span", { textContent: a }));
      const shade = shades(t)(a);
      if (shade >= 0) b.dataset.shade = `${shade % 8}`;
      if (keys[k] && keys[k] !== a) b.append(make("kbd", { textContent: keys[k] }));
      if (keys[k]) b.setAttribute("aria-keyshortcuts", keys[k]);
      if (done && k === right) b.classList.add("right");
      if (done && k === state.given && k !== right) b.classList.add("wrong");
      b.addEventListener("click", () => reply(k));
      return b;
    }));
    const verdict = ok => make("b", { className: ok ? "right" : "wrong", textContent: ok ? "✓ right" : "✗ wrong" });
    const rows = [make("div", { className: "solver you" }, make("span", { className: "who", textContent: "you" }),
      done ? cell(t, t.answers[state.given]) : make("span", { className: "cell", textContent: "?" }),
      done ? verdict(state.given === right) : make("span", { className: "small", textContent: "answer first" }),
      make("span", { className: "small", textContent: count("you") }))];
    for (const net of nets(t)) {
      const row = make("div", { className: "solver h-" + net.hue }, make("span", { className: "who" }, net.about || net.name,
        net.about ? make("small", { textContent: net.name }) : ""));
      if (done) {
        const said = net.forward(x.inputs) && x.asked.map(at => net.answer(at)), good = said.map((a, k) => a === x.answers[k]);
        const sure = net.next(x.asked[last])[said[last]];
        row.append(cell(t, t.answers[said[last]]), verdict(good[last]), make("span", { className: "small",
          textContent: `${(100 * sure).toFixed(0)} % sure; ${count(net)} here`, title: net.solved }), make("small", { textContent: net.solved }));
        if (last) {
          const n = good.filter(Boolean).length, every = make("span", { className: "every", role: "img" });
          every.setAttribute("aria-label", `right at ${n} of the ${last + 1} steps asked`);
          every.append(...good.map((ok, k) => make("i", { className: ok ? "right" : "wrong", title: `step ${x.asked[k] + 1}: ${t.answers[said[k]]}${ok ? "" : `, not ${t.answers[x.answers[k]]}`}` })));
          row.append(every, make("span", { className: "small", textContent: `${n} of ${last + 1} steps` }));
        }
      } else row.append(make("span", { className: "cell", textContent: "?" }));
      rows.push(row);
    }
    $("solvers").replaceChildren(...rows);
    $("next").textContent = done ? "Next example" : "Another example";
  }
  function reply(k) {
    if (state.given >= 0) return;
    const t = task(), x = example(), last = x.asked.length - 1, right = x.answers[last];
    state.given = k;
    count("you", k === right);
    for (const net of nets(t)) count(net, net.forward(x.inputs).answer(x.asked[last]) === right);
    draw();
    const wrong = nets(t).filter(n => n.answer(x.asked[last]) !== right).map(n => n.about || n.name);
    $("told").textContent = `${k === right ? "Right" : "Wrong"}: it is ${t.answers[right]}. ${wrong.length ? `Wrong too: ${wrong.join(", ")}.` : "Every network is right."}`
      .replace("Wrong too", k === right ? "Wrong" : "Wrong too");
    $("next").focus({ preventScroll: true });
  }
  function open(k, example) {
    if (k !== state.task) tally.clear();
    Object.assign(state, { task: k, example, given: -1 });
    $("told").textContent = "";
    draw();
    view.set({ task: k || example ? task().name : undefined, example: example ? `${example}` : undefined });
  }
  $("task").append(...tasks.map((t, k) => make("option", { value: `${k}`, textContent: `${t.name.replaceAll("_", " ")}: ${t.asks}` })));
  $("task").value = `${state.task}`;
  $("task").addEventListener("change", e => open(+e.target.value, 0));
  $("next").addEventListener("click", () => { open(state.task, (state.example + 1) % task().examples.length); $("answers").firstElementChild.focus({ preventScroll: true }); });
  $("tasks").addEventListener("keydown", e => {
    if (e.target.tagName === "SELECT" || e.ctrlKey || e.metaKey || e.altKey) return;
    const buttons = [...$("answers").children], at = buttons.indexOf(e.target), to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[e.key];
    const k = keysOf(task()).indexOf(e.key);
    if (at >= 0 && to !== undefined) { buttons[Math.max(0, Math.min(to, buttons.length - 1))].focus(); e.preventDefault(); }
    else if (k >= 0 && state.given < 0) { reply(k); e.preventDefault(); }
  });
  document.getElementById("lab").hidden = $("tasks").hidden = false;
  draw();
})();
