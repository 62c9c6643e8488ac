// How Python reaches the operations: each is a function of one struct, which a team of threads runs together. Loops are
// shared out by `omp for`; the team need not meet at the end of the last one, as `run` sees to that.

#pragma once
#include <stdint.h>

typedef struct {
    void (*operation)(const void *arguments);
    const void *arguments;
} Call;
