// Included once for each kind of processor, after vectors.hpp.

// 1 / (1 + e^-z).
TARGET inline Floats sigmoid(Floats z) { return inverse(1.0f + exponential(at_most(-z, 87))); }

// Sum of (x - centre)^POWER over an image.
template <bool HALF, int POWER> TARGET float moment(const Image &image, float centre) {
    Floats sums[4] = {all(0), all(0), all(0), all(0)};
    const int64_t size = image.size(), whole = size / (4 * LANES) * 4 * LANES;
    for (int64_t i = 0; i < whole; i += 4 * LANES)
        for (int k = 0; k < 4; k++) {
            const Floats value = load<HALF>(image.x, i + k * LANES) - centre;
            sums[k] += POWER == 1 ? value : value * value;
        }
    for (int64_t i = whole; i < size; i += LANES) {
        const Floats value = load<HALF>(image.x, i) - centre;
        sums[0] += POWER == 1 ? value : value * value;
    }
    return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <bool HALF> TARGET void forward(const Image &image, double epsilon, void *y, float *moments) {
    const int64_t size = image.size();
    const float mean = moment<HALF, 1>(image, 0) / float(size);
    const double variance = double(moment<HALF, 2>(image, mean)) / double(size);
    const auto factor = float(1 / std::sqrt(variance + epsilon));
    moments[0] = mean, moments[1] = factor;
    for (int64_t c = 0; c < image.channels; c += LANES) {
        const Floats scale = image.scale ? load<false>(image.scale, c) + 1.0f : all(1);
        const Floats shift = image.shift ? load<false>(image.shift, c) : all(0);
        for (int64_t i = c; i < size; i += image.channels) {
            const Floats z = (load<HALF>(image.x, i) * factor - mean * factor) * scale + shift;
            store<HALF>(y, i, z * sigmoid(z));
        }
    }
}

// `inner` has room for the gradient by normal(x), of which its mean and its share along normal(x) are taken away.
template <bool HALF>
TARGET void backward(const Image &image, const float *moments, const void *gradient, float *inner, void *by_x,
                     float *by_scale, float *by_shift) {
    const int64_t size = image.size();
    const float mean = moments[0], factor = moments[1];
    Floats even = all(0), along = all(0);
    for (int64_t c = 0; c < image.channels; c += LANES) {
        const Floats scale = image.scale ? load<false>(image.scale, c) + 1.0f : all(1);
        const Floats shift = image.shift ? load<false>(image.shift, c) : all(0);
        Floats sum = all(0), product = all(0);
        for (int64_t i = c; i < size; i += image.channels) {
            const Floats normal = load<HALF>(image.x, i) * factor - mean * factor, z = normal * scale + shift;
            const Floats s = sigmoid(z), by_z = load<HALF>(gradient, i) * s * (1.0f + z * (1.0f - s));
            sum += by_z;
            product += by_z * normal;
            store<false>(inner, i, by_z * scale);
        }
        store<false>(by_shift, c, sum);
        store<false>(by_scale, c, product);
        even += sum * scale;
        along += product * scale;
    }
    const float offset = sum_of(even) / float(size), slope = sum_of(along) / float(size);
    for (int64_t i = 0; i < size; i += LANES) {
        const Floats normal = load<HALF>(image.x, i) * factor - mean * factor;
        store<HALF>(by_x, i, factor * (load<false>(inner, i) - offset - normal * slope));
    }
}
