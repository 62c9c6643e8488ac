// Products with weights of 8 or 4 bits as they are stored: 32 inputs of an output share a scale, or a scale and a least
// value, or all of its inputs share a scale. Integers multiply integers: 32 inputs of x become 15-bit numbers with a power of two in common, exact but for
// elements below a 64th of the largest, and those two digits of 8 bits. Nothing is rounded before the sum of 32.

#include "activation.h"
#include "product.h"

#define WEIGHTS 32 // of an output, with one scale
#ifdef __AVX512VNNI__
#define ROWS_OF_DIGITS 4
#else
#define ROWS_OF_DIGITS 1 // bf16 is faster: what nobody runs is built in little time
#endif

typedef int32_t ints __attribute__((vector_size(4 * LANES)));

// 32 inputs: x = scale * (256 high + low), and the sum of what stands in brackets.
typedef struct {
    int8_t high[WEIGHTS], low[WEIGHTS];
    float scale;
    int32_t sum;
} Digits;

typedef struct {
    const bf16 *x;
    int64_t stride;
    Digits *digits; // [rows, in / 32]
    int64_t rows, in;
} Inputs;

// [out / 32][in / 32] blocks of 32 outputs: unsigned codes of four inputs a word, [8][2][16] words of even outputs and
// of odd ones, or [4][2][16] words whose low four bits come before the high ones; then as many `numbers` of each output,
// in fp16, an even output and the odd one behind it in a word: a scale, or a scale and a least value. Without numbers
// the scale is its row's, fp32 [out / 32][2][16]. weight = scale * (code - half of their number), or scale * code +
// least.
typedef struct {
    const uint8_t *blocks;
    int64_t bits, numbers;
    const float *row_scales;
} Codes;

typedef struct {
    Inputs inputs;
    Codes weight;
    const bf16 *bias; // [out] may be null
    bf16 *y;
    int64_t out;
} QuantisedLinear;

typedef struct {
    Inputs inputs;
    Codes gate, up;
    const bf16 *gate_bias, *up_bias;
    bf16 *y;
    int64_t out, activation;
} QuantisedGatedLinear;

// Whether integers beat bf16 here.
int quantised_pays(void) {
#ifdef __AVX512VNNI__
    return 1;
#else
    return 0;
#endif
}

int64_t digits_bytes(void) { return sizeof(Digits); }

// Each lane of `sum` plus the products of four unsigned bytes with four signed ones.
INLINE ints add_byte_products(ints sum, words bytes, words signed_bytes) {
#ifdef __AVX512VNNI__
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)bytes, (__m512i)signed_bytes);
#else
    for (int place = 0; place < 32; place += 8)
        sum += (ints)(bytes >> place & 0xff) * ((ints)(signed_bytes << (24 - place)) >> 24);
    return sum;
#endif
}

// fp16 in the low half of each word; infinities and NaN aside.
INLINE vec from_half(words half) {
    vec size = (vec)((half & 0x7fff) << 13) * 0x1p112f;
    return (vec)((words)size | (half & 0x8000) << 16);
}

INLINE pair from_halves(const uint8_t *p) {
    words both = read_words(p);
    return (pair){from_half(both & 0xffff), from_half(both >> 16)};
}

INLINE vec to_floats(ints v) {
    vec out;
    UNROLL for (int i = 0; i < LANES; i++) out[i] = v[i];
    return out;
}

// An infinity or a NaN becomes NaN; a block without an element of 2^-113 becomes zeros.
static void find_digits(const bf16 *x, Digits *to) {
    const float round = 12582912.0f; // 1.5 * 2^23: adding it leaves the integer in the low bits
    const pair v = load(x);
    const vec nothing = (v.even - v.even) + (v.odd - v.odd);
    const vec sizes = larger((vec)((words)v.even & ~(1u << 31)), (vec)((words)v.odd & ~(1u << 31)));
    float most = maximum(sizes), up, down;
    uint32_t bits;
    memcpy(&bits, &most, sizeof bits);
    const int exponent = bits >> 23;
    const uint32_t up_bits = exponent < 14 ? 0 : (uint32_t)(267 - exponent) << 23; // 2^13 over the power in `most`
    const uint32_t down_bits = exponent < 14 ? 0 : (uint32_t)(exponent - 13) << 23;
    memcpy(&up, &up_bits, sizeof up);
    memcpy(&down, &down_bits, sizeof down);
    const pair shifted = {v.even * up + round, v.odd * up + round};
    to->scale = down + sum(nothing);
    to->sum = (int32_t)sum((shifted.even - round) + (shifted.odd - round));
    for (int i = 0; i < LANES; i++) {
        int32_t pairs[2];
        memcpy(pairs, (float[]){shifted.even[i], shifted.odd[i]}, sizeof pairs);
        for (int odd = 0; odd < 2; odd++) {
            const int32_t q = pairs[odd] - 0x4b400000;
            to->low[2 * i + odd] = (int8_t)q;
            to->high[2 * i + odd] = (int8_t)((q - (int8_t)q) >> 8);
        }
    }
}

// The digits of all rows, which the team waits for.
static void find_all_digits(const Inputs *inputs) {
    const int64_t blocks = inputs->in / WEIGHTS;
#pragma omp for schedule(static) collapse(2)
    for (int64_t row = 0; row < inputs->rows; row++)
        for (int64_t b = 0; b < blocks; b++)
            find_digits(inputs->x + row * inputs->stride + b * WEIGHTS, inputs->digits + row * blocks + b);
}

INLINE int64_t block_bytes(int64_t bits, int64_t numbers) { return (2 * bits + numbers) * sizeof(words); }

// 32 outputs of `rows` rows; `rows`, `bits` and `numbers` are constants.
INLINE void codes_product(const int rows, const int bits, const int numbers, const Digits *x, int64_t blocks,
                          const uint8_t *w, pair *out) {
    const int64_t bytes = block_bytes(bits, numbers);
    const int has_least = numbers == 2;
    UNROLL for (int m = 0; m < rows; m++) out[m] = (pair){0};
    for (int64_t b = 0; b < blocks; b++, w += bytes) {
        ints high[ROWS_OF_DIGITS][2], low[ROWS_OF_DIGITS][2];
        UNROLL for (int m = 0; m < rows; m++) high[m][0] = high[m][1] = low[m][0] = low[m][1] = (ints){0};
        ask_for((const bf16 *)w, bytes / sizeof(bf16));
        UNROLL for (int i = 0; i < 8; i++)
            UNROLL for (int odd = 0; odd < 2; odd++) {
                words codes;
                if (bits == 8) codes = read_words(w + (2 * i + odd) * sizeof(words));
                else codes = read_words(w + (i / 2 * 2 + odd) * sizeof(words)) >> i % 2 * 4 & 0x0f0f0f0f;
                UNROLL for (int m = 0; m < rows; m++) {
                    const Digits *digits = x + m * blocks + b;
                    high[m][odd] = add_byte_products(high[m][odd], codes, repeated(digits->high + 4 * i));
                    low[m][odd] = add_byte_products(low[m][odd], codes, repeated(digits->low + 4 * i));
                }
            }
        const pair scales = numbers ? from_halves(w + 2 * bits * sizeof(words)) : (pair){0};
        const pair least = has_least ? from_halves(w + (2 * bits + 1) * sizeof(words)) : (pair){0};
        UNROLL for (int m = 0; m < rows; m++) {
            const Digits *digits = x + m * blocks + b;
            const int32_t offset = has_least ? 0 : digits->sum * (1 << (bits - 1));
            pair sums = {to_floats((high[m][0] << 8) + low[m][0] - offset),
                               to_floats((high[m][1] << 8) + low[m][1] - offset)};
            if (numbers) sums = times(sums, scales);
            out[m] = add(out[m], scaled(sums, digits->scale));
            if (has_least) out[m] = add(out[m], scaled(least, digits->scale * digits->sum));
        }
    }
}

#define OF_ROWS(rows)                                                                                                  \
    case rows:                                                                                                         \
        if (!codes->numbers) return codes_product(rows, 8, 0, x, blocks, w, out);                                      \
        if (codes->bits == 8) return codes_product(rows, 8, 1, x, blocks, w, out);                                     \
        if (codes->numbers == 2) return codes_product(rows, 4, 2, x, blocks, w, out);                                  \
        return codes_product(rows, 4, 1, x, blocks, w, out)

// 32 outputs, from `o` on, of up to four rows from `row` on, but for scales of rows of weights.
static void unscaled_products(const Inputs *inputs, int64_t row, int rows, const Codes *codes, int64_t o, pair *out) {
    const int64_t blocks = inputs->in / WEIGHTS;
    const uint8_t *w = codes->blocks + o / STEP * blocks * block_bytes(codes->bits, codes->numbers);
    const Digits *x = inputs->digits + row * blocks;
    switch (rows) {
        OF_ROWS(1);
#if ROWS_OF_DIGITS == 4
        OF_ROWS(2);
        OF_ROWS(3);
        OF_ROWS(4);
#endif
    }
}

static void products(const Inputs *inputs, int64_t row, int rows, const Codes *codes, int64_t o, pair *out) {
    unscaled_products(inputs, row, rows, codes, o, out);
    if (codes->numbers) return;
    pair scales;
    memcpy(&scales, codes->row_scales + o, sizeof scales);
    for (int m = 0; m < rows; m++) out[m] = times(out[m], scales);
}

INLINE int at_once(const Inputs *inputs, int64_t row) {
    return inputs->rows - row < ROWS_OF_DIGITS ? inputs->rows - row : ROWS_OF_DIGITS;
}

// y = x W^T + bias.
void quantised_linear(const void *arguments) {
    const QuantisedLinear *l = arguments;
    find_all_digits(&l->inputs);
#pragma omp for schedule(static) nowait
    for (int64_t o = 0; o < l->out; o += STEP) {
        pair found[ROWS_OF_DIGITS], b = load_or_zero(l->bias ? l->bias + o : 0);
        for (int64_t row = 0, n; row < l->inputs.rows; row += n) {
            n = at_once(&l->inputs, row);
            products(&l->inputs, row, n, &l->weight, o, found);
            for (int m = 0; m < n; m++) store(l->y + (row + m) * l->out + o, add(found[m], b));
        }
    }
}

// y = activation(x Wg^T + bg) * (x Wu^T + bu).
void quantised_gated_linear(const void *arguments) {
    const QuantisedGatedLinear *l = arguments;
    find_all_digits(&l->inputs);
#pragma omp for schedule(static) nowait
    for (int64_t o = 0; o < l->out; o += STEP) {
        pair g[ROWS_OF_DIGITS], u[ROWS_OF_DIGITS];
        pair bg = load_or_zero(l->gate_bias ? l->gate_bias + o : 0), bu = load_or_zero(l->up_bias ? l->up_bias + o : 0);
        for (int64_t row = 0, n; row < l->inputs.rows; row += n) {
            n = at_once(&l->inputs, row);
            products(&l->inputs, row, n, &l->gate, o, g);
            products(&l->inputs, row, n, &l->up, o, u);
            for (int m = 0; m < n; m++)
                store(l->y + (row + m) * l->out + o, times(activated(add(g[m], bg), l->activation), add(u[m], bu)));
        }
    }
}
