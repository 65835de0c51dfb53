static const Use use0[] = {{0, 1.0}, {1, 1.0}, {2, 1.0}, {3, 1.0}};
static void forward_1(long h, const REAL *restrict a, const REAL *restrict p, const REAL *restrict s1, REAL *restrict o0, REAL *restrict o1, REAL *restrict v0, REAL *restrict v1, REAL *restrict v2, REAL *restrict v3, REAL *restrict v4) {
  for (long j = 0; j < h; j++) {
    const REAL x0 = p[0 + 2 * h + j];
    const REAL x1 = a[2 * h + j];
    const REAL x2 = x0 + x1;
    const REAL x3 = sigmoid_(x2);
    const REAL x4 = p[0 + 1 * h + j];
    const REAL x5 = a[1 * h + j];
    const REAL x6 = x4 + x5;
    const REAL x7 = sigmoid_(x6);
    const REAL x8 = p[0 + 0 * h + j];
    const REAL x9 = a[0 * h + j];
    const REAL x10 = x8 + x9;
    const REAL x11 = sigmoid_(x10);
    const REAL x12 = p[0 + 3 * h + j];
    const REAL x13 = a[3 * h + j];
    const REAL x14 = x12 + x13;
    const REAL x15 = tanh_(x14);
    const REAL x16 = s1[j];
    const REAL x17 = x16 * x7;
    const REAL x18 = x11 * x15;
    const REAL x19 = x17 + x18;
    const REAL x20 = tanh_(x19);
    const REAL x21 = x3 * x20;
    v0[j] = x3;
    v1[j] = x7;
    v2[j] = x11;
    v3[j] = x15;
    v4[j] = x20;
    o0[j] = x21;
    o1[j] = x19;
  }
}

int forward(const Call *c) {
  const long S = c->S, T = c->T, n = c->n, h = c->h;
  long size = (0 + padded(4 * h)) * h, ld = 0 + padded(4 * h) + WIDE, blocks = (n + MR - 1) / MR, failed = 0;
  REAL *panels = aligned_alloc(64, (S * size + WIDE) * sizeof(REAL) / 64 * 64 + 64);
  if (!panels) return 1;
  OMP(parallel num_threads(c->threads) reduction(+ : failed)) {
    REAL *p = calloc(MR * ld + 0, sizeof(REAL));
    failed += !p;
    PANELS(4 * h) pack_all(c->W, s, use0, 4, h, h, 0, panels + s * size + (0) * h, i);
    BLOCKS for (long t = 0; t < T; t++) {
      const long row = b * MR, rows = least(MR, n - row), one = (s * T + t) * n + row;
      const long now = (s * (T + 1) + t) * n * h + row * h;
      (void)one, (void)now;
      multiply(c->states[0] + now, h, rows, h, panels + s * size + (0) * h, 4 * h, p + 0, ld, 0);
      for (long r = 0; r < rows; r++) forward_1(h, c->table + (s * c->d + c->X[t * c->xt + s * c->xs + row + r]) * 4 * h, p + r * ld, c->states[1] + now + r * h, c->states[0] + now + (n + r) * h, c->states[1] + now + (n + r) * h, c->V[0] + (one + r) * h, c->V[1] + (one + r) * h, c->V[2] + (one + r) * h, c->V[3] + (one + r) * h, c->V[4] + (one + r) * h);
    }
    free(p);
  }
  free(panels);
  return failed != 0;
}

static void backward_0(long h, REAL *restrict q, const REAL *restrict g, const REAL *restrict s1, const REAL *restrict v0, const REAL *restrict v1, const REAL *restrict v2, const REAL *restrict v3, const REAL *restrict v4, REAL *restrict d0, REAL *restrict d1) {
  for (long j = 0; j < h; j++) {
    const REAL D0 = d0[j] + g[j];
    const REAL D1 = d1[j];
    const REAL x0 = v0[j];
    const REAL x1 = v4[j];
    const REAL x2 = x1 * x1;
    const REAL x3 = (REAL)1.0 - x2;
    const REAL x4 = x0 * x3;
    const REAL M0 = D1 + x4 * D0;
    const REAL x5 = v1[j];
    const REAL x6 = v3[j];
    const REAL x7 = v2[j];
    const REAL x8 = (REAL)1.0 - x7;
    const REAL x9 = x7 * x8;
    const REAL x10 = x6 * x9;
    const REAL x11 = s1[j];
    const REAL x12 = (REAL)1.0 - x5;
    const REAL x13 = x5 * x12;
    const REAL x14 = x11 * x13;
    const REAL x15 = (REAL)1.0 - x0;
    const REAL x16 = x0 * x15;
    const REAL x17 = x1 * x16;
    const REAL x18 = x6 * x6;
    const REAL x19 = (REAL)1.0 - x18;
    const REAL x20 = x7 * x19;
    d0[j] = 0;
    d1[j] = x5 * M0;
    q[0 * h + j] = x10 * M0;
    q[1 * h + j] = x14 * M0;
    q[2 * h + j] = x17 * D0;
    q[3 * h + j] = x20 * M0;
  }
}

static void backward_1(long h, REAL *restrict d0, const REAL *restrict e0) {
  for (long j = 0; j < h; j++) {
    const REAL E0 = e0[j];
    d0[j] = d0[j] + E0;
  }
}

int backward(const Call *c) {
  const long S = c->S, T = c->T, n = c->n, h = c->h;
  long size = 0 + 4 * h * padded(h), ld = 2 * padded(h) + 0 + WIDE, blocks = (n + MR - 1) / MR, failed = 0;
  REAL *panels = aligned_alloc(64, (S * size + WIDE) * sizeof(REAL) / 64 * 64 + 64);
  if (!panels) return 1;
  OMP(parallel num_threads(c->threads) reduction(+ : failed)) {
    REAL *p = calloc(MR * ld + (h + MR + CHUNK) * WIDE, sizeof(REAL));
    failed += !p;
    PANELS(h) pack_all(c->W, s, use0 + 0, 4, h, h, 1, panels + s * size + 0, i);
    BLOCKS for (long t = T - 1; t >= 0; t--) {
      const long row = b * MR, rows = least(MR, n - row), one = (s * T + t) * n + row;
      const long now = (s * (T + 1) + t) * n * h + row * h;
      (void)one, (void)now;
      for (long r = 0; r < rows; r++) backward_0(h, c->Q + (one + r) * c->ldq, c->dHs + (one + r) * h, c->states[1] + now + r * h, c->V[0] + (one + r) * h, c->V[1] + (one + r) * h, c->V[2] + (one + r) * h, c->V[3] + (one + r) * h, c->V[4] + (one + r) * h, c->D[0] + (s * n + row + r) * h, c->D[1] + (s * n + row + r) * h);
      multiply(c->Q + one * c->ldq + 0 * h, c->ldq, rows, 4 * h, panels + s * size + 0, h, p + 0 * padded(h), ld, 0);
      for (long r = 0; r < rows; r++) backward_1(h, c->D[0] + (s * n + row + r) * h, p + r * ld + 0 * padded(h));
    }
    PANELS(4 * h) {
      outer(c->states[0] + s * (T + 1) * n * h, h, c->Q + s * T * n * c->ldq + 0 * h, c->ldq, T * n, 4 * h, i, p);
      spread(c->dW, s, use0 + 0, 4, h, h, i, p);
    }
    CHUNKS collect(c, s, c->Q + s * T * n * c->ldq + 0 * h + j, 0, least(CHUNK, h - j), c->dtable + (s * c->d * 4 + 0) * h + j, 4 * h);
    CHUNKS collect(c, s, c->Q + s * T * n * c->ldq + 1 * h + j, 0, least(CHUNK, h - j), c->dtable + (s * c->d * 4 + 1) * h + j, 4 * h);
    CHUNKS collect(c, s, c->Q + s * T * n * c->ldq + 2 * h + j, 0, least(CHUNK, h - j), c->dtable + (s * c->d * 4 + 2) * h + j, 4 * h);
    CHUNKS collect(c, s, c->Q + s * T * n * c->ldq + 3 * h + j, 0, least(CHUNK, h - j), c->dtable + (s * c->d * 4 + 3) * h + j, 4 * h);
    free(p);
  }
  free(panels);
  return failed != 0;
}

static void before_table(long h, const REAL *restrict w0_, const REAL *restrict w1, const REAL *restrict w2_, const REAL *restrict w3, const REAL *restrict w4_, const REAL *restrict w5, const REAL *restrict w6_, const REAL *restrict w7, REAL *restrict t0, REAL *restrict t1, REAL *restrict t2, REAL *restrict t3) {
  for (long j = 0; j < h; j++) {
    const REAL x0 = w1[j];
    const REAL x1 = (REAL)1.0 * w0_[j];
    const REAL x2 = x0 + x1;
    const REAL x3 = w3[j];
    const REAL x4 = (REAL)1.0 * w2_[j];
    const REAL x5 = x3 + x4;
    const REAL x6 = w5[j];
    const REAL x7 = (REAL)1.0 * w4_[j];
    const REAL x8 = x6 + x7;
    const REAL x9 = w7[j];
    const REAL x10 = (REAL)1.0 * w6_[j];
    const REAL x11 = x9 + x10;
    t0[j] = x2;
    t1[j] = x5;
    t2[j] = x8;
    t3[j] = x11;
  }
}

static void after_table(long h, REAL *restrict z0_, REAL *restrict z1, REAL *restrict z2_, REAL *restrict z3, REAL *restrict z4_, REAL *restrict z5, REAL *restrict z6_, REAL *restrict z7, const REAL *restrict g0, const REAL *restrict g1, const REAL *restrict g2, const REAL *restrict g3) {
  for (long j = 0; j < h; j++) {
    z0_[j] = z0_[j] + g0[j];
    z1[j] = z1[j] + g0[j];
    z2_[j] = z2_[j] + g1[j];
    z3[j] = z3[j] + g1[j];
    z4_[j] = z4_[j] + g2[j];
    z5[j] = z5[j] + g2[j];
    z6_[j] = z6_[j] + g3[j];
    z7[j] = z7[j] + g3[j];
  }
}

void before(const Call *c, const Part *P) {
  const long S = c->S, h = c->h;
  OMP(parallel for num_threads(c->threads)) for (long s = 0; s < S; s++) {
    (void)h;
    { const long rows = c->d; for (long r = 0; r < rows; r++) before_table(h, P[0].at + s * P[0].ld + r * h, P[1].at + s * P[1].ld, P[2].at + s * P[2].ld + r * h, P[3].at + s * P[3].ld, P[4].at + s * P[4].ld + r * h, P[5].at + s * P[5].ld, P[6].at + s * P[6].ld + r * h, P[7].at + s * P[7].ld, c->table + ((s * c->d + r) * 4 + 0) * h, c->table + ((s * c->d + r) * 4 + 1) * h, c->table + ((s * c->d + r) * 4 + 2) * h, c->table + ((s * c->d + r) * 4 + 3) * h); }
  }
}

void after(const Call *c, const Part *P, const Part *dP) {
  const long S = c->S, h = c->h;
  OMP(parallel for num_threads(c->threads)) for (long s = 0; s < S; s++) {
    (void)h;
    { const long rows = c->d; for (long r = 0; r < rows; r++) after_table(h, dP[0].at + s * dP[0].ld + r * h, dP[1].at + s * dP[1].ld, dP[2].at + s * dP[2].ld + r * h, dP[3].at + s * dP[3].ld, dP[4].at + s * dP[4].ld + r * h, dP[5].at + s * dP[5].ld, dP[6].at + s * dP[6].ld + r * h, dP[7].at + s * dP[7].ld, c->dtable + ((s * c->d + r) * 4 + 0) * h, c->dtable + ((s * c->d + r) * 4 + 1) * h, c->dtable + ((s * c->d + r) * 4 + 2) * h, c->dtable + ((s * c->d + r) * 4 + 3) * h); }
  }
}

