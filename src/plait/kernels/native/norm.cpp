// RMS norm of rows or of groups of their channels, with or without a gate: u = y silu(z),
// n = u (mean(u^2) + eps)^-1/2, out = n w. Forward keeps the factor of each row and group, backward
// computes the rest again.
//
// Backward walks blocks of ROWS rows; each block's part of the weight's gradient is a row of
// `partial`, and these are added in their order, so no result depends on the number of threads.

#include <cmath>

#include "vec.h"

namespace {

constexpr int64_t ROWS = 32;

// z may be null; scales (rows, groups).
template <class T> struct Norm {
    const T *y, *z;
    const float* weight;
    float* scales;
    int64_t y_stride, z_stride, rows, groups, width;  // width of a group
    int64_t channels() const { return groups * width; }
};

// The sum of squares of `width` gated inputs, which go to u.
template <class T> float gate(const T* y, const T* z, float* u, int64_t width) {
    vec total{};
    for (int64_t i = 0; i < width; i += LANES) {
        vec v = load(y + i, width - i);
        if (z) {
            vec g = load(z + i, width - i);
            v = v * g * sigmoid(g);
        }
        store(u + i, v);
        total += v * v;
    }
    return sum(total);
}

template <class T> void forward_row(const Norm<T>& k, T* out, int64_t row, float* u, float eps) {
    for (int64_t group = 0; group < k.groups; group++) {
        int64_t first = group * k.width;
        const T* z = k.z ? k.z + row * k.z_stride + first : k.z;
        float squares = gate(k.y + row * k.y_stride + first, z, u, k.width);
        float scale = 1.0f / std::sqrt(squares / k.width + eps);
        k.scales[row * k.groups + group] = scale;
        T* to = out + row * k.channels() + first;
        for (int64_t i = 0; i < k.width; i += LANES) {
            int64_t count = k.width - i;
            store(to + i, load(u + i) * scale * load(k.weight + first + i, count), count);
        }
    }
}

template <class T> struct Gradients {
    const T* dout;
    T *dy, *dz;
    int64_t dout_stride, dz_stride;
};

template <class T>
void backward_row(const Norm<T>& k, const Gradients<T>& g, int64_t row, float* u, float* dweight) {
    for (int64_t group = 0; group < k.groups; group++) {
        int64_t first = group * k.width;
        const T* y = k.y + row * k.y_stride + first;
        const T* z = k.z ? k.z + row * k.z_stride + first : k.z;
        const T* dout = g.dout + row * g.dout_stride + first;
        float scale = k.scales[row * k.groups + group];
        gate(y, z, u, k.width);
        vec total{};
        for (int64_t i = 0; i < k.width; i += LANES) {
            int64_t count = k.width - i;
            vec n = load(u + i) * scale, d = load(dout + i, count);
            total += d * load(k.weight + first + i, count) * n;
            store(dweight + first + i, load(dweight + first + i, count) + d * n, count);
        }
        float mean = sum(total) / k.width;
        for (int64_t i = 0; i < k.width; i += LANES) {
            int64_t count = k.width - i;
            vec n = load(u + i) * scale;
            vec dn = load(dout + i, count) * load(k.weight + first + i, count);
            vec du = (dn - n * mean) * scale;
            if (z) {
                vec v = load(z + i, count), s = sigmoid(v);
                T* dz = g.dz + row * g.dz_stride + first;
                store(dz + i, du * load(y + i, count) * s * (1.0f + v * (1.0f - s)), count);
                du = du * v * s;
            }
            store(g.dy + row * k.channels() + first + i, du, count);
        }
    }
}

template <class T> void forward(const Norm<T>& k, T* out, float eps, int64_t threads) {
    int64_t blocks = (k.rows + ROWS - 1) / ROWS;
#pragma omp parallel for schedule(static) num_threads(threads) if (blocks > 1)
    for (int64_t block = 0; block < blocks; block++) {
        Buffer u(round_up(k.width, LANES));
        for (int64_t row = block * ROWS; row < k.rows && row < (block + 1) * ROWS; row++)
            forward_row(k, out, row, u.data(), eps);
    }
}

template <class T>
void backward(const Norm<T>& k, const Gradients<T>& g, float* dweight, int64_t threads) {
    int64_t blocks = (k.rows + ROWS - 1) / ROWS, channels = k.channels();
    Buffer partial(blocks * channels);
#pragma omp parallel for schedule(static) num_threads(threads) if (blocks > 1)
    for (int64_t block = 0; block < blocks; block++) {
        Buffer u(round_up(k.width, LANES));
        for (int64_t row = block * ROWS; row < k.rows && row < (block + 1) * ROWS; row++)
            backward_row(k, g, row, u.data(), &partial[block * channels]);
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (blocks > 1)
    for (int64_t c = 0; c < channels; c += LANES) {
        vec total{};
        for (int64_t block = 0; block < blocks; block++)
            total += load(&partial[block * channels + c], channels - c);
        store(dweight + c, total, channels - c);
    }
}

}  // namespace

#define NORM(T)                                                                                   \
    const T *y, const T *z, const float *weight, float *scales, int64_t y_stride,                 \
        int64_t z_stride, int64_t rows, int64_t groups, int64_t width
#define EXPORT(T, NAME)                                                                           \
    extern "C" void norm_forward_##NAME(NORM(T), T* out, double eps, int64_t threads) {           \
        forward<T>({y, z, weight, scales, y_stride, z_stride, rows, groups, width}, out, eps,     \
                   threads);                                                                      \
    }                                                                                             \
    extern "C" void norm_backward_##NAME(NORM(T), const T* dout, T* dy, T* dz, float* dweight,    \
                                         int64_t dout_stride, int64_t dz_stride,                  \
                                         int64_t threads) {                                       \
        backward<T>({y, z, weight, scales, y_stride, z_stride, rows, groups, width},              \
                    {dout, dy, dz, dout_stride, dz_stride}, dweight, threads);                    \
    }

EXPORT(float, float32)
EXPORT(bf16, bfloat16)
