// Included once for each kind of processor, after vectors.hpp.

template <bool HALF> TARGET float one(const void *values, int64_t place) {
    if (!HALF) return static_cast<const float *>(values)[place];
    const uint32_t bits = uint32_t(static_cast<const uint16_t *>(values)[place]) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// log(sum of e^logit) of one position.
template <bool HALF> TARGET float log_sum(const void *logits, int64_t vocabulary) {
    Floats most = load<HALF>(logits, 0), sum = all(0);
    for (int64_t i = LANES; i < vocabulary; i += LANES) {
        const Floats logit = load<HALF>(logits, i);
        most = most > logit ? most : logit;
    }
    float largest = most[0];
    for (int lane = 1; lane < LANES; lane++) largest = most[lane] > largest ? most[lane] : largest;
    for (int64_t i = 0; i < vocabulary; i += LANES) sum += exponential(load<HALF>(logits, i) - largest);
    return largest + float(std::log(double(sum_of(sum))));
}

// Gradients by one position's logits: softmax, less one where the token was, times `gradient`.
template <bool HALF>
TARGET void surprise(const void *logits, int64_t token, float log_sum, float gradient, int64_t vocabulary,
                     void *by_logits) {
    for (int64_t i = 0; i < vocabulary; i += LANES) {
        const Floats hit = lanes() == float(token - i) ? all(1) : all(0);
        store<HALF>(by_logits, i, (exponential(load<HALF>(logits, i) - log_sum) - hit) * gradient);
    }
}
