// y = x W^T + b for a few rows of x: a decoding step. Every weight is read once and meets all rows,
// so the time is that of streaming W from memory. The rows of x stay in the first cache; a block of
// rows of W is walked side by side and asked for ahead of time.
//
// A row's result does not depend on the other rows nor on the number of threads: each product is
// summed in the same order whatever stands beside it.

#include "vec.h"

namespace {

constexpr int64_t MOST_ROWS = 8;
// bytes: rows of W lie one behind another, and one core alone waits on the first cache for memory
constexpr int64_t AHEAD = 10240;

// `step` elements at a time, and the sums of their products.
template <class T> struct Dot {
    static constexpr int64_t step = LANES;
    static vec take(const T* p) { return load(p); }
    static vec add(vec total, vec a, vec b) { return total + a * b; }
};

#if defined(__AVX512BF16__)
template <> struct Dot<bf16> {
    static constexpr int64_t step = 2 * LANES;
    static __m512i take(const bf16* p) { return _mm512_loadu_si512(p); }
    static vec add(vec total, __m512i a, __m512i b) {
        return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
    }
};
#endif

// ROWS of x (stride width) by COLUMNS rows of W.
template <class T, int ROWS, int COLUMNS>
void tile(const T* x, const T* w, const T* bias, T* y, int64_t width, int64_t y_stride) {
    constexpr int64_t step = Dot<T>::step;
    vec totals[ROWS][COLUMNS] = {};
    int64_t d = 0;
    for (; d + step <= width; d += step) {
        decltype(Dot<T>::take(w)) ws[COLUMNS];
        for (int column = 0; column < COLUMNS; column++) {
            const T* here = w + column * width + d;
            __builtin_prefetch((const char*)here + AHEAD, 0, 1);
            ws[column] = Dot<T>::take(here);
        }
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
            auto xs = Dot<T>::take(x + row * width + d);
            for (int column = 0; column < COLUMNS; column++)
                totals[row][column] = Dot<T>::add(totals[row][column], xs, ws[column]);
        }
    }
    if (d < width)
        for (int column = 0; column < COLUMNS; column++) {
            T last_w[step] = {};
            std::memcpy(last_w, w + column * width + d, (width - d) * sizeof(T));
            for (int row = 0; row < ROWS; row++) {
                T last_x[step] = {};
                std::memcpy(last_x, x + row * width + d, (width - d) * sizeof(T));
                totals[row][column] = Dot<T>::add(totals[row][column], Dot<T>::take(last_x),
                                                      Dot<T>::take(last_w));
            }
        }
    for (int row = 0; row < ROWS; row++)
        for (int column = 0; column < COLUMNS; column++)
            put(y + row * y_stride + column,
                sum(totals[row][column]) + (bias ? to_float(bias[column]) : 0.0f));
}

template <class T, int ROWS>
void columns(const T* x, const T* w, const T* bias, T* y, int64_t width, int64_t num_columns,
             int64_t y_stride) {
    constexpr int BLOCK = TILE_VECTORS / ROWS > 4 ? 4 : TILE_VECTORS / ROWS;
    int64_t c = 0;
    for (; c + BLOCK <= num_columns; c += BLOCK)
        tile<T, ROWS, BLOCK>(x, w + c * width, bias ? bias + c : bias, y + c, width, y_stride);
    for (; c < num_columns; c++)
        tile<T, ROWS, 1>(x, w + c * width, bias ? bias + c : bias, y + c, width, y_stride);
}

template <class T>
void gemv(const T* x, const T* w, const T* bias, T* y, int64_t rows, int64_t width,
          int64_t num_columns, int64_t num_threads) {
    using Columns = decltype(&columns<T, 1>);
    constexpr Columns by_rows[] = {columns<T, 1>, columns<T, 2>, columns<T, 3>, columns<T, 4>,
                                   columns<T, 5>, columns<T, 6>, columns<T, 7>, columns<T, 8>};
    constexpr int64_t BLOCK = 24;
    int64_t num_blocks = (num_columns + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) num_threads(num_threads)
    for (int64_t block = 0; block < num_blocks; block++) {
        int64_t first = block * BLOCK;
        int64_t count = num_columns - first < BLOCK ? num_columns - first : BLOCK;
        for (int64_t row = 0; row < rows; row += MOST_ROWS) {
            int64_t some = rows - row < MOST_ROWS ? rows - row : MOST_ROWS;
            by_rows[some - 1](x + row * width, w + first * width, bias ? bias + first : bias,
                              y + row * num_columns + first, width, count, num_columns);
        }
    }
}

}  // namespace

extern "C" void gemv_float32(const float* x, const float* w, const float* bias, float* y,
                             int64_t rows, int64_t width, int64_t columns, int64_t threads) {
    gemv(x, w, bias, y, rows, width, columns, threads);
}

extern "C" void gemv_bfloat16(const bf16* x, const bf16* w, const bf16* bias, bf16* y, int64_t rows,
                              int64_t width, int64_t columns, int64_t threads) {
    gemv(x, w, bias, y, rows, width, columns, threads);
}
