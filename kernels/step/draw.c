// Drawing the next token of each of B rows, and several tokens one after another: step, draw, step, draw.
//
// The same numbers as engine/run/sampling.py: a token wins with exp(logit) / race, race an exponential random number.

#include <math.h>
#include <stdint.h>
#include <string.h>

// Of a loop: its steps do not depend on each other.
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

typedef struct {
    double temperature, top_p, min_p, penalty; // 0: the likeliest token; 1, 0, 1: nothing is left out or penalised
    int64_t top_k;                             // at least V: all
} Sampling;

typedef struct {
    double p;
    int64_t id;
} Entry;

typedef struct {
    const Sampling *sampling;    // (B,)
    const double *const *bias;   // (B,) of (V,): -inf for what a row may not draw
    const double *const *race;   // (B,) of (steps, V)
    const int64_t *stride;       // (B,): the numbers from one step's to the next's
    uint8_t *ended, *seen;       // (B,): rows that only repeat `eos`; (B, V): what a penalty applies to
    const volatile int64_t *hurry; // not 0: the call is to return after this step
    double *values;              // (V,), for what is computed
    Entry *entries;              // (V,), too
    int64_t eos, ends_with_one;  // eos -1: no row ends; the call ends once one row has ended, or once all have
} Draws;

extern void charlm_step(const void *ops, int64_t count, int64_t B, const int64_t *token, const int64_t *at,
                        const int64_t *slot, float *result);

// Numbers as whole ones of the same order, in which what is not a number is the largest, as in torch.
static inline int64_t ranked(double value)
{
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    const int64_t size = bits & INT64_MAX;
    return bits >= 0 || size > INT64_C(0x7ff0000000000000) ? size : -size;
}

static int64_t largest(const double *x, int64_t V)
{
    int64_t best = 0;
    for (int64_t i = 1; i < V; i++)
        if (ranked(x[i]) > ranked(x[best])) best = i;
    return best;
}

static void sink(Entry *heap, int64_t n, int64_t i)
{
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && ranked(heap[child + 1].p) > ranked(heap[child].p)) child++;
        if (ranked(heap[i].p) >= ranked(heap[child].p)) return;
        const Entry entry = heap[i];
        heap[i] = heap[child], heap[child] = entry;
    }
}

// Leave the likeliest in p (V,), as `sampling` says; the others become 0.
static void leave_likeliest(const Sampling *sampling, double *p, int64_t V, Entry *heap)
{
    const int64_t most = sampling->top_k < V ? sampling->top_k : V;
    int64_t n = V, kept = 0;
    for (int64_t i = 0; i < V; i++) heap[i] = (Entry){p[i], i};
    for (int64_t i = V / 2 - 1; i >= 0; i--) sink(heap, V, i);
    double total = 0, sum = 0;
    for (int64_t i = 0; i < V; i++) total += p[i] < sampling->min_p ? 0 : p[i]; // the likeliest has p = 1
    // The likeliest go to the end of the heap, one after another. The sum of the first k is known only behind them.
    const double enough = most == V && sampling->top_p < 1 ? sampling->top_p * total : 1e300;
    for (; kept < most && !(heap[0].p < sampling->min_p) && !(kept && sum >= enough); kept++) {
        const Entry first = heap[0];
        sum += first.p;
        heap[0] = heap[--n], heap[n] = first;
        sink(heap, n, 0);
    }
    if (most < V && sampling->top_p < 1) {
        const int64_t all = kept;
        total = sum;
        for (kept = 0, sum = 0; kept < all && !(kept && sum >= sampling->top_p * total); kept++)
            sum += heap[V - 1 - kept].p;
    }
    memset(p, 0, V * sizeof(double));
    for (int64_t i = V - kept; i < V; i++) p[heap[i].id] = heap[i].p;
}

// The token of one row with logits x (V,), which are overwritten.
static int64_t choose(const Sampling *sampling, double *x, const double *race, const uint8_t *seen, int64_t V,
                      Entry *entries)
{
    if (sampling->penalty != 1)
        for (int64_t i = 0; i < V; i++)
            if (seen[i]) x[i] = x[i] > 0 ? x[i] / sampling->penalty : x[i] * sampling->penalty;
    if (sampling->temperature == 0) return largest(x, V);
    double most = x[0];
    for (int64_t i = 1; i < V; i++) most = x[i] > most ? x[i] : most;
    const double temperature = sampling->temperature;
    INDEPENDENT
    for (int64_t i = 0; i < V; i++) x[i] = x[i] > -1e300 ? exp((x[i] - most) / temperature) : 0;
    if (sampling->top_k < V || sampling->top_p < 1 || sampling->min_p > 0) leave_likeliest(sampling, x, V, entries);
    INDEPENDENT
    for (int64_t i = 0; i < V; i++) x[i] /= race[i] > 2.2250738585072014e-308 ? race[i] : 2.2250738585072014e-308;
    return largest(x, V);
}

// A token of each row with logits x (B, V), which are overwritten, and race (B, V).
void charlm_draw(const Sampling *sampling, double *x, const double *race, const uint8_t *seen, int64_t B, int64_t V,
                 Entry *entries, int64_t *tokens)
{
    for (int64_t b = 0; b < B; b++, x += V, race += V, seen += V)
        tokens[b] = choose(sampling, x, race, seen, V, entries);
}

// Read tokens (B,), draw the next ones behind them, and so on, up to `steps` times; how often it was.
int64_t charlm_decode(const void *ops, int64_t count, int64_t B, int64_t V, int64_t steps, int64_t *tokens,
                      int64_t *at, const int64_t *slot, float *logits, const Draws *draws)
{
    for (int64_t done = 0; done < steps;) {
        charlm_step(ops, count, B, tokens, at, slot, logits);
        tokens += B;
        int64_t ended = 0;
        for (int64_t b = 0; b < B; b++) {
            at[b]++;
            if (!draws->ended[b]) {
                const float *from = logits + b * V;
                for (int64_t i = 0; i < V; i++) draws->values[i] = from[i] + draws->bias[b][i];
                tokens[b] = choose(draws->sampling + b, draws->values, draws->race[b] + done * draws->stride[b],
                                   draws->seen + b * V, V, draws->entries);
                draws->seen[b * V + tokens[b]] = 1;
                draws->ended[b] = tokens[b] == draws->eos;
            } else
                tokens[b] = draws->eos;
            ended += draws->ended[b];
        }
        done++;
        if (*draws->hurry || (draws->ends_with_one ? ended > 0 : ended == B)) return done;
    }
    return steps;
}
