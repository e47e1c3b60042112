// The loops of float32, included once for each kind of processor: TARGET says which instructions functions may use,
// LANES how many floats a register holds, ROWS how many rows are multiplied at once.

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef double Doubles __attribute__((vector_size(4 * LANES), aligned(8), may_alias));

TARGET inline Floats load(const float *from) { return *reinterpret_cast<const Floats *>(from); }

TARGET inline Doubles load(const double *from) { return *reinterpret_cast<const Doubles *>(from); }

TARGET inline void store(float *to, Floats value) { *reinterpret_cast<Floats *>(to) = value; }

// A panel of G, row-major, from operands of positions x PANEL numbers. One body, so that what is measured and what is
// added come from the same instructions and have the same bits.
TARGET __attribute__((noinline, noclone)) void multiply(const float *g, const float *a, int64_t positions, float *panel) {
    for (int i = 0; i < PANEL; i += ROWS)
        for (int j = 0; j < PANEL; j += 2 * LANES) {
            Floats sums[ROWS][2] = {};
            for (int64_t t = 0; t < positions; t++) {
                const Floats first = load(a + t * PANEL + j), second = load(a + t * PANEL + j + LANES);
                for (int row = 0; row < ROWS; row++) {
                    sums[row][0] += g[t * PANEL + i + row] * first;
                    sums[row][1] += g[t * PANEL + i + row] * second;
                }
            }
            for (int row = 0; row < ROWS; row++)
                for (int half = 0; half < 2; half++)
                    store(panel + (i + row) * PANEL + j + half * LANES, sums[row][half]);
        }
}

TARGET void add_panel(const float *panel, double weight, const Part &part, int64_t stride, bool first) {
    for (int64_t row = 0; row < part.height; row++, panel += PANEL) {
        double *to = part.place + row * stride;
        if (part.width < PANEL)
            for (int64_t x = 0; x < part.width; x++) to[x] = (first ? 0 : to[x]) + weight * double(panel[x]);
        else if (first)
            for (int x = 0; x < PANEL; x++) to[x] = weight * double(panel[x]);
        else
            for (int x = 0; x < PANEL; x++) to[x] += weight * double(panel[x]);
    }
}

// Adds one panel's share of `count` records; operands of a record are positions x PANEL numbers.
TARGET void add_records(const float *g, const float *a, int64_t positions, const double *weights, int64_t count,
                        const Part &part, int64_t stride, bool overwrite) {
    alignas(64) float panel[PANEL * PANEL];
    for (int64_t n = 0; n < count; n++, g += positions * PANEL, a += positions * PANEL) {
        multiply(g, a, positions, panel);
        part.look_ahead(n, count, stride);
        add_panel(panel, weights[n], part, stride, overwrite && n == 0);
    }
}

TARGET double square_of(const float *values, int64_t count) {
    double sums[16] = {};
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int k = 0; k < 16; k++) sums[k] += double(values[i + k]) * double(values[i + k]);
    double sum = 0;
    for (; i < count; i++) sum += double(values[i]) * double(values[i]);
    for (const double part : sums) sum += part;
    return sum;
}

TARGET double square_of_panel(const float *g, const float *a, int64_t positions) {
    alignas(64) float panel[PANEL * PANEL];
    multiply(g, a, positions, panel);
    return square_of(panel, PANEL * PANEL);  // zeros beyond the weight's edges
}

// `count` numbers in double precision.
TARGET void widen(const float *from, int64_t count, double *to) {
    for (int64_t x = 0; x < count; x++) to[x] = double(from[x]);
}

// Products of ROWS rows of `one` with two of `other`; `width`, a multiple of 8, numbers each.
TARGET inline void dots(const double *one, const double *other, int64_t width, double (*out)[2]) {
    Doubles sums[ROWS][2] = {};
    for (int64_t x = 0; x < width; x += LANES / 2) {
        const Doubles first = load(other + x), second = load(other + width + x);
        for (int row = 0; row < ROWS; row++) {
            const Doubles mine = load(one + row * width + x);
            sums[row][0] += mine * first;
            sums[row][1] += mine * second;
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int column = 0; column < 2; column++) {
            const Doubles &sum = sums[row][column];
            double all = 0;
            for (int lane = 0; lane < LANES / 2; lane++) all += sum[lane];
            out[row][column] = all;
        }
}

// Adds what each position adds to <A A^T, B B^T> to `parts`. `rows`, a multiple of 8, positions; zeros beyond the last.
TARGET void compare(const double *a, int64_t width_a, const double *g, int64_t width_g, int64_t rows, double *parts) {
    double alike_a[ROWS][2], alike_g[ROWS][2];
    for (int64_t i = 0; i < rows; i += ROWS)
        for (int64_t j = i; j < rows; j += 2) {
            dots(a + i * width_a, a + j * width_a, width_a, alike_a);
            dots(g + i * width_g, g + j * width_g, width_g, alike_g);
            for (int row = 0; row < ROWS; row++)
                for (int column = 0; column < 2; column++) {
                    const double times = i + row < j + column ? 2 : i + row == j + column ? 1 : 0;
                    parts[j + column] += times * alike_a[row][column] * alike_g[row][column];
                }
        }
}

// Sums over positions, `width` numbers.
TARGET void add_up(const float *from, int64_t positions, int64_t width, float *sums) {
    std::memset(sums, 0, sizeof(float) * size_t(width));
    for (int64_t t = 0; t < positions; t++, from += width)
        for (int64_t x = 0; x < width; x++) sums[x] += from[x];
}

TARGET void add_scaled(double weight, const float *values, double *total, int64_t count) {
    for (int64_t i = 0; i < count; i++) total[i] += weight * double(values[i]);
}

// A place of a convolution's kernel in G, for ROWS output channels and 2 LANES input channels.
TARGET void multiply_window(const Window &window, float (*out)[2 * LANES]) {
    Floats sums[ROWS][2] = {};
    for (int64_t image = 0; image < window.images; image++)
        for (int64_t line = 0; line < window.lines; line++) {
            const float *g = window.g + image * window.g_image + line * window.g_line;
            const float *a = window.a + image * window.a_image + line * window.a_line;
            for (int64_t x = 0; x < window.columns; x++, g += window.g_column, a += window.a_column) {
                const Floats first = load(a), second = load(a + LANES);
                for (int row = 0; row < ROWS; row++) {
                    sums[row][0] += g[row] * first;
                    sums[row][1] += g[row] * second;
                }
            }
        }
    for (int row = 0; row < ROWS; row++)
        for (int half = 0; half < 2; half++) store(out[row] + half * LANES, sums[row][half]);
}

// The same for all channels, whose numbers are multiples of ROWS and of 2 LANES; G has `stride` numbers an output
// channel, and only `height` by `width` channels of it are wanted.
TARGET void multiply_channels(Window window, int64_t height, int64_t width, float *out, int64_t stride) {
    alignas(64) float tile[ROWS][2 * LANES];
    const float *g = window.g, *a = window.a;
    for (int64_t i = 0; i < height; i += ROWS)
        for (int64_t j = 0; j < width; j += 2 * LANES) {
            window.g = g + i, window.a = a + j;
            multiply_window(window, tile);
            const int64_t used = width - j < 2 * LANES ? width - j : 2 * LANES;
            for (int64_t row = 0; row < ROWS && i + row < height; row++)
                std::memcpy(out + (i + row) * stride + j, tile[row], sizeof(float) * size_t(used));
        }
}
