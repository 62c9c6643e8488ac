// What lies between a step's products: gates, norms, rotations, and rows into their slots.

#include "activation.h"

#define MANY 32768 // elements from which a second thread pays

// gate [count] = activation(gate) * up.
void gate(bf16 *gate, const bf16 *up, int64_t activation, int64_t count) {
#pragma omp parallel for schedule(static) if (count >= MANY)
    for (int64_t i = 0; i < count; i += STEP)
        store(gate + i, times(activated(load(gate + i), activation), load(up + i)));
}

// y [n] = x / rms(x) * weight.
INLINE void norm_row(const bf16 *x, const bf16 *weight, float eps, bf16 *y, int64_t n) {
    pair squares = {0};
    for (int64_t i = 0; i < n; i += STEP) squares = add(squares, times(load(x + i), load(x + i)));
    float scale = 1.0f / sqrtf(sum(squares.even + squares.odd) / n + eps);
    for (int64_t i = 0; i < n; i += STEP) store(y + i, times(scaled(load(x + i), scale), load(weight + i)));
}

// y [rows, n] = x / rms(x) * weight.
void rms_norm(const bf16 *x, int64_t x_stride, const bf16 *weight, float eps, bf16 *y, int64_t rows, int64_t n) {
#pragma omp parallel for schedule(static) if (rows * n >= MANY)
    for (int64_t row = 0; row < rows; row++) norm_row(x + row * x_stride, weight, eps, y + row * n, n);
}

// added [rows, n] = x + residual, which is rounded, and y = added / rms(added) * weight.
void add_rms_norm(const bf16 *x, int64_t x_stride, const bf16 *residual, int64_t residual_stride, const bf16 *weight,
                  float eps, bf16 *added, bf16 *y, int64_t rows, int64_t n) {
#pragma omp parallel for schedule(static) if (rows * n >= MANY)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *from = x + row * x_stride, *beside = residual + row * residual_stride;
        for (int64_t i = 0; i < n; i += STEP)
            store(added + row * n + i, add(load(from + i), load(beside + i)));
        norm_row(added + row * n, weight, eps, y + row * n, n);
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
