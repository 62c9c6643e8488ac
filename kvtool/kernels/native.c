// A decode step's bf16 kernels for CPUs. Sums are fp32, one rounding on the way out. `native.py` builds and calls them.
//
// Vectors are 16 floats, which the compiler splits where the CPU's are shorter. Every dimension is a multiple of 16.

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define LANES 16
#define TOKENS_PER_TASK 128
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

INLINE vec load_bf16(const bf16 *p) {
    halves h;
    memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, words) << 16);
}

INLINE vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

// To the nearest bf16, ties to even.
INLINE void store_bf16(bf16 *p, vec v) {
    words w = (words)v;
    halves h = __builtin_convertvector((w + 0x7fff + ((w >> 16) & 1)) >> 16, halves);
    memcpy(p, &h, sizeof h);
}

INLINE vec all(float x) { return x - (vec){0}; }

// 2^x by a polynomial on [-1/2, 1/2]; relative error below 3e-7.
INLINE vec exp2_of(vec x) {
    UNROLL for (int i = 0; i < LANES; i++) x[i] = x[i] < -126.0f ? -126.0f : x[i] > 127.0f ? 127.0f : x[i];
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

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exp2_of(x * -(float)M_LOG2E)); }

enum { SILU, GELU, GELU_TANH };

INLINE vec activated(vec x, int activation) {
    if (activation == SILU) return x * sigmoid(x);
    if (activation == GELU_TANH) return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x)); // 2 sqrt(2 / pi)
    vec y;
    for (int i = 0; i < LANES; i++) y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * (float)M_SQRT1_2));
    return y;
}

// [a0+a1, a2+a3, .., b0+b1, ..]
INLINE vec pair_sums(vec a, vec b) {
    const words even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
}

// Lane i is the sum of v[i].
INLINE vec sums(vec v[LANES]) {
    UNROLL for (int n = LANES / 2; n; n /= 2)
        UNROLL for (int i = 0; i < n; i++) v[i] = pair_sums(v[2 * i], v[2 * i + 1]);
    return v[0];
}

INLINE float sum(vec v) {
    UNROLL for (int n = 0; n < 4; n++) v = pair_sums(v, v);
    return v[0];
}

INLINE float maximum(vec v) {
    float m = v[0];
    UNROLL for (int i = 1; i < LANES; i++) m = v[i] > m ? v[i] : m;
    return m;
}

// ---- products with weights packed as [out / 16][in / 2][16][2]: 16 outputs side by side, two inputs each

INLINE vec add_products(vec sum, words weights, uint32_t inputs) {
#ifdef __AVX512BF16__
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(inputs));
#else
    words even = weights << 16, odd = weights & 0xffff0000, x = inputs - (words){0};
    return sum + (vec)even * (vec)(x << 16) + (vec)odd * (vec)(x & 0xffff0000);
#endif
}

// 16 outputs of `rows` (a constant) rows of x. Few rows take turns on more sums, or each would wait for the last one.
INLINE void product(const int rows, const bf16 *x, int64_t x_stride, const bf16 *w, int64_t in, vec *out) {
    const int turns = rows <= 2 ? 4 : rows <= 4 ? 2 : 1;
    vec acc[rows * turns];
    UNROLL for (int i = 0; i < rows * turns; i++) acc[i] = (vec){0};
    for (int64_t i = 0; i < in; i += 2 * turns) {
        UNROLL for (int t = 0; t < turns; t++) {
            words weights;
            memcpy(&weights, w + LANES * (i + 2 * t), sizeof weights);
            UNROLL for (int m = 0; m < rows; m++) {
                uint32_t inputs;
                memcpy(&inputs, x + m * x_stride + i + 2 * t, sizeof inputs);
                acc[m * turns + t] = add_products(acc[m * turns + t], weights, inputs);
            }
        }
    }
    UNROLL for (int m = 0; m < rows; m++) {
        out[m] = acc[m * turns];
        UNROLL for (int t = 1; t < turns; t++) out[m] += acc[m * turns + t];
    }
}

static void products(int rows, const bf16 *x, int64_t x_stride, const bf16 *w, int64_t in, vec *out) {
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

#define ROWS_AT_ONCE 8

INLINE int at_once(int64_t rows, int64_t row) { return rows - row < ROWS_AT_ONCE ? rows - row : ROWS_AT_ONCE; }

// y [rows, out] = x W^T + bias + plus; bias and plus may be null.
void linear(const bf16 *x, int64_t x_stride, const bf16 *w, const bf16 *bias, const bf16 *plus, int64_t plus_stride,
            bf16 *y, int64_t rows, int64_t in, int64_t out) {
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < out; o += LANES) {
        vec found[ROWS_AT_ONCE], b = bias ? load_bf16(bias + o) : (vec){0};
        for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
            int n = at_once(rows, row);
            products(n, x + row * x_stride, x_stride, w + o * in, in, found);
            for (int m = 0; m < n; m++) {
                vec v = found[m] + b;
                if (plus) v += load_bf16(plus + (row + m) * plus_stride + o);
                store_bf16(y + (row + m) * out + o, v);
            }
        }
    }
}

// y [rows, out] = activation(x Wg^T + bg) * (x Wu^T + bu); the biases may be null.
void gated_linear(const bf16 *x, int64_t x_stride, const bf16 *gate, const bf16 *up, const bf16 *gate_bias,
                  const bf16 *up_bias, int64_t activation, bf16 *y, int64_t rows, int64_t in, int64_t out) {
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < out; o += LANES) {
        vec g[ROWS_AT_ONCE], u[ROWS_AT_ONCE];
        vec bg = gate_bias ? load_bf16(gate_bias + o) : (vec){0}, bu = up_bias ? load_bf16(up_bias + o) : (vec){0};
        for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
            int n = at_once(rows, row);
            products(n, x + row * x_stride, x_stride, gate + o * in, in, g);
            products(n, x + row * x_stride, x_stride, up + o * in, in, u);
            for (int m = 0; m < n; m++)
                store_bf16(y + (row + m) * out + o, activated(g[m] + bg, activation) * (u[m] + bu));
        }
    }
}

// ---- what lies between the products

#define MANY 32768 // elements from which a second thread pays

// gate [count] = activation(gate) * up.
void gate(bf16 *gate, const bf16 *up, int64_t activation, int64_t count) {
#pragma omp parallel for schedule(static) if (count >= MANY)
    for (int64_t i = 0; i < count; i += LANES)
        store_bf16(gate + i, activated(load_bf16(gate + i), activation) * load_bf16(up + i));
}

// y [rows, n] = x / rms(x) * weight.
void rms_norm(const bf16 *x, int64_t x_stride, const bf16 *weight, float eps, bf16 *y, int64_t rows, int64_t n) {
#pragma omp parallel for schedule(static) if (rows * n >= MANY)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *from = x + row * x_stride;
        vec squares = {0};
        for (int64_t i = 0; i < n; i += LANES) {
            vec v = load_bf16(from + i);
            squares += v * v;
        }
        float scale = 1.0f / sqrtf(sum(squares) / n + eps);
        for (int64_t i = 0; i < n; i += LANES)
            store_bf16(y + row * n + i, load_bf16(from + i) * scale * load_bf16(weight + i));
    }
}

// y [rows, heads, dim] = x cos + roll(x, dim / 2) sin, cos and sin [rows, dim], dim a multiple of 32.
void rotate(const bf16 *x, int64_t row_stride, int64_t head_stride, const bf16 *cos, const bf16 *sin, bf16 *y,
            int64_t rows, int64_t heads, int64_t dim) {
#pragma omp parallel for schedule(static) if (rows * heads * dim >= MANY)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < heads; head++) {
            const bf16 *from = x + row * row_stride + head * head_stride;
            bf16 *to = y + (row * heads + head) * dim;
            for (int64_t i = 0; i < dim; i += LANES) {
                vec turned = load_bf16(from + (i + dim / 2) % dim) * load_bf16(sin + row * dim + i);
                store_bf16(to + i, load_bf16(from + i) * load_bf16(cos + row * dim + i) + turned);
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

typedef struct {
    const bf16 *data;
    int64_t page, slot, head, dim; // strides, and the dimension of a head
} Cache;

// Running softmax of some query heads of one KV head: maxima, sums, and weighted values [heads, v.dim].
typedef struct {
    float *maxima, *sums, *values;
} Partial;

// `heads` (a constant) query heads over tokens first .. last-1 of one KV head; q [heads, k.dim] is scaled by log2(e).
INLINE void attend(const int heads, const float *q, Cache k, Cache v, const int32_t *table, int64_t block,
                   int64_t first, int64_t last, Partial to) {
    for (int64_t start = first; start < last; start += LANES) {
        int64_t k_at[LANES], v_at[LANES];
        int n = last - start < LANES ? last - start : LANES;
        for (int t = 0; t < LANES; t++) {
            int64_t token = start + (t < n ? t : 0), page = table[token / block], slot = token % block;
            k_at[t] = page * k.page + slot * k.slot;
            v_at[t] = page * v.page + slot * v.slot;
        }
        vec dots[heads][LANES], weights[heads];
        float kept[heads];
        for (int t = 0; t < LANES; t++) {
            vec acc[heads];
            UNROLL for (int h = 0; h < heads; h++) acc[h] = (vec){0};
            for (int64_t d = 0; d < k.dim; d += LANES) {
                vec key = load_bf16(k.data + k_at[t] + d);
                UNROLL for (int h = 0; h < heads; h++) acc[h] += key * load(q + h * k.dim + d);
            }
            UNROLL for (int h = 0; h < heads; h++) dots[h][t] = acc[h];
        }
        UNROLL for (int h = 0; h < heads; h++) {
            vec scores = sums(dots[h]);
            for (int t = n; t < LANES; t++) scores[t] = -INFINITY;
            float most = fmaxf(to.maxima[h], maximum(scores));
            kept[h] = exp2f(to.maxima[h] - most);
            weights[h] = exp2_of(scores - most);
            for (int t = n; t < LANES; t++) weights[h][t] = 0.0f;
            to.maxima[h] = most;
            to.sums[h] = to.sums[h] * kept[h] + sum(weights[h]);
        }
        for (int64_t d = 0; d < v.dim; d += LANES) {
            vec acc[heads];
            UNROLL for (int h = 0; h < heads; h++) acc[h] = load(to.values + h * v.dim + d) * kept[h];
            UNROLL for (int t = 0; t < LANES; t++) {
                vec value = load_bf16(v.data + v_at[t] + d);
                UNROLL for (int h = 0; h < heads; h++) acc[h] += value * weights[h][t];
            }
            UNROLL for (int h = 0; h < heads; h++) store(to.values + h * v.dim + d, acc[h]);
        }
    }
}

// All query heads of a group, a few at a time.
static void attend_group(int group, const float *q, Cache k, Cache v, const int32_t *table, int64_t block,
                         int64_t first, int64_t last, Partial to) {
    for (int heads; group > 0; group -= heads) {
        heads = group < 4 ? group : 4;
        switch (heads) {
        case 1: attend(1, q, k, v, table, block, first, last, to); break;
        case 2: attend(2, q, k, v, table, block, first, last, to); break;
        case 3: attend(3, q, k, v, table, block, first, last, to); break;
        default: attend(4, q, k, v, table, block, first, last, to);
        }
        q += heads * k.dim;
        to = (Partial){to.maxima + heads, to.sums + heads, to.values + heads * v.dim};
    }
}

INLINE int64_t first_seen(int64_t length, int64_t window) { return window && length > window ? length - window : 0; }

// out [seqs, heads, v_dim] = softmax(scale q k^T) v. A task is TOKENS_PER_TASK tokens of one sequence, all heads;
// `scratch` holds [seqs, tasks] x (heads * (2 + v_dim) + heads * k_dim) floats. Length 0 gives zeros.
void paged_decode(const bf16 *q, int64_t q_seq, int64_t q_head, const bf16 *k, int64_t k_page, int64_t k_slot,
                  int64_t k_head, const bf16 *v, int64_t v_page, int64_t v_slot, int64_t v_head, const int32_t *tables,
                  int64_t table_stride, const int32_t *lengths, float *scratch, bf16 *out, float scale, int64_t window,
                  int64_t seqs, int64_t heads, int64_t kv_heads, int64_t k_dim, int64_t v_dim, int64_t block,
                  int64_t tasks) {
    const int64_t group = heads / kv_heads, room = heads * (2 + v_dim + k_dim);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t s = 0; s < seqs; s++)
            for (int64_t task = 0; task < tasks; task++) {
                int64_t first = first_seen(lengths[s], window) + task * TOKENS_PER_TASK;
                int64_t last = first + TOKENS_PER_TASK < lengths[s] ? first + TOKENS_PER_TASK : lengths[s];
                if (first >= last) continue;
                float *maxima = scratch + (s * tasks + task) * room, *found = maxima + heads;
                float *values = found + heads, *queries = values + heads * v_dim;
                for (int64_t h = 0; h < heads; h++) {
                    maxima[h] = -INFINITY, found[h] = 0.0f;
                    for (int64_t d = 0; d < k_dim; d += LANES)
                        store(queries + h * k_dim + d,
                              load_bf16(q + s * q_seq + h * q_head + d) * (scale * (float)M_LOG2E));
                }
                memset(values, 0, heads * v_dim * sizeof(float));
                for (int64_t h = 0; h < kv_heads; h++)
                    attend_group(group, queries + h * group * k_dim, (Cache){k + h * k_head, k_page, k_slot, k_head, k_dim},
                                 (Cache){v + h * v_head, v_page, v_slot, v_head, v_dim}, tables + s * table_stride,
                                 block, first, last,
                                 (Partial){maxima + h * group, found + h * group, values + h * group * v_dim});
            }
#pragma omp for schedule(static) collapse(2)
        for (int64_t s = 0; s < seqs; s++)
            for (int64_t h = 0; h < heads; h++) {
                int64_t seen = lengths[s] - first_seen(lengths[s], window);
                int64_t used = (seen + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK;
                const float *part = scratch + s * tasks * room;
                float most = -INFINITY, total = 0.0f;
                for (int64_t t = 0; t < used; t++) most = fmaxf(most, part[t * room + h]);
                for (int64_t t = 0; t < used; t++)
                    total += part[t * room + heads + h] * exp2f(part[t * room + h] - most);
                for (int64_t d = 0; d < v_dim; d += LANES) {
                    vec value = {0};
                    for (int64_t t = 0; t < used; t++)
                        value += load(part + t * room + 2 * heads + h * v_dim + d) * exp2f(part[t * room + h] - most);
                    store_bf16(out + (s * heads + h) * v_dim + d, used ? value / total : value);
                }
            }
    }
}
