// What the kernels share: layers, packed operands, products of tiles.
//
// A record's weight gradient in a convolution or linear layer is G = sum over positions of g a^T. Both operands are stored
// in pairs of positions, as the products of bfloat16 want them, the left one transposed. A line of pixels serves every
// row of a convolution's kernel by an offset, so no patches are written (im2col).

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define SFUMATO_KERNELS 1
#endif

// One convolution or linear layer. A linear layer on T positions is a 1x1 convolution on one line of T pixels.
struct Layer {
    const void *activation;    // rows x height x width x channels, bfloat16 or float
    const uint16_t *gradient;  // rows x out_height x out_width x out_channels, bfloat16; float in single.hpp
    int64_t weight_at;         // place of the weight's gradient: out_channels x kernel_h x kernel_w x channels
    int64_t bias_at;           // place of the bias's gradient, or -1
    int32_t activation_is_float;
    int32_t height, width, channels;
    int32_t out_height, out_width, out_channels;
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

#ifdef SFUMATO_KERNELS

#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")))

namespace {

constexpr int TILE = 16;               // rows of a tile, and its columns in 32-bit numbers
constexpr int TILE_BF16 = TILE * 2 * TILE;  // numbers in a tile of bfloat16 pairs

int64_t up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Sizes of a layer's packed operands, for one image.
struct Shape {
    int64_t channels, out_channels;  // rounded up to whole tiles
    int64_t pairs;                   // pairs of positions on an output line
    int64_t blocks;                  // tiles of 16 pairs that cover all output lines
    int64_t lines;                   // padded input lines of one phase of the vertical stride
    int64_t plane;                   // bfloat16 numbers of one (kernel column, phase)
    int64_t image_a, image_b;        // bfloat16 numbers of an image in either operand

    explicit Shape(const Layer &layer) {
        channels = up(layer.channels, TILE);
        out_channels = up(layer.out_channels, TILE);
        pairs = (layer.out_width + 1) / 2;
        blocks = up(layer.out_height * pairs, TILE) / TILE;
        lines = (layer.height + 2 * layer.pad_h + layer.stride_h - 1) / layer.stride_h;
        // The last tile of the lowest kernel row reads up to a tile past the last line.
        plane = (lines * pairs + TILE) * channels * 2;
        image_a = blocks * (out_channels / TILE) * TILE_BF16;
        image_b = plane * layer.kernel_w * layer.stride_h;
    }
};

AVX512 inline void transpose(__m512i *r) {  // 16 x 16 numbers of 32 bits
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

AVX512 inline __m512i pair(__m256i low, __m256i high) {  // two positions of 16 channels, interleaved
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

AVX512 inline __m256i load(const uint16_t *from, int64_t left) {  // 16 numbers, zeros beyond `left`
    return left >= TILE ? _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))
                        : _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << left) - 1), from);
}

// Output gradients of one image, 16 channels from `channel` on, as tile `tile` of `tiles` side by side of the left
// operand: blocks x tiles x (16 channels x 16 pairs). Their sums over positions are added to `bias`.
AVX512 void pack_columns(const Layer &layer, const Shape &shape, const uint16_t *from, int64_t channel, int64_t tiles,
                         int64_t tile, uint16_t *into, float *bias) {
    const int64_t positions = layer.out_height * shape.pairs, left = layer.out_channels - channel;
    const uint16_t *base = from + channel;
    __m512 sum = _mm512_setzero_ps();
    int64_t y = 0, j = 0;
    for (int64_t block = 0; block < shape.blocks; block++) {
        __m512i rows[TILE];
        for (int k = 0; k < TILE; k++) {
            __m256i low = _mm256_setzero_si256(), high = low;
            if (block * TILE + k < positions) {
                const uint16_t *place = base + (y * layer.out_width + 2 * j) * layer.out_channels;
                low = load(place, left);
                if (2 * j + 1 < layer.out_width) high = load(place + layer.out_channels, left);
                if (++j == shape.pairs) j = 0, y++;
            }
            rows[k] = pair(low, high);
            if (bias) {
                sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(rows[k], 16)));
                sum = _mm512_add_ps(
                    sum, _mm512_castsi512_ps(_mm512_and_si512(rows[k], _mm512_set1_epi32(int(0xffff0000u)))));
            }
        }
        transpose(rows);
        for (int k = 0; k < TILE; k++)
            _mm512_storeu_si512(into + ((block * tiles + tile) * TILE + k) * 2 * TILE, rows[k]);
    }
    if (bias) {
        const __mmask16 mask = left >= TILE ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
        _mm512_mask_storeu_ps(bias + channel, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, bias + channel), sum));
    }
}

// All of them.
void pack_gradient(const Layer &layer, const Shape &shape, const uint16_t *from, uint16_t *into, float *bias) {
    const int64_t tiles = shape.out_channels / TILE;
    for (int64_t tile = 0; tile < tiles; tile++)
        pack_columns(layer, shape, from, tile * TILE, tiles, tile, into, bias);
}

// One column of one input line, 16 channels from `channel` on; zero in the padding.
AVX512 inline __m256i column(const Layer &layer, const void *line, int64_t x, int64_t channel) {
    if (!line || x < 0 || x >= layer.width) return _mm256_setzero_si256();
    const int64_t at = x * layer.channels + channel, left = layer.channels - channel;
    if (!layer.activation_is_float) return load(static_cast<const uint16_t *>(line) + at, left);
    const __mmask16 mask = left >= TILE ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    return (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, static_cast<const float *>(line) + at));
}

// Activations of one image as the right operand: kernel columns x phases x (lines x pairs) x channels x 2.
AVX512 void pack_activation(const Layer &layer, const Shape &shape, const char *from, uint16_t *into) {
    const int64_t bytes = layer.activation_is_float ? 4 : 2;
    for (int kx = 0; kx < layer.kernel_w; kx++)
        for (int phase = 0; phase < layer.stride_h; phase++) {
            uint16_t *place = into + (kx * layer.stride_h + phase) * shape.plane;
            for (int64_t line = 0; line < shape.lines; line++) {
                const int64_t y = line * layer.stride_h + phase - layer.pad_h;
                const char *source =
                    y < 0 || y >= layer.height ? nullptr : from + y * layer.width * layer.channels * bytes;
                for (int64_t j = 0; j < shape.pairs; j++) {
                    const int64_t x = 2 * j * layer.stride_w + kx - layer.pad_w;
                    for (int64_t c = 0; c < shape.channels; c += TILE, place += 2 * TILE)
                        _mm512_store_si512(
                            place, pair(column(layer, source, x, c), column(layer, source, x + layer.stride_w, c)));
                }
            }
            // Multiplied by zeros, but what another record left here might be NaN.
            std::memset(place, 0, sizeof(uint16_t) * size_t(TILE * shape.channels * 2));
        }
}

// Operands of G, or of one place in a convolution's kernel: G(i, j) is the sum over images and blocks of a tile of `a` times
// a tile of `b`. All strides count numbers of bfloat16.
struct Product {
    const uint16_t *a, *b;
    int64_t images, blocks;
    int64_t a_image, a_block, a_tile, a_row;
    int64_t b_image, b_block, b_tile, b_row;
    int pairs = TILE;  // of positions in a tile: rows of `b`, and columns of `a`
};

AVX512 void multiply_avx512(const Product &p, int64_t i, int64_t j, float *out, int64_t stride) {
    __m512 sum[TILE];
    for (auto &value : sum) value = _mm512_setzero_ps();
    for (int64_t image = 0; image < p.images; image++)
        for (int64_t block = 0; block < p.blocks; block++) {
            const auto *a = reinterpret_cast<const int32_t *>(p.a + image * p.a_image + block * p.a_block + i * p.a_tile);
            const uint16_t *b = p.b + image * p.b_image + block * p.b_block + j * p.b_tile;
            for (int k = 0; k < p.pairs; k++) {
                const auto right = (__m512bh)_mm512_loadu_si512(b + k * p.b_row);
                for (int row = 0; row < TILE; row++)
                    sum[row] = _mm512_dpbf16_ps(sum[row], (__m512bh)_mm512_set1_epi32(a[row * p.a_row / 2 + k]), right);
            }
        }
    for (int row = 0; row < TILE; row++) _mm512_storeu_ps(out + row * stride, sum[row]);
}

// Operands are written before tiles of them are loaded; the intrinsics do not say that they read memory.
inline void operands_are_there() { asm volatile("" ::: "memory"); }

// Tiles (i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1) of G.
AMX void multiply_amx_4(const Product &p, int64_t i, int64_t j, float *out, int64_t stride) {
    operands_are_there();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t image = 0; image < p.images; image++) {
        const uint16_t *a = p.a + image * p.a_image + i * p.a_tile, *b = p.b + image * p.b_image + j * p.b_tile;
        for (int64_t block = 0; block < p.blocks; block++, a += p.a_block, b += p.b_block) {
            _tile_loadd(4, a, p.a_row * 2);
            _tile_loadd(6, b, p.b_row * 2);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b + p.b_tile, p.b_row * 2);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a + p.a_tile, p.a_row * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out, stride * 4);
    _tile_stored(1, out + TILE, stride * 4);
    _tile_stored(2, out + TILE * stride, stride * 4);
    _tile_stored(3, out + TILE * stride + TILE, stride * 4);
}

AMX void multiply_amx_1(const Product &p, int64_t i, int64_t j, float *out, int64_t stride) {
    operands_are_there();
    _tile_zero(0);
    for (int64_t image = 0; image < p.images; image++) {
        const uint16_t *a = p.a + image * p.a_image + i * p.a_tile, *b = p.b + image * p.b_image + j * p.b_tile;
        for (int64_t block = 0; block < p.blocks; block++, a += p.a_block, b += p.b_block) {
            _tile_loadd(4, a, p.a_row * 2);
            _tile_loadd(6, b, p.b_row * 2);
            _tile_dpbf16ps(0, 4, 6);
        }
    }
    _tile_stored(0, out, stride * 4);
}

AVX512 double squared_norm(const float *values, int64_t count) {
    __m512d sums[4] = {_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd()};
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
        for (int k = 0; k < 4; k++) {
            const __m512d value = _mm512_cvtps_pd(_mm256_loadu_ps(values + i + 8 * k));
            sums[k] = _mm512_fmadd_pd(value, value, sums[k]);
        }
    double sum = _mm512_reduce_add_pd(
        _mm512_add_pd(_mm512_add_pd(sums[0], sums[1]), _mm512_add_pd(sums[2], sums[3])));
    for (; i < count; i++) sum += double(values[i]) * double(values[i]);
    return sum;
}

AVX512 void add_scaled(double weight, const float *values, double *total, int64_t count) {
    const __m512d factor = _mm512_set1_pd(weight);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm512_storeu_pd(total + i, _mm512_fmadd_pd(factor, _mm512_cvtps_pd(_mm256_loadu_ps(values + i)),
                                                    _mm512_loadu_pd(total + i)));
    for (; i < count; i++) total[i] += weight * double(values[i]);
}

struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
};

// Tiles 0 to 3 hold sums, 4 and 5 left operands, 6 and 7 right ones with `pairs` rows. Constants, because compilers drop
// stores to a local configuration that only ldtilecfg reads.
constexpr TileConfig configuration(uint8_t pairs) {
    const auto columns = static_cast<uint16_t>(4 * pairs);
    return {1, 0, {}, {64, 64, 64, 64, columns, columns, 64, 64}, {16, 16, 16, 16, 16, 16, pairs, pairs}};
}
alignas(64) const TileConfig CONFIGURATIONS[] = {configuration(4), configuration(8), configuration(16)};

// Other libraries remember which configuration they left behind, so it is put back.
struct Tiles {
    alignas(64) TileConfig before;
    const bool used;

    explicit AMX Tiles(int level, int pairs = TILE) : used(level == 2) {
        if (!used) return;
        _tile_storeconfig(&before);
        _tile_loadconfig(&CONFIGURATIONS[pairs / 8]);  // 4, 8 or 16
    }

    AMX ~Tiles() {
        if (!used) return;
        if (before.palette)
            _tile_loadconfig(&before);
        else
            _tile_release();
    }
};

}  // namespace

#endif
