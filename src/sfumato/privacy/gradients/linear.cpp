// Linear layers of large networks: squared norms without a gradient in memory, and the clipped sum tile by tile.
//
// |G|^2 comes from Gram matrices, <A A^T, B B^T>, raised by a bound on their rounding; where that bound exceeds 1 % of
// the norm (inputs that cancel), the record's tiles of G are formed, measured and discarded instead. The sum forms each
// tile of a record's G anew, in the same order and hence with the same bits, and adds it, scaled, in double precision.

#include "tiles.hpp"

#include <vector>

extern "C" {

// Squared norms, or upper bounds on them, of the gradients of a linear layer's weight and bias; added to `squares`.
// `positions` rows of activation and gradient belong to each record. `gram`: measure by Gram matrices.
int linear_squares(int level, const Layer *layer, int64_t records, int64_t positions, int gram, double *squares,
                   float *scratch);
// Adds the gradients times `weights` to `total`; records of weight zero are not read. `grouped`: short sequences may be
// added in float32, eight records at a time. `overwrite`: what is in `total` counts as zero.
int linear_add(int level, const Layer *layer, int64_t records, int64_t positions, int grouped, int overwrite,
               const double *weights, double *total, float *scratch);
int64_t linear_scratch_floats(const Layer *layer, int64_t records, int64_t positions);
}

#ifdef SFUMATO_KERNELS

namespace {

constexpr double UNIT = 0x1p-24;
constexpr int PANEL = 2 * TILE;

// Roundings on the way from `count` products to their sum: AMX adds 32 products apart, then the block to the sum.
double depth(int level, int64_t count) { return level == 2 ? 34.0 + double(count) / 32 : 2.0 + double(count); }

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

// Rows of 16 positions, 32 numbers wide, as left operands (rows) and as right ones (transposed), for Gram matrices.
struct GramOperand {
    uint16_t *left, *right;
    int64_t row_blocks, blocks;

    AVX512 void pack(const void *from, bool is_float, int64_t rows, int64_t width) {
        for (int64_t i = 0; i < row_blocks; i++)
            for (int64_t k = 0; k < blocks; k++) {
                __m512i lines[TILE];
                for (int64_t row = 0; row < TILE; row++) {
                    const int64_t y = i * TILE + row, x = k * 2 * TILE, left_over = width - x;
                    lines[row] = _mm512_setzero_si512();
                    if (y >= rows) continue;
                    const __mmask32 mask = left_over >= 32 ? 0xffffffffu : (1u << left_over) - 1;
                    if (!is_float) {
                        lines[row] = _mm512_maskz_loadu_epi16(mask, static_cast<const uint16_t *>(from) + y * width + x);
                        continue;
                    }
                    const float *values = static_cast<const float *>(from) + y * width + x;
                    lines[row] = (__m512i)_mm512_cvtne2ps_pbh(
                        _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), values + TILE),
                        _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), values));
                }
                const int64_t place = (i * blocks + k) * TILE_BF16;
                for (int row = 0; row < TILE; row++) _mm512_store_si512(left + place + row * 32, lines[row]);
                transpose(lines);
                for (int row = 0; row < TILE; row++) _mm512_store_si512(right + place + row * 32, lines[row]);
            }
    }

    // Tile (i, j) of the Gram matrix, 16 x 16 floats.
    void tile(int level, int64_t i, int64_t j, float *out) const {
        const int64_t tile = blocks * TILE_BF16;
        const Product product{left, right, 1, blocks, 0, TILE_BF16, tile, 2 * TILE, 0, TILE_BF16, tile, 2 * TILE};
        if (level == 2)
            multiply_amx_1(product, i, j, out, TILE);
        else
            multiply_avx512(product, i, j, out, TILE);
    }
};

AVX512 double dot(const float *one, const float *other) {  // of two tiles
    __m512d sum = _mm512_setzero_pd();
    for (int i = 0; i < TILE * TILE; i += 8)
        sum = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_load_ps(one + i)), _mm512_cvtps_pd(_mm256_load_ps(other + i)), sum);
    return _mm512_reduce_add_pd(sum);
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

AVX512 double bias_square(const Layer &line, int64_t record, double weight, double *total) {
    const uint16_t *from = gradient_of(line, record);
    double sum = 0;
    for (int64_t p = 0; p < line.out_channels; p += TILE) {
        const int64_t left = line.out_channels - p;
        __m512 column = _mm512_setzero_ps();
        for (int64_t t = 0; t < line.width; t++)
            column = _mm512_add_ps(column, _mm512_castsi512_ps(_mm512_slli_epi32(
                                               _mm512_cvtepu16_epi32(load(from + t * line.out_channels + p, left)), 16)));
        alignas(64) float values[TILE];
        _mm512_store_ps(values, column);
        for (int64_t k = 0; k < TILE && k < left; k++) {
            if (total)
                total[p + k] += weight * double(values[k]);
            else
                sum += double(values[k]) * double(values[k]);
        }
    }
    return sum;
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

// Activations of one record, 32 channels from `channel` on, as right operands: 2 tiles x blocks x (pairs x 16 channels).
AVX512 void pack_right(const Layer &line, const Cut &cut, const char *from, int64_t channel, uint16_t *into) {
    for (int64_t half = 0; half < 2; half++)
        for (int64_t k = 0; k < cut.blocks * cut.pairs; k++, into += 2 * TILE) {
            const int64_t x = 2 * k, c = channel + half * TILE;
            const char *source = c < line.channels ? from : nullptr;
            _mm512_storeu_si512(into, pair(column(line, source, x, c), column(line, source, x + 1, c)));
        }
}

// The same of a record of at most 16 positions in one tile, twice one under the other.
AVX512 void pack_twice(const Layer &line, const char *from, int64_t channel, uint16_t *into) {
    for (int64_t half = 0; half < 2; half++, into += TILE_BF16)
        for (int64_t k = 0; k < TILE / 2; k++) {
            const int64_t x = 2 * k, c = channel + half * TILE;
            const char *source = c < line.channels ? from : nullptr;
            const __m512i both = pair(column(line, source, x, c), column(line, source, x + 1, c));
            _mm512_store_si512(into + k * 2 * TILE, both);
            _mm512_store_si512(into + (TILE / 2 + k) * 2 * TILE, both);
        }
}

// Output gradients of one record, 32 channels from `channel` on, as left operands: blocks x 2 tiles x (16 channels x
// pairs).
void pack_left(const Layer &line, const Shape &shape, const Cut &cut, const uint16_t *from, int64_t channel,
               uint16_t *into) {
    for (int64_t half = 0; half < 2 && channel + half * TILE < line.out_channels; half++)
        pack_columns(line, shape, from, channel + half * TILE, 2, half, cut.row, into, nullptr);
}

// Squared norm of the weight's gradient, tile by tile, of exactly the values that `linear_add` adds.
double square_by_tiles(int level, const Layer &line, const Shape &shape, int64_t record, uint16_t *packed) {
    const Tiles tiles(level, int(Cut(shape).pairs));
    alignas(64) float tile[PANEL * PANEL];
    const Cut cut(shape);
    uint16_t *a = packed, *b = packed + cut.panel;
    for (int64_t j = 0; j < line.channels; j += PANEL)
        pack_right(line, cut, activation_of(line, record), j, b + j / PANEL * cut.panel);
    double sum = 0;
    for (int64_t i = 0; i < line.out_channels; i += PANEL) {
        const bool high = line.out_channels - i > TILE;
        pack_left(line, shape, cut, gradient_of(line, record), i, a);
        for (int64_t j = 0; j < line.channels; j += PANEL) {
            const bool wide = line.channels - j > TILE;
            multiply_panel(level, cut.product(a, b + j / PANEL * cut.panel), wide, high, tile);
            if (wide && high)
                sum += squared_norm(tile, PANEL * PANEL);
            else
                for (int64_t row = 0; row < (high ? PANEL : TILE); row++)
                    sum += squared_norm(tile + row * PANEL, wide ? PANEL : TILE);
        }
    }
    return sum;
}

// Whether `add_grouped` is made for a layer.
bool groups(int level, const Layer &line) { return level == 2 && line.width <= TILE; }

void squares_of(int level, const Layer &line, int64_t records, bool gram, double *squares, float *scratch) {
    const Shape shape(line);
    gram = gram || groups(level, line);
    const int64_t rows = up(line.width, TILE) / TILE;
    GramOperand a{}, g{};
    a.row_blocks = g.row_blocks = rows;
    a.blocks = up(line.channels, 32) / 32, g.blocks = up(line.out_channels, 32) / 32;
    auto *packed = reinterpret_cast<uint16_t *>(scratch);
    a.left = packed, a.right = a.left + rows * a.blocks * TILE_BF16;
    g.left = a.right + rows * a.blocks * TILE_BF16, g.right = g.left + rows * g.blocks * TILE_BF16;
    const double slack_a = depth(level, line.channels) * UNIT, slack_g = depth(level, line.out_channels) * UNIT;
    // Products below the smallest normal number count as zero.
    const double lost_a = double(line.channels) * 0x1p-126, lost_g = double(line.out_channels) * 0x1p-126;
    const double slack_sum = depth(level, line.width) * UNIT;
    alignas(64) float tile_a[TILE * TILE], tile_g[TILE * TILE];
    for (int64_t record = 0; record < records; record++) {
        double square = 0;
        bool measured = false;
        double sizes = 0;  // sum over positions of |a| |g|
        if (line.weight_at >= 0 && gram) {
            double all_a = 0, all_g = 0;  // sums over positions of |a|, of |g|
            a.pack(activation_of(line, record), line.activation_is_float, line.width, line.channels);
            g.pack(gradient_of(line, record), false, line.width, line.out_channels);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = i; j < rows; j++) {
                    a.tile(level, i, j, tile_a);
                    g.tile(level, i, j, tile_g);
                    square += (i == j ? 1 : 2) * dot(tile_a, tile_g);
                    for (int k = 0; i == j && k < TILE; k++) {
                        const double size_a = std::sqrt(double(tile_a[k * (TILE + 1)]) + lost_a);
                        const double size_g = std::sqrt(double(tile_g[k * (TILE + 1)]) + lost_g);
                        sizes += size_a * size_g, all_a += size_a, all_g += size_g;
                    }
                }
            sizes *= 1 + slack_a + slack_g;  // the diagonals are rounded too
            double error = (slack_a + slack_g + slack_a * slack_g) * 1.01 * sizes * sizes;
            error += 1.01 * (lost_a * all_g * all_g + lost_g * all_a * all_a);
            measured = error <= 0.02 * square;
            const double norm = std::sqrt(square + error) + 1.01 * slack_sum * sizes;
            square = norm * norm;
        }
        if (line.weight_at >= 0 && !measured) {
            // Grouped records are added in another order than they are measured in here.
            const double norm = std::sqrt(square_by_tiles(level, line, shape, record, packed)) +
                                (groups(level, line) ? 2.02 * slack_sum * sizes : 0);
            square = norm * norm;
        }
        if (line.bias_at >= 0) square += bias_square(line, record, 0, nullptr);
        squares[record] += square;
    }
}

constexpr int GROUP = 4;  // records whose tiles are added together

// total[rows x width] += sum over the group of weight x tile, or = if it is the first
template <int COUNT>
AVX512 inline void add_tiles(const float *tiles, const double *weights, double *total, int64_t rows, int64_t width,
                             int64_t stride, bool first) {
    __m512d factors[COUNT];
    for (int r = 0; r < COUNT; r++) factors[r] = _mm512_set1_pd(weights[r]);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t x = 0; x < width; x += 8) {
            const __mmask8 mask = width - x >= 8 ? 0xff : static_cast<__mmask8>((1u << (width - x)) - 1);
            double *place = total + row * stride + x;
            __m512d sum = first ? _mm512_setzero_pd() : _mm512_maskz_loadu_pd(mask, place);
#pragma GCC unroll 4
            for (int r = 0; r < COUNT; r++)
                sum = _mm512_fmadd_pd(
                    factors[r], _mm512_cvtps_pd(_mm256_load_ps(tiles + (r * PANEL + row) * PANEL + x)), sum);
            _mm512_mask_storeu_pd(place, mask, sum);
        }
}

// Tiles on their way from the products to the sum. A group is added when the next one is complete: reading a tile just
// stored would wait for the store.
struct Waiting {
    alignas(64) float tiles[2][GROUP * PANEL * PANEL];
    double weights[2][GROUP];
    int counts[2] = {0, 0}, now = 0;

    float *next(double weight) {
        weights[now][counts[now]] = weight;
        return tiles[now] + counts[now]++ * PANEL * PANEL;
    }

    bool first = false;  // nothing was added to this part of the sum yet

    void add(int which, double *total, int64_t rows, int64_t width, int64_t stride) {
        switch (counts[which]) {
            case 4: add_tiles<4>(tiles[which], weights[which], total, rows, width, stride, first); break;
            case 3: add_tiles<3>(tiles[which], weights[which], total, rows, width, stride, first); break;
            case 2: add_tiles<2>(tiles[which], weights[which], total, rows, width, stride, first); break;
            case 1: add_tiles<1>(tiles[which], weights[which], total, rows, width, stride, first); break;
        }
        first = first && counts[which] == 0;
        counts[which] = 0;
    }
};

void add_weight(int level, const Layer &line, int64_t records, bool overwrite, const double *weights, double *total,
                float *scratch) {
    const Shape shape(line);
    const Cut cut(shape);
    const int64_t panel = cut.panel, columns = up(line.channels, PANEL) / PANEL;
    Waiting waiting;
    // The records of a panel follow each other, because that is the order in which they are read.
    auto *b = reinterpret_cast<uint16_t *>(scratch), *a = b + columns * records * panel;
    for (int64_t record = 0; record < records; record++)
        for (int64_t j = 0; weights[record] > 0 && j < columns; j++)
            pack_right(line, cut, activation_of(line, record), j * PANEL, b + (j * records + record) * panel);
    for (int64_t i = 0; i < line.out_channels; i += PANEL) {
        const int64_t height = line.out_channels - i < PANEL ? line.out_channels - i : PANEL;
        for (int64_t record = 0; record < records; record++)
            if (weights[record] > 0) pack_left(line, shape, cut, gradient_of(line, record), i, a + record * panel);
        for (int64_t j = 0; j < columns; j++) {
            const int64_t width = line.channels - j * PANEL < PANEL ? line.channels - j * PANEL : PANEL;
            double *place = total + line.weight_at + i * line.channels + j * PANEL;
            waiting.first = overwrite;
            for (int64_t record = 0; record < records; record++) {
                if (!(weights[record] > 0)) continue;
                const Product product = cut.product(a + record * panel, b + (j * records + record) * panel);
                multiply_panel(level, product, width > TILE, height > TILE, waiting.next(weights[record]));
                if (waiting.counts[waiting.now] < GROUP) continue;
                waiting.now = 1 - waiting.now;
                waiting.add(waiting.now, place, height, width, line.channels);
            }
            waiting.add(1 - waiting.now, place, height, width, line.channels);
            waiting.add(waiting.now, place, height, width, line.channels);
        }
    }
}

// Output gradients of a record of at most 16 positions times its weight, as left operands: high parts, then low parts. A
// weight of 8 bits times a bfloat16 is exactly the sum of two bfloat16.
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

// Adds groups of records in float32, weights and all: a tile has room for 16 positions twice, and AMX sums a tile's
// products apart before it adds them, so that each record costs one rounding of the group's sum. Weights are rounded down
// to 8 bits.
void add_grouped(const Layer &line, int64_t records, bool overwrite, const double *weights, double *total,
                 float *scratch) {
    constexpr int64_t together = 8, tile = TILE_BF16, panel = 2 * tile;
    const int64_t columns = up(line.channels, PANEL) / PANEL, lines = up(line.out_channels, PANEL) / PANEL;
    std::vector<int64_t> kept;
    std::vector<float> factors;
    for (int64_t record = 0; record < records; record++) {
        if (!(weights[record] > 0)) continue;
        const auto value = static_cast<float>(weights[record] * (1 - 0x1p-23));
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        bits &= 0xffff0000u;
        kept.push_back(record);
        factors.emplace_back();
        std::memcpy(&factors.back(), &bits, 4);
    }
    const auto count = static_cast<int64_t>(kept.size());
    const auto pack_a = [&](int64_t i, uint16_t *into) {
        for (int64_t n = 0; n < count; n++)
            for (int64_t half = 0; half < 2 && i * PANEL + half * TILE < line.out_channels; half++)
                pack_scaled(line, gradient_of(line, kept[n]), i * PANEL + half * TILE, factors[n],
                            into + n * panel + half * tile);
    };
    const auto pack_b = [&](int64_t j, uint16_t *into) {
        for (int64_t n = 0; n < count; n++)
            pack_twice(line, activation_of(line, kept[n]), j * PANEL, into + n * panel);
    };
    alignas(64) float tiles[PANEL * PANEL];
    const auto add = [&](int64_t i, int64_t j, const uint16_t *a, const uint16_t *b) {
        const int64_t height = line.out_channels - i * PANEL < PANEL ? line.out_channels - i * PANEL : PANEL;
        const int64_t width = line.channels - j * PANEL < PANEL ? line.channels - j * PANEL : PANEL;
        double *place = total + line.weight_at + i * PANEL * line.channels + j * PANEL;
        for (int64_t first = 0; first < count; first += together) {
            const int64_t group = count - first < together ? count - first : together;
            const Product product{a + first * panel, b + first * panel, group, 1,    panel,   0, tile,
                                  2 * TILE,          panel,             0,     tile, 2 * TILE};
            multiply_panel(2, product, width > TILE, height > TILE, tiles);
            const double one = 1;
            add_tiles<1>(tiles, &one, place, height, width, line.channels, overwrite && first == 0);
        }
    };
    // The smaller operand is packed whole and stays in the cache; the larger one goes by panel by panel.
    auto *whole = reinterpret_cast<uint16_t *>(scratch);
    if (lines < columns) {
        uint16_t *b = whole + lines * count * panel;
        for (int64_t i = 0; i < lines; i++) pack_a(i, whole + i * count * panel);
        for (int64_t j = 0; j < columns; j++) {
            pack_b(j, b);
            for (int64_t i = 0; i < lines; i++) add(i, j, whole + i * count * panel, b);
        }
    } else {
        uint16_t *a = whole + columns * count * panel;
        for (int64_t j = 0; j < columns; j++) pack_b(j, whole + j * count * panel);
        for (int64_t i = 0; i < lines; i++) {
            pack_a(i, a);
            for (int64_t j = 0; j < columns; j++) add(i, j, a, whole + j * count * panel);
        }
    }
}

}  // namespace

int64_t linear_scratch_floats(const Layer *layer, int64_t records, int64_t positions) {
    const Layer line = line_of(*layer, positions);
    const Shape shape(line);
    const int64_t rows = up(positions, TILE) / TILE;
    const int64_t gram = 2 * rows * (up(line.channels, 32) + up(line.out_channels, 32)) / 32 * TILE_BF16;
    const int64_t panel = 2 * shape.blocks * TILE_BF16, columns = up(line.channels, PANEL) / PANEL;
    const int64_t tiles = (columns + 1) * panel, add = records * tiles;
    const int64_t most = gram > tiles ? gram : tiles;
    return (most > add ? most : add) / 2 + TILE;
}

int linear_squares(int level, const Layer *layer, int64_t records, int64_t positions, int gram, double *squares,
                   float *scratch) {
    const Layer line = line_of(*layer, positions);
    if (level < 1) return 1;
    const Tiles tiles(level);
    squares_of(level, line, records, gram, squares, scratch);
    return 0;
}

int linear_add(int level, const Layer *layer, int64_t records, int64_t positions, int grouped, int overwrite,
               const double *weights, double *total, float *scratch) {
    if (level < 1) return 1;
    const Layer line = line_of(*layer, positions);
    bool some = false;
    for (int64_t record = 0; record < records; record++) some = some || weights[record] > 0;
    if (overwrite && line.bias_at >= 0) std::memset(total + line.bias_at, 0, sizeof(double) * size_t(line.out_channels));
    if (overwrite && !some && line.weight_at >= 0)
        std::memset(total + line.weight_at, 0, sizeof(double) * size_t(line.out_channels) * size_t(line.channels));
    if (!some) return 0;
    if (line.bias_at >= 0)
        for (int64_t record = 0; record < records; record++)
            if (weights[record] > 0) bias_square(line, record, weights[record], total + line.bias_at);
    if (line.weight_at < 0) return 0;
    if (grouped && groups(level, line)) {
        const Tiles tiles(level);
        add_grouped(line, records, overwrite, weights, total, scratch);
    } else {
        const Tiles tiles(level, int(Cut(Shape(line)).pairs));
        add_weight(level, line, records, overwrite, weights, total, scratch);
    }
    return 0;
}

#else

int64_t linear_scratch_floats(const Layer *, int64_t, int64_t) { return 0; }
int linear_squares(int, const Layer *, int64_t, int64_t, int, double *, float *) { return 1; }
int linear_add(int, const Layer *, int64_t, int64_t, int, int, const double *, double *, float *) { return 1; }

#endif
