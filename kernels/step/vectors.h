// What all the sources here share: vectors of floats, and sizes of products.

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16, TILE = 4 };  // floats of a vector, rows that a product takes at a time
#else
enum { LANES = 8, TILE = 1 };
#endif
enum { PANEL = 64, VECTORS = PANEL / LANES };  // columns of a panel of weights
// Products of numbers that one thread does alone: what two gain on fewer is less than a fork, and where another process
// has their core, they wait for it a hundred times as long as the work takes.
enum { ALONE = 4 << 20 };
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// Element by element, also in place: without INDEPENDENT the compiler would have to fear that arrays overlap.
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

// No infinity is divided by: -ffast-math takes reciprocals of vectors by a step of Newton's, which makes it NaN.
static inline float sigmoid(float x) { return 1 / (1 + expf(x < -87 ? 87 : -x)); }

// `rows` rows of out (rows, N), at `first`: the panel `w` (K, 64) times the rows of `in`, `stride` floats apart, plus
// 64 floats of `bias` (or NULL); added to what is there with `adds`.
static inline __attribute__((always_inline)) void product_tile(
    const int rows, int64_t K, int64_t N, const float *w, const float *bias, const float *in, int64_t stride,
    float *out, int64_t first, int adds)
{
    vector sum[TILE][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            sum[r][v] = bias ? *(const vector *)(bias + v * LANES) : (vector){0};
    for (int64_t k = 0; k < K; k++, w += PANEL)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            const vector weights = *(const vector *)(w + v * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) sum[r][v] += in[r * stride + k] * weights;
        }
    const int64_t columns = N - first < PANEL ? N - first : PANEL;
    for (int r = 0; r < rows; r++) {
        const float *from = (const float *)sum[r];
        float *to = out + r * N + first;
        if (adds)
            for (int64_t j = 0; j < columns; j++) to[j] += from[j];
        else
            memcpy(to, from, columns * sizeof(float));
    }
}
