/* What every recurrence is made of: products by packed panels, and the activations. Knows no cell: native.py puts behind
   it what it emits for one.

   Rows of the batch never wait for one another: a thread takes some rows of one seed through all of time, with the
   weights, packed into panels as wide as its registers, in its own cache. Shapes are (S, T, n, columns). No row's
   arithmetic depends on how many rows, seeds or threads there are. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif

#if defined(__AVX512F__)
enum { BYTES = 64, MR = 8, NR = 2 }; /* 16 sums in 32 registers: as wide as h is often a multiple of */
#elif defined(__aarch64__)
enum { BYTES = 16, MR = 8, NR = 3 };
#elif defined(__AVX__)
enum { BYTES = 32, MR = 4, NR = 3 }; /* 12 sums in 16 registers */
#else
enum { BYTES = 16, MR = 4, NR = 3 };
#endif
enum { VL = BYTES / sizeof(REAL), WIDE = NR * VL };
enum { CHUNK = 128 }; /* rows of the batch, over all of time, added up at once: their panel stays in the first cache */

typedef REAL vec __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

#define OMP_(x) _Pragma(#x)
#define OMP(x) OMP_(omp x)
#define LIBM(name, x) (sizeof(REAL) == 4 ? (REAL)name##f((float)(x)) : (REAL)name((double)(x)))

#define PANELS(columns) OMP(for collapse(2)) for (long s = 0; s < S; s++) for (long i = 0; i < padded(columns) / WIDE; i++) if (p)
#define CHUNKS OMP(for collapse(2)) for (long s = 0; s < S; s++) for (long j = 0; j < h; j += CHUNK) if (p)
#define BLOCKS OMP(for collapse(2) schedule(static)) for (long s = 0; s < S; s++) for (long b = 0; b < blocks; b++) if (p)

typedef struct { /* of seed s at + s * ld */
  REAL *at;
  long ld;
} Part;
typedef struct { /* a product's right side: k times a matrix */
  int W;
  double k;
} Use;
typedef struct { /* what a recurrence is run on: T steps of n sequences of S seeds; names as in derive.Program */
  long S, T, n, h, d, threads, xt, xs, ldq; /* d: rows of a seed's table; row i of step t is X[t * xt + s * xs + i] */
  const int64_t *X;
  REAL *table, *dtable, *Q;
  const REAL *dHs;
  Part *W, *dW, *rows, *drows;
  REAL **states, **V, **D;
} Call;

static long least(long a, long b) { return a < b ? a : b; }
static long padded(long columns) { return (columns + WIDE - 1) / WIDE * WIDE; }

/* x -> 2^n and e^r - 1, with x = n log 2 + r. NaN stays NaN; beyond the clamp both activations are saturated. */
static inline REAL split(REAL x, REAL *power) {
  if (sizeof(REAL) == 4) {
    const float shift = 0x1.8p23f;
    float y = (float)x;
    y = y > 80.0f ? 80.0f : y < -80.0f ? -80.0f : y;
    float t = y * 0x1.715476p0f + shift, n = t - shift; /* n in the low bits of t */
    float r = (y - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    uint32_t bits;
    memcpy(&bits, &t, 4);
    bits = (bits << 23) + (127u << 23);
    float two;
    memcpy(&two, &bits, 4);
    *power = (REAL)two;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720, p = p * r + 1.0f / 120, p = p * r + 1.0f / 24, p = p * r + 1.0f / 6, p = p * r + 0.5f;
    return (REAL)(p * r * r + r);
  }
  const double shift = 0x1.8p52;
  double y = (double)x;
  y = y > 700.0 ? 700.0 : y < -700.0 ? -700.0 : y;
  double t = y * 0x1.71547652b82fep0 + shift, n = t - shift;
  double r = (y - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  uint64_t bits;
  memcpy(&bits, &t, 8);
  bits = (bits << 52) + (1023ull << 52);
  double two;
  memcpy(&two, &bits, 8);
  *power = (REAL)two;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0, p = p * r + 1.0 / 39916800.0, p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0, p = p * r + 1.0 / 40320.0, p = p * r + 1.0 / 5040.0, p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0, p = p * r + 1.0 / 24.0, p = p * r + 1.0 / 6.0, p = p * r + 0.5;
  return (REAL)(p * r * r + r);
}

static inline REAL exp_(REAL x) { /* of the half, squared: beyond the clamp it ends in 0 and infinity */
  REAL s, p = split(x / 2, &s), e = s * p + s;
  return e * e;
}

static inline REAL sigmoid_(REAL x) {
  REAL s, p = split(-x, &s);
  return 1 / (1 + (s * p + s));
}

static inline REAL tanh_(REAL x) { /* by e^2x - 1, which keeps its digits near 0 */
  REAL s, p = split(2 * x, &s), e = s * p + (s - 1);
  return e / (e + 2);
}

static inline REAL relu_(REAL x) { return x < 0 ? 0 : x; }
static inline REAL abs_(REAL x) { return x < 0 ? -x : x; }
static inline REAL reciprocal_(REAL x) { return 1 / x; }
static inline REAL sqrt_(REAL x) { return LIBM(sqrt, x); }
static inline REAL log_(REAL x) { return LIBM(log, x); }
static inline REAL erf_(REAL x) { return LIBM(erf, x); }
static inline REAL sin_(REAL x) { return LIBM(sin, x); }
static inline REAL cos_(REAL x) { return LIBM(cos, x); }
static inline REAL atan_(REAL x) { return LIBM(atan, x); }
static inline REAL log1p_(REAL x) { return LIBM(log1p, x); }
static inline REAL expm1_(REAL x) { return LIBM(expm1, x); }
static inline REAL detach_(REAL x) { return x; }
static inline REAL hardsigmoid_(REAL x) { return x <= -3 ? 0 : x >= 3 ? 1 : (x + 3) / 6; }
static inline REAL softplus_(REAL x) { return x > 20 ? x : LIBM(log1p, exp_(x)); }

/* Columns of a panel, K long: k times W[r * down + j * across]. */
static void fill(REAL *out, const REAL *W, long down, long across, long K, long width, REAL k) {
  for (long r = 0; r < K; r++)
    for (long j = 0; j < width; j++) out[r * WIDE + j] = k * W[r * down + j * across];
}

/* One panel of (K, N), element (r, j) at W[r * down + j * across]: (K, WIDE), zeros beyond N. */
static void pack(const REAL *W, long down, long across, long K, long N, REAL *panels, long panel) {
  REAL *out = panels + panel * K * WIDE;
  if (N - panel * WIDE < WIDE) memset(out, 0, K * WIDE * sizeof(REAL));
  fill(out, W + panel * WIDE * across, down, across, K, least(WIDE, N - panel * WIDE), 1);
}

/* The same of `count` matrices (K, h) side by side; `turned`, of their transposes one below the other. */
static void pack_all(const Part *W, long s, const Use *use, long count, long K, long h, int turned, REAL *panels, long panel) {
  long down = turned ? count * h : K, N = turned ? K : count * h, first = panel * WIDE, width = least(WIDE, N - first);
  REAL *out = panels + panel * down * WIDE;
  if (width < WIDE) memset(out, 0, down * WIDE * sizeof(REAL));
  for (long i = 0; i < count; i++) {
    const REAL *w = W[use[i].W].at + s * W[use[i].W].ld;
    long from = first > i * h ? first : i * h, to = least(first + width, (i + 1) * h);
    if (turned) fill(out + i * h * WIDE, w + first * h, 1, h, h, width, (REAL)use[i].k);
    else if (from < to) fill(out + from - first, w + from - i * h, h, 1, K, to - from, (REAL)use[i].k);
  }
}

/* out (MR, WIDE) = rows x times a panel of K rows, or += where `add`; an x's next number is `step` further on. All sums
   are kept in registers. */
static inline __attribute__((always_inline)) void tile(const REAL *const *x, long step, long K, const REAL *panel,
                                                       REAL *out, long ldo, int add) {
  vec sum[MR][NR];
#pragma GCC unroll 8
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
    for (int j = 0; j < NR; j++) sum[r][j] = add ? *(const vec *)(out + r * ldo + j * VL) : (vec){0};
  for (long k = 0; k < K; k++) {
    const REAL *w = panel + k * WIDE;
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
      for (int j = 0; j < NR; j++) sum[r][j] += x[r][k * step] * *(const vec *)(w + j * VL);
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
    for (int j = 0; j < NR; j++) *(vec *)(out + r * ldo + j * VL) = sum[r][j];
}

/* out (MR, padded N) = X W, or += where `add`: rows by a stride; a row of X beyond `rows` is the last again. */
static void multiply(const REAL *X, long stride, long rows, long K, const REAL *panels, long N, REAL *out, long ldo,
                     int add) {
  const REAL *x[MR];
  for (long r = 0; r < MR; r++) x[r] = X + least(r, rows - 1) * stride;
  for (long first = 0; first < N; first += WIDE) tile(x, 1, K, panels + first * K, out + first, ldo, add);
}

/* sums (K, WIDE) = X' g, over R rows of X (R, K) and of some N columns of g: the columns of one panel. Behind the K rows,
   sums has room for MR and CHUNK more. */
static void outer(const REAL *X, long K, const REAL *g, long stride, long R, long N, long panel, REAL *sums) {
  long first = panel * WIDE, width = least(WIDE, N - first), blocks = (K + MR - 1) / MR;
  REAL *rows = sums + blocks * MR * WIDE;
  for (long from = 0; from < R; from += CHUNK) {
    long count = least(CHUNK, R - from);
    pack(g + from * stride + first, stride, 1, count, width, rows, 0);
    for (long block = 0; block < blocks; block++) {
      const REAL *x[MR];
      for (long r = 0; r < MR; r++) x[r] = X + from * K + least(block * MR + r, K - 1);
      tile(x, K, count, rows, sums + block * MR * WIDE, WIDE, from > 0);
    }
  }
}

/* Such sums, a panel of the gradients of `count` products of h columns, added to those of their matrices. */
static void spread(const Part *dW, long s, const Use *use, long count, long K, long h, long panel, const REAL *sums) {
  long first = panel * WIDE, end = least(first + WIDE, count * h);
  for (long j = first; j < end;) {
    const Use *u = use + j / h;
    long from = j % h, width = least(h - from, end - j);
    REAL *to = dW[u->W].at + s * dW[u->W].ld + from, k = (REAL)u->k;
    for (long i = 0; i < K; i++)
      for (long c = 0; c < width; c++) to[i * h + c] += k * sums[i * WIDE + j - first + c];
    j += width;
  }
}

/* Some columns of g (T, n), a row each, added up: by the row of the table they came from, or all. */
static void collect(const Call *c, long s, const REAL *restrict g, int all, long width, REAL *out, long ldo) {
  for (long t = 0; t < c->T; t++)
    for (long i = 0; i < c->n; i++) {
      const REAL *restrict one = g + (t * c->n + i) * c->ldq;
      REAL *restrict row = out + (all ? 0 : c->X[t * c->xt + s * c->xs + i]) * ldo;
      for (long j = 0; j < width; j++) row[j] += one[j];
    }
}

#ifndef CELL /* what follows the recurrence in a training step: once, not with every cell */

typedef struct { /* answer i of step t of seed s is Y[t * yt + s * ys + i], a symbol, or of one output a number */
  long S, T, n, h, V, threads, yt, ys;
  const void *Y;
  const uint8_t *counts; /* which answers count, as Y; all where it is null */
  const REAL *H;         /* (S, T + 1, n, h), the first step before all */
  Part W, b, dW, db;     /* (h, V), (V) */
  REAL *dH, *logits, *each, *losses;
} Head;

/* H W + b, softmax, cross-entropy (of one output the squared error), the mean of what counts: losses (S), and all their
   gradients; dW, db are added to. logits (S, T n, padded V) and each (S, T n) are scratch. Gives 1 where there is no memory. */
int head(const Head *c) {
  const long S = c->S, R = c->T * c->n, n = c->n, h = c->h, V = c->V, wide = padded(V), tall = padded(h);
  long size = wide * h + tall * V, blocks = (R + MR - 1) / MR, failed = 0;
  REAL *panels = aligned_alloc(64, (S * size + WIDE) * sizeof(REAL) / 64 * 64 + 64);
  double *share = malloc(S * sizeof(double)); /* of one answer in its seed's mean */
  for (long s = 0; s < S && share; s++) {
    long count = c->counts ? 0 : R;
    for (long i = 0; c->counts && i < R; i++) count += c->counts[i / n * c->yt + s * c->ys + i % n];
    share[s] = 1 / (double)count;
  }
  const int room = panels && share;
  OMP(parallel num_threads(c->threads) reduction(+ : failed)) {
    REAL *p = room ? calloc(MR * (tall + wide) + (wide + MR + CHUNK) * WIDE, sizeof(REAL)) : 0, *q = p + MR * tall;
    failed += !p;
    PANELS(V) pack(c->W.at + s * c->W.ld, V, 1, h, V, panels + s * size, i);
    PANELS(h) pack(c->W.at + s * c->W.ld, 1, V, V, h, panels + s * size + wide * h, i);
    BLOCKS {
      long first = b * MR, rows = least(MR, R - first);
      const REAL *bias = c->b.at + s * c->b.ld;
      REAL *l = c->logits + (s * R + first) * wide;
      multiply(c->H + ((s * (c->T + 1) + 1) * n + first) * h, h, rows, h, panels + s * size, V, q, wide, 0);
      for (long r = 0; r < rows; r++) {
        REAL *x = q + r * wide, *y = l + r * wide, sum = 0, loss;
        long i = first + r, at = i / n * c->yt + s * c->ys + i % n;
        REAL part = !c->counts || c->counts[at] ? (REAL)share[s] : 0;
        memset(y, 0, wide * sizeof(REAL));
        if (V == 1) {
          REAL off = x[0] + bias[0] - ((const REAL *)c->Y)[at];
          loss = off * off, y[0] = 2 * off * part;
        } else {
          REAL most = x[0] + bias[0];
          for (long j = 0; j < V; j++) x[j] += bias[j], most = x[j] > most ? x[j] : most;
          for (long j = 0; j < V; j++) y[j] = exp_(x[j] - most);
          for (long j = 0; j < V; j++) sum += y[j];
          long answer = ((const int64_t *)c->Y)[at];
          loss = (REAL)log((double)sum) + most - x[answer];
          for (long j = 0; j < V; j++) y[j] *= part / sum;
          y[answer] -= part;
        }
        c->each[s * R + i] = part ? loss : 0;
      }
      multiply(l, wide, rows, V, panels + s * size + wide * h, h, p, tall, 0);
      for (long r = 0; r < rows; r++) memcpy(c->dH + (s * R + first + r) * h, p + r * tall, h * sizeof(REAL));
    }
    PANELS(h) { /* transposed: a few columns of h at once, not a few of V */
      long first = i * WIDE, width = least(WIDE, h - first);
      outer(c->logits + s * R * wide, wide, c->H + (s * (c->T + 1) + 1) * n * h, h, R, h, i, p);
      for (long j = 0; j < width; j++)
        for (long v = 0; v < V; v++) c->dW.at[s * c->dW.ld + (first + j) * V + v] += p[v * WIDE + j];
    }
    OMP(for) for (long s = 0; s < S; s++) {
      double total = 0;
      for (long i = 0; i < R; i++) total += (double)c->each[s * R + i];
      c->losses[s] = (REAL)(total * (share ? share[s] : 0));
      for (long i = 0; i < R; i++)
        for (long v = 0; v < V; v++) c->db.at[s * c->db.ld + v] += c->logits[(s * R + i) * wide + v];
    }
    free(p);
  }
  free(panels), free(share);
  return failed != 0;
}

typedef struct { /* weights, gradients and running averages, (S, P) each; norms (S), some (S, chunks of P) */
  long S, P, threads, kind; /* 0 SGD, 1 Adam, 2 AdamW */
  double lr, clip, momentum, decay, beta1, beta2, unbias1, unbias2, eps;
  REAL *w, *g, *m, *v, *norms;
  double *some;
} Update;

/* Clip to norm `clip` and update as optimizer.py says, a seed at a time; one whose norm is not finite stays where it is. */
void update(const Update *c) {
  enum { LONG = 8192 };
  const long P = c->P, chunks = (P + LONG - 1) / LONG;
  OMP(parallel num_threads(c->threads)) {
    OMP(for collapse(2)) for (long s = 0; s < c->S; s++) for (long k = 0; k < chunks; k++) {
      const REAL *g = c->g + s * P + k * LONG;
      double part[8] = {0};
      long count = least(LONG, P - k * LONG), j = 0;
      for (; j + 8 <= count; j += 8)
        for (long i = 0; i < 8; i++) part[i] += (double)g[j + i] * (double)g[j + i];
      for (; j < count; j++) part[0] += (double)g[j] * (double)g[j];
      for (long i = 1; i < 8; i++) part[0] += part[i];
      c->some[s * chunks + k] = part[0];
    }
    OMP(for) for (long s = 0; s < c->S; s++) {
      double total = 0;
      for (long k = 0; k < chunks; k++) total += c->some[s * chunks + k];
      c->norms[s] = (REAL)sqrt(total);
    }
    OMP(for collapse(2)) for (long s = 0; s < c->S; s++) for (long k = 0; k < chunks; k++) {
      const double norm = (double)c->norms[s], share = c->clip < norm ? c->clip / norm : 1;
      if (!isfinite(norm)) continue;
      const long from = s * P + k * LONG, count = least(LONG, P - k * LONG);
      REAL *restrict w = c->w + from;
      const REAL *restrict g = c->g + from;
      if (!c->kind && c->momentum == 0 && c->decay == 0) {
        const REAL step = (REAL)(c->lr * share);
        for (long j = 0; j < count; j++) w[j] -= step * g[j];
        continue;
      }
      const REAL l2 = (REAL)(c->kind == 2 ? 0 : c->decay), shrink = (REAL)(c->kind == 2 ? c->lr * c->decay : 0);
      if (!c->kind && c->momentum == 0) {
        for (long j = 0; j < count; j++) w[j] -= (REAL)c->lr * ((REAL)share * g[j] + l2 * w[j]);
        continue;
      }
      REAL *restrict m = c->m + from;
      if (!c->kind) {
        for (long j = 0; j < count; j++) {
          m[j] = (REAL)c->momentum * m[j] + (REAL)share * g[j] + l2 * w[j];
          w[j] -= (REAL)c->lr * m[j];
        }
        continue;
      }
      REAL *restrict v = c->v + from;
      const REAL b1 = (REAL)c->beta1, b2 = (REAL)c->beta2, rate = (REAL)(c->lr / c->unbias1);
      const REAL unbias = (REAL)c->unbias2, eps = (REAL)c->eps, a1 = (REAL)(1 - c->beta1), a2 = (REAL)(1 - c->beta2);
      for (long j = 0; j < count; j++) {
        REAL x = (REAL)share * g[j] + l2 * w[j];
        m[j] = b1 * m[j] + a1 * x, v[j] = b2 * v[j] + a2 * x * x;
        w[j] -= shrink * w[j] + rate * m[j] / (sqrt_(v[j] / unbias) + eps);
      }
    }
  }
}

/* `times` products of MR rows with one panel, all of it in the first cache, on every thread: arithmetic and nothing else.
   Gives how many operations that was, 0 where there is no memory. */
double arithmetic(int threads, long times) {
  enum { K = 96 };
  long failed = 0;
#pragma omp parallel num_threads(threads) reduction(+ : failed)
  {
    REAL *x = calloc(MR * K + K * WIDE + MR * WIDE, sizeof(REAL));
    for (long i = 0; i < times && x; i++) multiply(x, K, MR, K, x + MR * K, WIDE, x + (MR + WIDE) * K, WIDE, 1);
    failed += !x;
    free(x);
  }
  return failed ? 0 : 2.0 * MR * K * WIDE * times * threads;
}
#endif
