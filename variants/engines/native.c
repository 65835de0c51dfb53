/* The recurrence of fused.py, forward and backward, in one call each. native.py compiles it once, for float or double.

   Rows of the batch never wait for one another: a thread takes some rows of one seed through all of time, with the
   weights, packed into panels as wide as its registers, in its own cache. Shapes as in fused.py: (S, T, n, columns).
   No row's arithmetic depends on how many rows, seeds or threads there are. */

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
enum { NONE, BEFORE, AFTER };
enum { CHUNK = 128 }; /* rows of the batch, over all of time, added up at once: their panel stays in the first cache */

typedef REAL vec __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

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

static inline REAL sigmoid_(REAL x) {
  REAL s, p = split(-x, &s);
  return 1 / (1 + (s * p + s));
}

static inline REAL tanh_(REAL x) { /* by e^2x - 1, which keeps its digits near 0 */
  REAL s, p = split(2 * x, &s), e = s * p + (s - 1);
  return e / (e + 2);
}

/* W (K, N), element (k, j) at W[k * down + j * across] -> panels of WIDE columns, each (K, WIDE), zeros beyond N. */
static void pack(const REAL *W, long down, long across, long K, long N, REAL *panels, long panel) {
  REAL *out = panels + panel * K * WIDE;
  long first = panel * WIDE, width = least(WIDE, N - first);
  for (long k = 0; k < K; k++)
    for (long j = 0; j < WIDE; j++) out[k * WIDE + j] = j < width ? W[k * down + (first + j) * across] : 0;
}

/* out (MR, padded N) = X W, or += where `add`: rows by a stride; a row of X beyond `rows` is the last again. */
static void multiply(const REAL *X, long stride, long rows, long K, const REAL *panels, long N, REAL *out, long ldo,
                     int add) {
  const REAL *x[MR];
  for (long r = 0; r < MR; r++) x[r] = X + least(r, rows - 1) * stride;
  for (long first = 0; first < N; first += WIDE, panels += K * WIDE) {
    vec sum[MR][NR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
      for (int j = 0; j < NR; j++) sum[r][j] = add ? *(const vec *)(out + r * ldo + first + j * VL) : (vec){0};
    for (long k = 0; k < K; k++) {
      const REAL *w = panels + k * WIDE;
#pragma GCC unroll 8
      for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
        for (int j = 0; j < NR; j++) sum[r][j] += x[r][k] * *(const vec *)(w + j * VL);
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
      for (int j = 0; j < NR; j++) *(vec *)(out + r * ldo + first + j * VL) = sum[r][j];
  }
}

/* out (h, N) = H' g, over R rows of H (R, h) and of some N columns of g: the columns of one panel. `some` is scratch. */
static void outer(const REAL *H, long h, const REAL *g, long stride, long R, long N, long panel, REAL *out, long ldo,
                  REAL *some) {
  long first = panel * WIDE, width = least(WIDE, N - first), blocks = (h + MR - 1) / MR;
  REAL *sums = some, *rows = some + blocks * MR * WIDE;
  memset(sums, 0, blocks * MR * WIDE * sizeof(REAL));
  for (long from = 0; from < R; from += CHUNK) {
    long count = least(CHUNK, R - from);
    pack(g + from * stride + first, stride, 1, count, width, rows, 0);
    for (long block = 0; block < blocks; block++) {
      const REAL *x[MR];
      vec sum[MR][NR];
      for (long r = 0; r < MR; r++) x[r] = H + from * h + least(block * MR + r, h - 1);
#pragma GCC unroll 8
      for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
        for (int j = 0; j < NR; j++) sum[r][j] = *(const vec *)(sums + (block * MR + r) * WIDE + j * VL);
      for (long k = 0; k < count; k++) {
        const REAL *w = rows + k * WIDE;
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
          for (int j = 0; j < NR; j++) sum[r][j] += x[r][k * h] * *(const vec *)(w + j * VL);
      }
#pragma GCC unroll 8
      for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
        for (int j = 0; j < NR; j++) *(vec *)(sums + (block * MR + r) * WIDE + j * VL) = sum[r][j];
    }
  }
  for (long i = 0; i < h; i++) memcpy(out + i * ldo + first, sums + i * WIDE, width * sizeof(REAL));
}

/* How the columns lie: k of gates (Z before R, if learned), then h of the candidate; W has `cols` of k + h. */
typedef struct {
  long S, T, n, h, k, cols;
  int reset, held; /* held: Z is the number z */
  double z;
} Shape;

static inline void cell(const Shape *q, const REAL *restrict a, const REAL *restrict p, const REAL *restrict b,
                        const REAL *restrict H, REAL *restrict g, REAL *restrict u) {
  long h = q->h, k = q->k;
  for (long j = 0; j < k; j++) g[j] = sigmoid_(a[j] + p[j]);
  const REAL *restrict R = g + k - h;
  if (q->reset == BEFORE)
    for (long j = 0; j < h; j++) u[j] = R[j] * H[j];
  else if (q->reset == AFTER)
    for (long j = 0; j < h; j++) {
      u[j] = p[k + j] + b[j];
      g[k + j] = tanh_(a[k + j] + R[j] * u[j]);
    }
  else
    for (long j = 0; j < h; j++) g[k + j] = tanh_(a[k + j] + p[k + j]);
}

static inline void next(const Shape *q, const REAL *restrict g, const REAL *restrict H, REAL *restrict out) {
  const REAL *restrict N = g + q->k;
  REAL z = (REAL)q->z;
  if (q->held)
    for (long j = 0; j < q->h; j++) out[j] = z * H[j] + (1 - z) * N[j];
  else
    for (long j = 0; j < q->h; j++) out[j] = N[j] + g[j] * (H[j] - N[j]);
}

/* Rows X (S, T, n) of the table (.., k + h) are A; H0 in Hs (S, T + 1, n, h), W (S, h, cols), b (S, h) -> Hs, the gates and
   the candidate G (S, T, n, k + h), what the candidate sees U (S, T, n, h). Gives 1 where there is no memory. */
int forward(const Shape *q, int threads, const REAL *table, const int64_t *X, const REAL *W, const REAL *b, REAL *G,
            REAL *Hs, REAL *U) {
  long S = q->S, T = q->T, n = q->n, h = q->h, k = q->k, wide = k + h;
  long first = q->reset == BEFORE ? k : q->cols, second = q->reset == BEFORE ? h : 0; /* columns of H W, of (R H) W */
  long one = padded(first) / WIDE, two = padded(second) / WIDE, size = (one + two) * WIDE * h;
  long blocks = (n + MR - 1) / MR, ld = k + padded(h) + WIDE, failed = 0;
  REAL *panels = aligned_alloc(64, padded(S * size + WIDE) * sizeof(REAL) / 64 * 64 + 64);
  if (!panels) return 1;
#pragma omp parallel num_threads(threads) reduction(+ : failed)
  {
    REAL *p = calloc(MR * ld, sizeof(REAL));
    failed += !p;
#pragma omp for collapse(2)
    for (long s = 0; s < S; s++)
      for (long i = 0; i < one + two; i++) {
        const REAL *w = W + s * h * q->cols;
        if (i < one) pack(w, q->cols, 1, h, first, panels + s * size, i);
        else pack(w + k, q->cols, 1, h, second, panels + s * size + one * WIDE * h, i - one);
      }
#pragma omp for collapse(2) schedule(static)
    for (long s = 0; s < S; s++)
      for (long block = 0; block < blocks; block++)
        for (long t = 0; t < T && p; t++) {
          long row = block * MR, rows = least(MR, n - row);
          const REAL *H = Hs + ((s * (T + 1) + t) * n + row) * h;
          REAL *g = G + ((s * T + t) * n + row) * wide, *u = U ? U + ((s * T + t) * n + row) * h : 0;
          const int64_t *x = X + (s * T + t) * n + row;
          multiply(H, h, rows, h, panels + s * size, first, p, ld, 0); /* columns W does not have stay 0 */
          for (long r = 0; r < rows; r++)
            cell(q, table + x[r] * wide, p + r * ld, b ? b + s * h : 0, H + r * h, g + r * wide, u ? u + r * h : 0);
          if (second) {
            multiply(u, h, rows, h, panels + s * size + one * WIDE * h, second, p + k, ld, 0);
            for (long r = 0; r < rows; r++)
              for (long j = k; j < wide; j++) g[r * wide + j] = tanh_(table[x[r] * wide + j] + p[r * ld + j]);
          }
          for (long r = 0; r < rows; r++)
            next(q, g + r * wide, H + r * h, Hs + ((s * (T + 1) + t + 1) * n + row + r) * h);
        }
    free(p);
  }
  free(panels);
  return failed != 0;
}

static inline void back(const Shape *q, const REAL *restrict g, const REAL *restrict H, const REAL *restrict u,
                        const REAL *restrict dH, REAL *restrict d, REAL *restrict da, REAL *restrict dn) {
  long h = q->h, k = q->k;
  const REAL *restrict N = g + k, *restrict R = g + k - h;
  REAL z = (REAL)q->z;
  for (long j = 0; j < h; j++) {
    REAL whole = d[j] + dH[j], Z = q->held ? z : g[j];
    REAL one = whole * (1 - Z) * (1 - N[j] * N[j]);
    if (!q->held) da[j] = whole * (H[j] - N[j]) * Z * (1 - Z);
    if (q->reset == AFTER) {
      dn[j] = one * R[j];
      da[k - h + j] = one * u[j] * R[j] * (1 - R[j]);
    }
    da[k + j] = one;
    d[j] = whole * Z;
  }
}

/* Everything as forward left it, dHs (S, T, n, h) -> dA as A; dN (S, T, n, h), what reaches W_n (reset after); d (S, n, h),
   the gradient of H0, zeros before; dW as W. Gives 1 where there is no memory. */
int backward(const Shape *q, int threads, const REAL *G, const REAL *Hs, const REAL *U, const REAL *W, const REAL *dHs,
             REAL *dA, REAL *dN, REAL *d, REAL *dW) {
  long S = q->S, T = q->T, n = q->n, h = q->h, k = q->k, wide = k + h;
  long first = q->reset == NONE ? q->cols : k, second = q->reset == NONE ? 0 : h; /* rows of W' */
  long each = padded(h) / WIDE, size = (first + second) * WIDE * each;
  long blocks = (n + MR - 1) / MR, ld = padded(h), failed = 0;
  REAL *panels = aligned_alloc(64, padded(S * size + WIDE) * sizeof(REAL) / 64 * 64 + 64);
  if (!panels) return 1;
#pragma omp parallel num_threads(threads) reduction(+ : failed)
  {
    REAL *p = calloc(MR * ld + (h + MR + CHUNK) * WIDE, sizeof(REAL));
    failed += !p;
#pragma omp for collapse(2)
    for (long s = 0; s < S; s++)
      for (long i = 0; i < 2 * each; i++) {
        const REAL *w = W + s * h * q->cols;
        if (i < each) pack(w, 1, q->cols, first, h, panels + s * size, i);
        else if (second) pack(w + k, 1, q->cols, second, h, panels + s * size + first * WIDE * each, i - each);
      }
#pragma omp for collapse(2) schedule(static)
    for (long s = 0; s < S; s++)
      for (long block = 0; block < blocks; block++)
        for (long t = T - 1; t >= 0 && p; t--) {
          long row = block * MR, rows = least(MR, n - row), at = (s * T + t) * n + row;
          const REAL *g = G + at * wide, *H = Hs + ((s * (T + 1) + t) * n + row) * h, *u = U ? U + at * h : 0;
          const REAL *one = panels + s * size, *two = one + first * WIDE * each;
          REAL *da = dA + at * wide, *dn = dN ? dN + at * h : 0, *dh = d + (s * n + row) * h;
          for (long r = 0; r < rows; r++)
            back(q, g + r * wide, H + r * h, u ? u + r * h : 0, dHs + (at + r) * h, dh + r * h, da + r * wide,
                 dn ? dn + r * h : 0);
          if (q->reset == BEFORE) { /* what reaches the reset gate comes back through W_n */
            multiply(da + k, wide, rows, h, two, h, p, ld, 0);
            for (long r = 0; r < rows; r++)
              for (long j = 0; j < h; j++) {
                REAL R = g[r * wide + k - h + j], du = p[r * ld + j];
                da[r * wide + k - h + j] = du * H[r * h + j] * R * (1 - R);
                dh[r * h + j] += du * R;
              }
            multiply(da, wide, rows, k, one, h, p, ld, 0);
          } else if (q->reset == AFTER) {
            multiply(da, wide, rows, k, one, h, p, ld, 0);
            multiply(dn, h, rows, h, two, h, p, ld, 1);
          } else if (first)
            multiply(da, wide, rows, first, one, h, p, ld, 0);
          for (long r = 0; r < rows; r++)
            for (long j = 0; j < h; j++) dh[r * h + j] += p[r * ld + j];
        }
    long gates = padded(first) / WIDE, all = gates + (second ? each : 0);
#pragma omp for collapse(2)
    for (long s = 0; s < S; s++)
      for (long i = 0; i < all; i++) {
        const REAL *H = Hs + s * (T + 1) * n * h, *da = dA + s * T * n * wide;
        REAL *out = dW + s * h * q->cols;
        if (!p) continue;
        if (i < gates) outer(H, h, da, wide, T * n, first, i, out, q->cols, p);
        else if (q->reset == AFTER) outer(H, h, dN + s * T * n * h, h, T * n, h, i - gates, out + k, q->cols, p);
        else outer(U + s * T * n * h, h, da + k, wide, T * n, h, i - gates, out + k, q->cols, p);
      }
    free(p);
  }
  free(panels);
  return failed != 0;
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
