// Depthwise causal convolution of four taps with SiLU, forward and backward.
//
// A task is one vector of channels over all tokens: the last inputs of a document slide through
// registers, so each number is read once, and the gradients of taps and bias are complete sums that
// no two tasks share. A document begins with its state (or zeros) in those registers, so none sees
// another. The state counts as the positions start-3 ... start-1 of its document.

#include "vec.h"

namespace {

constexpr int64_t TAPS = 4, PAST = TAPS - 1;
// tokens: their rows are further apart than the processor looks ahead by itself
constexpr int64_t AHEAD = 16;

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

template <class T>
void forward_lane(const Conv<T>& k, T* y, T* after, int64_t channel) {
    Lane lane(k, channel);
    for (int64_t document = 0; document < k.documents; document++) {
        int64_t start = k.bounds[document], end = k.bounds[document + 1];
        vec x[TAPS];
        for (int i = 0; i < PAST; i++) x[i + 1] = load(k.past(document, i, channel), lane.count);
        for (int64_t t = start; t < end; t++) {
            __builtin_prefetch(k.x + (t + AHEAD) * k.x_stride + channel);
            __builtin_prefetch(y + (t + AHEAD) * k.channels + channel, 1);
            x[0] = x[1], x[1] = x[2], x[2] = x[3];
            x[3] = load(k.x + t * k.x_stride + channel, lane.count);
            vec s = lane.sum(x);
            store(y + t * k.channels + channel, s * sigmoid(s), lane.count);
        }
        for (int i = 0; i < PAST; i++)
            store(after + (document * PAST + i) * k.channels + channel, x[i + 1], lane.count);
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

}  // namespace

#define CONV(T)                                                                                   \
    const T *x, const T *before, const float *taps, const float *bias, int64_t x_stride,          \
        int64_t channels, const int64_t *bounds, int64_t documents
#define EXPORT(T, NAME)                                                                           \
    extern "C" void conv_forward_##NAME(CONV(T), T* y, T* after, int64_t threads) {               \
        Conv<T> k{x, before, taps, bias, x_stride, channels, bounds, documents};                  \
        _Pragma("omp parallel for schedule(static) num_threads(threads)")                         \
        for (int64_t c = 0; c < channels; c += LANES) forward_lane(k, y, after, c);               \
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
