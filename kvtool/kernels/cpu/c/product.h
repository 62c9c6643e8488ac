// The product that all others are made of: 32 outputs of up to eight rows.

#pragma once
#include "vectors.h"

#define ROWS_AT_ONCE 8

#define BYTES_AHEAD 8192

// Asks the L2 for `count` elements of a stream long before they are read: the L1 has room for fewer requests.
INLINE void ask_for(const bf16 *stream, int64_t count) {
    for (int64_t i = 0; i < count; i += STEP) __builtin_prefetch(stream + BYTES_AHEAD / sizeof(bf16) + i, 0, 2);
}

// Rows of inputs: word i (two bf16) of row m is at data + m * row + i * word.
typedef struct {
    const bf16 *data;
    int64_t row, word;
} Rows;

// 32 outputs of `rows` (a constant) rows of x with weights packed as [in / 2][2][16][2]: even outputs, odd outputs, two
// inputs each. Few rows take turns on more sums, or each would wait for the last one.
//
// From memory (a constant) weights are asked for some pages ahead: the CPU foresees a stream, but not past the end of a
// page. Behind the last weight nothing is read, and asking does no harm.
INLINE void product(const int rows, const int from_memory, Rows x, const bf16 *w, int64_t in, pair *out) {
    const int turns = rows <= 4 ? 2 : 1;
    pair acc[ROWS_AT_ONCE];
    UNROLL for (int i = 0; i < rows * turns; i++) acc[i] = (pair){0};
    for (int64_t i = 0; i < in / 2; i += turns)
        UNROLL for (int t = 0; t < turns; t++) {
            const bf16 *weights = w + 2 * STEP * (i + t);
            if (from_memory) ask_for(weights, 2 * STEP);
            words even = read_words(weights), odd = read_words(weights + STEP);
            UNROLL for (int m = 0; m < rows; m++) {
                words inputs = repeated(x.data + m * x.row + (i + t) * x.word);
                pair *sum = acc + m * turns + t;
                *sum = (pair){add_products(sum->even, even, inputs), add_products(sum->odd, odd, inputs)};
            }
        }
    UNROLL for (int m = 0; m < rows; m++) out[m] = turns == 1 ? acc[m] : add(acc[2 * m], acc[2 * m + 1]);
}
