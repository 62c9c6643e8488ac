// A cache of 8 bits: stored out of bf16 rows, and attended to as it lies in memory. Codes of 8 bits are bf16 numbers, so
// they are widened a few tokens at a time, without error, and scales go to the scores of K and to the weights of V.

#include "attend.h"

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

#ifdef __AVX512BW__
typedef uint16_t shorts __attribute__((vector_size(4 * LANES)));

// A float of 8 bits is the upper part of a bf16 but for its exponent's bias; those few that are subnormal are looked up.
INLINE void widen_floats(const uint8_t *from, bf16 *to, int64_t dim, const int kind) {
    const Float8 f = float8(kind);
    const int one = (f.bias + 1 - f.mantissa) << 7; // as a bf16: the least of them
    const __m128i few = _mm_setr_epi16(0, one, one + 128, one + 192, one + 256, one + 288, one + 320, one + 352);
    const __m512i subnormal = _mm512_zextsi128_si512(few);
    for (int64_t i = 0; i < dim; i += STEP) {
        shorts c = (shorts)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(from + i)));
        shorts magnitude = c & 0x7f, value = (magnitude << (7 - f.mantissa)) + (uint16_t)(f.bias << 7);
        __mmask32 below = _mm512_cmplt_epu16_mask((__m512i)magnitude, _mm512_set1_epi16(1 << f.mantissa));
        value = (shorts)_mm512_mask_permutexvar_epi16((__m512i)value, below, (__m512i)c, subnormal);
        value |= (c & 0x80) << 8;
        memcpy(to + i, &value, sizeof value);
    }
}
#endif

INLINE void widen(const uint8_t *from, bf16 *to, int64_t dim, const int kind) {
#ifdef __AVX512BW__
    if (kind != INT8) {
        widen_floats(from, to, dim, kind);
        return;
    }
#endif
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

// The rows of 16 tokens of one KV head, which lie `at`, side by side as bf16.
INLINE void gather(const Cache8 *c, const int64_t *at, int64_t kv, bf16 *to, const int kind) {
    for (int t = 0; t < LANES; t++) widen(c->data + kv * c->head + at[t], to + t * c->dim, c->dim, kind);
}

// The scales of 16 tokens, one a lane.
INLINE vec scales_of(const Cache8 *c, const int64_t *slots, int64_t kv_heads, int64_t kv) {
    if (!c->scales) return splat(c->scale);
    float scales[LANES];
    for (int t = 0; t < LANES; t++) scales[t] = c->scales[slots[t] * kv_heads + kv];
    vec found;
    memcpy(&found, scales, sizeof found);
    return found;
}

INLINE void ask_for_codes(const Cache8 *c, const int64_t *at, int64_t kv) {
    ask_for_rows(c->data + kv * c->head, at, 1, c->dim);
}

// Where 16 rows lie that were gathered.
INLINE void find_gathered(int64_t *at, int64_t dim) {
    for (int t = 0; t < LANES; t++) at[t] = t * dim;
}

enum { KEYS, VALUES };

// One of two passes (`of`, a constant) of all heads over some tokens: KEYS become scores, VALUES are added up, and their
// scales go to the weights. What is read next is asked for meanwhile, behind the last tokens that of the other pass.
INLINE void pass(const Decode8 *d, const bf16 *q, const Tokens *tokens, Weights *weights, Partial to, const int of,
                 const int kind) {
    const Cache8 *own = of == KEYS ? &d->k : &d->v, *other = of == KEYS ? &d->v : &d->k;
    const int64_t *at = of == KEYS ? tokens->k : tokens->v, *then = of == KEYS ? tokens->v : tokens->next;
    const int64_t blocks = blocks_of(tokens->count), group = d->heads / d->kv_heads;
    int64_t gathered[LANES];
    bf16 rows[LANES * LARGEST_DIM];
    find_gathered(gathered, own->dim);
    for (int64_t b = 0, start = 0; b < blocks; b++, start += LANES)
        for (int64_t kv = 0, h = 0; kv < d->kv_heads; kv++, h += group) {
            if (b + 1 < blocks) ask_for_codes(own, at + start + LANES, kv);
            else ask_for_codes(other, then, kv);
            gather(own, at + start, kv, rows, kind);
            const vec scale = scales_of(own, tokens->slots + start, d->kv_heads, kv);
            if (of == KEYS) {
                const vec in_base_2 = scale * (d->scale * (float)M_LOG2E);
                score_group(group, q + h * d->q_head, d->q_head, rows, gathered, own->dim, in_base_2, b, weights + h);
            } else {
                for (int64_t i = 0; i < group; i++) weights[h + i][b] *= scale;
                add_group(group, rows, gathered, own->dim, weights + h, b, from_head(to, h, own->dim).values);
            }
        }
}

// All heads over the tokens of one task.
INLINE void decode_task(const Decode8 *d, int64_t s, int64_t task, const int kind) {
    const int64_t first = first_seen(d, s) + task * TOKENS_AT_ONCE, left = d->lengths[s] - first;
    if (left <= 0) return;
    const Cache k = {.page = d->k.page, .slot = d->k.slot}, v = {.page = d->v.page, .slot = d->v.slot};
    Tokens tokens;
    find_tokens(&tokens, &k, &v, d->tables + s * d->table_stride, d->block, first, left);
    Weights weights[d->heads];
    const Partial part = begun(parts_of(d), s, task);
    pass(d, d->q + s * d->q_seq, &tokens, weights, part, KEYS, kind);
    for (int64_t h = 0; h < d->heads; h++) weigh(weights[h], tokens.count, part.maxima + h, part.sums + h);
    pass(d, 0, &tokens, weights, part, VALUES, kind);
}

static void task_int8(const Decode8 *d, int64_t s, int64_t task) { decode_task(d, s, task, INT8); }
static void task_e4m3(const Decode8 *d, int64_t s, int64_t task) { decode_task(d, s, task, E4M3); }
static void task_e5m2(const Decode8 *d, int64_t s, int64_t task) { decode_task(d, s, task, E5M2); }

// out [seqs, heads, v.dim] = softmax(scale q k^T) v; a sequence of length 0 gives zeros.
void decode_eight(const Decode8 *d) {
    void (*run)(const Decode8 *, int64_t, int64_t) = d->kind == INT8 ? task_int8 : d->kind == E4M3 ? task_e4m3 : task_e5m2;
#pragma omp parallel
    {
#pragma omp for schedule(guided) collapse(2)
        for (int64_t s = 0; s < d->seqs; s++)
            for (int64_t task = 0; task < d->tasks; task++) run(d, s, task);
#pragma omp for schedule(static) collapse(2)
        for (int64_t s = 0; s < d->seqs; s++)
            for (int64_t h = 0; h < d->heads; h++)
                merge(parts_of(d), s, h, d->lengths[s] - first_seen(d, s), d->out + (s * d->heads + h) * d->v.dim);
    }
}
