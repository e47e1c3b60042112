// Linear layers of large networks: the clipped sum, panel by panel.
//
// Each tile of a record's G is formed anew, in the same order as where it was measured and hence with the same bits,
// and added, scaled, in double precision, or in float32 in groups of at most eight records.

#include "linear.hpp"

extern "C" {

// Adds the gradients times `weights` to `total`; records of weight zero are not read. `grouped`: 1 if at most eight
// records may be added up in float32 before they join the total; 2 if there is no room for that any more: then each joins
// it alone, but is formed in the same way, for no record's share may hang on how many others there are. `overwrite`: what
// is in `total` counts as zero.
int linear_add(int level, const Layer *layer, int64_t records, int64_t positions, int grouped, int overwrite,
               const double *weights, double *total, float *scratch);
}

#ifdef SFUMATO_KERNELS

namespace {

constexpr int64_t ROWS = 4;  // rows of a panel that stay in registers

// What a chunk's records add to one panel, in double precision. Rows of the whole sum are powers of two apart, so that
// a panel of it would compete for few places of the first cache; here they follow each other.
struct Sum {
    alignas(64) double values[PANEL * PANEL];

    // Adds a panel times a weight, or overwrites with it.
    AVX512 void add(const float *panel, double weight, bool first) {
        const __m512d factor = _mm512_set1_pd(weight);
        for (int k = 0; k < PANEL * PANEL; k += 8) {
            const __m512d before = first ? _mm512_setzero_pd() : _mm512_load_pd(values + k);
            const __m512d value = _mm512_cvtps_pd(_mm256_load_ps(panel + k));
            _mm512_store_pd(values + k, _mm512_fmadd_pd(factor, value, before));
        }
    }

    // Adds as much of it as there is to the whole sum, or overwrites that.
    AVX512 void join(const Part &part, int64_t stride, bool overwrite) const {
        for (int64_t y = 0; y < part.height; y++)
            for (int64_t x = 0; x < part.width; x += 8) {
                const auto mask = static_cast<__mmask8>(part.width - x >= 8 ? 0xff : (1u << (part.width - x)) - 1);
                double *place = part.place + y * stride + x;
                const __m512d before = overwrite ? _mm512_setzero_pd() : _mm512_maskz_loadu_pd(mask, place);
                _mm512_mask_storeu_pd(place, mask, _mm512_add_pd(before, _mm512_load_pd(values + y * PANEL + x)));
            }
    }
};

// A record's panel, or what a group of at most eight records adds to one.
struct Panel {
    alignas(64) float values[PANEL * PANEL] = {};

    // Adds a panel times a weight, or overwrites with it.
    AVX512 void add(const Panel &other, float weight, bool first) {
        const __m512 factor = _mm512_set1_ps(weight);
        for (int k = 0; k < PANEL * PANEL; k += TILE) {
            const __m512 before = first ? _mm512_setzero_ps() : _mm512_load_ps(values + k);
            _mm512_store_ps(values + k, _mm512_fmadd_ps(factor, _mm512_load_ps(other.values + k), before));
        }
    }
};

// Rows `row` to `row + ROWS` of what at most eight records add: their products times their weights. Products are in
// registers, in the order of multiply_avx512 and hence with its bits.
AVX512 void group_rows(const Cut &cut, const uint16_t *a, const uint16_t *b, const double *weights, int64_t count,
                       int64_t row, Panel &out) {
    __m512 group[ROWS][2];
    for (auto &pair : group) pair[0] = pair[1] = _mm512_setzero_ps();
    for (int64_t n = 0; n < count; n++, a += cut.panel, b += cut.panel) {
        __m512 sum[ROWS][2];
        for (auto &pair : sum) pair[0] = pair[1] = _mm512_setzero_ps();
        for (int64_t block = 0; block < cut.blocks; block++) {
            const uint16_t *tile = a + (2 * block + row / TILE) * cut.tile + row % TILE * cut.row;
            const auto *left = reinterpret_cast<const int32_t *>(tile);
            const uint16_t *right = b + block * cut.tile, *other = right + cut.blocks * cut.tile;
            for (int64_t k = 0; k < cut.pairs; k++, right += 2 * TILE, other += 2 * TILE) {
                const auto one = (__m512bh)_mm512_load_si512(right), two = (__m512bh)_mm512_load_si512(other);
                for (int r = 0; r < ROWS; r++) {
                    const auto both = (__m512bh)_mm512_set1_epi32(left[r * cut.pairs + k]);
                    sum[r][0] = _mm512_dpbf16_ps(sum[r][0], both, one);
                    sum[r][1] = _mm512_dpbf16_ps(sum[r][1], both, two);
                }
            }
        }
        const __m512 weight = _mm512_set1_ps(float(weights[n]));
        for (int r = 0; r < ROWS; r++)
            for (int half = 0; half < 2; half++) group[r][half] = _mm512_fmadd_ps(weight, sum[r][half], group[r][half]);
    }
    for (int r = 0; r < ROWS; r++)
        for (int half = 0; half < 2; half++)
            _mm512_store_ps(out.values + (row + r) * PANEL + half * TILE, group[r][half]);
}

// A weight in single precision, or the first 8 bits of it; never larger than it is. The bits are masked in a register
// of the vector unit: GCC 12 loses a mask on an integer that it knows as a float's memory.
template <int BITS> AVX512 float single_of(double weight) {
    static_assert(BITS == 8 || BITS == 24);
    constexpr int DOWN = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
    const __m128 value = _mm_cvt_roundsd_ss(_mm_setzero_ps(), _mm_set_sd(weight), DOWN);
    return _mm_cvtss_f32(_mm_and_ps(value, _mm_castsi128_ps(_mm_set1_epi32(BITS == 8 ? int(0xffff0000u) : -1))));
}

// Adds records one by one in double precision, or in groups in float32: each record then costs one rounding of its
// group's sum. Weights may be rounded down to float32.
void add_weight(int level, const Layer &line, int64_t records, bool grouped, bool rounded, bool overwrite,
                const double *weights, double *total, float *scratch) {
    const Shape shape(line);
    const Cut cut(shape);
    Kept kept(records, weights);
    for (double &weight : kept.weights) weight = rounded ? double(single_of<24>(weight)) : weight;
    const auto pack_a = [&](int64_t n, int64_t i, uint16_t *into) {
        pack_left(line, cut, gradient_of(line, kept.records[size_t(n)]), i * PANEL, into);
    };
    const auto pack_b = [&](int64_t n, int64_t j, uint16_t *into) {
        pack_right(line, cut, activation_of(line, kept.records[size_t(n)]), j * PANEL, into);
    };
    Panel one, group;
    Sum sum;
    const auto add = [&](const Span &span, const Part &part, const uint16_t *a, const uint16_t *b) {
        const int64_t count = span.count;
        const double *shares = &kept.weights[size_t(span.first)];
        for (int64_t begin = 0; begin < count; begin += TOGETHER) {
            const int64_t end = std::min(begin + TOGETHER, count);
            part.look_ahead(begin / TOGETHER, up(count, TOGETHER) / TOGETHER, line.channels);
            if (level == 1 && grouped)
                for (int64_t row = 0; row < part.height; row += ROWS)
                    group_rows(cut, a + begin * cut.panel, b + begin * cut.panel, shares + begin, end - begin, row,
                               group);
            else
                for (int64_t n = begin; n < end; n++) {
                    const Product product = cut.product(a + n * cut.panel, b + n * cut.panel);
                    multiply_panel(level, product, part.width > TILE, part.height > TILE, one.values);
                    if (grouped)
                        group.add(one, float(shares[n]), n == begin);
                    else
                        sum.add(one.values, shares[n], n == 0);
                }
            if (grouped) sum.add(group.values, 1, begin == 0);
        }
        sum.join(part, line.channels, overwrite && span.first == 0);
    };
    by_panels<uint16_t>(line, kept.count(), cut.panel, pack_a, pack_b, total, scratch, add);
}

// Activations of a record of at most 16 positions as right operands: in one tile, twice one under the other.
AVX512 void pack_twice(const Layer &line, const char *from, int64_t channel, uint16_t *into) {
    for (int64_t k = 0; k < TILE / 2; k++) {
        const Two two(from, line, line.activation_is_float, line.channels, channel, 2 * k);
        for (int half = 0; half < 2; half++) {
            const __m512i both = interleaved(two.first, two.second, half);
            _mm512_store_si512(into + half * TILE_BF16 + k * 2 * TILE, both);
            _mm512_store_si512(into + half * TILE_BF16 + (TILE / 2 + k) * 2 * TILE, both);
        }
    }
}

// Output gradients of a record of at most 16 positions times its weight, as left operands: high parts, then low parts.
// A weight of 8 bits times a bfloat16 is exactly the sum of two bfloat16.
AVX512 void pack_scaled(const Layer &line, const uint16_t *from, int64_t channel, float weight, uint16_t *into) {
    const int64_t left = line.out_channels - channel;
    const __m512 factor = _mm512_set1_ps(weight);
    __m512i rows[TILE];
    for (int k = 0; k < TILE / 2; k++) {
        __m256i high[2], low[2];
        for (int t = 0; t < 2; t++) {
            high[t] = low[t] = _mm256_setzero_si256();
            if (2 * k + t >= line.width) continue;
            const __m256i values = load(from + (2 * k + t) * line.out_channels + channel, left);
            const __m512 product =
                _mm512_mul_ps(factor, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16)));
            high[t] = (__m256i)_mm512_cvtneps_pbh(product);
            const __m512 near = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high[t]), 16));
            low[t] = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(product, near));
        }
        rows[k] = pair(high[0], high[1]);
        rows[TILE / 2 + k] = pair(low[0], low[1]);
    }
    transpose(rows);
    for (int k = 0; k < TILE; k++) _mm512_store_si512(into + k * 2 * TILE, rows[k]);
}

// Adds groups of so many records, at most eight, in float32, weights and all: a tile has room for 16 positions twice, and
// AMX sums a tile's products apart before it adds them, so that each record costs one rounding of the group's sum. Weights
// are rounded down to 8 bits.
void add_grouped(const Layer &line, int64_t records, int64_t together, bool overwrite, const double *weights,
                 double *total, float *scratch) {
    constexpr int64_t tile = TILE_BF16, panel = 2 * tile;
    const Kept kept(records, weights);
    const auto pack_a = [&](int64_t n, int64_t i, uint16_t *into) {
        for (int64_t half = 0; half < 2 && i * PANEL + half * TILE < line.out_channels; half++)
            pack_scaled(line, gradient_of(line, kept.records[size_t(n)]), i * PANEL + half * TILE,
                        single_of<8>(kept.weights[size_t(n)]), into + half * tile);
    };
    const auto pack_b = [&](int64_t n, int64_t j, uint16_t *into) {
        pack_twice(line, activation_of(line, kept.records[size_t(n)]), j * PANEL, into);
    };
    Panel group;
    Sum sum;
    const auto add = [&](const Span &span, const Part &part, const uint16_t *a, const uint16_t *b) {
        const int64_t count = span.count;
        for (int64_t begin = 0; begin < count; begin += together) {
            part.look_ahead(begin / together, up(count, together) / together, line.channels);
            const Product product{a + begin * panel, b + begin * panel, std::min(together, count - begin), 1, panel, 0,
                                  tile, 2 * TILE, panel, 0, tile, 2 * TILE};
            multiply_panel(2, product, part.width > TILE, part.height > TILE, group.values);
            sum.add(group.values, 1, begin == 0);
        }
        sum.join(part, line.channels, overwrite && span.first == 0);
    };
    by_panels<uint16_t>(line, kept.count(), panel, pack_a, pack_b, total, scratch, add);
}

}  // namespace

int linear_add(int level, const Layer *layer, int64_t records, int64_t positions, int grouped, int overwrite,
               const double *weights, double *total, float *scratch) {
    if (level < 1) return 1;
    const Layer line = line_of(*layer, positions);
    const bool some = std::any_of(weights, weights + records, [](double weight) { return weight > 0; });
    if (overwrite && line.bias_at >= 0)
        std::memset(total + line.bias_at, 0, sizeof(double) * size_t(line.out_channels));
    if (overwrite && !some && line.weight_at >= 0)
        std::memset(total + line.weight_at, 0, sizeof(double) * size_t(line.out_channels) * size_t(line.channels));
    if (!some) return 0;
    if (line.bias_at >= 0)
        for (int64_t record = 0; record < records; record++)
            if (weights[record] > 0) bias_square(line, record, weights[record], total + line.bias_at);
    if (line.weight_at < 0) return 0;
    if (grouped && groups(level, line)) {
        const Tiles tiles(level);
        add_grouped(line, records, grouped == 1 ? TOGETHER : 1, overwrite, weights, total, scratch);
    } else {
        const Tiles tiles(level, int(Cut(Shape(line)).pairs));
        add_weight(level, line, records, grouped == 1, grouped != 0, overwrite, weights, total, scratch);
    }
    return 0;
}

#else

int linear_add(int, const Layer *, int64_t, int64_t, int, int, const double *, double *, float *) { return 1; }

#endif
