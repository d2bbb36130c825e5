// What the C++ files share: fp32 and bf16 in memory, and an exponential that compilers turn into vector code.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

typedef int64_t Size;

struct bf16 {
    uint16_t bits;
};

inline float load(float x) { return x; }

inline float load(bf16 x) {
    uint32_t wide = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline void store(float* to, float x) { *to = x; }

inline void store(bf16* to, float x) {  // to the nearest, ties to even; a NaN stays one
    uint32_t wide;
    std::memcpy(&wide, &x, 4);
    uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    to->bits = uint16_t(x == x ? rounded : 0x7fc0u);
}

// e^x to about 1e-7 relative, between e^-87 and e^88 (Cephes' polynomial); NaN gives NaN
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    float shifted = x * 1.44269504088896341f + magic;
    float k = shifted - magic;
    float r = x - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    float y = p * r * r + r + 1.0f;
    int32_t bits, zero;
    std::memcpy(&bits, &shifted, 4);
    std::memcpy(&zero, &magic, 4);
    uint32_t power = uint32_t(bits - zero + 127) << 23;
    float two_to_k;
    std::memcpy(&two_to_k, &power, 4);
    return y * two_to_k;
}

}  // namespace
