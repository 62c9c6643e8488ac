// Attention of one query a sequence over pages: tasks of some tokens each, then one merge of their softmaxes.

#include "attend.h"

typedef struct {
    const bf16 *q;
    int64_t q_seq, q_head; // strides
    Cache k, v;
    const int32_t *tables;
    int64_t table_stride;
    const int32_t *lengths;
    float *scratch; // [seqs, tasks] x (values [heads, v.dim], maxima and sums [heads] in a row of 32 a head)
    bf16 *out;
    float scale;
    int64_t window, seqs, heads, kv_heads, block, tasks;
} Decode;

INLINE int64_t first_seen(const Decode *d, int64_t s) {
    return d->window && d->lengths[s] > d->window ? d->lengths[s] - d->window : 0;
}

INLINE Partials parts_of(const Decode *d) { return (Partials){d->scratch, d->tasks, d->heads, d->v.dim}; }

INLINE void ask_for_keys(const Decode *d, int64_t kv, const int64_t *at) {
    ask_for_rows(d->k.data + kv * d->k.head, at, sizeof(bf16), d->k.dim);
}

INLINE void ask_for_values(const Decode *d, int64_t kv, const int64_t *at) {
    ask_for_rows(d->v.data + kv * d->v.head, at, sizeof(bf16), d->v.dim);
}

// The scores of all heads; what is read next is asked for meanwhile, the first values in the end.
INLINE void score_all(const Decode *d, const bf16 *q, const Tokens *tokens, Weights *to) {
    const int64_t blocks = blocks_of(tokens->count), group = d->heads / d->kv_heads;
    const vec scale = (vec){0} + d->scale * (float)M_LOG2E;
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t kv = 0, h = 0; kv < d->kv_heads; kv++, h += group) {
            if (b + 1 < blocks) ask_for_keys(d, kv, tokens->k + (b + 1) * LANES);
            else ask_for_values(d, kv, tokens->v);
            score_group(group, q + h * d->q_head, d->q_head, d->k.data + kv * d->k.head, tokens->k + b * LANES,
                        d->k.dim, scale, b, to + h);
        }
}

// The weighted values of all heads; the first keys of the next task are asked for in the end.
INLINE void add_all(const Decode *d, const Tokens *tokens, const Weights *weights, Partial to) {
    const int64_t blocks = blocks_of(tokens->count), group = d->heads / d->kv_heads;
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t kv = 0, h = 0; kv < d->kv_heads; kv++, h += group) {
            if (b + 1 < blocks) ask_for_values(d, kv, tokens->v + (b + 1) * LANES);
            else ask_for_keys(d, kv, tokens->next);
            add_group(group, d->v.data + kv * d->v.head, tokens->v + b * LANES, d->v.dim, weights + h, b,
                      from_head(to, h, d->v.dim).values);
        }
}

// All heads over the tokens of one task.
static void decode_task(const Decode *d, int64_t s, int64_t task) {
    const int64_t first = first_seen(d, s) + task * TOKENS_AT_ONCE, left = d->lengths[s] - first;
    if (left <= 0) return;
    Tokens tokens;
    find_tokens(&tokens, &d->k, &d->v, d->tables + s * d->table_stride, d->block, first, left);
    Weights weights[d->heads];
    const Partial part = begun(parts_of(d), s, task);
    score_all(d, d->q + s * d->q_seq, &tokens, weights);
    for (int64_t h = 0; h < d->heads; h++) weigh(weights[h], tokens.count, part.maxima + h, part.sums + h);
    add_all(d, &tokens, weights, part);
}

// out [seqs, heads, v.dim] = softmax(scale q k^T) v; a sequence of length 0 gives zeros.
void paged_decode(const void *arguments) {
    const Decode *d = arguments;
    // A thread gets tasks that follow each other, for as long as many are left.
#pragma omp for schedule(guided) collapse(2)
    for (int64_t s = 0; s < d->seqs; s++)
        for (int64_t task = 0; task < d->tasks; task++) decode_task(d, s, task);
#pragma omp for schedule(static) collapse(2) nowait
    for (int64_t s = 0; s < d->seqs; s++)
        for (int64_t h = 0; h < d->heads; h++)
            merge(parts_of(d), s, h, d->lengths[s] - first_seen(d, s), d->out + (s * d->heads + h) * d->v.dim);
}
