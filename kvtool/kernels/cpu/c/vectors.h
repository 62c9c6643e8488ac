// bf16 rows as vectors of floats, generic ones of GCC and clang; AVX-512 by name only where the compiler misses it.
//
// A 32-bit word holds two bf16, so 32 of them are one vector of words, and two vectors of floats by a shift and a mask:
// the elements at even places and those at odd ones. Every row is a multiple of 32, and nothing is ever shuffled apart.

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define STEP (2 * LANES)
#define HIGH 0xffff0000u
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (words){__VA_ARGS__})
#endif
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define FIRST_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SECOND_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31

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

// b where one is NaN.
INLINE vec larger(vec a, vec b) {
#ifdef __AVX512F__
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    words first = (words)(a > b);
    return (vec)(((words)a & first) | ((words)b & ~first));
#endif
}

// [a0+a1, a2+a3, .., b0+b1, ..]
INLINE vec neighbour_sums(vec a, vec b) { return SHUFFLE(a, b, EVENS) + SHUFFLE(a, b, ODDS); }

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
    UNROLL for (int n = 0; n < 4; n++) v = larger(SHUFFLE(v, v, EVENS), SHUFFLE(v, v, ODDS));
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
