// The cross-entropy of tokens in one pass over logits that stay in a core's first cache (entropy.py).

#include <cmath>
#include <cstring>

#include "processor.hpp"

extern "C" {

// -log softmax(logits) at each token: logits are rows x positions x vocabulary numbers, bfloat16 where `half`, else float;
// tokens lie in [0, vocabulary), a multiple of 16. Writes log(sum of e^logit) of each position to `log_sums`.
int entropy_forward(int level, int half, const void *logits, const int64_t *tokens, int64_t rows, int64_t positions,
                    int64_t vocabulary, float *losses, float *log_sums);
// Gradients by logits from those by losses; `log_sums` as the forward pass wrote them.
int entropy_backward(int level, int half, const void *logits, const int64_t *tokens, const float *log_sums,
                     const float *gradient, int64_t rows, int64_t positions, int64_t vocabulary, void *by_logits);
}

#ifdef SFUMATO_KERNELS

namespace {

#define LOOPS "entropy_loops.hpp"
#include "levels.hpp"

}  // namespace

int entropy_forward(int level, int half, const void *logits, const int64_t *tokens, int64_t rows, int64_t positions,
                    int64_t vocabulary, float *losses, float *log_sums) {
    if (level < 1 || vocabulary % 16) return 1;
    for (int64_t n = 0; n < rows * positions; n++) {
        const void *place = moved(logits, n * vocabulary, half);
        log_sums[n] = AT(level, half, log_sum)(place, vocabulary);
        losses[n] = log_sums[n] - AT(level, half, one)(place, tokens[n]);
    }
    return 0;
}

int entropy_backward(int level, int half, const void *logits, const int64_t *tokens, const float *log_sums,
                     const float *gradient, int64_t rows, int64_t positions, int64_t vocabulary, void *by_logits) {
    if (level < 1 || vocabulary % 16) return 1;
    for (int64_t n = 0; n < rows * positions; n++)
        AT(level, half, surprise)(moved(logits, n * vocabulary, half), tokens[n], log_sums[n], gradient[n], vocabulary,
                                  moved(by_logits, n * vocabulary, half));
    return 0;
}

#else

int entropy_forward(int, int, const void *, const int64_t *, int64_t, int64_t, int64_t, float *, float *) { return 1; }
int entropy_backward(int, int, const void *, const int64_t *, const float *, const float *, int64_t, int64_t, int64_t,
                     void *) {
    return 1;
}

#endif
