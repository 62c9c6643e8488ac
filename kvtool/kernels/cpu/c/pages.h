// Where the rows of tokens lie in a cache of pages.

#pragma once
#include "vectors.h"

#define TOKENS_AT_ONCE 128

typedef struct {
    const bf16 *data;
    int64_t page, slot, head, dim; // strides, and the dimension of a head
} Cache;

// Some tokens of a sequence: where the rows of each lie. Up to a multiple of 16 the first stands in for those that are
// missing. `next` are keys behind them, or some that are there.
typedef struct {
    int64_t count, k[TOKENS_AT_ONCE], v[TOKENS_AT_ONCE], next[LANES];
} Tokens;

INLINE int64_t row_at(const Cache *cache, const int32_t *table, int64_t block, int64_t token) {
    return table[token / block] * cache->page + token % block * cache->slot;
}

// Up to 128 tokens from `first`, out of the sequence's block table; `count` are left.
static inline void find_tokens(Tokens *tokens, const Cache *k, const Cache *v, const int32_t *table, int64_t block,
                               int64_t first, int64_t count) {
    tokens->count = count < TOKENS_AT_ONCE ? count : TOKENS_AT_ONCE;
    for (int64_t t = 0; t < (tokens->count + LANES - 1) / LANES * LANES; t++) {
        const int64_t token = t < tokens->count ? first + t : first;
        tokens->k[t] = row_at(k, table, block, token);
        tokens->v[t] = row_at(v, table, block, token);
    }
    for (int64_t t = 0, behind = tokens->count; t < LANES; t++)
        tokens->next[t] = row_at(k, table, block, behind + t < count ? first + behind + t : first);
}
