// Sums of rows of a table over windows of tokens, forward and backward: kernels/step/windows.py calls it.

#include "vectors.h"

#define EACH INDEPENDENT for (int64_t i = 0; i < H; i++)

// out[b, t] = bias + the sum over o of table[tokens[b, t + o], o]. tokens (B, order - 1 + T), table (V, order, H),
// bias (H,) or NULL, out (B, T, H).
void charlm_windows(int64_t order, int64_t B, int64_t T, int64_t H, const int64_t *tokens, const float *table,
                    const float *bias, float *out)
{
#pragma omp parallel for schedule(static) if (B * T * order * H > ALONE / 8)
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < T; t++) {
            const int64_t *window = tokens + b * (order - 1 + T) + t;
            float *restrict y = out + (b * T + t) * H;
            EACH y[i] = bias ? bias[i] : 0;
            for (int64_t o = 0; o < order; o++) {
                const float *restrict row = table + (window[o] * order + o) * H;
                EACH y[i] += row[i];
            }
        }
}

// Adds the gradient dy (B, T, H) of `out` to that of the table, d_table (V, order, H). A thread takes places of the
// window: no other adds to their rows.
void charlm_windows_back(int64_t order, int64_t B, int64_t T, int64_t H, const int64_t *tokens, const float *dy,
                         float *d_table)
{
#pragma omp parallel for schedule(static) if (B * T * order * H > ALONE / 8)
    for (int64_t o = 0; o < order; o++)
        for (int64_t b = 0; b < B; b++)
            for (int64_t t = 0; t < T; t++) {
                const float *restrict from = dy + (b * T + t) * H;
                float *restrict row = d_table + (tokens[b * (order - 1 + T) + t + o] * order + o) * H;
                EACH row[i] += from[i];
            }
}
