// Cross-entropy of rows of logits, and its gradient in their place: (softmax - one-hot) scale. Each
// row is widened once, into a buffer that stays in cache while it is passed over.

#include <cmath>

#include "vec.h"

namespace {

template <class T>
float row(T* logits, int64_t width, int64_t target, float scale, float* wide) {
    float correct = to_float(logits[target]);
    vec highest = splat(correct), total{};
    for (int64_t i = 0; i < width; i += LANES) {
        vec v = i + LANES <= width ? load(logits + i) : highest;
        for (int64_t j = i; i + LANES > width && j < width; j++) v[j - i] = to_float(logits[j]);
        highest = blend(v > highest, v, highest);
    }
    float most = correct;
    for (int64_t j = 0; j < LANES; j++) most = std::fmax(most, highest[j]);
    for (int64_t i = 0; i < width; i += LANES) {
        int64_t count = width - i;
        vec e = vexp(load(logits + i, count) - most);
        store(wide + i, e);
        if (count < LANES)
            for (int64_t j = count; j < LANES; j++) e[j] = 0.0f;
        total += e;
    }
    float whole = sum(total), factor = scale / whole;
    for (int64_t i = 0; i < width; i += LANES)
        store(logits + i, load(wide + i) * factor, width - i);
    put(logits + target, (wide[target] / whole - 1.0f) * scale);
    return std::log(whole) + most - correct;
}

template <class T>
void rows(T* logits, const int64_t* targets, const float* scales, float* losses, int64_t num_rows,
          int64_t width, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        Buffer wide(round_up(width, LANES));
#pragma omp for schedule(static)
        for (int64_t r = 0; r < num_rows; r++)
            losses[r] = row(logits + r * width, width, targets[r], scales[r], wide.data());
    }
}

}  // namespace

extern "C" void cross_entropy_float32(float* logits, const int64_t* targets, const float* scales,
                                      float* losses, int64_t num_rows, int64_t width,
                                      int64_t threads) {
    rows(logits, targets, scales, losses, num_rows, width, threads);
}

extern "C" void cross_entropy_bfloat16(bf16* logits, const int64_t* targets, const float* scales,
                                       float* losses, int64_t num_rows, int64_t width,
                                       int64_t threads) {
    rows(logits, targets, scales, losses, num_rows, width, threads);
}
