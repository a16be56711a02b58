// Causal attention of new tokens to a cache or to each other, forward.
//
// A task is one block of queries of the heads that share a key/value head. It walks the keys in
// blocks, which are brought into the order that products read once for all these heads, and keeps
// for every query the largest score so far, the sum of the weights relative to it and the weighted
// sum of values: softmax without a score ever leaving the second cache. Tasks share nothing, so no
// result depends on the number of threads.
//
// bfloat16 is multiplied in pairs, so weights are rounded to it; scores and sums are float32.

#include <algorithm>
#include <cmath>

#include "product.h"

namespace {

constexpr int64_t QUERIES = 32, KEYS = 128;

// Strides count elements between tokens and between heads; E is a whole number of vectors of words.
template <class T> struct Attention {
    static constexpr int64_t PER_WORD = sizeof(float) / sizeof(T);
    static constexpr Words WORDS = PER_WORD == 2 ? Words::pairs : Words::numbers;
    const T *q, *k, *v;
    T* y;
    int64_t q_token, q_head, k_token, k_head, v_token, v_head;
    int64_t num_new, num_before, heads, shared, E;
};

template <class T> struct Task {
    const Attention<T>& a;
    int64_t head, first, rows;  // of keys and values; of the new tokens
    static constexpr int64_t PER_WORD = Attention<T>::PER_WORD;
    static constexpr Words WORDS = Attention<T>::WORDS;

    int64_t E = a.E, depth = E / PER_WORD;
    // keys (words of E, keys), values (words of keys, E), scores (queries, keys), sums (queries, E)
    Buffer keys = Buffer(depth * KEYS), values = Buffer(KEYS / PER_WORD * E), raw = keys,
           scores = Buffer(QUERIES * KEYS), weights = Buffer(QUERIES * KEYS / PER_WORD),
           sums = Buffer(a.shared * QUERIES * E), most = Buffer(a.shared * QUERIES), total = most;

    void run() {
        std::fill(most.begin(), most.end(), -INFINITY);
        int64_t visible = a.num_before + first + rows;
        for (int64_t start = 0; start < visible; start += KEYS) {
            int64_t count = std::min(KEYS, visible - start);
            take_keys(start, count);
            take_values(start, count);
            for (int64_t i = 0; i < a.shared; i++) meet(i, start);
        }
        for (int64_t i = 0; i < a.shared; i++) give(i);
    }

    void take_keys(int64_t start, int64_t count) {
        for (int64_t row = 0; row < KEYS; row++) {
            float* to = &raw[row * depth];
            const T* from = a.k + (start + row) * a.k_token + head * a.k_head;
            if (row < count) std::memcpy(to, from, E * sizeof(T));
            else std::fill(to, to + depth, 0.0f);
        }
        transpose(raw.data(), depth, keys.data(), KEYS, KEYS, depth);
    }

    void take_values(int64_t start, int64_t count) {
        const T zeros[LANES] = {};
        for (int64_t row = 0; row < KEYS; row += PER_WORD)
            for (int64_t e = 0; e < E; e += LANES) {
                const T* from = a.v + (start + row) * a.v_token + head * a.v_head + e;
                vec first_row = load(row < count ? from : zeros);
                float* to = &values[row / PER_WORD * E + e];
                if constexpr (PER_WORD == 1) store(to, first_row);
                else store(to, pair(first_row, load(row + 1 < count ? from + a.v_token : zeros)));
            }
    }

    // The queries of one head meet a block of keys.
    void meet(int64_t i, int64_t start) {
        const T* q = a.q + first * a.q_token + (head * a.shared + i) * a.q_head;
        product<WORDS>({(const float*)q, a.q_token / PER_WORD}, {keys.data(), KEYS}, scores.data(),
                       KEYS, rows, depth, KEYS, 0.0f);
        for (int64_t row = 0; row < rows; row++) weigh(i * QUERIES + row, row, start);
        product<WORDS>({weights.data(), KEYS / PER_WORD}, {values.data(), E}, &sums[i * QUERIES * E],
                       E, rows, KEYS / PER_WORD, E, 1.0f);
    }

    // Scores of a query to weights relative to its largest score; older sums shrink if that grew.
    void weigh(int64_t query, int64_t row, int64_t start) {
        const float scale = 1.0f / std::sqrt((float)E);
        float* score = &scores[row * KEYS];
        vec lanes = lane_numbers(), highest = splat(-INFINITY), sum_{};
        float visible = (float)(a.num_before + first + row + 1 - start);
        for (int64_t key = 0; key < KEYS; key += LANES) {
            vec s = scale * load(score + key);
            s = blend(lanes + (float)key < visible, s, splat(-INFINITY));
            store(score + key, s);
            highest = blend(highest < s, s, highest);
        }
        float before = most[query], now = std::max(before, largest(highest));
        T* weight = (T*)weights.data() + row * KEYS;
        for (int64_t key = 0; key < KEYS; key += LANES) {
            vec w = vexp(load(score + key) - now);
            store(weight + key, w);
            sum_ += w;
        }
        most[query] = now;
        if (now > before) {
            float shrink = std::exp(before - now);
            total[query] *= shrink;
            for (int64_t e = query * E; e < (query + 1) * E; e += LANES)
                store(&sums[e], shrink * load(&sums[e]));
        }
        total[query] += sum(sum_);
    }

    void give(int64_t i) {
        for (int64_t row = 0; row < rows; row++) {
            int64_t query = i * QUERIES + row, place = (first + row) * a.heads + head;
            T* to = a.y + (place * a.shared + i) * E;
            for (int64_t e = 0; e < E; e += LANES)
                store(to + e, load(&sums[query * E + e]) / total[query]);
        }
    }
};

template <class T> void attend(const Attention<T>& a, int64_t threads) {
    int64_t blocks = (a.num_new + QUERIES - 1) / QUERIES;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < blocks * a.heads; task++) {
        int64_t first = (blocks - 1 - task / a.heads) * QUERIES;  // those with most keys first
        Task<T>{a, task % a.heads, first, std::min(QUERIES, a.num_new - first)}.run();
    }
}

}  // namespace

#define EXPORT(T, NAME)                                                                           \
    extern "C" void attention_##NAME(                                                             \
        const T* q, const T* k, const T* v, T* y, int64_t q_token, int64_t q_head, int64_t k_token, \
        int64_t k_head, int64_t v_token, int64_t v_head, int64_t num_new, int64_t num_before,     \
        int64_t heads, int64_t shared, int64_t E, int64_t threads) {                              \
        attend<T>({q, k, v, y, q_token, q_head, k_token, k_head, v_token, v_head, num_new,        \
                   num_before, heads, shared, E},                                                 \
                  threads);                                                                       \
    }

EXPORT(float, float32)
EXPORT(bf16, bfloat16)
