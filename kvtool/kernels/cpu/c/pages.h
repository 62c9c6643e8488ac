// Where the rows of tokens lie in a cache of pages.

#pragma once
#include "vectors.h"

#define TOKENS_AT_ONCE 128

typedef struct {
    const bf16 *data;
    int64_t page, slot, head, dim; // strides, and the dimension of a head
} Cache;

// Some tokens of a sequence: where the rows of each lie, and which slot of the pool it has. Up to a multiple of 16 the
// first stands in for those that are missing. `next` are keys behind them, or the first again.
typedef struct {
    int64_t count, k[TOKENS_AT_ONCE], v[TOKENS_AT_ONCE], slots[TOKENS_AT_ONCE], next[LANES];
} Tokens;

// A token's place in the block table; a step to the next one divides nothing.
typedef struct {
    const int32_t *page;
    int64_t slot;
} Place;

INLINE void step(Place *place, int64_t block) {
    if (++place->slot == block) place->slot = 0, place->page++;
}

INLINE int64_t row_at(const Cache *cache, Place place) {
    return *place.page * cache->page + place.slot * cache->slot;
}

// Up to 128 tokens from `first`, out of the sequence's block table; `count` are left.
static inline void find_tokens(Tokens *tokens, const Cache *k, const Cache *v, const int32_t *table, int64_t block,
                               int64_t first, int64_t count) {
    Place place = {table + first / block, first % block};
    tokens->count = count < TOKENS_AT_ONCE ? count : TOKENS_AT_ONCE;
    for (int64_t t = 0; t < tokens->count; t++, step(&place, block)) {
        tokens->k[t] = row_at(k, place);
        tokens->v[t] = row_at(v, place);
        tokens->slots[t] = *place.page * block + place.slot;
    }
    for (int64_t t = tokens->count; t % LANES; t++) {
        tokens->k[t] = tokens->k[0];
        tokens->v[t] = tokens->v[0];
        tokens->slots[t] = tokens->slots[0];
    }
    for (int64_t t = 0; t < LANES; t++) {
        const int is_there = tokens->count + t < count;
        tokens->next[t] = is_there ? row_at(k, place) : tokens->k[0];
        if (is_there) step(&place, block);
    }
}
