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
