// The softmax of query heads over some tokens of a sequence, unfinished, and how those of all its tokens become one.

#pragma once
#include "pages.h"

// maxima and sums [heads], weighted values [heads, dim].
typedef struct {
    float *maxima, *sums;
    pair *values;
} Partial;

// [seqs, tasks] x (values [heads, dim], maxima and sums [heads] in a row of 32 a head).
typedef struct {
    float *scratch;
    int64_t tasks, heads, dim;
} Partials;

INLINE Partial partial_of(Partials all, int64_t s, int64_t task) {
    float *values = all.scratch + (s * all.tasks + task) * all.heads * (all.dim + STEP);
    float *maxima = values + all.heads * all.dim;
    return (Partial){maxima, maxima + all.heads, (pair *)values};
}

// Without a value yet; its maxima and sums are anything.
INLINE Partial begun(Partials all, int64_t s, int64_t task) {
    Partial partial = partial_of(all, s, task);
    memset(partial.values, 0, all.heads * all.dim * sizeof(float));
    return partial;
}

INLINE Partial from_head(Partial partial, int64_t h, int64_t dim) {
    return (Partial){partial.maxima + h, partial.sums + h, partial.values + h * dim / STEP};
}

// One head's output out of its partial ones over `seen` tokens.
INLINE void merge(Partials all, int64_t s, int64_t h, int64_t seen, bf16 *out) {
    const int64_t tasks = (seen + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE;
    float most = -INFINITY, total = 0.0f;
    for (int64_t t = 0; t < tasks; t++) most = fmaxf(most, partial_of(all, s, t).maxima[h]);
    for (int64_t t = 0; t < tasks; t++) {
        Partial part = partial_of(all, s, t);
        part.maxima[h] = exp2f(part.maxima[h] - most); // from here on its weight
        total += part.maxima[h] * part.sums[h];
    }
    for (int64_t i = 0; i < all.dim / STEP; i++) {
        pair value = {0};
        for (int64_t t = 0; t < tasks; t++) {
            Partial part = partial_of(all, s, t);
            value = add(value, scaled(part.values[h * all.dim / STEP + i], part.maxima[h]));
        }
        store(out + i * STEP, scaled(value, tasks ? 1.0f / total : 0.0f));
    }
}
