// Causal attention of many queries a sequence over its pages. Keys and values of 128 tokens at a time are packed as
// weights are, so that both products are `product`; nothing of the cache is copied but the tile at hand.

#include "pages.h"
#include "product.h"

#ifdef _OPENMP
int omp_get_thread_num(void); // by hand: a compiler may know -fopenmp and have no omp.h
#else
#define omp_get_thread_num() 0
#endif

#define KEYS TOKENS_AT_ONCE
#define QUERIES 64      // a task has so many positions
#define HEADS_AT_ONCE 4 // of so many heads, which share a packed tile
#define MASKED -1e30f   // an exponent that any key seen later outweighs

typedef struct {
    const bf16 *q;
    int64_t q_row, q_head; // strides
    Cache k, v;
    const int32_t *tables;
    int64_t table_stride;
    const int32_t *lengths, *starts; // [seqs], [seqs + 1]
    char *scratch;                   // [threads, prefill_scratch_bytes]
    bf16 *out;                       // [rows, heads, v.dim]
    float scale;
    int64_t window, seqs, heads, kv_heads, block, longest; // longest: queries of a sequence
} Prefill;

// What a thread works on: a packed tile, the queries [heads, QUERIES, k.dim], and their softmax so far.
typedef struct {
    bf16 *keys, *values, *queries;
    float *maxima, *sums;
    pair *attended;
} Work;

// Queries first .. first + count - 1 of a sequence, counted from 0 within it, by some heads of one KV head.
typedef struct {
    const int32_t *table;
    int64_t row, position, count, length; // of the first query: row of q and position; tokens of the sequence
    int64_t head, heads, kv_head;
} Task;

static int64_t work_bytes(const Prefill *p, Work *work, char *at) {
    const int64_t rows = HEADS_AT_ONCE * QUERIES;
    char *end = at;
    Work parts;
    parts.attended = (pair *)end, end += rows * p->v.dim * sizeof(float);
    parts.maxima = (float *)end, end += rows * sizeof(float);
    parts.sums = (float *)end, end += rows * sizeof(float);
    parts.queries = (bf16 *)end, end += rows * p->k.dim * sizeof(bf16);
    parts.keys = (bf16 *)end, end += KEYS * p->k.dim * sizeof(bf16);
    parts.values = (bf16 *)end, end += KEYS * p->v.dim * sizeof(bf16);
    if (work) *work = parts;
    return end - at;
}

int64_t prefill_scratch_bytes(const Prefill *p) { return work_bytes(p, 0, p->scratch); }

// Word j of vector i becomes word i of vector j.
INLINE void transpose(words v[LANES]) {
    UNROLL for (int n = 0; n < 4; n++) {
        words mixed[LANES];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = SHUFFLE(v[i], v[i + LANES / 2], FIRST_HALVES);
            mixed[2 * i + 1] = SHUFFLE(v[i], v[i + LANES / 2], SECOND_HALVES);
        }
        UNROLL for (int i = 0; i < LANES; i++) v[i] = mixed[i];
    }
}

INLINE words row_or_zero(const bf16 *rows, const int64_t *at, int64_t token, int64_t count, int64_t d) {
    return token < count ? read_words(rows + at[token] + d) : (words){0};
}

// [KEYS / 32][dim / 2][2][16][2]: keys are the outputs of q k^T. Those past the last token are zeros.
static void pack_keys(const bf16 *rows, int64_t dim, const Tokens *tokens, bf16 *to) {
    for (int64_t first = 0; first < tokens->count; first += STEP, to += STEP * dim)
        for (int odd = 0; odd < 2; odd++)
            for (int64_t d = 0; d < dim; d += STEP) {
                words v[LANES];
                UNROLL for (int i = 0; i < LANES; i++)
                    v[i] = row_or_zero(rows, tokens->k, first + 2 * i + odd, tokens->count, d);
                transpose(v);
                UNROLL for (int i = 0; i < LANES; i++) memcpy(to + (d + 2 * i + odd) * STEP, &v[i], sizeof v[i]);
            }
}

// [dim / 32][KEYS / 2][2][16][2]: keys are the inputs of weights times values. Those past the last token are zeros.
static void pack_values(const bf16 *rows, int64_t dim, const Tokens *tokens, bf16 *to) {
    for (int64_t t = 0; t < (tokens->count + STEP - 1) / STEP * STEP; t += 2)
        for (int64_t d = 0; d < dim; d += STEP) {
            words a = row_or_zero(rows, tokens->v, t, tokens->count, d);
            words b = row_or_zero(rows, tokens->v, t + 1, tokens->count, d);
            words even = (a & ~HIGH) | (b << 16), odd = (a >> 16) | (b & HIGH);
            memcpy(to + d * KEYS + t * STEP, &even, sizeof even);
            memcpy(to + d * KEYS + (t + 1) * STEP, &odd, sizeof odd);
        }
}

// Scores of keys before `from` and from `to` on, as of the first of the 32, are masked.
INLINE pair masked(pair scores, int64_t from, int64_t to) {
    typedef int32_t ints __attribute__((vector_size(4 * LANES)));
    const ints even = {EVENS}, lowest = {0};
    const int first = from > -1 ? from : -1, end = to < STEP ? to : STEP; // within an int
    const ints seen_even = (even >= first) & (even < end), seen_odd = (even + 1 >= first) & (even + 1 < end);
    const ints other = (ints)((vec)lowest + MASKED);
    return (pair){(vec)(((ints)scores.even & seen_even) | (other & ~seen_even)),
                  (vec)(((ints)scores.odd & seen_odd) | (other & ~seen_odd))};
}

// One query's scores [n / 32] a stride apart become weights [n]; its maximum and sum move on. Returns what is left of
// the values before. It sees keys from .. to - 1.
INLINE float soften(pair *scores, int64_t stride, int64_t n, int64_t from, int64_t to, float scale, float *so_far,
                    float *sum_so_far, bf16 *weights) {
    vec most = (vec){0} + *so_far, total = {0};
    for (int64_t b = 0; b < n / STEP; b++) {
        pair *part = scores + b * stride;
        *part = scaled(*part, scale);
        if (from > b * STEP || to < (b + 1) * STEP) *part = masked(*part, from - b * STEP, to - b * STEP);
        most = larger(most, larger(part->even, part->odd));
    }
    const float highest = maximum(most), kept = exp2f(*so_far - highest);
    const vec lowest = (vec){0} - 126.0f;
    for (int64_t b = 0; b < n / STEP; b++) {
        pair part = scores[b * stride];
        part.even = exp2_of(larger(lowest, part.even - highest));
        part.odd = exp2_of(larger(lowest, part.odd - highest));
        total += part.even + part.odd;
        store(weights + b * STEP, part);
    }
    *so_far = highest;
    *sum_so_far = *sum_so_far * kept + sum(total);
    return kept;
}

// Eight queries of one head, the first at `position`, over the tile of keys from `first` on.
static void attend_rows(const Prefill *p, const Work *work, int64_t row, int64_t position, int64_t first,
                        int64_t count) {
    const int64_t k_dim = p->k.dim, v_dim = p->v.dim, seen = position + ROWS_AT_ONCE - first;
    const int64_t n = ((seen < count ? seen : count) + STEP - 1) / STEP * STEP;
    pair scores[KEYS / STEP][ROWS_AT_ONCE];
    bf16 weights[ROWS_AT_ONCE][KEYS] __attribute__((aligned(64)));
    float kept[ROWS_AT_ONCE];
    for (int64_t b = 0; b < n / STEP; b++)
        product(ROWS_AT_ONCE, 0, (Rows){work->queries + row * k_dim, k_dim, 2}, work->keys + b * STEP * k_dim, k_dim,
                scores[b]);
    for (int m = 0; m < ROWS_AT_ONCE; m++) {
        const int64_t to = position + m + 1 - first;
        kept[m] = soften(scores[0] + m, ROWS_AT_ONCE, n, p->window ? to - p->window : 0, to,
                         p->scale * (float)M_LOG2E, work->maxima + row + m, work->sums + row + m, weights[m]);
    }
    for (int64_t d = 0; d < v_dim / STEP; d++) {
        pair more[ROWS_AT_ONCE], *before = work->attended + row * v_dim / STEP + d;
        product(ROWS_AT_ONCE, 0, (Rows){weights[0], KEYS, 2}, work->values + d * KEYS * STEP, n, more);
        UNROLL for (int m = 0; m < ROWS_AT_ONCE; m++) {
            pair *to = before + m * v_dim / STEP;
            *to = add(scaled(*to, kept[m]), more[m]);
        }
    }
}

static void start_task(const Prefill *p, const Task *task, const Work *work) {
    const int64_t k_dim = p->k.dim, rows = task->heads * QUERIES;
    for (int64_t h = 0; h < task->heads; h++)
        for (int64_t i = 0; i < QUERIES; i++) {
            bf16 *to = work->queries + (h * QUERIES + i) * k_dim;
            const bf16 *from = p->q + (task->row + i) * p->q_row + (task->head + h) * p->q_head;
            if (i < task->count) memcpy(to, from, k_dim * sizeof(bf16));
            else memset(to, 0, k_dim * sizeof(bf16));
        }
    for (int64_t i = 0; i < rows; i++) work->maxima[i] = MASKED, work->sums[i] = 0.0f;
    memset(work->attended, 0, rows * p->v.dim * sizeof(float));
}

static void finish_task(const Prefill *p, const Task *task, const Work *work) {
    const int64_t blocks = p->v.dim / STEP;
    for (int64_t h = 0; h < task->heads; h++)
        for (int64_t i = 0; i < task->count; i++) {
            const int64_t row = h * QUERIES + i;
            const float share = work->sums[row] > 0.0f ? 1.0f / work->sums[row] : 0.0f; // 0: a sequence of length 0
            bf16 *to = p->out + ((task->row + i) * p->heads + task->head + h) * p->v.dim;
            for (int64_t d = 0; d < blocks; d++)
                store(to + d * STEP, scaled(work->attended[row * blocks + d], share));
        }
}

static void attend_task(const Prefill *p, const Task *task, const Work *work) {
    const int64_t last = task->position + task->count; // keys that the last query sees
    start_task(p, task, work);
    int64_t first = p->window && task->position >= p->window ? task->position - p->window + 1 : 0;
    for (; first < last; first += KEYS) {
        Tokens tokens;
        find_tokens(&tokens, &p->k, &p->v, task->table, p->block, first, last - first);
        pack_keys(p->k.data + task->kv_head * p->k.head, p->k.dim, &tokens, work->keys);
        pack_values(p->v.data + task->kv_head * p->v.head, p->v.dim, &tokens, work->values);
        for (int64_t i = 0; i < task->count; i += ROWS_AT_ONCE) {
            const int64_t position = task->position + i;
            if (position + ROWS_AT_ONCE <= first) continue; // all before the tile
            if (p->window && position >= first + tokens.count + p->window - 1) continue; // behind the window
            for (int64_t h = 0; h < task->heads; h++)
                attend_rows(p, work, h * QUERIES + i, position, first, tokens.count);
        }
    }
    finish_task(p, task, work);
}

// Whether this beats torch's attention: with half as many lanes it does not, and torch alone knows AMX.
int prefill_pays(void) {
#if defined(__AVX512F__) && !defined(__AMX_BF16__)
    return 1;
#else
    return 0;
#endif
}

// out [rows, heads, v.dim] = softmax(scale q k^T) v, causal; queries are a sequence's last tokens. Sequences of length
// 0 give zeros.
void paged_prefill(const void *arguments) {
    const Prefill *p = arguments;
    const int64_t group = p->heads / p->kv_heads, shares = (group + HEADS_AT_ONCE - 1) / HEADS_AT_ONCE;
    const int64_t blocks = (p->longest + QUERIES - 1) / QUERIES;
    Work work;
    work_bytes(p, &work, p->scratch + omp_get_thread_num() * prefill_scratch_bytes(p));
#pragma omp for schedule(dynamic) collapse(3) nowait
    for (int64_t s = 0; s < p->seqs; s++)
        for (int64_t late = 0; late < blocks; late++) // the last queries, which see most, come first
            for (int64_t part = 0; part < p->kv_heads * shares; part++) {
                const int64_t queries = p->starts[s + 1] - p->starts[s], from = (blocks - 1 - late) * QUERIES;
                if (from >= queries) continue;
                const int64_t in_group = part % shares * HEADS_AT_ONCE, left = group - in_group;
                const Task task = {
                    .table = p->tables + s * p->table_stride,
                    .row = p->starts[s] + from,
                    .position = p->lengths[s] - queries + from,
                    .count = queries - from < QUERIES ? queries - from : QUERIES,
                    .head = part / shares * group + in_group,
                    .heads = left < HEADS_AT_ONCE ? left : HEADS_AT_ONCE,
                    .kv_head = part / shares,
                };
                attend_task(p, &task, &work);
            }
}
