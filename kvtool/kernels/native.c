// A decode step's bf16 kernels for CPUs. Sums are fp32, one rounding on the way out. `native.py` builds and calls them.
//
// A 32-bit word holds two bf16, so 32 of them are one vector of words, and two vectors of floats by a shift and a mask:
// the elements at even places and those at odd ones. Every row is a multiple of 32, and nothing is ever shuffled apart.

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define LANES 16
#define STEP (2 * LANES)
#define HIGH 0xffff0000u
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef struct {
    vec even, odd;
} pair;

INLINE words read_words(const void *p) {
    words w;
    memcpy(&w, p, sizeof w);
    return w;
}

INLINE words repeated(const void *p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word - (words){0};
}

INLINE pair load(const bf16 *p) {
    words w = read_words(p);
    return (pair){(vec)(w << 16), (vec)(w & HIGH)};
}

// To the nearest bf16, ties to even.
INLINE words rounded(vec v) { return (words)v + 0x7fff + (((words)v >> 16) & 1); }

INLINE void store(bf16 *p, pair v) {
    words w = (rounded(v.odd) & HIGH) | (rounded(v.even) >> 16);
    memcpy(p, &w, sizeof w);
}

INLINE pair add(pair a, pair b) { return (pair){a.even + b.even, a.odd + b.odd}; }
INLINE pair times(pair a, pair b) { return (pair){a.even * b.even, a.odd * b.odd}; }
INLINE pair scaled(pair a, float x) { return (pair){a.even * x, a.odd * x}; }
INLINE pair load_or_zero(const bf16 *p) { return p ? load(p) : (pair){0}; }

// Each lane of `sum` plus the products of the two bf16 in a word with the two in the other.
INLINE vec add_products(vec sum, words a, words b) {
#ifdef __AVX512BF16__
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    return sum + (vec)(a << 16) * (vec)(b << 16) + (vec)(a & HIGH) * (vec)(b & HIGH);
#endif
}

INLINE vec larger(vec a, vec b) {
    words first = (words)(a > b);
    return (vec)(((words)a & first) | ((words)b & ~first));
}

// [a0+a1, a2+a3, .., b0+b1, ..]
INLINE vec neighbour_sums(vec a, vec b) {
    const words even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
}

// Lane i is the sum of v[i].
INLINE vec sums(vec v[LANES]) {
    UNROLL for (int n = LANES / 2; n; n /= 2)
        UNROLL for (int i = 0; i < n; i++) v[i] = neighbour_sums(v[2 * i], v[2 * i + 1]);
    return v[0];
}

INLINE float sum(vec v) {
    UNROLL for (int n = 0; n < 4; n++) v = neighbour_sums(v, v);
    return v[0];
}

INLINE float maximum(vec v) {
    const words lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    UNROLL for (int n = LANES / 2; n; n /= 2) v = larger(v, __builtin_shuffle(v, lane ^ n));
    return v[0];
}

// 2^x by a polynomial on [-1/2, 1/2]; x is at least -126, relative error below 3e-7.
INLINE vec exp2_of(vec x) {
    const float to_integer = 12582912.0f; // 1.5 * 2^23: adding it leaves the integer in the low bits
    vec shifted = x + to_integer, f = x - (shifted - to_integer);
    vec p = f * 1.5403530e-4f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return (vec)((words)p + ((words)shifted << 23));
}

INLINE vec sigmoid(vec x) {
    vec exponent = x * -(float)M_LOG2E, lowest = {0}, highest = {0};
    exponent = larger(exponent, lowest - 126.0f);
    return 1.0f / (1.0f + exp2_of(-larger(-exponent, highest - 126.0f)));
}

// ---- products with weights packed as [out / 32][in / 2][2][16][2]: even outputs, odd outputs, two inputs each

#define ROWS_AT_ONCE 8

// 32 outputs of `rows` (a constant) rows of x. Few rows take turns on more sums, or each would wait for the last one.
INLINE void product(const int rows, const bf16 *x, int64_t x_stride, const bf16 *w, int64_t in, pair *out) {
    const int turns = rows == 1 ? 4 : rows <= 4 ? 2 : 1;
    pair acc[ROWS_AT_ONCE];
    UNROLL for (int i = 0; i < rows * turns; i++) acc[i] = (pair){0};
    for (int64_t i = 0; i < in; i += 2 * turns)
        UNROLL for (int t = 0; t < turns; t++) {
            const bf16 *weights = w + STEP * (i + 2 * t);
            words even = read_words(weights), odd = read_words(weights + STEP);
            UNROLL for (int m = 0; m < rows; m++) {
                words inputs = repeated(x + m * x_stride + i + 2 * t);
                pair *sum = acc + m * turns + t;
                *sum = (pair){add_products(sum->even, even, inputs), add_products(sum->odd, odd, inputs)};
            }
        }
    UNROLL for (int m = 0; m < rows; m++) {
        out[m] = acc[m * turns];
        UNROLL for (int t = 1; t < turns; t++) out[m] = add(out[m], acc[m * turns + t]);
    }
}

static void products(int rows, const bf16 *x, int64_t x_stride, const bf16 *w, int64_t in, pair *out) {
    switch (rows) {
    case 1: return product(1, x, x_stride, w, in, out);
    case 2: return product(2, x, x_stride, w, in, out);
    case 3: return product(3, x, x_stride, w, in, out);
    case 4: return product(4, x, x_stride, w, in, out);
    case 5: return product(5, x, x_stride, w, in, out);
    case 6: return product(6, x, x_stride, w, in, out);
    case 7: return product(7, x, x_stride, w, in, out);
    default: return product(8, x, x_stride, w, in, out);
    }
}

INLINE int at_once(int64_t rows, int64_t row) { return rows - row < ROWS_AT_ONCE ? rows - row : ROWS_AT_ONCE; }

// y [rows, out] = x W^T + bias + plus; bias and plus may be null.
void linear(const bf16 *x, int64_t x_stride, const bf16 *w, const bf16 *bias, const bf16 *plus, int64_t plus_stride,
            bf16 *y, int64_t rows, int64_t in, int64_t out) {
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < out; o += STEP) {
        pair found[ROWS_AT_ONCE], b = load_or_zero(bias ? bias + o : 0);
        for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
            int n = at_once(rows, row);
            products(n, x + row * x_stride, x_stride, w + o * in, in, found);
            for (int m = 0; m < n; m++) {
                pair more = load_or_zero(plus ? plus + (row + m) * plus_stride + o : 0);
                store(y + (row + m) * out + o, add(add(found[m], b), more));
            }
        }
    }
}

enum { SILU, GELU, GELU_TANH };

INLINE vec activated_lanes(vec x, int64_t activation) {
    if (activation == SILU) return x * sigmoid(x);
    if (activation == GELU_TANH) return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x)); // 2 sqrt(2 / pi)
    vec y;
    for (int i = 0; i < LANES; i++) y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * (float)M_SQRT1_2));
    return y;
}

INLINE pair activated(pair x, int64_t activation) {
    return (pair){activated_lanes(x.even, activation), activated_lanes(x.odd, activation)};
}

// y [rows, out] = activation(x Wg^T + bg) * (x Wu^T + bu); the biases may be null.
void gated_linear(const bf16 *x, int64_t x_stride, const bf16 *gate, const bf16 *up, const bf16 *gate_bias,
                  const bf16 *up_bias, int64_t activation, bf16 *y, int64_t rows, int64_t in, int64_t out) {
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < out; o += STEP) {
        pair g[ROWS_AT_ONCE], u[ROWS_AT_ONCE];
        pair bg = load_or_zero(gate_bias ? gate_bias + o : 0), bu = load_or_zero(up_bias ? up_bias + o : 0);
        for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
            int n = at_once(rows, row);
            products(n, x + row * x_stride, x_stride, gate + o * in, in, g);
            products(n, x + row * x_stride, x_stride, up + o * in, in, u);
            for (int m = 0; m < n; m++)
                store(y + (row + m) * out + o, times(activated(add(g[m], bg), activation), add(u[m], bu)));
        }
    }
}

// ---- what lies between the products

#define MANY 32768 // elements from which a second thread pays

// gate [count] = activation(gate) * up.
void gate(bf16 *gate, const bf16 *up, int64_t activation, int64_t count) {
#pragma omp parallel for schedule(static) if (count >= MANY)
    for (int64_t i = 0; i < count; i += STEP)
        store(gate + i, times(activated(load(gate + i), activation), load(up + i)));
}

// y [rows, n] = x / rms(x) * weight.
void rms_norm(const bf16 *x, int64_t x_stride, const bf16 *weight, float eps, bf16 *y, int64_t rows, int64_t n) {
#pragma omp parallel for schedule(static) if (rows * n >= MANY)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *from = x + row * x_stride;
        pair squares = {0};
        for (int64_t i = 0; i < n; i += STEP) squares = add(squares, times(load(from + i), load(from + i)));
        float scale = 1.0f / sqrtf(sum(squares.even + squares.odd) / n + eps);
        for (int64_t i = 0; i < n; i += STEP)
            store(y + row * n + i, times(scaled(load(from + i), scale), load(weight + i)));
    }
}

// y [rows, heads, dim] = x cos + roll(x, dim / 2) sin, cos and sin [rows, dim]; half of dim is a multiple of 32.
void rotate(const bf16 *x, int64_t row_stride, int64_t head_stride, const bf16 *cos, const bf16 *sin, bf16 *y,
            int64_t rows, int64_t heads, int64_t dim) {
#pragma omp parallel for schedule(static) if (rows * heads * dim >= MANY)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < heads; head++) {
            const bf16 *from = x + row * row_stride + head * head_stride;
            for (int64_t i = 0; i < dim; i += STEP) {
                pair turned = times(load(from + (i + dim / 2) % dim), load(sin + row * dim + i));
                pair kept = times(load(from + i), load(cos + row * dim + i));
                store(y + (row * heads + head) * dim + i, add(kept, turned));
            }
        }
}

// Rows [tokens, width] to their slots of a cache of pages [block, width]; slot -1 writes nothing.
void store_rows(const bf16 *rows, int64_t row_stride, const int64_t *slots, bf16 *cache, int64_t page_stride,
                int64_t slot_stride, int64_t block, int64_t tokens, int64_t width) {
#pragma omp parallel for schedule(static) if (tokens * width >= MANY)
    for (int64_t t = 0; t < tokens; t++)
        if (slots[t] >= 0)
            memcpy(cache + slots[t] / block * page_stride + slots[t] % block * slot_stride, rows + t * row_stride,
                   width * sizeof(bf16));
}

// ---- attention of one query a sequence over pages

#define TOKENS_PER_TASK 128

typedef struct {
    const bf16 *data;
    int64_t page, slot, head, dim; // strides, and the dimension of a head
} Cache;

// Some tokens of a sequence: where the rows of each lie.
typedef struct {
    int64_t count, k[TOKENS_PER_TASK], v[TOKENS_PER_TASK];
} Tokens;

// The softmax of some query heads over some tokens, unfinished: maxima and sums [heads], weighted values [heads, dim].
typedef struct {
    float *maxima, *sums;
    pair *values;
} Partial;

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
        vec dots[heads][LANES], weights[heads];
        float kept[heads];
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
            weights[h] = exp2_of(larger(scores - most, lowest - 126.0f));
            for (int t = n; t < LANES; t++) weights[h][t] = 0.0f;
            to.maxima[h] = most;
            to.sums[h] = to.sums[h] * kept[h] + sum(weights[h]);
        }
        for (int64_t d = 0; d < v_pairs; d++) {
            pair acc[heads];
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
        heads = group < 4 ? group : 4;
        switch (heads) {
        case 1: attend(1, q, q_head, scale, k, k_dim, v, v_dim, tokens, to); break;
        case 2: attend(2, q, q_head, scale, k, k_dim, v, v_dim, tokens, to); break;
        case 3: attend(3, q, q_head, scale, k, k_dim, v, v_dim, tokens, to); break;
        default: attend(4, q, q_head, scale, k, k_dim, v, v_dim, tokens, to);
        }
        q += heads * q_head;
        to = (Partial){to.maxima + heads, to.sums + heads, to.values + heads * v_dim / STEP};
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

INLINE Partial partial_of(const Decode *d, int64_t s, int64_t task) {
    float *values = d->scratch + (s * d->tasks + task) * d->heads * (d->v.dim + STEP);
    float *maxima = values + d->heads * d->v.dim;
    return (Partial){maxima, maxima + d->heads, (pair *)values};
}

// All heads over the tokens of one task.
static void decode_task(const Decode *d, int64_t s, int64_t task) {
    const int64_t first = first_seen(d, s) + task * TOKENS_PER_TASK, left = d->lengths[s] - first;
    if (left <= 0) return;
    Tokens tokens = {.count = left < TOKENS_PER_TASK ? left : TOKENS_PER_TASK};
    for (int64_t t = 0; t < tokens.count; t++) {
        const int64_t page = d->tables[s * d->table_stride + (first + t) / d->block], slot = (first + t) % d->block;
        tokens.k[t] = page * d->k.page + slot * d->k.slot;
        tokens.v[t] = page * d->v.page + slot * d->v.slot;
    }
    Partial all = partial_of(d, s, task);
    for (int64_t h = 0; h < d->heads; h++) all.maxima[h] = -INFINITY, all.sums[h] = 0.0f;
    memset(all.values, 0, d->heads * d->v.dim * sizeof(float));
    const int64_t group = d->heads / d->kv_heads;
    for (int64_t kv = 0, h = 0; kv < d->kv_heads; kv++, h += group)
        attend_group(group, d->q + s * d->q_seq + h * d->q_head, d->q_head, d->scale * (float)M_LOG2E,
                     d->k.data + kv * d->k.head, d->k.dim, d->v.data + kv * d->v.head, d->v.dim, &tokens,
                     (Partial){all.maxima + h, all.sums + h, all.values + h * d->v.dim / STEP});
}

// One head's output out of its tasks' partial ones.
static void merge(const Decode *d, int64_t s, int64_t h) {
    const int64_t seen = d->lengths[s] - first_seen(d, s), tasks = (seen + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK;
    float most = -INFINITY, total = 0.0f;
    for (int64_t t = 0; t < tasks; t++) most = fmaxf(most, partial_of(d, s, t).maxima[h]);
    for (int64_t t = 0; t < tasks; t++) {
        Partial part = partial_of(d, s, t);
        part.maxima[h] = exp2f(part.maxima[h] - most); // from here on its weight
        total += part.maxima[h] * part.sums[h];
    }
    for (int64_t i = 0; i < d->v.dim / STEP; i++) {
        pair value = {0};
        for (int64_t t = 0; t < tasks; t++) {
            Partial part = partial_of(d, s, t);
            value = add(value, scaled(part.values[h * d->v.dim / STEP + i], part.maxima[h]));
        }
        store(d->out + (s * d->heads + h) * d->v.dim + i * STEP, scaled(value, tasks ? 1.0f / total : 0.0f));
    }
}

// out [seqs, heads, v.dim] = softmax(scale q k^T) v; a sequence of length 0 gives zeros.
void paged_decode(const Decode *d) {
#pragma omp parallel
    {
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t s = 0; s < d->seqs; s++)
            for (int64_t task = 0; task < d->tasks; task++) decode_task(d, s, task);
#pragma omp for schedule(static) collapse(2)
        for (int64_t s = 0; s < d->seqs; s++)
            for (int64_t h = 0; h < d->heads; h++) merge(d, s, h);
    }
}
