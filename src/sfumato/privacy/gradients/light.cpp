// Layers whose gradients are light: embeddings, and the scale and shift of layer norms.

#include "tiles.hpp"

#include <vector>

extern "C" {

// Squared norms of the gradients of an embedding of `width`, added to `squares`: tokens are records x positions, output
// gradients records x positions x width. Gradients of equal tokens of a record add up first.
int embedding_squares(int level, const int64_t *tokens, const float *gradient, int64_t records, int64_t positions,
                      int64_t width, double *squares);
// Adds the gradients times `weights` to `total`, vocabulary x width; records of weight zero are not read.
int embedding_add(int level, const int64_t *tokens, const float *gradient, int64_t records, int64_t positions,
                  int64_t width, const double *weights, double *total);
// Gradients of a layer norm's scale and shift: records x 2 x width floats, from inputs and output gradients of float.
int norm_gradients(int level, const float *input, const float *gradient, int64_t records, int64_t positions,
                   int64_t width, double epsilon, float *out);
}

#ifdef SFUMATO_KERNELS

namespace {

// Calls `use(token, gradient)` for each distinct token of a record with the sum of its gradients.
template <typename Use>
AVX512 void each_token(const int64_t *tokens, const float *gradient, int64_t positions, int64_t width, Use use) {
    std::vector<float> sum(static_cast<size_t>(width));
    std::vector<bool> done(static_cast<size_t>(positions));
    for (int64_t t = 0; t < positions; t++) {
        if (done[size_t(t)]) continue;
        const float *whole = gradient + t * width;
        for (int64_t s = t + 1; s < positions; s++) {
            if (tokens[s] != tokens[t]) continue;
            done[size_t(s)] = true;
            const float *other = gradient + s * width;
            for (int64_t x = 0; x < width; x++) sum[size_t(x)] = whole[x] + other[x];
            whole = sum.data();
        }
        use(tokens[t], whole);
    }
}

AVX512 void norm_of(const float *input, const float *gradient, int64_t positions, int64_t width, double epsilon,
                    float *scale, float *shift) {
    std::memset(scale, 0, sizeof(float) * size_t(width));
    std::memset(shift, 0, sizeof(float) * size_t(width));
    for (int64_t t = 0; t < positions; t++, input += width, gradient += width) {
        __m512d sum = _mm512_setzero_pd(), square = sum;
        for (int64_t x = 0; x < width; x += 8) {
            const __m512d value = _mm512_cvtps_pd(_mm256_loadu_ps(input + x));
            sum = _mm512_add_pd(sum, value);
            square = _mm512_fmadd_pd(value, value, square);
        }
        const double mean = _mm512_reduce_add_pd(sum) / double(width);
        const double variance = _mm512_reduce_add_pd(square) / double(width) - mean * mean;
        const __m512 centre = _mm512_set1_ps(float(mean));
        const __m512 factor = _mm512_set1_ps(float(1 / std::sqrt((variance > 0 ? variance : 0) + epsilon)));
        for (int64_t x = 0; x < width; x += TILE) {
            const __mmask16 mask = width - x >= TILE ? 0xffff : 0xff;
            const __m512 g = _mm512_maskz_loadu_ps(mask, gradient + x);
            const __m512 normal = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, input + x), centre), factor);
            _mm512_mask_storeu_ps(scale + x, mask, _mm512_fmadd_ps(g, normal, _mm512_maskz_loadu_ps(mask, scale + x)));
            _mm512_mask_storeu_ps(shift + x, mask, _mm512_add_ps(g, _mm512_maskz_loadu_ps(mask, shift + x)));
        }
    }
}

}  // namespace

int embedding_squares(int level, const int64_t *tokens, const float *gradient, int64_t records, int64_t positions,
                      int64_t width, double *squares) {
    if (level < 1) return 1;
    for (int64_t record = 0; record < records; record++)
        each_token(tokens + record * positions, gradient + record * positions * width, positions, width,
                   [&](int64_t, const float *sum) { squares[record] += squared_norm(sum, width); });
    return 0;
}

int embedding_add(int level, const int64_t *tokens, const float *gradient, int64_t records, int64_t positions,
                  int64_t width, const double *weights, double *total) {
    if (level < 1) return 1;
    for (int64_t record = 0; record < records; record++)
        if (weights[record] > 0)
            each_token(tokens + record * positions, gradient + record * positions * width, positions, width,
                       [&](int64_t token, const float *sum) {
                           add_scaled(weights[record], sum, total + token * width, width);
                       });
    return 0;
}

int norm_gradients(int level, const float *input, const float *gradient, int64_t records, int64_t positions,
                   int64_t width, double epsilon, float *out) {
    if (level < 1 || width % 8) return 1;
    for (int64_t record = 0; record < records; record++)
        norm_of(input + record * positions * width, gradient + record * positions * width, positions, width, epsilon,
                out + record * 2 * width, out + record * 2 * width + width);
    return 0;
}

#else

int embedding_squares(int, const int64_t *, const float *, int64_t, int64_t, int64_t, double *) { return 1; }
int embedding_add(int, const int64_t *, const float *, int64_t, int64_t, int64_t, const double *, double *) { return 1; }
int norm_gradients(int, const float *, const float *, int64_t, int64_t, int64_t, double, float *) { return 1; }

#endif
