// Most of the U-Net's element-wise work in one pass over an image that stays in a core's first cache: silu(shift +
// normal(x) (1 + scale)), where normal(x) has zero mean and unit variance over the whole image (film.py).

#include <cmath>
#include <vector>

#include "processor.hpp"

extern "C" {

// `x` and `y` are images x pixels x channels numbers, bfloat16 where `half`, else float; channels are a multiple of 16.
// `scale` and `shift` are images x channels, or null for zeros. Writes mean and 1 / deviation of each image to `moments`.
int film_forward(int level, int half, const void *x, const float *scale, const float *shift, int64_t images,
                 int64_t pixels, int64_t channels, double epsilon, void *y, float *moments);
// Gradients by x, scale and shift from that by y; `moments` as the forward pass wrote them.
int film_backward(int level, int half, const void *x, const float *scale, const float *shift, const float *moments,
                  const void *gradient, int64_t images, int64_t pixels, int64_t channels, void *by_x, float *by_scale,
                  float *by_shift);
}

#ifdef SFUMATO_KERNELS

namespace {

// One image and what is computed of it; pointers that are null are not used.
struct Image {
    const void *x;
    const float *scale, *shift;
    int64_t pixels, channels;

    int64_t size() const { return pixels * channels; }
};

#define LOOPS "film_loops.hpp"
#include "levels.hpp"

Image image_of(const void *x, const float *scale, const float *shift, int64_t number, int64_t pixels, int64_t channels,
               int half) {
    return {moved(x, number * pixels * channels, half), scale ? scale + number * channels : nullptr,
            shift ? shift + number * channels : nullptr, pixels, channels};
}

}  // namespace

int film_forward(int level, int half, const void *x, const float *scale, const float *shift, int64_t images,
                 int64_t pixels, int64_t channels, double epsilon, void *y, float *moments) {
    if (level < 1 || channels % 16) return 1;
    for (int64_t n = 0; n < images; n++) {
        const Image image = image_of(x, scale, shift, n, pixels, channels, half);
        AT(level, half, forward)(image, epsilon, moved(y, n * image.size(), half), moments + 2 * n);
    }
    return 0;
}

int film_backward(int level, int half, const void *x, const float *scale, const float *shift, const float *moments,
                  const void *gradient, int64_t images, int64_t pixels, int64_t channels, void *by_x, float *by_scale,
                  float *by_shift) {
    if (level < 1 || channels % 16) return 1;
    std::vector<float> inner(static_cast<size_t>(pixels * channels));
    for (int64_t n = 0; n < images; n++) {
        const Image image = image_of(x, scale, shift, n, pixels, channels, half);
        const int64_t first = n * image.size();
        AT(level, half, backward)(image, moments + 2 * n, moved(gradient, first, half), inner.data(),
                                  moved(by_x, first, half), by_scale + n * channels, by_shift + n * channels);
    }
    return 0;
}

#else

int film_forward(int, int, const void *, const float *, const float *, int64_t, int64_t, int64_t, double, void *,
                 float *) {
    return 1;
}
int film_backward(int, int, const void *, const float *, const float *, const float *, const void *, int64_t, int64_t,
                  int64_t, void *, float *, float *) {
    return 1;
}

#endif
