// Products with weights packed as [out / 32][in / 2][2][16][2], for the few rows of a decode step.

#include "activation.h"
#include "product.h"

static void products(int rows, Rows x, const bf16 *w, int64_t in, pair *out) {
    switch (rows) {
    case 1: return product(1, x, w, in, out);
    case 2: return product(2, x, w, in, out);
    case 3: return product(3, x, w, in, out);
    case 4: return product(4, x, w, in, out);
    case 5: return product(5, x, w, in, out);
    case 6: return product(6, x, w, in, out);
    case 7: return product(7, x, w, in, out);
    default: return product(8, x, w, in, out);
    }
}

INLINE int at_once(int64_t rows, int64_t row) { return rows - row < ROWS_AT_ONCE ? rows - row : ROWS_AT_ONCE; }

// Inputs of a product: as they came, or their words side by side in `woven`, eight rows after eight.
typedef struct {
    const bf16 *x;
    int64_t x_stride, rows, in;
    bf16 *woven;
} Inputs;

// More than four rows a power of two apart would fight for the few places that such addresses share in the L1 cache.
INLINE int are_woven(const Inputs *inputs) { return inputs->rows > 4; }

// Weaves rows where that pays. Inside a parallel region, which waits here until all is woven.
static void weave(const Inputs *inputs) {
    if (!are_woven(inputs)) return;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < inputs->in; i += 2)
        for (int64_t row = 0; row < inputs->rows; row += ROWS_AT_ONCE) {
            const int n = at_once(inputs->rows, row);
            bf16 *to = inputs->woven + row * inputs->in + i * n;
            for (int m = 0; m < n; m++) memcpy(to + 2 * m, inputs->x + (row + m) * inputs->x_stride + i, 4);
        }
}

INLINE Rows rows_from(const Inputs *inputs, int64_t row) {
    if (are_woven(inputs)) return (Rows){inputs->woven + row * inputs->in, 2, 2 * at_once(inputs->rows, row)};
    return (Rows){inputs->x + row * inputs->x_stride, inputs->x_stride, 2};
}

// y [rows, out] = x W^T + bias, which may be null; `woven` has room for x.
void linear(const bf16 *x, int64_t x_stride, const bf16 *w, const bf16 *bias, bf16 *y, int64_t rows, int64_t in,
            int64_t out, bf16 *woven) {
    const Inputs inputs = {x, x_stride, rows, in, woven};
#pragma omp parallel
    {
        weave(&inputs);
#pragma omp for schedule(static)
        for (int64_t o = 0; o < out; o += STEP) {
            pair found[ROWS_AT_ONCE], b = load_or_zero(bias ? bias + o : 0);
            for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
                const int n = at_once(rows, row);
                products(n, rows_from(&inputs, row), w + o * in, in, found);
                for (int m = 0; m < n; m++) store(y + (row + m) * out + o, add(found[m], b));
            }
        }
    }
}

// y [rows, out] = activation(x Wg^T + bg) * (x Wu^T + bu); the biases may be null; `woven` has room for x.
void gated_linear(const bf16 *x, int64_t x_stride, const bf16 *gate, const bf16 *up, const bf16 *gate_bias,
                  const bf16 *up_bias, int64_t activation, bf16 *y, int64_t rows, int64_t in, int64_t out,
                  bf16 *woven) {
    const Inputs inputs = {x, x_stride, rows, in, woven};
#pragma omp parallel
    {
        weave(&inputs);
#pragma omp for schedule(static)
        for (int64_t o = 0; o < out; o += STEP) {
            pair g[ROWS_AT_ONCE], u[ROWS_AT_ONCE];
            pair bg = load_or_zero(gate_bias ? gate_bias + o : 0), bu = load_or_zero(up_bias ? up_bias + o : 0);
            for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
                const int n = at_once(rows, row);
                products(n, rows_from(&inputs, row), gate + o * in, in, g);
                products(n, rows_from(&inputs, row), up + o * in, in, u);
                for (int m = 0; m < n; m++)
                    store(y + (row + m) * out + o, times(activated(add(g[m], bg), activation), add(u[m], bu)));
            }
        }
    }
}
