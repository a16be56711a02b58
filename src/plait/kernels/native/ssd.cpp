// The SSD scan in chunks, forward and backward: the algebra of `ssd.py`'s docstring, with everything
// of a chunk in the first two caches. A task is one group of one sequence; it walks its chunks and
// keeps the states of the group's heads at hand, so tasks share nothing and no result depends on the
// number of threads.
//
// States lie transposed, (N, P), so that every product has its long side along P, N or the chunk.
// Letters: Q chunk length, R heads per group, P head width, N state; `Pp`, `Np` padded to LANES.
//
// backward, per head, with E[s][q] = exp(c_q - c_s) for q >= s, else 0, and xdt = dt x:
//
//     z = exp(c_Q - c_s) (B g) + ((B C^T) o E) dy          gradient of xdt
//     dS^T += (xdt dy^T) o E                               gradient of the scores, summed over heads
//     dB^T += g (exp(c_Q - c_s) xdt)^T                     dC^T += h (exp(c_q) dy)^T
//     g = exp(c_Q) g + C^T (exp(c_q) dy)

#include <algorithm>

#include "product.h"

namespace {

constexpr int64_t Q = 32;

// Strides count elements between tokens; heads, groups and their channels lie side by side.
template <class T> struct Scan {
    const T *x, *B, *C;
    const float *dt, *A, *D;
    int64_t x_stride, B_stride, C_stride, dt_stride;
    const int64_t *bounds, *first_chunk;
    int64_t sequences, H, P, G, N;
    int64_t R() const { return H / G; }
    int64_t Pp() const { return round_up(P, LANES); }
    int64_t Np() const { return round_up(N, LANES); }
    int64_t state_size() const { return Np() * Pp(); }
};

// `rows` rows of `width` numbers, widened; up to Q rows and the padded width zero behind them.
template <class T>
void take(const T* from, int64_t stride, float* to, int64_t rows, int64_t width) {
    int64_t padded = round_up(width, LANES);
    for (int64_t row = 0; row < Q; row++)
        for (int64_t i = 0; i < padded; i += LANES)
            store(to + row * padded + i,
                  row < rows ? load(from + row * stride + i, width - i) : vec{});
}

template <class T>
void give(const float* from, int64_t padded, T* to, int64_t stride, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < width; i += LANES)
            store(to + row * stride + i, load(from + row * padded + i), width - i);
}

// (P, N) of a state tensor to (Np, Pp) and back.
void state_in(const float* from, float* to, int64_t P, int64_t N, int64_t Pp, int64_t Np) {
    std::fill(to, to + Np * Pp, 0.0f);
    if (from)
        for (int64_t p = 0; p < P; p++)
            for (int64_t n = 0; n < N; n++) to[n * Pp + p] = from[p * N + n];
}

void state_out(const float* from, float* to, int64_t P, int64_t N, int64_t Pp) {
    for (int64_t p = 0; p < P; p++)
        for (int64_t n = 0; n < N; n++) to[p * N + n] = from[n * Pp + p];
}

// to[row][:] = from[row][:] * factor[row] (+ to)
void scale_rows(const float* from, const float* factor, float* to, int64_t width, int64_t rows) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * width; i < (row + 1) * width; i += LANES)
            store(to + i, factor[row] * load(from + i));
}

float dot(const float* a, const float* b, int64_t n) {
    vec total{};
    for (int64_t i = 0; i < n; i += LANES) total += load(a + i) * load(b + i);
    return sum(total);
}

void vexp_all(float* p) {
    for (int64_t i = 0; i < Q; i += LANES) store(p + i, vexp(load(p + i)));
}

// A head's steps and decays in a chunk; steps behind the end are 0, for which nothing happens.
struct Decays {
    alignas(64) float dt[Q], total[Q], in[Q], out[Q];
    float whole;
    void take(const float* from, int64_t stride, int64_t rows, float A) {
        float running = 0.0f;
        for (int64_t q = 0; q < Q; q++) {
            dt[q] = q < rows ? from[q * stride] : 0.0f;
            running += dt[q] * A;
            total[q] = in[q] = running;
        }
        for (int64_t q = 0; q < Q; q++) out[q] = running - total[q];
        vexp_all(in), vexp_all(out);
        whole = in[Q - 1];
    }
};

template <class T>
void forward_task(const Scan<T>& k, int64_t sequence, int64_t group, const float* initial,
                  float* final_state, float* entering, T* y, float* y_wide) {
    int64_t R = k.R(), P = k.P, N = k.N, Pp = k.Pp(), Np = k.Np(), size = k.state_size();
    Buffer C(Q * Np), B(Q * Np), BT(Np * Q), S(Q * Q), M(Q * Q), x(Q * Pp), w(Q * Pp), out(Q * Pp),
        states(R * size);
    for (int64_t r = 0; r < R; r++) {
        int64_t head = sequence * k.H + group * R + r;
        state_in(initial ? initial + head * P * N : initial, &states[r * size], P, N, Pp, Np);
    }
    vec lanes = lane_numbers();
    int64_t end = k.bounds[sequence + 1], chunk = k.first_chunk[sequence];
    for (int64_t t = k.bounds[sequence]; t < end; t += Q, chunk++) {
        int64_t rows = std::min(Q, end - t);
        take(k.C + t * k.C_stride + group * N, k.C_stride, C.data(), rows, N);
        take(k.B + t * k.B_stride + group * N, k.B_stride, B.data(), rows, N);
        transpose(B.data(), Np, BT.data(), Q, Q, Np);
        product({C.data(), Np}, {BT.data(), Q}, S.data(), Q, Q, Np, Q, 0.0f);
        for (int64_t r = 0; r < R; r++) {
            int64_t head = group * R + r;
            float* h = &states[r * size];
            if (entering) std::copy(h, h + size, entering + (chunk * k.H + head) * size);
            Decays d;
            d.take(k.dt + t * k.dt_stride + head, k.dt_stride, rows, k.A[head]);
            for (int64_t q = 0; q < Q; q++)
                for (int64_t s = 0; s < Q; s += LANES) {
                    vec decay = vexp(least(d.total[q] - load(d.total + s), vec{}));
                    vec m = load(&S[q * Q + s]) * decay * load(d.dt + s);
                    store(&M[q * Q + s], blend(lanes <= (float)(q - s), m, vec{}));
                }
            take(k.x + t * k.x_stride + head * P, k.x_stride, x.data(), rows, P);
            product({C.data(), Np}, {h, Pp}, out.data(), Pp, Q, Np, Pp, 0.0f);
            scale_rows(out.data(), d.in, out.data(), Pp, Q);
            product({M.data(), Q}, {x.data(), Pp}, out.data(), Pp, Q, Q, Pp, 1.0f, Shape::lower);
            for (int64_t i = 0; i < Q * Pp; i += LANES)
                store(&out[i], load(&out[i]) + k.D[head] * load(&x[i]));
            int64_t place = t * k.H * P + head * P;
            give(out.data(), Pp, y + place, k.H * P, rows, P);
            if (y_wide) give(out.data(), Pp, y_wide + place, k.H * P, rows, P);
            for (int64_t s = 0; s < Q; s++) d.out[s] *= d.dt[s];
            scale_rows(x.data(), d.out, w.data(), Pp, Q);
            product({BT.data(), Q}, {w.data(), Pp}, h, Pp, Np, Q, Pp, d.whole);
        }
    }
    for (int64_t r = 0; r < R; r++) {
        int64_t head = sequence * k.H + group * R + r;
        state_out(&states[r * size], final_state + head * P * N, P, N, Pp);
    }
}

// Where gradients go; strides as of the inputs, A and D per sequence and head.
template <class T> struct Gradients {
    T *x, *B, *C;
    float *dt, *A, *D, *initial;
    int64_t x_stride, B_stride, C_stride;
};

template <class T> struct Backward {
    const Scan<T>& k;
    const Gradients<T>& out;
    const T* dy;
    const float *y, *entering;
    int64_t sequence, group;

    int64_t R = k.R(), P = k.P, N = k.N, Pp = k.Pp(), Np = k.Np(), size = k.state_size();
    Buffer C = Buffer(Q * Np), B = C, CT = C, BT = C, dBT = C, dCT = C, x = Buffer(Q * Pp), xdt = x,
           g_y = x, y_here = x, z = x, dyT = x, xT = x, ST = Buffer(Q * Q), E = ST, LT = ST, dST = ST,
           dL = ST, g = Buffer(R * size);

    void run(const float* dfinal) {
        for (int64_t r = 0; r < R; r++) {
            int64_t head = sequence * k.H + group * R + r;
            state_in(dfinal ? dfinal + head * P * N : dfinal, &g[r * size], P, N, Pp, Np);
            out.A[head] = out.D[head] = 0.0f;
        }
        int64_t start = k.bounds[sequence], end = k.bounds[sequence + 1];
        for (int64_t number = (end - start + Q - 1) / Q; number-- > 0;) {
            int64_t t = start + number * Q;
            chunk(t, std::min(Q, end - t), k.first_chunk[sequence] + number);
        }
        if (out.initial)
            for (int64_t r = 0; r < R; r++) {
                int64_t head = sequence * k.H + group * R + r;
                state_out(&g[r * size], out.initial + head * P * N, P, N, Pp);
            }
    }

    void chunk(int64_t t, int64_t rows, int64_t number) {
        take(k.C + t * k.C_stride + group * N, k.C_stride, C.data(), rows, N);
        take(k.B + t * k.B_stride + group * N, k.B_stride, B.data(), rows, N);
        transpose(C.data(), Np, CT.data(), Q, Q, Np);
        transpose(B.data(), Np, BT.data(), Q, Q, Np);
        product({B.data(), Np}, {CT.data(), Q}, ST.data(), Q, Q, Np, Q, 0.0f);
        for (Buffer* b : {&dST, &dBT, &dCT}) std::fill(b->begin(), b->end(), 0.0f);
        for (int64_t r = 0; r < R; r++) head(t, rows, number, r);
        product({BT.data(), Q}, {dST.data(), Q}, dCT.data(), Q, Np, Q, Q, 1.0f);
        transpose(dST.data(), Q, dL.data(), Q, Q, Q);
        product({CT.data(), Q}, {dL.data(), Q}, dBT.data(), Q, Np, Q, Q, 1.0f);
        transpose(dBT.data(), Q, B.data(), Np, Np, Q);
        give(B.data(), Np, out.B + t * out.B_stride + group * N, out.B_stride, rows, N);
        transpose(dCT.data(), Q, C.data(), Np, Np, Q);
        give(C.data(), Np, out.C + t * out.C_stride + group * N, out.C_stride, rows, N);
    }

    void masks(const Decays& d) {
        vec lanes = lane_numbers();
        for (int64_t s = 0; s < Q; s++)
            for (int64_t q = 0; q < Q; q += LANES) {
                vec decay = vexp(least(load(d.total + q) - d.total[s], vec{}));
                decay = blend(lanes >= (float)(s - q), decay, vec{});
                store(&E[s * Q + q], decay);
                store(&LT[s * Q + q], decay * load(&ST[s * Q + q]));
            }
    }

    void head(int64_t t, int64_t rows, int64_t number, int64_t r) {
        int64_t head = group * R + r, place = t * k.H * P + head * P;
        const float* h = entering + (number * k.H + head) * size;
        float* gs = &g[r * size];
        Decays d;
        d.take(k.dt + t * k.dt_stride + head, k.dt_stride, rows, k.A[head]);
        masks(d);
        take(k.x + t * k.x_stride + head * P, k.x_stride, x.data(), rows, P);
        take(dy + place, k.H * P, g_y.data(), rows, P);
        take(y + place, k.H * P, y_here.data(), rows, P);
        scale_rows(x.data(), d.dt, xdt.data(), Pp, Q);
        transpose(g_y.data(), Pp, dyT.data(), Q, Q, Pp);

        product({B.data(), Np}, {gs, Pp}, z.data(), Pp, Q, Np, Pp, 0.0f);
        scale_rows(z.data(), d.out, z.data(), Pp, Q);
        float at_end = d.whole * dot(gs, h, size) + dot(xdt.data(), z.data(), Q * Pp);
        product({LT.data(), Q}, {g_y.data(), Pp}, z.data(), Pp, Q, Q, Pp, 1.0f, Shape::upper);
        steps(t, rows, head, d, at_end);

        product({xdt.data(), Pp}, {dyT.data(), Q}, dL.data(), Q, Q, Pp, Q, 0.0f);
        for (int64_t i = 0; i < Q * Q; i += LANES)
            store(&dST[i], load(&dST[i]) + load(&dL[i]) * load(&E[i]));
        scale_rows(xdt.data(), d.out, xdt.data(), Pp, Q);
        transpose(xdt.data(), Pp, xT.data(), Q, Q, Pp);
        product({gs, Pp}, {xT.data(), Q}, dBT.data(), Q, Np, Pp, Q, 1.0f);
        scale_rows(g_y.data(), d.in, g_y.data(), Pp, Q);
        transpose(g_y.data(), Pp, dyT.data(), Q, Q, Pp);
        product({h, Pp}, {dyT.data(), Q}, dCT.data(), Q, Np, Pp, Q, 1.0f);
        product({CT.data(), Q}, {g_y.data(), Pp}, gs, Pp, Np, Q, Pp, d.whole);
    }

    // The gradients of x, dt, A and D from z, which is overwritten.
    void steps(int64_t t, int64_t rows, int64_t head, const Decays& d, float at_end) {
        float A = k.A[head], D = k.D[head], da = at_end, dA = 0.0f, dD = 0.0f;
        for (int64_t q = rows; q-- > 0;) {
            const float *x_ = &x[q * Pp], *dy_ = &g_y[q * Pp];
            float ddt = dot(x_, &z[q * Pp], Pp), x_dy = dot(x_, dy_, Pp);
            da += dot(dy_, &y_here[q * Pp], Pp) - D * x_dy - d.dt[q] * ddt;
            dA += da * d.dt[q], dD += x_dy;
            out.dt[(t + q) * k.H + head] = ddt + da * A;
            for (int64_t i = q * Pp; i < (q + 1) * Pp; i += LANES)
                store(&z[i], d.dt[q] * load(&z[i]) + D * load(&g_y[i]));
        }
        out.A[sequence * k.H + head] += dA;
        out.D[sequence * k.H + head] += dD;
        give(z.data(), Pp, out.x + t * out.x_stride + head * P, out.x_stride, rows, P);
    }
};

template <class T>
void forward(const Scan<T>& k, const float* initial, float* final_state, float* entering, T* y,
             float* y_wide, int64_t threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < k.sequences * k.G; task++)
        forward_task(k, task / k.G, task % k.G, initial, final_state, entering, y, y_wide);
}

template <class T>
void backward(const Scan<T>& k, const Gradients<T>& out, const T* dy, const float* y,
              const float* entering, const float* dfinal, int64_t threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < k.sequences * k.G; task++)
        Backward<T>{k, out, dy, y, entering, task / k.G, task % k.G}.run(dfinal);
}

}  // namespace

#define SCAN(T)                                                                                   \
    const T *x, const T *B, const T *C, const float *dt, const float *A, const float *D,          \
        int64_t x_stride, int64_t B_stride, int64_t C_stride, int64_t dt_stride,                  \
        const int64_t *bounds, const int64_t *first_chunk, int64_t sequences, int64_t H,          \
        int64_t P, int64_t G, int64_t N
#define SCAN_OF {x, B, C, dt, A, D, x_stride, B_stride, C_stride, dt_stride, bounds, first_chunk,  \
                 sequences, H, P, G, N}

#define EXPORT(T, NAME)                                                                           \
    extern "C" void ssd_forward_##NAME(SCAN(T), const float* initial, float* final_state,         \
                                       float* entering, T* y, float* y_wide, int64_t threads) {   \
        forward<T>(SCAN_OF, initial, final_state, entering, y, y_wide, threads);                  \
    }                                                                                             \
    extern "C" void ssd_backward_##NAME(                                                          \
        SCAN(T), T* dx, T* dB, T* dC, float* ddt, float* dA, float* dD, float* dinitial,          \
        int64_t dx_stride, int64_t dB_stride, int64_t dC_stride, const T* dy, const float* y,     \
        const float* entering, const float* dfinal, int64_t threads) {                            \
        backward<T>(SCAN_OF, {dx, dB, dC, ddt, dA, dD, dinitial, dx_stride, dB_stride, dC_stride}, \
                    dy, y, entering, dfinal, threads);                                            \
    }

EXPORT(float, float32)
EXPORT(bf16, bfloat16)
