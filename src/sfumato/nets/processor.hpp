// Whether there is anything here for the processor, compiler and system at hand.

#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define SFUMATO_KERNELS 1
#include <immintrin.h>
#endif
