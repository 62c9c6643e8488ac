// What lies between a step's products: gates, norms, rotations, rows into their slots; and the token behind the last.

#include "activation.h"

typedef struct {
    bf16 *gate; // [count], and so is the result
    const bf16 *up;
    int64_t activation, count;
} Gate;

typedef struct {
    const bf16 *x;
    int64_t x_row, x_head; // strides
    const bf16 *weight;    // [n], or [heads, n] where weight_head is n
    int64_t weight_head;
    float eps;
    bf16 *y; // [rows, heads, n]
    int64_t rows, heads, n;
} RmsNorm;

typedef struct {
    const bf16 *x;
    int64_t x_row;
    const bf16 *residual;
    int64_t residual_row;
    const bf16 *weight;
    float eps;
    bf16 *added, *y; // [rows, n]
    int64_t rows, n;
} AddRmsNorm;

typedef struct {
    const bf16 *x;
    int64_t x_row, x_head;
    const bf16 *cos, *sin; // [rows, dim]
    bf16 *y;
    int64_t rows, heads, dim; // half of dim is a multiple of 32
} Rotate;

typedef struct {
    const bf16 *rows; // [tokens, width]
    int64_t row;
    const int64_t *slots;
    bf16 *cache; // pages of `block` slots
    int64_t page, slot, block, tokens, width;
} StoreRows;

typedef struct {
    const bf16 *x;
    int64_t x_row;
    int64_t *y; // [rows]
    int64_t rows, n;
} Likeliest;

// gate = activation(gate) * up.
void gate(const void *arguments) {
    const Gate *g = arguments;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < g->count; i += STEP)
        store(g->gate + i, times(activated(load(g->gate + i), g->activation), load(g->up + i)));
}

// y [n] = x / rms(x) * weight.
INLINE void norm_row(const bf16 *x, const bf16 *weight, float eps, bf16 *y, int64_t n) {
    pair squares = {0};
    for (int64_t i = 0; i < n; i += STEP) squares = add(squares, times(load(x + i), load(x + i)));
    float scale = 1.0f / sqrtf(sum(squares.even + squares.odd) / n + eps);
    for (int64_t i = 0; i < n; i += STEP) store(y + i, times(scaled(load(x + i), scale), load(weight + i)));
}

// y = x / rms(x) * weight, each head for itself.
void rms_norm(const void *arguments) {
    const RmsNorm *r = arguments;
#pragma omp for schedule(static) collapse(2) nowait
    for (int64_t row = 0; row < r->rows; row++)
        for (int64_t head = 0; head < r->heads; head++)
            norm_row(r->x + row * r->x_row + head * r->x_head, r->weight + head * r->weight_head, r->eps,
                     r->y + (row * r->heads + head) * r->n, r->n);
}

// added = x + residual, which is rounded, and y = added / rms(added) * weight.
void add_rms_norm(const void *arguments) {
    const AddRmsNorm *a = arguments;
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < a->rows; row++) {
        const bf16 *from = a->x + row * a->x_row, *beside = a->residual + row * a->residual_row;
        bf16 *added = a->added + row * a->n;
        for (int64_t i = 0; i < a->n; i += STEP) store(added + i, add(load(from + i), load(beside + i)));
        norm_row(added, a->weight, a->eps, a->y + row * a->n, a->n);
    }
}

// y = x cos + roll(x, dim / 2) sin.
void rotate(const void *arguments) {
    const Rotate *r = arguments;
    const int64_t dim = r->dim;
#pragma omp for schedule(static) collapse(2) nowait
    for (int64_t row = 0; row < r->rows; row++)
        for (int64_t head = 0; head < r->heads; head++) {
            const bf16 *from = r->x + row * r->x_row + head * r->x_head;
            for (int64_t i = 0; i < dim; i += STEP) {
                pair turned = times(load(from + (i + dim / 2) % dim), load(r->sin + row * dim + i));
                pair kept = times(load(from + i), load(r->cos + row * dim + i));
                store(r->y + (row * r->heads + head) * dim + i, add(kept, turned));
            }
        }
}

// Rows to their slots; slot -1 writes nothing.
void store_rows(const void *arguments) {
    const StoreRows *s = arguments;
#pragma omp for schedule(static) nowait
    for (int64_t t = 0; t < s->tokens; t++)
        if (s->slots[t] >= 0)
            memcpy(s->cache + s->slots[t] / s->block * s->page + s->slots[t] % s->block * s->slot,
                   s->rows + t * s->row, s->width * sizeof(bf16));
}

#define STRETCH 2048

// NaN where there is one.
INLINE float largest_of(const bf16 *x, int64_t n) {
    vec most = (vec){0} - INFINITY;
    words none = {0};
    for (int64_t i = 0; i < n; i += STEP) {
        const pair p = load(x + i);
        most = larger(larger(p.even, p.odd), most);
        none |= (words)(p.even != p.even) | (words)(p.odd != p.odd);
    }
    return maximum((vec)(none & 0x3f800000)) > 0.0f ? NAN : maximum(most);
}

INLINE float to_float(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The place of the largest element, of equals the first, and NaN is larger than all: which stretch of the row has it, and
// then where it is there.
INLINE int64_t first_largest(const bf16 *x, int64_t n) {
    float most = -INFINITY;
    int64_t from = 0;
    for (int64_t i = 0; i < n && most == most; i += STRETCH) {
        const float own = largest_of(x + i, n - i < STRETCH ? n - i : STRETCH);
        if (!(own <= most)) most = own, from = i;
    }
    int64_t at = from;
    for (float own = to_float(x[at]); most == most ? own != most : own == own; own = to_float(x[at])) at++;
    return at;
}

// y = the place of each row's largest element.
void likeliest(const void *arguments) {
    const Likeliest *l = arguments;
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < l->rows; row++) l->y[row] = first_largest(l->x + row * l->x_row, l->n);
}
