// Parts of a Transformer's training step that are many small operations in torch and one pass here, forward and backward:
// activations, and QK-norm with RoPE. kernels/step/elements.py calls them. Numbers are float32, or with `half` bfloat16,
// whose sums are of floats.

#include "vectors.h"

static inline __attribute__((always_inline)) float get(const int half, const void *x, int64_t i)
{
    if (!half) return ((const float *)x)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline __attribute__((always_inline)) void set(const int half, void *x, int64_t i, float value)
{
    if (!half) {
        ((float *)x)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    ((uint16_t *)x)[i] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to the nearest, of two the even one
}

static inline const void *row_of(const int half, const void *x, int64_t i) { return (const char *)x + i * (half ? 2 : 4); }

enum { GRAIN = 1 << 15 };  // numbers that one thread does alone, as in torch
#define EACH(count) INDEPENDENT for (int64_t i = 0; i < (count); i++)
#define ROWS(half, call)                                                   \
    if (half) {                                                            \
        _Pragma("omp parallel for schedule(static) if (rows * n > GRAIN)") \
        for (int64_t r = 0; r < rows; r++) { enum { h = 1 }; call; }       \
    } else {                                                               \
        _Pragma("omp parallel for schedule(static) if (rows * n > GRAIN)") \
        for (int64_t r = 0; r < rows; r++) { enum { h = 0 }; call; }       \
    }
#define AT(x, floats) ((void *)row_of(h, x, r * (floats)))
#define INLINE static inline __attribute__((always_inline)) void

// x (rows, 2 n): values, then gates; y (rows, n) = value * gate * sigmoid(gate).
INLINE swiglu(const int half, int64_t n, const void *restrict x, void *restrict y)
{
    EACH(n) {
        const float gate = get(half, x, n + i);
        set(half, y, i, get(half, x, i) * gate * sigmoid(gate));
    }
}

INLINE swiglu_back(const int half, int64_t n, const void *restrict x, const void *restrict dy, void *restrict dx)
{
    EACH(n) {
        const float value = get(half, x, i), gate = get(half, x, n + i), d = get(half, dy, i), s = sigmoid(gate);
        set(half, dx, i, d * gate * s);
        set(half, dx, n + i, d * value * s * (1 + gate * (1 - s)));
    }
}

// y = max(x, 0)^2, rows of n. By sums, so that what is not a number stays one, which a comparison would make 0.
INLINE relu2(const int half, int64_t n, const void *restrict x, void *restrict y)
{
    EACH(n) {
        const float a = get(half, x, i);
        set(half, y, i, 0.5f * (a + fabsf(a)) * a);
    }
}

INLINE relu2_back(const int half, int64_t n, const void *restrict x, const void *restrict dy, void *restrict dx)
{
    EACH(n) {
        const float a = get(half, x, i);
        set(half, dx, i, (a + fabsf(a)) * get(half, dy, i));
    }
}

enum { SWIGLU, RELU2 };

void charlm_activate(int64_t kind, int64_t half, int64_t rows, int64_t n, const void *x, void *y)
{
    if (kind == SWIGLU) {
        ROWS(half, swiglu(h, n, AT(x, 2 * n), AT(y, n)))
    } else {
        ROWS(half, relu2(h, n, AT(x, n), AT(y, n)))
    }
}

void charlm_activate_back(int64_t kind, int64_t half, int64_t rows, int64_t n, const void *x, const void *dy, void *dx)
{
    if (kind == SWIGLU) {
        ROWS(half, swiglu_back(h, n, AT(x, 2 * n), AT(dy, n), AT(dx, 2 * n)))
    } else {
        ROWS(half, relu2_back(h, n, AT(x, n), AT(dy, n), AT(dx, n)))
    }
}

// One head x (size,) of a token, y: divided by its root mean square where `normed`, then turned by the token's angles.
INLINE turn(const int half, int64_t size, int64_t normed, float eps, const void *restrict x, const float *restrict cos,
            const float *restrict sin, void *restrict y)
{
    const int64_t n = size / 2;
    float square = 0, scale = 1;
    if (normed) {
        for (int64_t i = 0; i < size; i++) square += get(half, x, i) * get(half, x, i);
        scale = 1 / sqrtf(square / size + eps);
    }
    EACH(n) {
        const float a = get(half, x, i) * scale, b = get(half, x, n + i) * scale;
        set(half, y, i, a * cos[i] - b * sin[i]);
        set(half, y, n + i, b * cos[i] + a * sin[i]);
    }
}

INLINE turn_back(const int half, int64_t size, int64_t normed, float eps, const void *restrict x,
                 const float *restrict cos, const float *restrict sin, const void *restrict dy, void *restrict dx)
{
    const int64_t n = size / 2;
    float square = 0, scale = 1, along = 0;
    if (normed) {
        for (int64_t i = 0; i < size; i++) square += get(half, x, i) * get(half, x, i);
        scale = 1 / sqrtf(square / size + eps);
        for (int64_t i = 0; i < n; i++) {
            const float a = get(half, dy, i), b = get(half, dy, n + i);
            along += (a * cos[i] + b * sin[i]) * get(half, x, i) + (b * cos[i] - a * sin[i]) * get(half, x, n + i);
        }
        along *= scale * scale / size;
    }
    EACH(n) {
        const float a = get(half, dy, i), b = get(half, dy, n + i);
        set(half, dx, i, scale * (a * cos[i] + b * sin[i] - along * get(half, x, i)));
        set(half, dx, n + i, scale * (b * cos[i] - a * sin[i] - along * get(half, x, n + i)));
    }
}

// x: `heads` heads (size,) of each token (rows = B T), `stride` numbers from one token to the next; y (rows, heads, size).
// cos and sin (T, size / 2), always floats.
void charlm_turn(int64_t half, int64_t rows, int64_t T, int64_t heads, int64_t size, int64_t stride, int64_t normed,
                 double eps, const void *x, const float *cos, const float *sin, void *y)
{
    const int64_t n = size / 2;
    ROWS(half, for (int64_t k = 0; k < heads; k++)
                   turn(h, size, normed, (float)eps, row_of(h, x, r * stride + k * size), cos + r % T * n, sin + r % T * n,
                        (void *)row_of(h, y, (r * heads + k) * size)))
}

void charlm_turn_back(int64_t half, int64_t rows, int64_t T, int64_t heads, int64_t size, int64_t stride, int64_t normed,
                      double eps, const void *x, const float *cos, const float *sin, const void *dy, void *dx)
{
    const int64_t n = size / 2;
    ROWS(half, for (int64_t k = 0; k < heads; k++)
                   turn_back(h, size, normed, (float)eps, row_of(h, x, r * stride + k * size), cos + r % T * n,
                             sin + r % T * n, row_of(h, dy, (r * heads + k) * size),
                             (void *)row_of(h, dx, (r * heads + k) * size)))
}
