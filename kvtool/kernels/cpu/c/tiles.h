// The product of up to 32 rows by AMX: matrix registers of 16 rows of 64 bytes. Weights packed as product.h reads them
// are tiles already, two of them (even and odd outputs) row by row in turns.

#pragma once
#include "product.h"

#define TILE_ROWS 16
#define ROWS_IN_TILES (2 * TILE_ROWS)

// Rows of inputs: 32 of row m from input i on are at data + m * row + i * input.
typedef struct {
    const bf16 *data;
    int64_t row, input;
} TileRows;

#ifdef __AMX_BF16__
// Registers by number: gcc pastes these into its assembly.
#define EVEN_0 0
#define ODD_0 1
#define EVEN_1 2
#define ODD_1 3
#define ROWS_0 4
#define ROWS_1 5
#define EVEN_WEIGHTS 6
#define ODD_WEIGHTS 7

// Each thread says what its tiles are before it multiplies `rows` rows in all: few make small tiles.
INLINE void begin_tiles(int64_t rows) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((packed, aligned(64))) shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = rows < TILE_ROWS ? rows : TILE_ROWS;
    shape.rows[EVEN_WEIGHTS] = shape.rows[ODD_WEIGHTS] = TILE_ROWS;
    _tile_loadconfig(&shape);
}

INLINE void end_tiles(void) { _tile_release(); }

INLINE void take_out(const float even[TILE_ROWS][LANES], const float odd[TILE_ROWS][LANES], int rows, pair *out) {
    for (int m = 0; m < rows; m++) {
        memcpy(&out[m].even, even[m], sizeof(vec));
        memcpy(&out[m].odd, odd[m], sizeof(vec));
    }
}

// 32 outputs of `rows` rows. Of more than 16, which are woven, the second 16 lie behind all of the first, and those that
// are missing are there and may hold anything finite.
INLINE void tile_product(int rows, TileRows x, const bf16 *w, int64_t in, pair *out) {
    float even[TILE_ROWS][LANES] __attribute__((aligned(64))), odd[TILE_ROWS][LANES] __attribute__((aligned(64)));
    _tile_zero(EVEN_0);
    _tile_zero(ODD_0);
    _tile_zero(EVEN_1);
    _tile_zero(ODD_1);
    for (int64_t i = 0; i < in; i += STEP) {
        ask_for(w + i * STEP, STEP * STEP);
        _tile_loadd(EVEN_WEIGHTS, w + i * STEP, 4 * STEP);
        _tile_loadd(ODD_WEIGHTS, w + i * STEP + STEP, 4 * STEP);
        _tile_loadd(ROWS_0, x.data + i * x.input, x.row * sizeof(bf16));
        _tile_dpbf16ps(EVEN_0, ROWS_0, EVEN_WEIGHTS);
        _tile_dpbf16ps(ODD_0, ROWS_0, ODD_WEIGHTS);
        if (rows <= TILE_ROWS) continue;
        _tile_loadd(ROWS_1, x.data + in * TILE_ROWS + i * x.input, x.row * sizeof(bf16));
        _tile_dpbf16ps(EVEN_1, ROWS_1, EVEN_WEIGHTS);
        _tile_dpbf16ps(ODD_1, ROWS_1, ODD_WEIGHTS);
    }
    _tile_stored(EVEN_0, even, sizeof even[0]);
    _tile_stored(ODD_0, odd, sizeof odd[0]);
    take_out(even, odd, rows < TILE_ROWS ? rows : TILE_ROWS, out);
    if (rows <= TILE_ROWS) return;
    _tile_stored(EVEN_1, even, sizeof even[0]);
    _tile_stored(ODD_1, odd, sizeof odd[0]);
    take_out(even, odd, rows - TILE_ROWS, out + TILE_ROWS);
}
#else
INLINE void begin_tiles(int64_t rows) {}
INLINE void end_tiles(void) {}
INLINE void tile_product(int rows, TileRows x, const bf16 *w, int64_t in, pair *out) {}
#endif
