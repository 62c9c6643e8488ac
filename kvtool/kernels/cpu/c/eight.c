// A cache of 8 bits: stored out of bf16 rows, and attended to as it lies in memory. Codes of 8 bits are bf16 numbers, so
// they are widened a few tokens at a time, without error, and scales go to the scores of K and to the weights of V.

#include "partial.h"

#define LARGEST_DIM 512

typedef uint8_t codes __attribute__((vector_size(LANES)));
typedef int8_t integers __attribute__((vector_size(LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

enum { INT8, E4M3, E5M2 };

// A float of 8 bits: places of its mantissa, and what its exponent is less than that of an fp32.
typedef struct {
    int mantissa, bias;
    float largest;
} Float8;

INLINE Float8 float8(int kind) { return kind == E4M3 ? (Float8){3, 120, 448.0f} : (Float8){2, 112, 57344.0f}; }

INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec either(words where, vec a, vec b) { return (vec)((where & (words)a) | (~where & (words)b)); }

// GCC takes conversions of so narrow integers apart, lane by lane, unless they are called by name.
#ifdef __AVX512F__
INLINE words words_of(codes c) { return (words)_mm512_cvtepu8_epi32((__m128i)c); }
INLINE vec floats_of(codes c) { return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)c)); }
INLINE words words_of_halves(halves h) { return (words)_mm512_cvtepu16_epi32((__m256i)h); }
INLINE halves halves_of(words w) { return (halves)_mm512_cvtepi32_epi16((__m512i)w); }
INLINE codes codes_of(words w) { return (codes)_mm512_cvtepi32_epi8((__m512i)w); }
#else
INLINE words words_of(codes c) { return __builtin_convertvector(c, words); }
INLINE vec floats_of(codes c) { return __builtin_convertvector((integers)c, vec); }
INLINE words words_of_halves(halves h) { return __builtin_convertvector(h, words); }
INLINE halves halves_of(words w) { return __builtin_convertvector(w, halves); }
INLINE codes codes_of(words w) { return __builtin_convertvector(w, codes); }
#endif

// Subnormal codes are read as if their exponent were the least, and that is taken off again.
INLINE vec widened(codes c, const int kind) {
    if (kind == INT8) return floats_of(c);
    const Float8 f = float8(kind);
    words x = words_of(c), magnitude = (x & 0x7f) << (23 - f.mantissa);
    words below = (words)(magnitude < (1u << 23)), least = (words){0} + ((uint32_t)(f.bias + 1) << 23);
    vec value = (vec)(magnitude + ((uint32_t)f.bias << 23) + (below & (1u << 23))) - (vec)(below & least);
    return (vec)((words)value | (x & 0x80) << 24);
}

INLINE void widen(const uint8_t *from, bf16 *to, int64_t dim, const int kind) {
    for (int64_t i = 0; i < dim; i += LANES) {
        codes c;
        memcpy(&c, from + i, sizeof c);
        halves h = halves_of((words)widened(c, kind) >> 16);
        memcpy(to + i, &h, sizeof h);
    }
}

// To the nearest code, ties to even, of values inside the range.
INLINE words narrowed(vec v, const int kind) {
    if (kind == INT8) {
        const float to_integer = 12582912.0f; // 1.5 * 2^23: adding it leaves the integer in the low bits
        return (words)(v + to_integer) & 0xff;
    }
    const Float8 f = float8(kind);
    const int dropped = 23 - f.mantissa;
    words x = (words)v, magnitude = x & 0x7fffffff;
    words normal = ((magnitude + ((1u << (dropped - 1)) - 1) + ((magnitude >> dropped) & 1)) >> dropped) -
                   ((uint32_t)f.bias << f.mantissa);
    const uint32_t unit = (uint32_t)(f.bias + 1 + 23 - f.mantissa) << 23; // adding it leaves subnormal codes in the low bits
    words subnormal = (words)((vec)magnitude + (vec)((words){0} + unit)) - unit;
    words below = (words)(magnitude < ((uint32_t)(f.bias + 1) << 23));
    return ((below & subnormal) | (~below & normal)) | (x >> 31) << 7;
}

typedef struct {
    const bf16 *rows;
    int64_t row; // stride of a token; its heads lie side by side
    const int64_t *slots;
    uint8_t *cache;
    int64_t page, slot, block; // strides, and tokens of a page
    float *scales;             // [pages, block, heads], or none
    float scale;               // where there are none
    int64_t count, heads, dim, kind;
} Store8;

INLINE void store_vector(const Store8 *s, const bf16 *from, uint8_t *to, float *scale, const int kind) {
    const float largest = kind == INT8 ? 127.0f : float8(kind).largest;
    float by = s->scale;
    if (scale) {
        vec most = {0};
        for (int64_t i = 0; i < s->dim; i += STEP) {
            pair p = load(from + i);
            most = larger(most, larger((vec)((words)p.even & 0x7fffffff), (vec)((words)p.odd & 0x7fffffff)));
        }
        *scale = by = fmaxf(maximum(most), 1e-30f) / largest;
    }
    for (int64_t i = 0; i < s->dim; i += LANES) {
        halves h;
        memcpy(&h, from + i, sizeof h);
        vec v = (vec)(words_of_halves(h) << 16) / by;
        v = larger(splat(-largest), -larger(-v, splat(-largest)));
        codes c = codes_of(narrowed(v, kind));
        memcpy(to + i, &c, sizeof c);
    }
}

// A slot below 0 writes nothing.
void store_eight(const Store8 *s) {
    for (int64_t t = 0; t < s->count; t++) {
        if (s->slots[t] < 0) continue;
        const int64_t page = s->slots[t] / s->block, slot = s->slots[t] % s->block;
        for (int64_t h = 0; h < s->heads; h++) {
            const bf16 *from = s->rows + t * s->row + h * s->dim;
            uint8_t *to = s->cache + page * s->page + slot * s->slot + h * s->dim;
            float *scale = s->scales ? s->scales + s->slots[t] * s->heads + h : 0;
            switch (s->kind) {
            case INT8: store_vector(s, from, to, scale, INT8); break;
            case E4M3: store_vector(s, from, to, scale, E4M3); break;
            default: store_vector(s, from, to, scale, E5M2);
            }
        }
    }
}

typedef struct {
    const uint8_t *data;
    int64_t page, slot, head, dim; // strides, and the dimension of a head
    const float *scales;           // [pages, block, heads], or none
    float scale;                   // where there are none
} Cache8;

typedef struct {
    const bf16 *q;
    int64_t q_seq, q_head; // strides
    Cache8 k, v;
    const int32_t *tables;
    int64_t table_stride;
    const int32_t *lengths;
    float *scratch; // [seqs, tasks] x (values [heads, v.dim], maxima and sums [heads] in a row of 32 a head)
    bf16 *out;
    float scale;
    int64_t window, seqs, heads, kv_heads, block, tasks, kind;
} Decode8;

INLINE int64_t first_seen(const Decode8 *d, int64_t s) {
    return d->window && d->lengths[s] > d->window ? d->lengths[s] - d->window : 0;
}

INLINE Partials parts_of(const Decode8 *d) { return (Partials){d->scratch, d->tasks, d->heads, d->v.dim}; }

// Where the rows of some tokens lie, and which slots of the pool they are.
typedef struct {
    Tokens rows;
    int64_t slots[TOKENS_AT_ONCE];
} Places;

INLINE void find_places(Places *p, const Decode8 *d, const int32_t *table, int64_t first, int64_t count) {
    p->rows.count = count;
    for (int64_t t = 0; t < count; t++) {
        const int64_t page = table[(first + t) / d->block], slot = (first + t) % d->block;
        p->rows.k[t] = page * d->k.page + slot * d->k.slot;
        p->rows.v[t] = page * d->v.page + slot * d->v.slot;
        p->slots[t] = (page * d->block + slot) * d->kv_heads;
    }
}

// Up to 16 tokens of one KV head, from `start` of those whose rows lie `at`: side by side as bf16, and their scales. A
// token that stands in for none has the scale of the first.
INLINE vec gathered(const Cache8 *c, const Places *p, const int64_t *at, int64_t start, int n, int64_t kv, bf16 *to,
                    const int kind) {
    float scales[LANES];
    const uint8_t *data = c->data + kv * c->head;
    for (int t = 0; t < n; t++) {
        if (start + LANES + t < p->rows.count) __builtin_prefetch(data + at[start + LANES + t]);
        widen(data + at[start + t], to + t * c->dim, c->dim, kind);
    }
    if (!c->scales) return splat(c->scale);
    for (int t = 0; t < LANES; t++) scales[t] = c->scales[p->slots[start + (t < n ? t : 0)] + kv];
    vec found;
    memcpy(&found, scales, sizeof found);
    return found;
}

// `heads` (a constant) query heads over n tokens of their KV head. The scale is one in base 2.
INLINE void attend(const int heads, const bf16 *q, int64_t q_head, vec k_scales, const bf16 *k, int64_t k_dim,
                   vec v_scales, const bf16 *v, int64_t v_dim, int n, Partial to) {
    const int64_t v_pairs = v_dim / STEP;
    vec dots[HEADS_AT_ONCE][LANES], weights[HEADS_AT_ONCE];
    float kept[HEADS_AT_ONCE];
    for (int t = 0; t < LANES; t++) {
        const bf16 *key = k + (t < n ? t : 0) * k_dim;
        UNROLL for (int h = 0; h < heads; h++) dots[h][t] = (vec){0};
        for (int64_t d = 0; d < k_dim; d += STEP) {
            words elements = read_words(key + d);
            UNROLL for (int h = 0; h < heads; h++)
                dots[h][t] = add_products(dots[h][t], elements, read_words(q + h * q_head + d));
        }
    }
    UNROLL for (int h = 0; h < heads; h++) {
        vec scores = sums(dots[h]) * k_scales, lowest = {0};
        float most = fmaxf(to.maxima[h], maximum(scores)); // a token that stands in for none repeats the first
        kept[h] = exp2f(to.maxima[h] - most);
        weights[h] = exp2_of(larger(lowest - 126.0f, scores - most));
        for (int t = n; t < LANES; t++) weights[h][t] = 0.0f;
        to.maxima[h] = most;
        to.sums[h] = to.sums[h] * kept[h] + sum(weights[h]);
        weights[h] = weights[h] * v_scales;
    }
    for (int64_t d = 0; d < v_pairs; d++) {
        pair acc[HEADS_AT_ONCE];
        UNROLL for (int h = 0; h < heads; h++) acc[h] = scaled(to.values[h * v_pairs + d], kept[h]);
        for (int t = 0; t < n; t++) {
            pair elements = load(v + t * v_dim + d * STEP);
            UNROLL for (int h = 0; h < heads; h++) acc[h] = add(acc[h], scaled(elements, weights[h][t]));
        }
        UNROLL for (int h = 0; h < heads; h++) to.values[h * v_pairs + d] = acc[h];
    }
}

// All query heads of a group, a few at a time.
INLINE void attend_group(int64_t group, const bf16 *q, int64_t q_head, vec k_scales, const bf16 *k, int64_t k_dim,
                         vec v_scales, const bf16 *v, int64_t v_dim, int n, Partial to) {
    for (int64_t heads; group > 0; group -= heads) {
        heads = group < HEADS_AT_ONCE ? group : HEADS_AT_ONCE;
        switch (heads) {
        case 1: attend(1, q, q_head, k_scales, k, k_dim, v_scales, v, v_dim, n, to); break;
        case 2: attend(2, q, q_head, k_scales, k, k_dim, v_scales, v, v_dim, n, to); break;
        case 3: attend(3, q, q_head, k_scales, k, k_dim, v_scales, v, v_dim, n, to); break;
        default: attend(4, q, q_head, k_scales, k, k_dim, v_scales, v, v_dim, n, to);
        }
        q += heads * q_head;
        to = from_head(to, heads, v_dim);
    }
}

// All heads over the tokens of one task.
INLINE void decode_task(const Decode8 *d, int64_t s, int64_t task, const int kind) {
    const int64_t first = first_seen(d, s) + task * TOKENS_AT_ONCE;
    const int64_t left = d->lengths[s] - first, count = left < TOKENS_AT_ONCE ? left : TOKENS_AT_ONCE;
    if (left <= 0) return;
    Places places;
    find_places(&places, d, d->tables + s * d->table_stride, first, count);
    const Partial all = begun(parts_of(d), s, task);
    const int64_t group = d->heads / d->kv_heads;
    bf16 keys[LANES * LARGEST_DIM], values[LANES * LARGEST_DIM];
    const float scale = d->scale * (float)M_LOG2E;
    for (int64_t kv = 0, h = 0; kv < d->kv_heads; kv++, h += group)
        for (int64_t start = 0; start < count; start += LANES) {
            const int n = count - start < LANES ? count - start : LANES;
            vec k_scales = gathered(&d->k, &places, places.rows.k, start, n, kv, keys, kind) * scale;
            vec v_scales = gathered(&d->v, &places, places.rows.v, start, n, kv, values, kind);
            attend_group(group, d->q + s * d->q_seq + h * d->q_head, d->q_head, k_scales, keys, d->k.dim, v_scales,
                         values, d->v.dim, n,
                         from_head(all, h, d->v.dim));
        }
}

static void task_int8(const Decode8 *d, int64_t s, int64_t task) { decode_task(d, s, task, INT8); }
static void task_e4m3(const Decode8 *d, int64_t s, int64_t task) { decode_task(d, s, task, E4M3); }
static void task_e5m2(const Decode8 *d, int64_t s, int64_t task) { decode_task(d, s, task, E5M2); }

// out [seqs, heads, v.dim] = softmax(scale q k^T) v; a sequence of length 0 gives zeros.
void decode_eight(const Decode8 *d) {
    void (*run)(const Decode8 *, int64_t, int64_t) = d->kind == INT8 ? task_int8 : d->kind == E4M3 ? task_e4m3 : task_e5m2;
#pragma omp parallel
    {
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t s = 0; s < d->seqs; s++)
            for (int64_t task = 0; task < d->tasks; task++) run(d, s, task);
#pragma omp for schedule(static) collapse(2)
        for (int64_t s = 0; s < d->seqs; s++)
            for (int64_t h = 0; h < d->heads; h++)
                merge(parts_of(d), s, h, d->lengths[s] - first_seen(d, s), d->out + (s * d->heads + h) * d->v.dim);
    }
}
