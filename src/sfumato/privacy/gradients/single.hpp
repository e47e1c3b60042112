// Float32 on processors with AVX2 or AVX512: the same loops for both, and which of them to use.

#pragma once

#include "panels.hpp"

#ifdef SFUMATO_KERNELS

#include <vector>

namespace {

// What one place of a convolution's kernel sees: output gradients, and the activations that it lays over them.
struct Window {
    int64_t images, lines, columns;
    const float *g, *a;
    int64_t g_image, g_line, g_column, a_image, a_line, a_column;  // steps
};

namespace avx2 {
#define TARGET __attribute__((target("avx2,fma")))
constexpr int LANES = 8, ROWS = 4;
#include "single_loops.hpp"
#undef TARGET
}  // namespace avx2

namespace avx512 {
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq")))
constexpr int LANES = 16, ROWS = 8;
#include "single_loops.hpp"
#undef TARGET
}  // namespace avx512

// Rows of the batch from a layer's first on.
const float *activation_of(const Layer &layer, int64_t row) {
    return static_cast<const float *>(layer.activation) + row * layer.height * layer.width * layer.channels;
}

const float *gradient_of(const Layer &layer, int64_t row) {
    return reinterpret_cast<const float *>(layer.gradient) +
           row * layer.out_height * layer.out_width * layer.out_channels;
}

// The level's own version of a function.
#define AT(level, function) (level == 2 ? avx512::function : avx2::function)

}  // namespace

#endif
