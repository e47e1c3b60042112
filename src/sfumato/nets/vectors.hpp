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

TARGET inline Floats at_least(Floats value, float least) {  // NaN stays NaN
    return (Floats)_mm512_max_ps(_mm512_set1_ps(least), (__m512)value);
}

TARGET inline Floats at_most(Floats value, float most) {
    return (Floats)_mm512_min_ps(_mm512_set1_ps(most), (__m512)value);
}

TARGET inline Floats inverse(Floats value) {  // one step of Newton's; a division takes several times as long
    const Floats near = (Floats)_mm512_rcp14_ps((__m512)value);
    return near * (2.0f - value * near);
}
TARGET inline void transpose(Floats *rows) {
    __m512 t[16];
    auto *r = reinterpret_cast<__m512 *>(rows);
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; k++) {
            r[i + 2 * k] = _mm512_shuffle_ps(t[i + k], t[i + 2 + k], 0x44);
            r[i + 2 * k + 1] = _mm512_shuffle_ps(t[i + k], t[i + 2 + k], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
    }
}
#else
TARGET inline Bits widen(const uint16_t *from) {
    return (Bits)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}

TARGET inline void narrow(uint16_t *to, Bits values) {  // numbers of 16 bits
    const __m256i packed = _mm256_packus_epi32((__m256i)values, (__m256i)values);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

TARGET inline Floats doubled(Floats value, Floats times) {  // value 2^times; what nobody uses may wrap around
    return (Floats)((Bits)value + ((Bits)__builtin_convertvector(times, Ints) << 23));
}

TARGET inline Floats at_least(Floats value, float least) {
    return (Floats)_mm256_max_ps(_mm256_set1_ps(least), (__m256)value);
}

TARGET inline Floats at_most(Floats value, float most) {
    return (Floats)_mm256_min_ps(_mm256_set1_ps(most), (__m256)value);
}

TARGET inline Floats inverse(Floats value) { return 1.0f / value; }

TARGET inline void transpose(Floats *rows) {
    __m256 t[8];
    auto *r = reinterpret_cast<__m256 *>(rows);
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            r[i + 2 * k] = _mm256_shuffle_ps(t[i + k], t[i + 2 + k], 0x44);
            r[i + 2 * k + 1] = _mm256_shuffle_ps(t[i + k], t[i + 2 + k], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
        t[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}
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

TARGET inline Floats lanes() {
    alignas(64) static constexpr float NUMBERS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return load<false>(NUMBERS, 0);
}

TARGET inline float sum_of(Floats values) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += values[lane];
    return sum;
}

// e^t for t up to 87, off by about 1e-7 of itself; e^-87 below. The polynomial is that of Cephes' expf.
TARGET inline Floats exponential(Floats t) {
    t = at_least(t, -87);
    const Floats power = (t * 1.44269504f + 12582912.0f) - 12582912.0f;  // the nearest whole number
    const Floats rest = (t - power * 0.693359375f) + power * 2.12194440e-4f;
    Floats sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    return doubled(sum, power);
}
