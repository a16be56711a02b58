// A register of floats at a time, in GCC's and Clang's vector extensions, so that one source serves
// every processor. Only what converts and multiplies bfloat16 names instructions, and has a portable
// form beside it.
//
// bfloat16 is the upper half of a float32: widening is a shift, narrowing rounds to nearest even (the
// instruction for it takes numbers below 1e-38 for zero).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// Lanes of a vector, and how many vectors of sums a loop may keep in registers: with wider vectors than
// the machine's the compiler would go through memory.
#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_VECTORS = 24;
#else
constexpr int LANES = 8, TILE_VECTORS = 12;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

// Floats, zero at first, aligned so that no vector at a multiple of LANES crosses a cache line.
class Buffer {
    struct alignas(64) Line {
        float numbers[16];
    };
    std::vector<Line> lines;
    int64_t size;

  public:
    explicit Buffer(int64_t n) : lines((n + 15) / 16), size(n) {}
    float* data() { return (float*)lines.data(); }
    float& operator[](int64_t i) { return data()[i]; }
    float* begin() { return data(); }
    float* end() { return data() + size; }
};

struct bf16 {
    uint16_t bits;
};

static inline int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

static inline vec splat(float x) { return x - vec{}; }

static inline vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline vec load(const bf16* p) {
    hvec h;
    std::memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
}

// The 32 bits at p in every lane, whatever they stand for.
static inline vec splat_word(const float* p) {
    int32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return (vec)(bits - ivec{});
}

// Two vectors of bfloat16 numbers, widened, as one of pairs.
static inline vec pair(vec lower, vec upper) { return (vec)((uvec)lower >> 16 | (uvec)upper); }

// Each lane of a and b holds two bfloat16 numbers: total + a0 b0 + a1 b1.
static inline vec add_pairs(vec total, vec a, vec b) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
#else
    const uvec upper = 0xffff0000 - uvec{};
    total += (vec)((uvec)a << 16) * (vec)((uvec)b << 16);
    return total + (vec)((uvec)a & upper) * (vec)((uvec)b & upper);
#endif
}

static inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

static inline void store(bf16* p, vec v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &h, sizeof h);
#else
    uvec u = (uvec)v;
    uvec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    ivec is_number = (ivec)(v == v);
    rounded = (rounded & (uvec)is_number) | (0x7fc0 & ~(uvec)is_number);
    hvec h = __builtin_convertvector(rounded, hvec);
    std::memcpy(p, &h, sizeof h);
#endif
}

// The first `count` lanes only, the others zero: 0 < count.
template <class T> static inline vec load(const T* p, int64_t count) {
    if (count >= LANES) return load(p);
    T buffer[LANES] = {};
    std::memcpy(buffer, p, count * sizeof(T));
    return load(buffer);
}

template <class T> static inline void store(T* p, vec v, int64_t count) {
    if (count >= LANES) return store(p, v);
    T buffer[LANES];
    store(buffer, v);
    std::memcpy(p, buffer, count * sizeof(T));
}

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) {
    uint32_t u = (uint32_t)x.bits << 16;
    float f;
    std::memcpy(&f, &u, sizeof f);
    return f;
}

static inline void put(float* p, float x) { *p = x; }
static inline void put(bf16* p, float x) {
    uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    p->bits = x == x ? (u + 0x7fff + ((u >> 16) & 1)) >> 16 : 0x7fc0;
}

// One number of all lanes, pairwise, which is also the order in which a sum rounds least.
template <class Join> static inline float reduce(vec v, Join join) {
    typedef float half __attribute__((vector_size(32)));
    typedef float quarter __attribute__((vector_size(16)));
#if defined(__AVX512F__)
    half h = join(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                  __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
#else
    half h = v;
#endif
    quarter q = join(__builtin_shufflevector(h, h, 0, 1, 2, 3),
                     __builtin_shufflevector(h, h, 4, 5, 6, 7));
    return join(join(q[0], q[2]), join(q[1], q[3]));
}

static inline float sum(vec v) {
    return reduce(v, [](auto a, auto b) { return a + b; });
}

static inline float largest(vec v) {
    return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}

static inline vec lane_numbers() {
    vec v;
    for (int i = 0; i < LANES; i++) v[i] = (float)i;
    return v;
}

static inline vec blend(ivec mask, vec yes, vec no) { return mask ? yes : no; }
static inline vec least(vec a, vec b) { return blend(a < b, a, b); }

// exp to about two units in the last place, for x <= 88; 0 below -87, where float32 loses its normal
// numbers. x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial in r, and n put into the exponent.
static inline vec vexp(vec x) {
    vec clamped = blend(x > -87.0f, least(x, splat(88.0f)), splat(-87.0f));
    const float shifter = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
    vec shifted = clamped * 1.44269504f + shifter;
    vec n = shifted - shifter;
    vec r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vec scale = (vec)(((ivec)shifted + (127 - 0x4b400000)) << 23);
    vec result = blend(x > -87.0f, p * scale, vec{});
    return blend(x == x, result, x);
}

static inline vec sigmoid(vec x) { return 1.0f / (1.0f + vexp(-x)); }
