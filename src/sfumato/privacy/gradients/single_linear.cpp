// Linear layers of large networks in float32, on processors with AVX2 or AVX512: what linear.cpp and linear_sum.cpp do
// for bfloat16.
//
// The sum is always in double precision, record by record, panel by panel: each record's panel is formed in float32,
// where its T positions cost T roundings, and added, scaled, to the sum's, which stays in a core's first cache.

#include "single.hpp"

extern "C" {

int single_level();  // 0: nothing here applies; 1: AVX2 with FMA; 2: AVX512F
// As linear_squares and linear_add, with operands of float; the norm always comes from Gram matrices where it can.
int single_squares(int level, const Layer *layer, int64_t records, int64_t positions, double *squares, float *scratch);
int single_add(int level, const Layer *layer, int64_t records, int64_t positions, int overwrite, const double *weights,
               double *total, float *scratch);
int64_t single_scratch_floats(const Layer *layer, int64_t records, int64_t positions);  // for both
}

#ifdef SFUMATO_KERNELS

namespace {

// Numbers of `positions` rows from the panel's first channel on, zeros beyond the last.
void pack(const float *from, int64_t width, int64_t panel, int64_t positions, float *into) {
    const int64_t left = width - panel * PANEL;
    from += panel * PANEL;
    for (int64_t t = 0; t < positions; t++, from += width, into += PANEL) {
        if (left >= PANEL) {
            std::memcpy(into, from, sizeof(float) * PANEL);
        } else {
            std::memcpy(into, from, sizeof(float) * size_t(left));
            std::memset(into + left, 0, sizeof(float) * size_t(PANEL - left));
        }
    }
}

// Squared norm of the weight's gradient, panel by panel, of exactly the values that `single_add` adds.
double square_by_panels(int level, const Layer &layer, int64_t record, int64_t positions, float *scratch) {
    const int64_t size = positions * PANEL, columns = up(layer.channels, PANEL) / PANEL;
    for (int64_t j = 0; j < columns; j++)
        pack(activation_of(layer, record), layer.channels, j, positions, scratch + (1 + j) * size);
    double sum = 0;
    for (int64_t i = 0; i * PANEL < layer.out_channels; i++) {
        pack(gradient_of(layer, record), layer.out_channels, i, positions, scratch);
        for (int64_t j = 0; j < columns; j++)
            sum += AT(level, square_of_panel)(scratch, scratch + (1 + j) * size, positions);
    }
    return sum;
}

// A record's rows in double precision, with zeros up to multiples of 8 rows and columns, and the norm of each row.
struct Wide {
    int64_t rows, width;
    double *values, *sizes;

    Wide(int64_t positions, int64_t width, float *&scratch)
        : rows(up(positions, 8)), width(up(width, 8)), values(reinterpret_cast<double *>(scratch)),
          sizes(values + this->rows * this->width) {
        scratch += numbers(positions, width);
    }

    static int64_t numbers(int64_t positions, int64_t width) { return 2 * up(positions, 8) * (up(width, 8) + 1); }

    void fill(int level, const float *from, int64_t positions, int64_t columns) {
        for (int64_t row = 0; row < rows; row++) {
            double *to = values + row * width;
            const int64_t used = row < positions ? columns : 0;
            AT(level, widen)(from + row * columns, used, to);
            std::memset(to + used, 0, sizeof(double) * size_t(width - used));
            if (row < positions) sizes[row] = std::sqrt(AT(level, square_of)(from + row * columns, columns));
        }
    }
};

// Upper bound on the squared norm of G as float32 adds it up, position by position, or a negative number if it is not
// known to 1 % so, or if float32 might overflow. |G|^2 = <A A^T, B B^T>, to which each position adds its part.
//
// Products and their sum are double: off by at most (d + p + T^2 + 8) 2^-53 S^2, S the sum of |a| |g|. The sum of
// positions is float: position t rounds by at most 2^-24 of the norm of what is added up by then, and of |a| |g| where a
// compiler does not fuse the product; numbers below the smallest normal one may be lost.
double raised_square(const Wide &a, const Wide &g, int64_t positions, const double *parts) {
    double size = 0, all = 0;
    for (int64_t t = 0; t < positions; t++) size += a.sizes[t] * g.sizes[t];
    const double terms = double(a.width + g.width + a.rows * a.rows + 8);
    const double error = 1.01 * terms * 0x1p-53 * size * size;
    double rounding = size;
    for (int64_t t = 0; t < positions; t++) {
        all += parts[t];
        rounding += std::sqrt((all > 0 ? all : 0) + error);
    }
    const double lost = 0x1p-126 * double(positions) * double(a.width + g.width);
    const double norm = std::sqrt((all > 0 ? all : 0) + error) + 1.01 * 0x1p-24 * rounding + lost;
    return norm * norm <= 1.02 * all && size < 0x1p126 ? norm * norm : -1;
}

}  // namespace

int single_level() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
    return wide ? 2 : 1;
}

int64_t single_scratch_floats(const Layer *layer, int64_t records, int64_t positions) {
    const int64_t columns = up(layer->channels, PANEL) / PANEL, panel = positions * PANEL;
    const int64_t wide = Wide::numbers(positions, layer->channels) + Wide::numbers(positions, layer->out_channels);
    return 2 * up(positions, 8) + std::max({wide, (columns + ABREAST) * records * panel, (columns + 1) * panel});
}

int single_squares(int level, const Layer *layer, int64_t records, int64_t positions, double *squares, float *scratch) {
    if (level < 1) return 1;
    auto *parts = reinterpret_cast<double *>(scratch);
    scratch += 2 * up(positions, 8);
    float *packed = scratch;
    Wide wide_a(positions, layer->channels, scratch), wide_g(positions, layer->out_channels, scratch);
    for (int64_t record = 0; record < records; record++) {
        const float *a = activation_of(*layer, record), *g = gradient_of(*layer, record);
        if (layer->bias_at >= 0) {
            AT(level, add_up)(g, positions, layer->out_channels, packed);
            squares[record] += AT(level, square_of)(packed, layer->out_channels);
        }
        if (layer->weight_at < 0) continue;
        wide_a.fill(level, a, positions, layer->channels);
        wide_g.fill(level, g, positions, layer->out_channels);
        std::fill(parts, parts + wide_a.rows, 0.0);
        AT(level, compare)(wide_a.values, wide_a.width, wide_g.values, wide_g.width, wide_a.rows, parts);
        const double square = raised_square(wide_a, wide_g, positions, parts);
        squares[record] += square >= 0 ? square : square_by_panels(level, *layer, record, positions, packed);
    }
    return 0;
}

int single_add(int level, const Layer *layer, int64_t records, int64_t positions, int overwrite, const double *weights,
               double *total, float *scratch) {
    if (level < 1) return 1;
    const int64_t width = layer->out_channels;
    const Kept kept(records, weights);
    if (overwrite && layer->bias_at >= 0) std::memset(total + layer->bias_at, 0, sizeof(double) * size_t(width));
    if (overwrite && layer->weight_at >= 0 && kept.records.empty())
        std::memset(total + layer->weight_at, 0, sizeof(double) * size_t(width) * size_t(layer->channels));
    for (size_t n = 0; n < kept.records.size() && layer->bias_at >= 0; n++) {
        AT(level, add_up)(gradient_of(*layer, kept.records[n]), positions, width, scratch);
        AT(level, add_scaled)(kept.weights[n], scratch, total + layer->bias_at, width);
    }
    if (layer->weight_at < 0 || kept.records.empty()) return 0;
    const auto pack_a = [&](int64_t n, int64_t i, float *into) {
        pack(gradient_of(*layer, kept.records[size_t(n)]), width, i, positions, into);
    };
    const auto pack_b = [&](int64_t n, int64_t j, float *into) {
        pack(activation_of(*layer, kept.records[size_t(n)]), layer->channels, j, positions, into);
    };
    const auto add = [&](const Span &span, const Part &part, const float *g, const float *a) {
        AT(level, add_records)(g, a, positions, &kept.weights[size_t(span.first)], span.count, part, layer->channels,
                               overwrite && span.first == 0);
    };
    by_panels<float>(*layer, kept.count(), positions * PANEL, pack_a, pack_b, total, scratch, add);
    return 0;
}

#else

int single_level() { return 0; }
int64_t single_scratch_floats(const Layer *, int64_t, int64_t) { return 0; }
int single_squares(int, const Layer *, int64_t, int64_t, double *, float *) { return 1; }
int single_add(int, const Layer *, int64_t, int64_t, int, const double *, double *, float *) { return 1; }

#endif
