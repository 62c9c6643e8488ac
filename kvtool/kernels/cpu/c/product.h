// The product that all others are made of: 32 outputs of up to eight rows.

#pragma once
#include "vectors.h"

#define ROWS_AT_ONCE 8

// Rows of inputs: word i (two bf16) of row m is at data + m * row + i * word.
typedef struct {
    const bf16 *data;
    int64_t row, word;
} Rows;

// 32 outputs of `rows` (a constant) rows of x with weights packed as [in / 2][2][16][2]: even outputs, odd outputs, two
// inputs each. Few rows take turns on more sums, or each would wait for the last one. Nothing is fetched ahead: the CPU
// foresees one stream of weights, and asking for it again costs bandwidth.
INLINE void product(const int rows, Rows x, const bf16 *w, int64_t in, pair *out) {
    const int turns = rows <= 4 ? 2 : 1;
    pair acc[ROWS_AT_ONCE];
    UNROLL for (int i = 0; i < rows * turns; i++) acc[i] = (pair){0};
    for (int64_t i = 0; i < in / 2; i += turns)
        UNROLL for (int t = 0; t < turns; t++) {
            const bf16 *weights = w + 2 * STEP * (i + t);
            words even = read_words(weights), odd = read_words(weights + STEP);
            UNROLL for (int m = 0; m < rows; m++) {
                words inputs = repeated(x.data + m * x.row + (i + t) * x.word);
                pair *sum = acc + m * turns + t;
                *sum = (pair){add_products(sum->even, even, inputs), add_products(sum->odd, odd, inputs)};
            }
        }
    UNROLL for (int m = 0; m < rows; m++) out[m] = turns == 1 ? acc[m] : add(acc[2 * m], acc[2 * m + 1]);
}
