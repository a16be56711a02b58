// From logits to a token per row, as `engine/sampler` says: temperature, top-k, top-p, min-p, then
// the place of a number between 0 and 1 in the cumulative weights, in the order of ids.
//
// Nothing is sorted but a sliver: weights of a row are counted in buckets of their leading bits, and
// only the bucket in which the last kept one lies is put into order. Sums are float64.

#include <algorithm>
#include <functional>
#include <numeric>

#include "vec.h"

namespace {

constexpr int BITS_LEFT_OUT = 17;
constexpr int64_t BUCKETS = (0x3f800000 >> BITS_LEFT_OUT) + 1;  // leading bits of the numbers 0 ... 1

// As many floats as a register has room for when they are doubles.
constexpr int HALF = LANES / 2;
typedef float narrow __attribute__((vector_size(4 * HALF)));
typedef double wide __attribute__((vector_size(8 * HALF)));

int64_t bucket_of(float weight) {
    uint32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return bits >> BITS_LEFT_OUT;
}

struct Settings {
    double temperature, top_k, top_p, min_p, uniform;
};

float largest(const float* numbers, int64_t n) {
    vec peak = splat(numbers[0]);
    int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        vec next = load(numbers + i);
        peak = blend(peak < next, next, peak);
    }
    float lanes[LANES];
    store(lanes, peak);
    return std::max(*std::max_element(lanes, lanes + LANES),
                    whole < n ? *std::max_element(numbers + whole, numbers + n) : numbers[0]);
}

class Row {
    static constexpr int64_t BLOCK = 16 * LANES;
    Buffer weights;  // ends with zeros
    int64_t size;

    // Four sums, since one would wait for itself.
    double mass(float threshold, int64_t first, int64_t end) {
        wide sums[4] = {};
        for (int64_t i = first; i < end; i += 4 * HALF)
            for (int64_t j = 0; j < 4; j++) {
                narrow weight;
                std::memcpy(&weight, &weights[i + j * HALF], sizeof weight);
                weight = weight >= threshold ? weight : narrow{};
                sums[j] += __builtin_convertvector(weight, wide);
            }
        wide sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        double lanes[HALF];
        std::memcpy(lanes, &sum, sizeof sum);
        return std::accumulate(lanes, lanes + HALF, 0.0);
    }

    double mass(float threshold) { return mass(threshold, 0, size); }

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

  public:
    Row(const float* logits, int64_t n, float temperature) : weights(round_up(n, BLOCK)), size(n) {
        float peak = largest(logits, n);
        for (int64_t i = 0; i < n; i += LANES) {
            vec w = vexp((load(logits + i, n - i) - peak) / temperature);
            w = blend(w > 0.0f, least(w, splat(1.0f)), vec{});  // what is no number has no weight
            store(&weights[i], w, n - i);
        }
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
        for (int64_t first = 0; first < size; first += BLOCK) {
            double in_block = mass(threshold, first, first + BLOCK);
            if (sum + in_block <= target) {
                sum += in_block;
                continue;
            }
            for (int64_t i = first; i < std::min(first + BLOCK, size); i++)
                if (weights[i] >= threshold && weights[i] > 0.0f) {
                    last = i;
                    if ((sum += weights[i]) > target) return i;
                }
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
