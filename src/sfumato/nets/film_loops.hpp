// Included once for each kind of processor: TARGET says which instructions functions may use, LANES how many floats a
// register holds.

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

#if LANES == 16
TARGET inline Bits widen(const uint16_t *from) {
    return (Bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}

TARGET inline void narrow(uint16_t *to, Bits values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtepi32_epi16((__m512i)values));
}

TARGET inline Floats doubled(Floats value, Floats times) { return (Floats)_mm512_scalef_ps((__m512)value, (__m512)times); }

TARGET inline Floats inverse(Floats value) {  // one step of Newton's; a division takes several times as long
    const Floats near = (Floats)_mm512_rcp14_ps((__m512)value);
    return near * (2.0f - value * near);
}
#else
TARGET inline Bits widen(const uint16_t *from) {
    return (Bits)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}

TARGET inline void narrow(uint16_t *to, Bits values) {  // numbers of 16 bits
    const __m256i packed = _mm256_packus_epi32((__m256i)values, (__m256i)values);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

TARGET inline Floats doubled(Floats value, Floats times) {  // value 2^times
    return (Floats)((Ints)value + (__builtin_convertvector(times, Ints) << 23));
}

TARGET inline Floats inverse(Floats value) { return 1.0f / value; }
#endif

template <bool HALF> TARGET inline Floats load(const void *from, int64_t place) {
    if (HALF) return (Floats)(widen(static_cast<const uint16_t *>(from) + place) << 16);
    return *reinterpret_cast<const Floats *>(static_cast<const float *>(from) + place);
}

// Rounds bfloat16 to the nearest, ties to even; NaN stays NaN.
template <bool HALF> TARGET inline void store(void *to, int64_t place, Floats value) {
    if (!HALF) {
        *reinterpret_cast<Floats *>(static_cast<float *>(to) + place) = value;
        return;
    }
    const Bits bits = (Bits)value, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    narrow(static_cast<uint16_t *>(to) + place, value == value ? rounded : (bits >> 16) | 0x40);
}

TARGET inline Floats all(float value) { return Floats{} + value; }

TARGET inline float sum_of(Floats values) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += values[lane];
    return sum;
}

// 1 / (1 + e^-z), off by about 1e-7 of itself. The polynomial is that of Cephes' expf.
TARGET inline Floats sigmoid(Floats z) {
    Floats t = -z;
    t = t > 87.0f ? all(87) : t;
    t = t < -87.0f ? all(-87) : t;
    const Floats power = (t * 1.44269504f + 12582912.0f) - 12582912.0f;  // the nearest whole number
    const Floats rest = (t - power * 0.693359375f) + power * 2.12194440e-4f;
    Floats sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    return inverse(1.0f + doubled(sum, power));
}

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
