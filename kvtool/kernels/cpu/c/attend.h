// Attention of query heads over the tokens of one task: the scores of all tokens first, then their weights, then the
// values they weigh. Nothing is found twice, and both passes meet memory in the order in which it lies.

#pragma once
#include "partial.h"

#define HEADS_AT_ONCE 4
#define PAIRS_AT_ONCE 2
#define LINE_BYTES 64

// Of one head over the tokens of a task: first scores in base 2, then weights that are not divided by their sum.
typedef vec Weights[TOKENS_AT_ONCE / LANES];

INLINE int64_t blocks_of(int64_t count) { return (count + LANES - 1) / LANES; }

// Asks the L2 for 16 rows, `at` so many elements of `size` bytes behind `from`, while those before them are worked at:
// pages are too short a stretch for the CPU to foresee, and the L1 has room for few requests.
INLINE void ask_for_rows(const void *from, const int64_t *at, int64_t size, int64_t dim) {
    for (int t = 0; t < LANES; t++)
        for (int64_t i = 0; i < size * dim; i += LINE_BYTES)
            __builtin_prefetch((const char *)from + size * at[t] + i, 0, 2);
}

// Four sums, each spread over a quarter of the lanes.
INLINE vec quarter_sums(const vec v[4]) {
    return neighbour_sums(neighbour_sums(v[0], v[1]), neighbour_sums(v[2], v[3]));
}

// scale * q k of 16 tokens, whose keys lie `at`, for `heads` (a constant) query heads over one KV head.
INLINE void score(const int heads, const bf16 *q, int64_t q_head, const bf16 *k, const int64_t *at, int64_t dim,
                  vec scale, int64_t block, Weights *to) {
    vec quarters[HEADS_AT_ONCE][4];
    for (int i = 0; i < 4; i++) {
        vec dots[HEADS_AT_ONCE][4];
        UNROLL for (int h = 0; h < heads; h++)
            UNROLL for (int t = 0; t < 4; t++) dots[h][t] = (vec){0};
        for (int64_t d = 0; d < dim; d += STEP) {
            words keys[4];
            UNROLL for (int t = 0; t < 4; t++) keys[t] = read_words(k + at[4 * i + t] + d);
            UNROLL for (int h = 0; h < heads; h++) {
                const words query = read_words(q + h * q_head + d);
                UNROLL for (int t = 0; t < 4; t++) dots[h][t] = add_products(dots[h][t], keys[t], query);
            }
        }
        UNROLL for (int h = 0; h < heads; h++) quarters[h][i] = quarter_sums(dots[h]);
    }
    UNROLL for (int h = 0; h < heads; h++) to[h][block] = quarter_sums(quarters[h]) * scale;
}

// The scores of `count` tokens become weights. Lanes behind them, which hold the score of one of them, become zeros.
INLINE void weigh(Weights w, int64_t count, float *most, float *total) {
    const int64_t blocks = blocks_of(count);
    vec maxima = w[0], sums = {0}, lowest = {0};
    for (int64_t b = 1; b < blocks; b++) maxima = larger(maxima, w[b]);
    *most = maximum(maxima);
    for (int64_t b = 0; b < blocks; b++) w[b] = exp2_of(larger(lowest - 126.0f, w[b] - *most));
    for (int64_t t = count; t < blocks * LANES; t++) w[t / LANES][t % LANES] = 0.0f;
    for (int64_t b = 0; b < blocks; b++) sums += w[b];
    *total = sum(sums);
}

// Adds the weighted values of 16 tokens, 32 `pairs` (a constant) elements of each; heads are `apart` in `to`.
INLINE void add_pairs(const int heads, const int pairs, const bf16 *v, const int64_t *at, const Weights *w,
                      int64_t block, pair *to, int64_t apart) {
    pair acc[HEADS_AT_ONCE][PAIRS_AT_ONCE];
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int p = 0; p < pairs; p++) acc[h][p] = to[h * apart + p];
    for (int t = 0; t < LANES; t++)
        UNROLL for (int p = 0; p < pairs; p++) {
            const pair elements = load(v + at[t] + p * STEP);
            UNROLL for (int h = 0; h < heads; h++) acc[h][p] = add(acc[h][p], scaled(elements, w[h][block][t]));
        }
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int p = 0; p < pairs; p++) to[h * apart + p] = acc[h][p];
}

INLINE void add_values(const int heads, const bf16 *v, const int64_t *at, int64_t dim, const Weights *w, int64_t block,
                       pair *to) {
    const int64_t all = dim / STEP;
    int64_t p = 0;
    for (; p + PAIRS_AT_ONCE <= all; p += PAIRS_AT_ONCE)
        add_pairs(heads, PAIRS_AT_ONCE, v + p * STEP, at, w, block, to + p, all);
    for (; p < all; p++) add_pairs(heads, 1, v + p * STEP, at, w, block, to + p, all);
}

// `score` of all query heads of a group, a few at a time.
static void score_group(int64_t group, const bf16 *q, int64_t q_head, const bf16 *k, const int64_t *at, int64_t dim,
                        vec scale, int64_t block, Weights *to) {
    for (; group >= HEADS_AT_ONCE; group -= HEADS_AT_ONCE, q += HEADS_AT_ONCE * q_head, to += HEADS_AT_ONCE)
        score(HEADS_AT_ONCE, q, q_head, k, at, dim, scale, block, to);
    switch (group) {
    case 1: return score(1, q, q_head, k, at, dim, scale, block, to);
    case 2: return score(2, q, q_head, k, at, dim, scale, block, to);
    case 3: return score(3, q, q_head, k, at, dim, scale, block, to);
    }
}

// `add_values` of all query heads of a group.
static void add_group(int64_t group, const bf16 *v, const int64_t *at, int64_t dim, const Weights *w, int64_t block,
                      pair *to) {
    for (; group >= HEADS_AT_ONCE; group -= HEADS_AT_ONCE, w += HEADS_AT_ONCE, to += HEADS_AT_ONCE * dim / STEP)
        add_values(HEADS_AT_ONCE, v, at, dim, w, block, to);
    switch (group) {
    case 1: return add_values(1, v, at, dim, w, block, to);
    case 2: return add_values(2, v, at, dim, w, block, to);
    case 3: return add_values(3, v, at, dim, w, block, to);
    }
}
