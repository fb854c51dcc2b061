// The loop over time of an RNN or a GRU, forward and backward, for training: what is left of a layer when the products
// with its inputs are one product for all times. kernels/step/scan.py calls it; torch does the rest.
//
// Rows are independent: a tile of them goes through all times, with its hidden vectors and the weights in the cache, and
// where there is enough to do threads take tiles. OpenMP's functions are those that torch has loaded, and so its threads
// are torch's.

#include "vectors.h"

#include <stdlib.h>

#define EACH INDEPENDENT for (int64_t i = 0; i < H; i++)

enum { RNN = 1, GRU = 3 };  // by the number of their products

// weight (N, K), or with `across` (K, N), as panels (ceil(N / 64), K, 64), with zeros at the end.
static void into_panels(const float *weight, int64_t K, int64_t N, int across, float *made)
{
    for (int64_t first = 0; first < N; first += PANEL)
        for (int64_t k = 0; k < K; k++, made += PANEL)
            for (int64_t n = 0; n < PANEL; n++) {
                const int64_t column = first + n;
                made[n] = column >= N ? 0 : across ? weight[k * N + column] : weight[column * K + k];
            }
}

static int64_t padded(int64_t N) { return (N + PANEL - 1) / PANEL * PANEL; }

// out (rows, N) = the panels times the rows of `in`, plus the bias, or NULL.
static void product(int rows, int64_t K, int64_t N, const float *w, const float *bias, const float *in, int64_t stride,
                    float *out)
{
    for (int64_t first = 0; first < N; first += PANEL, w += K * PANEL) {
        const float *b = bias ? bias + first : 0;
        if (rows == TILE)
            product_tile(TILE, K, N, w, b, in, stride, out, first, 0);
        else
            for (int r = 0; r < rows; r++) product_tile(1, K, N, w, b, in + r * stride, stride, out + r * N, first, 0);
    }
}

// One row at one time. p: the products with the hidden vector `before`; g: those with the input, which become the gates.
static void rnn(const float *restrict p, float *restrict g, float *restrict h, int64_t H)
{
    EACH h[i] = tanhf(g[i] + p[i]);
}

static void gru(const float *restrict p, const float *restrict before, float *restrict g, float *restrict kept,
                float *restrict h, int64_t H)
{
    EACH {
        const float r = sigmoid(g[i] + p[i]), z = sigmoid(g[H + i] + p[H + i]);
        const float n = tanhf(g[2 * H + i] + r * p[2 * H + i]);
        g[i] = r, g[H + i] = z, g[2 * H + i] = n, kept[i] = p[2 * H + i];
        h[i] = n + z * (before[i] - n);
    }
}

// gates (B, T, G H): the products with the inputs; of a GRU they become its gates. h (B, T + 1, H): the first is given,
// the others are written. kept (B, T, H), of a GRU: what the hidden vector says of the candidate. Weight (G H, H), bias
// (G H,). Returns 0, or 1 where there is no memory.
int64_t charlm_scan(int64_t G, int64_t B, int64_t T, int64_t H, const float *weight, const float *bias, float *gates,
                    float *h, float *kept)
{
    const int64_t N = G * H;
    float *w = malloc(padded(N) * (H + 1) * sizeof(float));
    if (!w) return 1;
    float *b_padded = w + padded(N) * H;
    into_panels(weight, H, N, 0, w);
    memset(b_padded, 0, padded(N) * sizeof(float));
    memcpy(b_padded, bias, N * sizeof(float));
#pragma omp parallel for schedule(static) if (B * T * N * H > ALONE)
    for (int64_t b = 0; b < B; b += TILE) {
        const int rows = B - b < TILE ? B - b : TILE;
        float p[TILE * N];
        for (int64_t t = 0; t < T; t++) {
            product(rows, H, N, w, b_padded, h + (b * (T + 1) + t) * H, (T + 1) * H, p);
            for (int r = 0; r < rows; r++) {
                float *before = h + ((b + r) * (T + 1) + t) * H, *g = gates + ((b + r) * T + t) * N;
                if (G == RNN)
                    rnn(p + r * N, g, before + H, H);
                else
                    gru(p + r * N, before, g, kept + ((b + r) * T + t) * H, before + H, H);
            }
        }
    }
    free(w);
    return 0;
}

// One row at one time, backward. a: the gradient of the hidden vector, of which what skips the product is left; d: what
// the products with the one before it get; g: the gates, which become the gradients of the products with the input.
static void rnn_back(float *restrict a, const float *restrict now, float *restrict g, float *restrict d, int64_t H)
{
    EACH d[i] = g[i] = a[i] * (1 - now[i] * now[i]), a[i] = 0;
}

static void gru_back(float *restrict a, const float *restrict before, float *restrict g, float *restrict kept,
                     float *restrict d, int64_t H)
{
    EACH {
        const float r = g[i], z = g[H + i], n = g[2 * H + i], dn = a[i] * (1 - z) * (1 - n * n);
        d[i] = g[i] = dn * kept[i] * r * (1 - r);
        d[H + i] = g[H + i] = a[i] * (before[i] - n) * z * (1 - z);
        g[2 * H + i] = dn;
        d[2 * H + i] = kept[i] = dn * r;
        a[i] *= z;
    }
}

// The gradients of what charlm_scan was given. dh (B, H): the gradient of the last hidden vector, which becomes that of
// the first; dy (B, T, H): that of each. gates, of an RNN not read, and kept become the gradients of the products.
int64_t charlm_scan_back(int64_t G, int64_t B, int64_t T, int64_t H, const float *weight, float *gates, const float *h,
                         float *kept, const float *dy, float *dh)
{
    const int64_t N = G * H;
    float *w = malloc(padded(H) * N * sizeof(float));
    if (!w) return 1;
    into_panels(weight, N, H, 1, w);
#pragma omp parallel for schedule(static) if (B * T * N * H > ALONE)
    for (int64_t b = 0; b < B; b += TILE) {
        const int rows = B - b < TILE ? B - b : TILE;
        float d[TILE * N], carry[TILE * H];
        for (int64_t t = T - 1; t >= 0; t--) {
            for (int r = 0; r < rows; r++) {
                const float *before = h + ((b + r) * (T + 1) + t) * H, *y = dy + ((b + r) * T + t) * H;
                float *a = dh + (b + r) * H, *g = gates + ((b + r) * T + t) * N;
                EACH a[i] += y[i];
                if (G == RNN)
                    rnn_back(a, before + H, g, d + r * N, H);
                else
                    gru_back(a, before, g, kept + ((b + r) * T + t) * H, d + r * N, H);
            }
            product(rows, N, H, w, 0, d, N, carry);
            for (int r = 0; r < rows; r++) {
                float *a = dh + (b + r) * H;
                EACH a[i] += carry[r * H + i];
            }
        }
    }
    free(w);
    return 0;
}
