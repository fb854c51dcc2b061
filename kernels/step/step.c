// One token of each of B rows through a model, as a list of operations on rows of floats: what decoding runs thousands of
// times. kernels/step/program.py makes the lists; `Op` here and there are the same.
//
// A row's sums run in one order, whatever rows are beside it: it is to the bit what it is alone.

#include "vectors.h"

enum { EMBED, PRODUCT, LAYER_NORM, RMS_NORM, SCALE, ACTIVATE, GATE, ATTEND, RNN, LSTM, GRU, CAP, LOOKUP, MIX };
enum { SIGMOID, TANH, RELU, LEAKY_RELU, GELU, GELU_TANH, SILU, RELU2 };

typedef struct {
    int64_t kind, width_in, width_out, variant;  // variant: of an activation; of a product 1: add to `out`
    int64_t heads, kv_heads, capacity, window;   // of ATTEND
    double eps, cap;        // CAP works in place on the result
    const float *in, *weight, *bias;
    float *out;            // NULL: the step's result
    float *state, *state2; // hidden vectors; the tables of keys and values (rows, 2 kv_heads, capacity, head size)
    const float *turns, *slopes; // RoPE's (positions, 2, head size); ALiBi's (heads,)
    int64_t *tokens;       // of EMBED: the table (rows, capacity) that remembers them, or NULL
    float *scratch;
} Op;

// out (B, N) = in (B, K) times the weights, panels of (K, 64), plus the bias.
static void product(const Op *op, int64_t B, float *out)
{
    const int64_t K = op->width_in, N = op->width_out;
    for (int64_t first = 0; first < N; first += PANEL) {
        const float *w = op->weight + first * K, *bias = op->bias ? op->bias + first : 0, *in = op->in;
        int64_t b = 0;
        for (; b + TILE <= B; b += TILE)
            product_tile(TILE, K, N, w, bias, in + b * K, K, out + b * N, first, op->variant);
        for (; b < B; b++)
            product_tile(1, K, N, w, bias, in + b * K, K, out + b * N, first, op->variant);
    }
}

static void layer_norm(const Op *op, const float *x, float *y)
{
    const int64_t C = op->width_in;
    float mean = 0, square = 0;
    for (int64_t i = 0; i < C; i++) mean += x[i];
    mean /= C;
    for (int64_t i = 0; i < C; i++) square += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / sqrtf(square / C + (float)op->eps);
    for (int64_t i = 0; i < C; i++) {
        const float normed = (x[i] - mean) * scale;
        y[i] = (op->weight ? normed * op->weight[i] : normed) + (op->bias ? op->bias[i] : 0);
    }
}

static void rms_norm(const float *x, float *y, int64_t C, const float *weight, float eps)
{
    float square = 0;
    for (int64_t i = 0; i < C; i++) square += x[i] * x[i];
    const float scale = 1 / sqrtf(square / C + eps);
    for (int64_t i = 0; i < C; i++) y[i] = weight ? x[i] * scale * weight[i] : x[i] * scale;
}

#define EACH(value)                                   \
    INDEPENDENT for (int64_t i = 0; i < n; i++) {     \
        const float a = x[i];                         \
        y[i] = value;                                 \
    }                                                 \
    break

static void activate(int64_t variant, const float *x, float *y, int64_t n)
{
    switch (variant) {
    case SIGMOID: EACH(sigmoid(a));
    case TANH: EACH(tanhf(a));
    case RELU: EACH(a < 0 ? 0 : a);
    case LEAKY_RELU: EACH(a < 0 ? 0.01f * a : a);
    case GELU: EACH(0.5f * a * (1 + erff(a * 0.70710678f)));
    case GELU_TANH: EACH(0.5f * a * (1 + tanhf(0.79788456f * (a + 0.044715f * a * a * a))));
    case SILU: EACH(a * sigmoid(a));
    case RELU2: EACH(a < 0 ? 0 : a * a);
    }
}

// QK-norm and RoPE of one head (hs,), in place.
static void turn(const Op *op, float *x, int64_t hs, int64_t at)
{
    if (op->variant) rms_norm(x, x, hs, 0, (float)op->eps);
    if (!op->turns) return;
    const float *cos = op->turns + at * 2 * hs, *sin = cos + hs;
    for (int64_t i = 0; i < hs / 2; i++) {
        const float a = x[i], b = x[i + hs / 2];
        x[i] = a * cos[i] + b * sin[i];
        x[i + hs / 2] = b * cos[i + hs / 2] + a * sin[i + hs / 2];
    }
}

typedef float eight __attribute__((vector_size(32)));
typedef float four __attribute__((vector_size(16)));

// The sum of a vector's numbers: halves are added to halves.
static inline float total(vector v)
{
    eight e[LANES / 8];
    four f[2];
    memcpy(e, &v, sizeof v);
    if (LANES == 16) e[0] += e[LANES / 8 - 1];
    memcpy(f, e, sizeof f);
    f[0] += f[1];
    return (f[0][0] + f[0][1]) + (f[0][2] + f[0][3]);
}

// p[t] = q . k[t] / sqrt(hs) for the keys from `first` to `last`, k (T, hs).
static void scores(const float *q, const float *k, float *p, int64_t hs, int64_t first, int64_t last)
{
    const float scale = 1 / sqrtf(hs);
    const int64_t whole = hs / LANES * LANES;
    for (int64_t t = first; t <= last; t++) {
        const float *key = k + t * hs;
        vector sum = {0};
        for (int64_t i = 0; i < whole; i += LANES) sum += *(const vector *)(q + i) * *(const vector *)(key + i);
        float score = total(sum);
        for (int64_t i = whole; i < hs; i++) score += q[i] * key[i];
        p[t] = score * scale;
    }
}

// y = the sum of p[t] v[t], v (T, hs), over those keys.
static void weighted_sum(const float *p, const float *v, float *y, int64_t hs, int64_t first, int64_t last)
{
    const int64_t pairs = hs / (2 * LANES) * 2 * LANES;
    for (int64_t i = 0; i < pairs; i += 2 * LANES) {
        vector a = {0}, b = {0};
        for (int64_t t = first; t <= last; t++) {
            a += p[t] * *(const vector *)(v + t * hs + i);
            b += p[t] * *(const vector *)(v + t * hs + i + LANES);
        }
        *(vector *)(y + i) = a, *(vector *)(y + i + LANES) = b;
    }
    for (int64_t i = pairs; i < hs; i++) {
        float sum = 0;
        for (int64_t t = first; t <= last; t++) sum += p[t] * v[t * hs + i];
        y[i] = sum;
    }
}

// The attention of one row: `heads`, its queries, keys and values (heads + 2 kv_heads, hs); out (heads, hs).
static void attend(const Op *op, float *heads, float *out, float *kv, int64_t at)
{
    const int64_t H = op->heads, G = op->kv_heads, hs = op->width_out / H;
    const int64_t first = at + 1 > op->window ? at + 1 - op->window : 0;
    const float cap = (float)op->cap;
    float *p = op->scratch;
    for (int64_t h = 0; h < H + G; h++) turn(op, heads + h * hs, hs, at);
    for (int64_t g = 0; g < 2 * G; g++)
        memcpy(kv + (g * op->capacity + at) * hs, heads + (H + g) * hs, hs * sizeof(float));
    for (int64_t h = 0; h < H; h++) {
        const float *k = kv + h / (H / G) * op->capacity * hs, *v = k + G * op->capacity * hs;
        scores(heads + h * hs, k, p, hs, first, at);
        if (cap) for (int64_t t = first; t <= at; t++) p[t] = cap * tanhf(p[t] / cap);
        if (op->slopes) for (int64_t t = first; t <= at; t++) p[t] -= op->slopes[h] * (at - t);
        float most = p[first], sum = 0;
        for (int64_t t = first; t <= at; t++) most = p[t] > most ? p[t] : most;
        for (int64_t t = first; t <= at; t++) p[t] = expf(p[t] - most);
        for (int64_t t = first; t <= at; t++) sum += p[t];
        for (int64_t t = first; t <= at; t++) p[t] /= sum;
        weighted_sum(p, v, out + h * hs, hs, first, at);
    }
}

// The gates of one row: in, what the input gives them; scratch, what the hidden vector gives them.
static void recur(const Op *op, const float *restrict x, const float *restrict from_h, float *restrict h, float *restrict c)
{
    const int64_t n = op->width_out;
    if (op->kind == RNN) {
        for (int64_t i = 0; i < n; i++) h[i] = x[i] + from_h[i];
        activate(op->variant, h, h, n);
    } else if (op->kind == LSTM) {
        for (int64_t i = 0; i < n; i++) {
            const float in = sigmoid(x[i] + from_h[i]), forget = sigmoid(x[n + i] + from_h[n + i]);
            c[i] = forget * c[i] + in * tanhf(x[2 * n + i] + from_h[2 * n + i]);
            h[i] = sigmoid(x[3 * n + i] + from_h[3 * n + i]) * tanhf(c[i]);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            const float reset = sigmoid(x[i] + from_h[i]), update = sigmoid(x[n + i] + from_h[n + i]);
            const float candidate = tanhf(x[2 * n + i] + reset * from_h[2 * n + i]);
            h[i] = (1 - update) * candidate + update * h[i];
        }
    }
}

static void row(const Op *op, int64_t b, int64_t token, int64_t at, int64_t slot, float *out)
{
    const int64_t N = op->width_out;
    const float *x = op->in + b * op->width_in;
    float *y = out + b * N;
    switch (op->kind) {
    case EMBED:
        memcpy(y, op->weight + token * N, N * sizeof(float));
        if (op->bias) for (int64_t i = 0; i < N; i++) y[i] += op->bias[at * N + i];
        if (op->tokens) op->tokens[slot * op->capacity + at] = token;
        break;
    case LAYER_NORM: layer_norm(op, x, y); break;
    case RMS_NORM: rms_norm(x, y, N, op->weight, (float)op->eps); break;
    case SCALE: for (int64_t i = 0; i < N; i++) y[i] = x[i] * op->weight[i] + op->bias[i]; break;
    case ACTIVATE: activate(op->variant, x, y, N); break;
    case GATE:
        activate(op->variant, x + N, y, N);
        for (int64_t i = 0; i < N; i++) y[i] *= x[i];
        break;
    case CAP: for (int64_t i = 0; i < N; i++) y[i] = (float)op->cap * tanhf(y[i] / (float)op->cap); break;
    case LOOKUP: { // a row of a table, times twice each head's gate, to the end of the row
        const int64_t width = op->capacity, size = width / op->kv_heads;
        y += N - width;
        for (int64_t i = 0; i < width; i++) y[i] += 2 * x[i / size] * op->weight[token * width + i];
        break;
    }
    case MIX: // the end of the row with that of another
        for (int64_t i = N - op->capacity; i < N; i++) y[i] = (float)op->eps * y[i] + (float)op->cap * x[i];
        break;
    case ATTEND:
        attend(op, (float *)x, y, op->state + slot * 2 * op->kv_heads * op->capacity * (N / op->heads), at);
        break;
    default:
        recur(op, x, op->scratch + b * op->width_in, y, op->state2 ? op->state2 + b * N : 0);
    }
}

// Run `count` operations for `token` (B,), which each row reads at its place `at` (B,) of the tables' row `slot` (B,).
void charlm_step(const Op *ops, int64_t count, int64_t B, const int64_t *token, const int64_t *at, const int64_t *slot,
                 float *result)
{
    for (const Op *op = ops; op < ops + count; op++) {
        float *out = op->out ? op->out : result;
        if (op->kind == PRODUCT)
            product(op, B, out);
        else
            for (int64_t b = 0; b < B; b++) row(op, b, token[b], at[b], slot[b], out);
    }
}
