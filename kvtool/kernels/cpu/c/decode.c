// Attention of one query a sequence over pages: tasks of some tokens each, then one merge of their softmaxes.

#include "partial.h"

// Ask for a row before it is read: pages are too short a stretch for the CPU to foresee.
INLINE void fetch(const bf16 *row, int64_t dim) {
    for (int64_t i = 0; i < dim; i += STEP) __builtin_prefetch(row + i);
}

// `heads` (a constant) query heads, q_head apart, over one KV head. The scale is one in base 2.
INLINE void attend(const int heads, const bf16 *q, int64_t q_head, float scale, const bf16 *k, int64_t k_dim,
                   const bf16 *v, int64_t v_dim, const Tokens *tokens, Partial to) {
    const int64_t v_pairs = v_dim / STEP;
    for (int64_t start = 0; start < tokens->count; start += LANES) {
        const int n = tokens->count - start < LANES ? tokens->count - start : LANES;
        vec dots[HEADS_AT_ONCE][LANES], weights[HEADS_AT_ONCE];
        float kept[HEADS_AT_ONCE];
        for (int t = 0; t < LANES; t++) {
            const bf16 *key = k + tokens->k[start + (t < n ? t : 0)];
            const int64_t ahead = start + LANES + t < tokens->count ? start + LANES + t : start;
            fetch(k + tokens->k[ahead], k_dim);
            fetch(v + tokens->v[ahead], v_dim);
            UNROLL for (int h = 0; h < heads; h++) dots[h][t] = (vec){0};
            for (int64_t d = 0; d < k_dim; d += STEP) {
                words elements = read_words(key + d);
                UNROLL for (int h = 0; h < heads; h++)
                    dots[h][t] = add_products(dots[h][t], elements, read_words(q + h * q_head + d));
            }
        }
        UNROLL for (int h = 0; h < heads; h++) {
            vec scores = sums(dots[h]) * scale, lowest = {0};
            float most = fmaxf(to.maxima[h], maximum(scores)); // a token that stands in for none repeats the first
            kept[h] = exp2f(to.maxima[h] - most);
            weights[h] = exp2_of(larger(lowest - 126.0f, scores - most));
            for (int t = n; t < LANES; t++) weights[h][t] = 0.0f;
            to.maxima[h] = most;
            to.sums[h] = to.sums[h] * kept[h] + sum(weights[h]);
        }
        for (int64_t d = 0; d < v_pairs; d++) {
            pair acc[HEADS_AT_ONCE];
            UNROLL for (int h = 0; h < heads; h++) acc[h] = scaled(to.values[h * v_pairs + d], kept[h]);
            for (int t = 0; t < n; t++) {
                pair elements = load(v + tokens->v[start + t] + d * STEP);
                UNROLL for (int h = 0; h < heads; h++) acc[h] = add(acc[h], scaled(elements, weights[h][t]));
            }
            UNROLL for (int h = 0; h < heads; h++) to.values[h * v_pairs + d] = acc[h];
        }
    }
}

// All query heads of a group, a few at a time.
static void attend_group(int64_t group, const bf16 *q, int64_t q_head, float scale, const bf16 *k, int64_t k_dim,
                         const bf16 *v, int64_t v_dim, const Tokens *tokens, Partial to) {
    for (int64_t heads; group > 0; group -= heads) {
        heads = group < HEADS_AT_ONCE ? group : HEADS_AT_ONCE;
        switch (heads) {
        case 1: attend(1, q, q_head, scale, k, k_dim, v, v_dim, tokens, to); break;
        case 2: attend(2, q, q_head, scale, k, k_dim, v, v_dim, tokens, to); break;
        case 3: attend(3, q, q_head, scale, k, k_dim, v, v_dim, tokens, to); break;
        default: attend(4, q, q_head, scale, k, k_dim, v, v_dim, tokens, to);
        }
        q += heads * q_head;
        to = from_head(to, heads, v_dim);
    }
}

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

// All heads over the tokens of one task.
static void decode_task(const Decode *d, int64_t s, int64_t task) {
    const int64_t first = first_seen(d, s) + task * TOKENS_AT_ONCE, left = d->lengths[s] - first;
    if (left <= 0) return;
    Tokens tokens;
    find_tokens(&tokens, &d->k, &d->v, d->tables + s * d->table_stride, d->block, first, left);
    const Partial all = begun(parts_of(d), s, task);
    const int64_t group = d->heads / d->kv_heads;
    for (int64_t kv = 0, h = 0; kv < d->kv_heads; kv++, h += group)
        attend_group(group, d->q + s * d->q_seq + h * d->q_head, d->q_head, d->scale * (float)M_LOG2E,
                     d->k.data + kv * d->k.head, d->k.dim, d->v.data + kv * d->v.head, d->v.dim, &tokens,
                     from_head(all, h, d->v.dim));
}

// out [seqs, heads, v.dim] = softmax(scale q k^T) v; a sequence of length 0 gives zeros.
void paged_decode(const void *arguments) {
    const Decode *d = arguments;
#pragma omp for schedule(dynamic) collapse(2)
    for (int64_t s = 0; s < d->seqs; s++)
        for (int64_t task = 0; task < d->tasks; task++) decode_task(d, s, task);
#pragma omp for schedule(static) collapse(2) nowait
    for (int64_t s = 0; s < d->seqs; s++)
        for (int64_t h = 0; h < d->heads; h++)
            merge(parts_of(d), s, h, d->lengths[s] - first_seen(d, s), d->out + (s * d->heads + h) * d->v.dim);
}
