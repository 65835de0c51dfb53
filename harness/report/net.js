// NETWORKS: a trained network read from its program, run forward, its gates held, and backward. Knows no cell.
// A program's lines are those of variants/engines/derive.py, as_data. The values of a step lie side by side, `hidden`
// numbers each, one step after another. `v`: all values, `b`: where the step begins, `g`: gradients of one step's values.

const unary = (value, slope) => (net, o, x) => {
  const h = net.hidden, a = x * h;
  return {
    forward(v, b) { for (let j = 0; j < h; j++) v[b + o + j] = value(v[b + a + j]); },
    backward(v, b, g) { for (let j = 0; j < h; j++) g[a + j] += g[o + j] * slope(v[b + a + j], v[b + o + j]); },
  };
};
const sigma = x => 1 / (1 + Math.exp(-x));
function erf(x) { // 2/sqrt(pi) exp(-x²) (x + 2x³/3 + 4x⁵/15 + ...): no term cancels another
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= 2 * x * x / (2 * n + 1);
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}
const LINES = {
  x(net, o, k) {
    const h = net.hidden, table = net.x[k];
    return {
      forward(v, b, letter) { for (let j = 0, t = letter * h; j < h; j++) v[b + o + j] = table[t + j]; },
      backward() {},
    };
  },
  c(net, o, k) {
    const row = net.c[k];
    return { forward(v, b) { v.set(row, b + o); }, backward() {} };
  },
  mm(net, o, a, k) {
    const h = net.hidden, W = net.m[k];
    return {
      forward(v, b) { times(v, b + a * h, h, W, h, v, b + o); },
      backward(v, b, g) {
        for (let r = 0, w = 0, to = a * h; r < h; r++, to++) {
          let sum = 0;
          for (let j = 0; j < h; j++, w++) sum += g[o + j] * W[w];
          g[to] += sum;
        }
      },
    };
  },
  lin(net, o, c, ...terms) {
    const h = net.hidden;
    return {
      forward(v, b) {
        v.fill(c, b + o, b + o + h);
        for (let p = 0; p < terms.length; p += 2) add(v, b + o, terms[p], v, b + terms[p + 1] * h, h);
      },
      backward(v, b, g) {
        for (let p = 0; p < terms.length; p += 2) add(g, terms[p + 1] * h, terms[p], g, o, h);
      },
    };
  },
  mul(net, o, x, y) {
    const h = net.hidden, a = x * h, c = y * h;
    return {
      forward(v, b) { for (let j = 0; j < h; j++) v[b + o + j] = v[b + a + j] * v[b + c + j]; },
      backward(v, b, g) {
        for (let j = 0; j < h; j++) { // one after the other: a may be c
          g[a + j] += g[o + j] * v[b + c + j];
          g[c + j] += g[o + j] * v[b + a + j];
        }
      },
    };
  },
  where(net, o, condition, x, y) {
    const h = net.hidden, q = condition * h, a = x * h, c = y * h;
    return {
      forward(v, b) { for (let j = 0; j < h; j++) v[b + o + j] = v[b + q + j] ? v[b + a + j] : v[b + c + j]; },
      backward(v, b, g) { for (let j = 0; j < h; j++) g[(v[b + q + j] ? a : c) + j] += g[o + j]; },
    };
  },
  gate(net, o, x, symbol) {
    const h = net.hidden, a = x * h;
    return {
      forward(v, b) {
        const held = net.hold[symbol];
        if (held === undefined) v.copyWithin(b + o, b + a, b + a + h);
        else v.fill(held, b + o, b + o + h);
      },
      backward(v, b, g) { if (net.hold[symbol] === undefined) add(g, a, 1, g, o, h); },
    };
  },
  mean(net, o, x) {
    const h = net.hidden, a = x * h;
    const total = (v, at) => { let s = 0; for (let j = 0; j < h; j++) s += v[at + j]; return s; };
    return {
      forward(v, b) { v.fill(total(v, b + a) / h, b + o, b + o + h); },
      backward(v, b, g) { const s = total(g, o) / h; for (let j = 0; j < h; j++) g[a + j] += s; },
    };
  },
  amax(net, o, x) { // of what is detached: nothing goes back
    const h = net.hidden, a = x * h;
    return { forward(v, b) { v.fill(Math.max(...v.subarray(b + a, b + a + h)), b + o, b + o + h); }, backward() {} };
  },
  sigmoid: unary(sigma, (x, y) => y * (1 - y)),
  tanh: unary(Math.tanh, (x, y) => 1 - y * y),
  relu: unary(x => Math.max(x, 0), (x, y) => +(y > 0)),
  abs: unary(Math.abs, Math.sign),
  exp: unary(Math.exp, (x, y) => y),
  log: unary(Math.log, x => 1 / x),
  sqrt: unary(Math.sqrt, (x, y) => 0.5 / y),
  reciprocal: unary(x => 1 / x, (x, y) => -y * y),
  hardsigmoid: unary(x => Math.min(Math.max(x / 6 + 0.5, 0), 1), x => (x > -3 && x < 3 ? 1 / 6 : 0)),
  softplus: unary(x => (x > 20 ? x : Math.log1p(Math.exp(x))), x => (x > 20 ? 1 : sigma(x))),
  erf: unary(erf, x => 2 / Math.sqrt(Math.PI) * Math.exp(-x * x)),
  sin: unary(Math.sin, Math.cos),
  cos: unary(Math.cos, x => -Math.sin(x)),
  atan: unary(Math.atan, x => 1 / (1 + x * x)),
  log1p: unary(Math.log1p, x => 1 / (1 + x)),
  expm1: unary(Math.expm1, (x, y) => y + 1),
  detach: unary(x => x, () => 0),
  positive: unary(x => +(x > 0), () => 0),
  natural: unary(x => +(x >= 0), () => 0),
};

function add(to, o, k, from, a, n) { for (let j = 0; j < n; j++) to[o + j] += k * from[a + j]; }

// out[o..] = v[a..] W, W of n rows and m columns: four sums at a time stay in registers.
function times(v, a, n, W, m, out, o) {
  let j = 0;
  for (; j + 3 < m; j += 4) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (let k = 0, w = j; k < n; k++, w += m) {
      const x = v[a + k];
      s0 += x * W[w]; s1 += x * W[w + 1]; s2 += x * W[w + 2]; s3 += x * W[w + 3];
    }
    out[o + j] = s0; out[o + j + 1] = s1; out[o + j + 2] = s2; out[o + j + 3] = s3;
  }
  for (; j < m; j++) {
    let s = 0;
    for (let k = 0; k < n; k++) s += v[a + k] * W[k * m + j];
    out[o + j] = s;
  }
}

function softmax(p, q, bias, d) {
  let top = -Infinity, sum = 0;
  for (let c = 0; c < d; c++) top = Math.max(top, (p[q + c] += bias[c]));
  for (let c = 0; c < d; c++) sum += p[q + c] = Math.exp(p[q + c] - top);
  for (let c = 0; c < d; c++) p[q + c] /= sum;
}

function decode(base64) { // little-endian float32
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

class Net {
  constructor(spec, symbols, outputs = symbols) {
    Object.assign(this, spec);
    this.d = outputs;
    const all = decode(spec.weights), h = this.hidden, [tables, rows, matrices] = spec.sizes;
    let at = 0;
    const take = n => all.subarray(at, (at += n)), many = (n, size) => Array.from({ length: n }, () => take(size));
    this.x = many(tables, symbols * h);
    this.c = many(rows, h);
    this.m = many(matrices, h * h);
    this.W = take(h * this.d);
    this.b = take(this.d);
    this.width = (this.states + this.code.length) * h; // numbers a step
    this.lines = this.code.map(([op, ...rest], i) => LINES[op](this, (this.states + i) * h, ...rest));
    this.hold = {};
    this.read = [];
    this.room(64);
  }
  room(steps) {
    const values = new Float64Array(steps * this.width), chances = new Float64Array(steps * this.d);
    if (this.values) { values.set(this.values); chances.set(this.chances); }
    Object.assign(this, { values, chances, steps });
  }
  // Hold gates at constants, {Z: 0.5}: what was read is read again.
  held(hold) {
    if (JSON.stringify(hold) !== JSON.stringify(this.hold)) { this.hold = { ...hold }; this.read = []; }
    return this;
  }
  // Read symbols (their numbers) from a zero state; what is as last time is not computed again.
  forward(symbols) {
    let t = 0;
    while (t < symbols.length && symbols[t] === this.read[t]) t++;
    if (symbols.length > this.steps) this.room(2 * symbols.length);
    for (; t < symbols.length; t++) this.step(t, symbols[t]);
    this.read = symbols.slice();
    return this;
  }
  step(t, symbol) {
    const { hidden: h, values: v, width, states, d, out } = this, base = t * width;
    for (let s = 0; s < states; s++) {
      const to = base + s * h, from = base - width + out[s] * h;
      if (t) v.copyWithin(to, from, from + h); else v.fill(0, to, to + h);
    }
    for (const line of this.lines) line.forward(v, base, symbol);
    times(v, base + out[0] * h, h, this.W, d, this.chances, t * d); // softmax(H W + b)
    softmax(this.chances, t * d, this.b, d);
  }
  // Chances of every symbol after symbol t.
  next(t) { return this.chances.subarray(t * this.d, (t + 1) * this.d); }
  // The likeliest answer after symbol t.
  answer(t) { const p = this.next(t); return p.indexOf(Math.max(...p)); }
  // Bits of surprise of symbol t, given those before it; the first has none.
  bits(t) { return t ? -Math.log2(this.next(t - 1)[this.read[t]]) : 0; }
  perplexity() {
    let bits = 0;
    for (let t = 1; t < this.read.length; t++) bits += this.bits(t);
    return this.read.length > 1 ? 2 ** (bits / (this.read.length - 1)) : NaN;
  }
  // How much of the loss at symbol t reaches the state after each one before it: norms of the gradient, t of them.
  reach(t, symbol = this.read[t]) {
    const { hidden: h, values: v, width, states, d, out, W } = this;
    const norms = new Float64Array(t), g = new Float64Array(width), p = this.next(t - 1);
    let carried = new Float64Array(states * h); // of the states after step k
    for (let k = 0, w = 0; k < h; k++) for (let c = 0; c < d; c++, w++) carried[k] += W[w] * (p[c] - (c === symbol));
    for (let k = t - 1; k >= 0; k--) {
      let square = 0;
      for (const x of carried) square += x * x;
      norms[k] = Math.sqrt(square);
      g.fill(0);
      for (let s = 0; s < states; s++) for (let j = 0; j < h; j++) g[out[s] * h + j] += carried[s * h + j];
      for (let i = this.lines.length - 1; i >= 0; i--) this.lines[i].backward(v, k * width, g);
      carried = g.slice(0, states * h);
    }
    return norms;
  }
  // A gate's values after symbol t.
  gate(name, t) {
    const at = t * this.width + this.gates[name] * this.hidden;
    return this.values.subarray(at, at + this.hidden);
  }
  // What it writes after the symbols: the likeliest each time, or drawn at a temperature by `random`.
  write(symbols, count, temperature, random) {
    const all = symbols.slice();
    for (let n = 0; n < count; n++) all.push(draw(this.forward(all).next(all.length - 1), temperature, random));
    this.forward(symbols);
    return all.slice(symbols.length);
  }
}

// Symbol 0 stands for all that are unknown: never chosen.
function draw(p, temperature, random) {
  let best = 1;
  if (!temperature) {
    for (let c = 1; c < p.length; c++) if (p[c] > p[best]) best = c;
    return best;
  }
  let sum = 0;
  const weight = Array.from(p, (x, c) => (c ? x ** (1 / temperature) : 0));
  for (const w of weight) sum += w;
  let left = random() * sum;
  for (let c = 1; c < p.length; c++) if ((left -= weight[c]) < 0) return c;
  return p.length - 1;
}
