// The activations of gated products.

#pragma once
#include "vectors.h"

enum { SILU, GELU, GELU_TANH };

INLINE vec activated_lanes(vec x, int64_t activation) {
    if (activation == SILU) return x * sigmoid(x);
    if (activation == GELU_TANH) return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x)); // 2 sqrt(2 / pi)
    vec y;
    for (int i = 0; i < LANES; i++) y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * (float)M_SQRT1_2));
    return y;
}

INLINE pair activated(pair x, int64_t activation) {
    return (pair){activated_lanes(x.even, activation), activated_lanes(x.odd, activation)};
}
