// Gradients that are written out whole, in bfloat16: convolutions, and linear layers of small networks.
//
// Plain C interface; `kernels.py` loads it, and `layers.py` holds the same in PyTorch for machines without it.

#include "clipping.hpp"

extern "C" {

const char *sources();  // SHA-256 of the sources that this was built from
int processor_level();
int64_t scratch_floats(const Layer *layers, int count, const Task *task);
int clipped_sum(int level, const Layer *layers, int count, const Task *task);
}

const char *sources() { return SOURCES; }

#ifdef SFUMATO_KERNELS

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// One place in the kernel: all tiles of G, written where the weight has them.
void multiply(int level, const Product &p, const Layer &layer, float *weight, int64_t stride) {
    alignas(64) float edge[TILE * TILE];
    const int64_t height = layer.out_channels, width = layer.channels;
    for (int64_t i = 0; i < height; i += TILE)
        for (int64_t j = 0; j < width; j += TILE) {
            float *out = weight + i * stride + j;
            const int64_t ti = i / TILE, tj = j / TILE;
            if (level == 2 && ti % 2 == 0 && tj % 2 == 0 && i + 2 * TILE <= height && j + 2 * TILE <= width) {
                multiply_amx_4(p, ti, tj, out, stride);
                continue;
            }
            const bool done = level == 2 && (i / (2 * TILE) + 1) * 2 * TILE <= height &&
                              (j / (2 * TILE) + 1) * 2 * TILE <= width;
            if (done) continue;  // part of a group of four
            const bool whole = i + TILE <= height && j + TILE <= width;
            float *into = whole ? out : edge;
            const int64_t into_stride = whole ? stride : TILE;
            if (level == 2)
                multiply_amx_1(p, ti, tj, into, into_stride);
            else
                multiply_avx512(p, ti, tj, into, into_stride);
            if (!whole)
                for (int64_t row = 0; row < TILE && i + row < height; row++)
                    std::memcpy(out + row * stride, edge + row * TILE,
                                sizeof(float) * size_t(width - j < TILE ? width - j : TILE));
        }
}

// One record's gradient of one layer, from its rows of the batch.
void instantiate(int level, const Layer &layer, int64_t record, int64_t rows, float *gradient, uint16_t *packed) {
    const Shape shape(layer);
    uint16_t *a = packed, *b = packed + up(rows * shape.image_a, 2 * TILE);
    float *bias = layer.bias_at < 0 ? nullptr : gradient + layer.bias_at;
    if (bias) std::memset(bias, 0, sizeof(float) * size_t(layer.out_channels));
    const int64_t in = int64_t(layer.height) * layer.width * layer.channels;
    const int64_t out = int64_t(layer.out_height) * layer.out_width * layer.out_channels;
    const auto *activation = static_cast<const char *>(layer.activation);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t image = record * rows + row;
        pack_gradient(layer, shape, layer.gradient + image * out, a + row * shape.image_a, bias);
        pack_activation(layer, shape, activation + image * in * (layer.activation_is_float ? 4 : 2),
                        b + row * shape.image_b);
    }
    if (layer.weight_at < 0) return;
    const int64_t stride = int64_t(layer.kernel_h) * layer.kernel_w * layer.channels;
    for (int ky = 0; ky < layer.kernel_h; ky++)
        for (int kx = 0; kx < layer.kernel_w; kx++) {
            const int64_t plane = kx * layer.stride_h + ky % layer.stride_h;
            const uint16_t *start = b + plane * shape.plane + ky / layer.stride_h * shape.pairs * shape.channels * 2;
            const int64_t row = 2 * shape.channels;
            const Product product{a,
                                  start,
                                  rows,
                                  shape.blocks,
                                  shape.image_a,
                                  shape.out_channels / TILE * TILE_BF16,
                                  TILE_BF16,
                                  2 * TILE,
                                  shape.image_b,
                                  TILE * row,
                                  2 * TILE,
                                  row};
            multiply(level, product, layer, gradient + layer.weight_at + (ky * layer.kernel_w + kx) * layer.channels,
                     stride);
        }
}

bool cpu_has(unsigned leaf, unsigned subleaf, char which, int bit) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(leaf, subleaf, &a, &b, &c, &d)) return false;
    const unsigned value = which == 'a' ? a : which == 'b' ? b : which == 'c' ? c : d;
    return value >> bit & 1;
}

}  // namespace

// 0: nothing here applies; 1: AVX512-BF16; 2: AMX.
int processor_level() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") || !cpu_has(7, 1, 'a', 5))
        return 0;
    if (!cpu_has(7, 0, 'd', 22) || !cpu_has(7, 0, 'd', 24)) return 1;
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;  // the kernel grants tiles on request
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 ? 2 : 1;
}

int64_t scratch_floats(const Layer *layers, int count, const Task *task) {
    int64_t most = 0;
    for (int i = 0; i < count; i++) {
        const Shape shape(layers[i]);
        const int64_t numbers = up(task->rows * shape.image_a, 2 * TILE) + task->rows * shape.image_b;
        most = numbers > most ? numbers : most;
    }
    return up(task->length, TILE) + up(most, 2 * TILE) / 2 + TILE;
}

int clipped_sum(int level, const Layer *layers, int count, const Task *task) {
    if (level < 1) return 1;
    const Tiles tiles(level);
    const auto form = [&](const Layer &layer, int64_t record, float *gradient, float *scratch) {
        instantiate(level, layer, record, task->rows, gradient, reinterpret_cast<uint16_t *>(scratch));
    };
    add_records(layers, count, *task, form, squared_norm, add_scaled);
    return 0;
}

#else

int processor_level() { return 0; }
int64_t scratch_floats(const Layer *, int, const Task *) { return 0; }
int clipped_sum(int, const Layer *, int, const Task *) { return 1; }

#endif
