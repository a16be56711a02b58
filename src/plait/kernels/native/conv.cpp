// Depthwise causal convolution of four taps with SiLU, forward and backward.
//
// A task is one vector of channels over all tokens: the last inputs of a document slide through
// registers, so each number is read once, and the gradients of taps and bias are complete sums that
// no two tasks share. A document begins with its state (or zeros) in those registers, so none sees
// another. The state counts as the positions start-3 ... start-1 of its document.

#include <algorithm>

#include "vec.h"

namespace {

constexpr int64_t TAPS = 4, PAST = TAPS - 1;
// tokens: their rows are further apart than the processor looks ahead by itself
constexpr int64_t AHEAD = 16;
constexpr int64_t TOKENS = 64;

// `before` and `after` are (documents, PAST, channels), taps (TAPS, channels).
template <class T> struct Conv {
    const T *x, *before;
    const float *taps, *bias;
    int64_t x_stride, channels;
    const int64_t* bounds;
    int64_t documents;

    // one of the PAST inputs before a document, oldest first
    const T* past(int64_t document, int64_t i, int64_t channel) const {
        return before + (document * PAST + i) * channels + channel;
    }
};

struct Lane {  // one vector of channels: its weights, and how many of its lanes there are
    int64_t channel, count;
    vec taps[TAPS], bias;
    template <class T> Lane(const Conv<T>& k, int64_t c) : channel(c), count(k.channels - c) {
        for (int w = 0; w < TAPS; w++) taps[w] = load(k.taps + w * k.channels + c, count);
        bias = load(k.bias + c, count);
    }
    vec sum(const vec* x) const {
        return bias + taps[0] * x[0] + taps[1] * x[1] + taps[2] * x[2] + taps[3] * x[3];
    }
};

// The activations of a block of tokens. The inputs before it are read once more, so blocks are tasks
// of their own: a few dozen rows stay in the caches while channel after channel passes over them.
template <class T>
void forward_block(const Conv<T>& k, T* y, int64_t document, int64_t first, int64_t last) {
    int64_t start = k.bounds[document];
    for (int64_t channel = 0; channel < k.channels; channel += LANES) {
        Lane lane(k, channel);
        auto input = [&](int64_t t) {
            const T* from = t >= start ? k.x + t * k.x_stride + channel
                                       : k.past(document, t - start + PAST, channel);
            return load(from, lane.count);
        };
        vec x[TAPS];
        for (int i = 0; i < PAST; i++) x[i + 1] = input(first - PAST + i);
        for (int64_t t = first; t < last; t++) {
            x[0] = x[1], x[1] = x[2], x[2] = x[3];
            x[3] = load(k.x + t * k.x_stride + channel, lane.count);
            vec s = lane.sum(x);
            store(y + t * k.channels + channel, s * sigmoid(s), lane.count);
        }
    }
}

template <class T> void state_after(const Conv<T>& k, T* after, int64_t document) {
    int64_t start = k.bounds[document], end = k.bounds[document + 1];
    for (int64_t i = 0; i < PAST; i++) {
        int64_t t = end - PAST + i;
        const T* from = t >= start ? k.x + t * k.x_stride : k.past(document, t - start + PAST, 0);
        std::copy(from, from + k.channels, after + (document * PAST + i) * k.channels);
    }
}

template <class T> struct Gradients {
    const T *dy, *dafter;
    T *dx, *dbefore;
    float *dtaps, *dbias;
    int64_t dy_stride, dx_stride;
};

template <class T>
void backward_lane(const Conv<T>& k, const Gradients<T>& g, int64_t channel) {
    Lane lane(k, channel);
    vec dtaps[TAPS] = {}, dbias{};
    for (int64_t document = 0; document < k.documents; document++) {
        int64_t start = k.bounds[document], end = k.bounds[document + 1];
        vec x[TAPS], ds[TAPS] = {};  // inputs and gradients of the sums, at t-3 ... t
        for (int i = 0; i < PAST; i++) x[i + 1] = load(k.past(document, i, channel), lane.count);
        // the input at t-3 has met its last sum
        auto finish = [&](int64_t t, vec more) {
            vec dx = lane.taps[3] * ds[0] + lane.taps[2] * ds[1] + lane.taps[1] * ds[2] +
                     lane.taps[0] * ds[3] + more;
            int64_t position = t - PAST, past = position - start;
            T* to = past >= 0 ? g.dx + position * g.dx_stride
                              : g.dbefore + (document * PAST + PAST + past) * k.channels;
            store(to + channel, dx, lane.count);
        };
        for (int64_t t = start; t < end; t++) {
            __builtin_prefetch(k.x + (t + AHEAD) * k.x_stride + channel);
            __builtin_prefetch(g.dy + (t + AHEAD) * g.dy_stride + channel);
            __builtin_prefetch(g.dx + (t + AHEAD) * g.dx_stride + channel, 1);
            x[0] = x[1], x[1] = x[2], x[2] = x[3];
            ds[0] = ds[1], ds[1] = ds[2], ds[2] = ds[3];
            x[3] = load(k.x + t * k.x_stride + channel, lane.count);
            vec s = lane.sum(x), gate = sigmoid(s);
            ds[3] = load(g.dy + t * g.dy_stride + channel, lane.count) * gate *
                    (1.0f + s * (1.0f - gate));
            for (int w = 0; w < TAPS; w++) dtaps[w] += ds[3] * x[w];
            dbias += ds[3];
            finish(t, vec{});
        }
        for (int i = 0; i < PAST; i++) {
            ds[0] = ds[1], ds[1] = ds[2], ds[2] = ds[3], ds[3] = vec{};
            const T* more = g.dafter + (document * PAST + i) * k.channels + channel;
            finish(end + i, load(more, lane.count));
        }
    }
    for (int w = 0; w < TAPS; w++)
        store(g.dtaps + w * k.channels + channel, dtaps[w], lane.count);
    store(g.dbias + channel, dbias, lane.count);
}

template <class T> void forward(const Conv<T>& k, T* y, T* after, int64_t threads) {
    struct Block {
        int64_t document, first, last;
    };
    std::vector<Block> blocks;
    for (int64_t d = 0; d < k.documents; d++) {
        state_after(k, after, d);
        for (int64_t t = k.bounds[d]; t < k.bounds[d + 1]; t += TOKENS)
            blocks.push_back({d, t, std::min(t + TOKENS, k.bounds[d + 1])});
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (size_t i = 0; i < blocks.size(); i++)
        forward_block(k, y, blocks[i].document, blocks[i].first, blocks[i].last);
}

}  // namespace

#define CONV(T)                                                                                   \
    const T *x, const T *before, const float *taps, const float *bias, int64_t x_stride,          \
        int64_t channels, const int64_t *bounds, int64_t documents
#define EXPORT(T, NAME)                                                                           \
    extern "C" void conv_forward_##NAME(CONV(T), T* y, T* after, int64_t threads) {               \
        Conv<T> k{x, before, taps, bias, x_stride, channels, bounds, documents};                  \
        forward(k, y, after, threads);                                                            \
    }                                                                                             \
    extern "C" void conv_backward_##NAME(CONV(T), const T* dy, const T* dafter, T* dx,            \
                                         T* dbefore, float* dtaps, float* dbias,                  \
                                         int64_t dy_stride, int64_t dx_stride, int64_t threads) { \
        Conv<T> k{x, before, taps, bias, x_stride, channels, bounds, documents};                  \
        Gradients<T> g{dy, dafter, dx, dbefore, dtaps, dbias, dy_stride, dx_stride};              \
        _Pragma("omp parallel for schedule(static) num_threads(threads)")                         \
        for (int64_t c = 0; c < channels; c += LANES) backward_lane(k, g, c);                     \
    }

EXPORT(float, float32)
EXPORT(bf16, bfloat16)
