// Small matrix products in the first two caches, and transposes: what scan and attention are made of.
//
// Y = beta Y + A X, all row-major float32. Or a word of A and of X is a pair of bfloat16 numbers, and
// a step of the sum takes two of them: see `Words`. X and Y are whole vectors wide (their rows
// padded to a multiple of LANES), A is read one word at a time. A tile of Y stays in registers over
// the whole sum, so each number of Y is one sum in the order of k, whatever the tiles.
#pragma once

#include <utility>

#include "vec.h"

struct Rows {
    const float* p;
    int64_t stride;
};

// What the 32 bits of an element of A and X are. Pairs lie along the axis that is summed over.
enum class Words { numbers, pairs };

template <Words WORDS, int ROWS, int VECTORS>
static void product_tile(Rows a, Rows x, float* y, int64_t y_stride, int64_t depth, float beta) {
    vec totals[ROWS][VECTORS] = {};
    if (beta != 0.0f)
        for (int row = 0; row < ROWS; row++)
            for (int v = 0; v < VECTORS; v++)
                totals[row][v] = beta * load(y + row * y_stride + v * LANES);
    for (int64_t k = 0; k < depth; k++) {
        vec xs[VECTORS];
        for (int v = 0; v < VECTORS; v++) xs[v] = load(x.p + k * x.stride + v * LANES);
#pragma GCC unroll 24
        for (int row = 0; row < ROWS; row++) {
            vec factor = splat_word(a.p + row * a.stride + k);
            for (int v = 0; v < VECTORS; v++)
                totals[row][v] = WORDS == Words::pairs ? add_pairs(totals[row][v], factor, xs[v])
                                                       : totals[row][v] + factor * xs[v];
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < VECTORS; v++) store(y + row * y_stride + v * LANES, totals[row][v]);
}

using Tile = void (*)(Rows, Rows, float*, int64_t, int64_t, float);

template <Words WORDS, int VECTORS, int... ROWS>
static constexpr Tile tile_of(int64_t rows, std::integer_sequence<int, ROWS...>) {
    constexpr Tile tiles[] = {product_tile<WORDS, ROWS + 1, VECTORS>...};
    return tiles[rows - 1];
}

// Which rows of a triangular A are not zero from where on, or up to where.
enum class Shape { full, lower, upper };

template <Words WORDS, int VECTORS>
static void product_columns(Rows a, Rows x, float* y, int64_t y_stride, int64_t rows, int64_t depth,
                            float beta, Shape shape) {
    constexpr int MOST = TILE_VECTORS / VECTORS;
    for (int64_t row = 0; row < rows; row += MOST) {
        int64_t some = rows - row < MOST ? rows - row : MOST;
        int64_t first = shape == Shape::upper ? row : 0;
        int64_t last = shape == Shape::lower && row + some < depth ? row + some : depth;
        tile_of<WORDS, VECTORS>(some, std::make_integer_sequence<int, MOST>())(
            {a.p + row * a.stride + first, a.stride}, {x.p + first * x.stride, x.stride},
            y + row * y_stride, y_stride, last - first, beta);
    }
}

// (rows, depth) by (depth, columns), in words; columns is a multiple of LANES.
template <Words WORDS = Words::numbers>
static inline void product(Rows a, Rows x, float* y, int64_t y_stride, int64_t rows, int64_t depth,
                           int64_t columns, float beta, Shape shape = Shape::full) {
    while (columns > 0) {
        int64_t vectors = columns / LANES;
        vectors = vectors == 4 ? 2 : vectors > 3 ? 3 : vectors;
        if (vectors == 3) product_columns<WORDS, 3>(a, x, y, y_stride, rows, depth, beta, shape);
        if (vectors == 2) product_columns<WORDS, 2>(a, x, y, y_stride, rows, depth, beta, shape);
        if (vectors == 1) product_columns<WORDS, 1>(a, x, y, y_stride, rows, depth, beta, shape);
        x.p += vectors * LANES, y += vectors * LANES, columns -= vectors * LANES;
    }
}

// Exchange the off-diagonal blocks of size H of every 2H x 2H block: one for each power of two transposes.
template <int H, int... L>
static inline void exchange(vec* v, std::integer_sequence<int, L...>) {
    for (int row = 0; row < LANES; row++)
        if (!(row & H)) {
            vec a = v[row], b = v[row + H];
            v[row] = __builtin_shufflevector(a, b, (L & H ? LANES + L - H : L)...);
            v[row + H] = __builtin_shufflevector(a, b, (L & H ? LANES + L : L + H)...);
        }
}

static inline void transpose(vec* v) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    if (LANES > 8) exchange<8>(v, lanes);
    exchange<4>(v, lanes), exchange<2>(v, lanes), exchange<1>(v, lanes);
}

// Write the transpose of (rows, columns) to (round_up(columns), round_up(rows)). What is written
// beyond the matrix is the transpose of what lies beyond it in `from`, whose strides hold it.
static inline void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride,
                             int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows; row += LANES)
        for (int64_t column = 0; column < columns; column += LANES) {
            vec v[LANES];
            for (int i = 0; i < LANES; i++) v[i] = load(from + (row + i) * from_stride + column);
            transpose(v);
            for (int i = 0; i < LANES; i++) store(to + (column + i) * to_stride + row, v[i]);
        }
}
