// Products with weights packed as [out / 32][in / 2][2][16][2], for the few rows of a decode step.

#include "activation.h"
#include "product.h"
#include "tiles.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Rows of x as the products read them: as they came, or woven into `woven`, which has room for them.
typedef struct {
    const bf16 *x;
    int64_t stride;
    bf16 *woven;
    int64_t rows, in, tiles; // tiles: by AMX
} Inputs;

typedef struct {
    Inputs inputs;
    const bf16 *w, *bias; // bias [out] may be null
    bf16 *y;              // [rows, out]
    int64_t out;
} Linear;

typedef struct {
    Inputs inputs;
    const bf16 *gate, *up, *gate_bias, *up_bias; // the biases may be null
    bf16 *y;
    int64_t out, activation;
} GatedLinear;

// Whether this process may use AMX: Linux lends its registers to who asks.
int64_t request_tiles(void) {
#if defined(__AMX_BF16__) && defined(__linux__)
    const long request_permission = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return 0;
#endif
}

static void few_products(int rows, Rows x, const bf16 *w, int64_t in, pair *out) {
    switch (rows) {
    case 1: return product(1, 1, x, w, in, out);
    case 2: return product(2, 1, x, w, in, out);
    case 3: return product(3, 1, x, w, in, out);
    case 4: return product(4, 1, x, w, in, out);
    case 5: return product(5, 1, x, w, in, out);
    case 6: return product(6, 1, x, w, in, out);
    case 7: return product(7, 1, x, w, in, out);
    default: return product(8, 1, x, w, in, out);
    }
}

INLINE int at_once(const Inputs *inputs, int64_t row) {
    const int64_t most = inputs->tiles ? ROWS_IN_TILES : ROWS_AT_ONCE, left = inputs->rows - row;
    return left < most ? left : most;
}

// More rows a power of two apart would fight for the few places that such addresses share in the L1 cache.
INLINE int are_woven(const Inputs *inputs) { return inputs->rows > (inputs->tiles ? 8 : 4); }

// [rows / 16][in / 32][16][32] for AMX; rows that are missing are zeros.
INLINE void weave_tiles(const Inputs *inputs, int64_t i) {
    for (int64_t row = 0; row < inputs->rows; row += TILE_ROWS) {
        bf16 *to = inputs->woven + row * inputs->in + i * TILE_ROWS;
        for (int m = 0; m < TILE_ROWS; m++, to += STEP) {
            if (row + m < inputs->rows) memcpy(to, inputs->x + (row + m) * inputs->stride + i, STEP * sizeof(bf16));
            else memset(to, 0, STEP * sizeof(bf16));
        }
    }
}

// Words of two inputs side by side, eight rows after eight.
INLINE void weave_words(const Inputs *inputs, int64_t first) {
    for (int64_t i = first; i < first + STEP; i += 2)
        for (int64_t row = 0; row < inputs->rows; row += ROWS_AT_ONCE) {
            const int n = at_once(inputs, row);
            bf16 *to = inputs->woven + row * inputs->in + i * n;
            for (int m = 0; m < n; m++) memcpy(to + 2 * m, inputs->x + (row + m) * inputs->stride + i, 4);
        }
}

// Weaves rows where that pays, and the team waits here until all is woven.
static void weave(const Inputs *inputs) {
    if (!are_woven(inputs)) return;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < inputs->in; i += STEP)
        if (inputs->tiles) weave_tiles(inputs, i);
        else weave_words(inputs, i);
}

// 32 outputs of `rows` rows from `row` on.
INLINE void products(const Inputs *inputs, int64_t row, int rows, const bf16 *w, pair *out) {
    const int64_t in = inputs->in;
    const bf16 *woven = inputs->woven + row * in;
    const bf16 *x = inputs->x + row * inputs->stride;
    if (inputs->tiles) {
        const TileRows as_woven = {woven, STEP, TILE_ROWS}, as_they_came = {x, inputs->stride, 1};
        tile_product(rows, are_woven(inputs) ? as_woven : as_they_came, w, in, out);
    } else if (are_woven(inputs)) few_products(rows, (Rows){woven, 2, 2 * rows}, w, in, out);
    else few_products(rows, (Rows){x, inputs->stride, 2}, w, in, out);
}

// y = x W^T + bias.
void linear(const void *arguments) {
    const Linear *l = arguments;
    weave(&l->inputs);
    if (l->inputs.tiles) begin_tiles(l->inputs.rows);
#pragma omp for schedule(static) nowait
    for (int64_t o = 0; o < l->out; o += STEP) {
        pair found[ROWS_IN_TILES], b = load_or_zero(l->bias ? l->bias + o : 0);
        for (int64_t row = 0, n; row < l->inputs.rows; row += n) {
            n = at_once(&l->inputs, row);
            products(&l->inputs, row, n, l->w + o * l->inputs.in, found);
            for (int m = 0; m < n; m++) store(l->y + (row + m) * l->out + o, add(found[m], b));
        }
    }
    if (l->inputs.tiles) end_tiles();
}

// y = activation(x Wg^T + bg) * (x Wu^T + bu).
void gated_linear(const void *arguments) {
    const GatedLinear *l = arguments;
    const int64_t in = l->inputs.in;
    weave(&l->inputs);
    if (l->inputs.tiles) begin_tiles(l->inputs.rows);
#pragma omp for schedule(static) nowait
    for (int64_t o = 0; o < l->out; o += STEP) {
        pair g[ROWS_IN_TILES], u[ROWS_IN_TILES];
        pair bg = load_or_zero(l->gate_bias ? l->gate_bias + o : 0), bu = load_or_zero(l->up_bias ? l->up_bias + o : 0);
        for (int64_t row = 0, n; row < l->inputs.rows; row += n) {
            n = at_once(&l->inputs, row);
            products(&l->inputs, row, n, l->gate + o * in, g);
            products(&l->inputs, row, n, l->up + o * in, u);
            for (int m = 0; m < n; m++)
                store(l->y + (row + m) * l->out + o, times(activated(add(g[m], bg), l->activation), add(u[m], bu)));
        }
    }
    if (l->inputs.tiles) end_tiles();
}
