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
// Gradients of a layer norm's scale and shift: records x 2 x width floats, from inputs and output gradients, bfloat16 where
// `half`, else float; their squared norms are added to `squares`.
int norm_gradients(int level, int half, const void *input, const void *gradient, int64_t records, int64_t positions,
                   int64_t width, double epsilon, float *out, double *squares);
// Adds rows of `width` floats times `weights` to `total`; records of weight zero are not read.
int rows_add(int level, const float *rows, int64_t records, int64_t width, const double *weights, double *total);
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

constexpr int64_t COLUMNS = 4 * TILE;  // of a layer norm that stay in registers

// Where a position's values lie, and the factor that gives them unit variance.
struct Moments {
    float centre, factor;
};

AVX512 inline __m512 floats(const float *from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }

AVX512 inline __m512 floats(const uint16_t *from, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}

template <typename Number> AVX512 Moments moments_of(const Number *values, int64_t width, double epsilon) {
    __m512 sum = _mm512_setzero_ps(), square = sum;
    for (int64_t x = 0; x < width; x += TILE)
        sum = _mm512_add_ps(sum, floats(values + x, width - x >= TILE ? 0xffff : 0xff));
    const float centre = _mm512_reduce_add_ps(sum) / float(width);
    for (int64_t x = 0; x < width; x += TILE) {
        const __mmask16 mask = width - x >= TILE ? 0xffff : 0xff;
        const __m512 value = _mm512_maskz_sub_ps(mask, floats(values + x, mask), _mm512_set1_ps(centre));
        square = _mm512_fmadd_ps(value, value, square);
    }
    return {centre, float(1 / std::sqrt(double(_mm512_reduce_add_ps(square)) / double(width) + epsilon))};
}

// Gradients of one record: sums over positions of the output gradient times the normal input, and of it alone.
template <typename Number>
AVX512 void norm_of(const Number *input, const Number *gradient, int64_t positions, int64_t width,
                    const Moments *moments, float *scale, float *shift) {
    for (int64_t first = 0; first < width; first += COLUMNS) {
        __mmask16 masks[4];
        __m512 sums[4][2];
        for (int k = 0; k < 4; k++) {
            const int64_t left = width - first - k * TILE;
            masks[k] = left >= TILE ? 0xffff : left > 0 ? 0xff : 0;
            sums[k][0] = sums[k][1] = _mm512_setzero_ps();
        }
        for (int64_t t = 0; t < positions; t++) {
            const __m512 centre = _mm512_set1_ps(moments[t].centre), factor = _mm512_set1_ps(moments[t].factor);
            for (int k = 0; k < 4; k++) {
                const int64_t place = t * width + first + k * TILE;
                const __m512 g = floats(gradient + place, masks[k]);
                const __m512 x = floats(input + place, masks[k]);
                sums[k][0] = _mm512_fmadd_ps(g, _mm512_mul_ps(_mm512_sub_ps(x, centre), factor), sums[k][0]);
                sums[k][1] = _mm512_add_ps(g, sums[k][1]);
            }
        }
        for (int k = 0; k < 4; k++) {
            _mm512_mask_storeu_ps(scale + first + k * TILE, masks[k], sums[k][0]);
            _mm512_mask_storeu_ps(shift + first + k * TILE, masks[k], sums[k][1]);
        }
    }
}

template <typename Number>
void norms_of(const Number *input, const Number *gradient, int64_t records, int64_t positions, int64_t width,
              double epsilon, float *out, double *squares) {
    std::vector<Moments> moments(static_cast<size_t>(positions));
    const int64_t size = positions * width;
    for (int64_t record = 0; record < records; record++, input += size, gradient += size, out += 2 * width) {
        for (int64_t t = 0; t < positions; t++) moments[size_t(t)] = moments_of(input + t * width, width, epsilon);
        norm_of(input, gradient, positions, width, moments.data(), out, out + width);
        squares[record] += squared_norm(out, 2 * width);
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

int norm_gradients(int level, int half, const void *input, const void *gradient, int64_t records, int64_t positions,
                   int64_t width, double epsilon, float *out, double *squares) {
    if (level < 1 || width % 8) return 1;
    if (half)
        norms_of(static_cast<const uint16_t *>(input), static_cast<const uint16_t *>(gradient), records, positions,
                 width, epsilon, out, squares);
    else
        norms_of(static_cast<const float *>(input), static_cast<const float *>(gradient), records, positions, width,
                 epsilon, out, squares);
    return 0;
}

int rows_add(int level, const float *rows, int64_t records, int64_t width, const double *weights, double *total) {
    if (level < 1) return 1;
    for (int64_t record = 0; record < records; record++)
        if (weights[record] > 0) add_scaled(weights[record], rows + record * width, total, width);
    return 0;
}

#else

int embedding_squares(int, const int64_t *, const float *, int64_t, int64_t, int64_t, double *) { return 1; }
int embedding_add(int, const int64_t *, const float *, int64_t, int64_t, int64_t, const double *, double *) { return 1; }
int norm_gradients(int, int, const void *, const void *, int64_t, int64_t, int64_t, double, float *, double *) {
    return 1;
}
int rows_add(int, const float *, int64_t, int64_t, const double *, double *) { return 1; }

#endif
