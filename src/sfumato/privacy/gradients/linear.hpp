// What both passes over linear layers of large networks share: how a record's operands are packed and multiplied. A
// panel is 2 x 2 tiles.

#pragma once

#include "panels.hpp"

#ifdef SFUMATO_KERNELS

namespace {

Layer line_of(const Layer &layer, int64_t positions) {  // one line that holds all positions of a record
    Layer line = layer;
    line.height = line.out_height = 1;
    line.width = line.out_width = int32_t(positions);
    line.kernel_h = line.kernel_w = line.stride_h = line.stride_w = 1;
    line.pad_h = line.pad_w = 0;
    return line;
}

const char *activation_of(const Layer &line, int64_t record) {
    return static_cast<const char *>(line.activation) +
           record * line.width * line.channels * (line.activation_is_float ? 4 : 2);
}

const uint16_t *gradient_of(const Layer &line, int64_t record) {
    return line.gradient + record * line.width * line.out_channels;
}

// 32 numbers of a row as bfloat16, zeros beyond `left`.
AVX512 inline __m512i numbers(const char *from, bool is_float, int64_t left) {
    const __mmask32 mask = left >= PANEL ? 0xffffffffu : (1u << left) - 1;
    if (!is_float) return _mm512_maskz_loadu_epi16(mask, from);
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), from + 4 * TILE),
                                        _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from));
}

// How a record's positions are cut into tiles; short sequences get tiles of 4 or 8 pairs.
struct Cut {
    int64_t blocks, pairs, row, tile, panel;

    explicit Cut(const Shape &shape) {
        blocks = shape.blocks;
        pairs = blocks > 1 || shape.pairs > 8 ? TILE : shape.pairs > 4 ? 8 : 4;
        row = 2 * pairs, tile = TILE * row, panel = 2 * blocks * tile;
    }

    Product product(const uint16_t *a, const uint16_t *b) const {
        return {a, b, 1, blocks, 0, 2 * tile, tile, row, 0, tile, blocks * tile, 2 * TILE, int(pairs)};
    }
};

// Numbers 0 to 15 of two rows, or 16 to 31, interleaved.
AVX512 inline __m512i interleaved(__m512i one, __m512i other, int half) {
    alignas(64) static constexpr auto ORDER = [] {
        struct {
            uint16_t of[2][2 * TILE];
        } order{};
        for (int h = 0; h < 2; h++)
            for (int k = 0; k < 2 * TILE; k++) order.of[h][k] = uint16_t(h * TILE + k / 2 + (k % 2) * PANEL);
        return order;
    }();
    return _mm512_permutex2var_epi16(one, _mm512_load_si512(ORDER.of[half]), other);
}

// Two positions of a record; zeros beyond its last.
struct Two {
    __m512i first, second;

    AVX512 inline Two(const char *from, const Layer &line, bool is_float, int64_t width, int64_t channel, int64_t x) {
        const int64_t bytes = is_float ? 4 : 2, left = width - channel;
        first = second = _mm512_setzero_si512();
        if (x < line.width) first = numbers(from + (x * width + channel) * bytes, is_float, left);
        if (x + 1 < line.width) second = numbers(from + ((x + 1) * width + channel) * bytes, is_float, left);
    }
};

// Activations of one record, 32 channels from `channel` on, as right operands: 2 tiles x blocks x (pairs x 16
// channels).
AVX512 void pack_right(const Layer &line, const Cut &cut, const char *from, int64_t channel, uint16_t *into) {
    const int64_t pairs = cut.blocks * cut.pairs;
    for (int64_t k = 0; k < pairs; k++) {
        const Two two(from, line, line.activation_is_float, line.channels, channel, 2 * k);
        for (int half = 0; half < 2; half++)
            _mm512_store_si512(into + (half * pairs + k) * 2 * TILE, interleaved(two.first, two.second, half));
    }
}

// Output gradients of one record, 32 channels from `channel` on, as left operands: blocks x 2 tiles x (16 channels x
// pairs).
AVX512 void pack_left(const Layer &line, const Cut &cut, const uint16_t *from, int64_t channel, uint16_t *into) {
    const __mmask16 used = static_cast<__mmask16>((1u << cut.pairs) - 1);
    for (int64_t block = 0; block < cut.blocks; block++) {
        __m512i rows[2][TILE];
        for (int64_t k = 0; k < TILE; k++) {
            const int64_t x = 2 * (block * TILE + k);
            const Two two(reinterpret_cast<const char *>(from), line, false, line.out_channels, channel, x);
            for (int half = 0; half < 2; half++) rows[half][k] = interleaved(two.first, two.second, half);
        }
        for (int half = 0; half < 2; half++, into += cut.tile) {
            transpose(rows[half]);
            for (int k = 0; k < TILE; k++) _mm512_mask_storeu_epi32(into + k * cut.row, used, rows[half][k]);
        }
    }
}

// A panel of G, up to 2 x 2 tiles, of one record.
void multiply_panel(int level, const Product &product, bool wide, bool high, float *out) {
    if (level == 2 && wide && high) return multiply_amx_4(product, 0, 0, out, PANEL);
    for (int64_t di = 0; di < (high ? 2 : 1); di++)
        for (int64_t dj = 0; dj < (wide ? 2 : 1); dj++) {
            float *place = out + di * TILE * PANEL + dj * TILE;
            if (level == 2)
                multiply_amx_1(product, di, dj, place, PANEL);
            else
                multiply_avx512(product, di, dj, place, PANEL);
        }
}

// Squared norm of the bias's gradient of one record; where there is a `total`, adds the gradient times `weight` to it.
AVX512 double bias_square(const Layer &line, int64_t record, double weight, double *total) {
    constexpr int64_t SPAN = 2 * PANEL;  // channels at a time: four sums that need not wait for each other
    const auto *from = reinterpret_cast<const char *>(gradient_of(line, record));
    const __m512i odd = _mm512_set1_epi32(int(0xffff0000u));
    double sum = 0;
    for (int64_t p = 0; p < line.out_channels; p += SPAN) {
        __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int64_t t = 0; t < line.width; t++)
            for (int half = 0; half < 2; half++) {
                const int64_t channel = p + half * PANEL, left = line.out_channels - channel;
                const __m512i row = left > 0 ? numbers(from + (t * line.out_channels + channel) * 2, false, left)
                                             : _mm512_setzero_si512();
                sums[2 * half] = _mm512_add_ps(sums[2 * half], _mm512_castsi512_ps(_mm512_slli_epi32(row, 16)));
                sums[2 * half + 1] = _mm512_add_ps(sums[2 * half + 1], _mm512_castsi512_ps(_mm512_and_si512(row, odd)));
            }
        alignas(64) float values[SPAN];
        for (int k = 0; k < 4; k++) {  // channels in their order again: even ones and odd ones take turns
            const __m512i first = _mm512_add_epi32(_mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0),
                                                   _mm512_set1_epi32(k % 2 * 8));
            const __m512i turns = _mm512_mask_add_epi32(first, 0xaaaa, first, _mm512_set1_epi32(TILE));
            _mm512_store_ps(values + k * TILE, _mm512_permutex2var_ps(sums[k / 2 * 2], turns, sums[k / 2 * 2 + 1]));
        }
        const int64_t count = std::min(SPAN, line.out_channels - p);
        if (total)
            add_scaled(weight, values, total + p, count);
        else
            sum += squared_norm(values, count);
    }
    return sum;
}

// Whether a layer's sequences are so short that records can be added up inside the products.
bool groups(int level, const Layer &line) { return level == 2 && line.width <= TILE; }

}  // namespace

#endif
