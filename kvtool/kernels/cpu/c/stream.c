// A stream over memory, which the limit of reading is measured with.

#include "vectors.h"

#define STREAMS 4 // a thread reads so many stretches in turns: one alone leaves prefetchers idle at the end of a page

// Reads `bytes`, a multiple of 4096, once with every thread. The sum of all words is there to be used.
uint32_t read_all(const char *data, int64_t bytes) {
    uint32_t total = 0;
#pragma omp parallel for schedule(static, 1) reduction(+ : total)
    for (int part = 0; part < 16; part++) {
        const int64_t stretch = bytes / 16 / STREAMS / sizeof(words) * sizeof(words);
        const char *from = data + part * STREAMS * stretch;
        words sums[STREAMS] = {{0}};
        for (int64_t i = 0; i < stretch; i += sizeof(words))
            UNROLL for (int s = 0; s < STREAMS; s++) sums[s] += read_words(from + s * stretch + i);
        for (int s = 1; s < STREAMS; s++) sums[0] += sums[s];
        for (int i = 0; i < LANES; i++) total += sums[0][i];
    }
    return total;
}
