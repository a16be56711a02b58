// From logits to a token per row, as `engine/sampler` says: temperature, top-k, top-p, min-p, then
// the place of a number between 0 and 1 in the cumulative weights, in the order of ids.
//
// Nothing is sorted but a sliver: weights of a row are counted in buckets of their leading bits, and
// only the bucket in which the last kept one lies is put into order. Sums are float64.

#include <algorithm>
#include <functional>

#include "vec.h"

namespace {

constexpr int64_t BUCKETS = 0x3f80 + 1;  // the upper halves of the numbers 0 ... 1

int64_t bucket_of(float weight) {
    uint32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return bits >> 16;
}

struct Settings {
    double temperature, top_k, top_p, min_p, uniform;
};

class Row {
    Buffer weights;
    int64_t size;

  public:
    Row(const float* logits, int64_t n, float temperature) : weights(round_up(n, LANES)), size(n) {
        float peak = *std::max_element(logits, logits + n);
        for (int64_t i = 0; i < n; i += LANES) {
            vec w = vexp((load(logits + i, n - i) - peak) / temperature);
            w = blend(w > 0.0f, least(w, splat(1.0f)), vec{});  // what is no number has no weight
            store(&weights[i], w, n - i);
        }
    }

    double mass(float threshold) {
        double sum = 0.0;
        for (int64_t i = 0; i < size; i++) sum += weights[i] >= threshold ? weights[i] : 0.0;
        return sum;
    }

    // The last weight, from the largest down, in front of which the amounts are below the limit.
    template <class Amount> float last_kept(double limit, Amount amount) {
        std::vector<double> amounts(BUCKETS);
        for (int64_t i = 0; i < size; i++) amounts[bucket_of(weights[i])] += amount(weights[i]);
        int64_t bucket = BUCKETS - 1;
        double before = 0.0;
        while (bucket > 0 && before + amounts[bucket] < limit) before += amounts[bucket--];
        std::vector<float> sliver;
        for (int64_t i = 0; i < size; i++)
            if (bucket_of(weights[i]) == bucket) sliver.push_back(weights[i]);
        std::sort(sliver.begin(), sliver.end(), std::greater<float>());
        float last = 0.0f;
        for (float weight : sliver) {
            if (before >= limit) break;
            last = weight;
            before += amount(weight);
        }
        return last;
    }

    float threshold(const Settings& s) {
        float least = 0.0f;
        if (s.top_k > 0 && s.top_k < size)
            least = last_kept(s.top_k, [](float) { return 1.0; });
        if (s.top_p < 1.0) {
            auto kept = [least](float weight) { return weight >= least ? (double)weight : 0.0; };
            least = std::max(least, last_kept(s.top_p * mass(least), kept));
        }
        return std::max(least, (float)s.min_p);
    }

    // The first id whose cumulative weight exceeds the target: one without weight never does.
    int64_t pick(float threshold, double uniform) {
        double target = uniform * mass(threshold), sum = 0.0;
        int64_t last = 0;
        for (int64_t i = 0; i < size; i++)
            if (weights[i] >= threshold && weights[i] > 0.0f) {
                last = i;
                if ((sum += weights[i]) > target) break;
            }
        return last;
    }
};

}  // namespace

extern "C" void sample_float32(const float* logits, const Settings* settings, int64_t* tokens,
                               int64_t rows, int64_t size, int64_t threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < rows; i++) {
        const Settings& s = settings[i];
        Row row(logits + i * size, size, (float)s.temperature);
        tokens[i] = row.pick(row.threshold(s), s.uniform);
    }
}
