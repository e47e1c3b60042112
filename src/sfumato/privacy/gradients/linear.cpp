// Linear layers of large networks: squared norms of per-record gradients, without a gradient in memory.
//
// |G|^2 comes from Gram matrices, <A A^T, B B^T>, raised by a bound on their rounding; where that bound exceeds 1 % of
// the norm (inputs that cancel), the record's tiles of G are formed, measured and discarded instead.

#include "linear.hpp"

extern "C" {

// Squared norms, or upper bounds on them, of the gradients of a linear layer's weight and bias; added to `squares`.
// `positions` rows of activation and gradient belong to each record. `gram`: measure by Gram matrices.
int linear_squares(int level, const Layer *layer, int64_t records, int64_t positions, int gram, double *squares,
                   float *scratch);
int64_t linear_scratch_floats(const Layer *layer, int64_t records, int64_t positions);  // for this and `linear_add`
}

#ifdef SFUMATO_KERNELS

namespace {

constexpr double UNIT = 0x1p-24;

// Roundings on the way from `count` products to their sum: AMX adds 32 products apart, then the block to the sum.
double depth(int level, int64_t count) { return level == 2 ? 34.0 + double(count) / 32 : 2.0 + double(count); }

// Rows of 16 positions, 32 numbers wide, as left operands (rows) and as right ones (transposed), for Gram matrices.
struct GramOperand {
    uint16_t *left, *right;
    int64_t row_blocks, blocks;

    AVX512 void pack(const char *from, bool is_float, int64_t rows, int64_t width) {
        for (int64_t i = 0; i < row_blocks; i++)
            for (int64_t k = 0; k < blocks; k++) {
                __m512i lines[TILE];
                for (int64_t row = 0; row < TILE; row++) {
                    const int64_t y = i * TILE + row, x = k * PANEL;
                    lines[row] = y < rows ? numbers(from + (y * width + x) * (is_float ? 4 : 2), is_float, width - x)
                                          : _mm512_setzero_si512();
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
        sum = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_load_ps(one + i)), _mm512_cvtps_pd(_mm256_load_ps(other + i)),
                              sum);
    return _mm512_reduce_add_pd(sum);
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
        pack_left(line, cut, gradient_of(line, record), i, a);
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
            g.pack(reinterpret_cast<const char *>(gradient_of(line, record)), false, line.width, line.out_channels);
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
            measured = error <= 0.02 * square && sizes < 0x1p126;  // float32 would not overflow
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

}  // namespace

int64_t linear_scratch_floats(const Layer *layer, int64_t records, int64_t positions) {
    const Layer line = line_of(*layer, positions);
    const Shape shape(line);
    const int64_t rows = up(positions, TILE) / TILE;
    const int64_t gram = 2 * rows * (up(line.channels, 32) + up(line.out_channels, 32)) / 32 * TILE_BF16;
    const int64_t panel = 2 * shape.blocks * TILE_BF16, columns = up(line.channels, PANEL) / PANEL;
    const int64_t tiles = (columns + ABREAST) * panel, add = records * tiles;
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

#else

int64_t linear_scratch_floats(const Layer *, int64_t, int64_t) { return 0; }
int linear_squares(int, const Layer *, int64_t, int64_t, int, double *, float *) { return 1; }

#endif
