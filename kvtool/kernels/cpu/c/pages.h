// Where the rows of tokens lie in a cache of pages.

#pragma once
#include "vectors.h"

#define TOKENS_AT_ONCE 128

typedef struct {
    const bf16 *data;
    int64_t page, slot, head, dim; // strides, and the dimension of a head
} Cache;

// Some tokens of a sequence: where the rows of each lie.
typedef struct {
    int64_t count, k[TOKENS_AT_ONCE], v[TOKENS_AT_ONCE];
} Tokens;

// Up to 128 tokens from `first`, out of the sequence's block table.
static inline void find_tokens(Tokens *tokens, const Cache *k, const Cache *v, const int32_t *table, int64_t block,
                               int64_t first, int64_t count) {
    tokens->count = count < TOKENS_AT_ONCE ? count : TOKENS_AT_ONCE;
    for (int64_t t = 0; t < tokens->count; t++) {
        const int64_t page = table[(first + t) / block], slot = (first + t) % block;
        tokens->k[t] = page * k->page + slot * k->slot;
        tokens->v[t] = page * v->page + slot * v->slot;
    }
}

#define LINE (64 / sizeof(bf16))

typedef struct {
    int64_t start, end;
} Stretch;

// Where some tokens lie, as stretches of memory in the order of their addresses.
static inline int64_t find_stretches(const int64_t *at, int64_t count, int64_t slot, int64_t width, Stretch *found) {
    int64_t n = 0;
    for (int64_t t = 0; t < count; t++) {
        if (t && at[t] == at[t - 1] + slot) found[n - 1].end = at[t] + width;
        else found[n++] = (Stretch){at[t], at[t] + width};
    }
    for (int64_t i = 1; i < n; i++) { // most pages come in order
        const Stretch one = found[i];
        int64_t place = i;
        for (; place > 0 && found[place - 1].start > one.start; place--) found[place] = found[place - 1];
        found[place] = one;
    }
    return n;
}

// Reads the rows of all heads of some tokens once, in the order of their addresses: a stream, which the CPU foresees,
// as it does not the rows of one head after another. They lie in the cache for what follows.
static inline void read_in_order(const Cache *cache, const int64_t *at, int64_t count, int64_t heads) {
    Stretch stretches[TOKENS_AT_ONCE];
    const int64_t n = find_stretches(at, count, cache->slot, (heads - 1) * cache->head + cache->dim, stretches);
    uint32_t words = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t line = stretches[i].start; line < stretches[i].end; line += LINE) words += cache->data[line];
    __asm__ volatile("" : : "r"(words)); // or the compiler would see that nobody asks
}
