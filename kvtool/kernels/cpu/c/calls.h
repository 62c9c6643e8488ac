// How Python reaches the operations: each is a function of one struct, which a team of threads runs together. Loops are
// shared out by `omp for`, whose end the whole team waits for, so that one operation may follow another at once.

#pragma once
#include <stdint.h>

typedef struct {
    void (*operation)(const void *arguments);
    const void *arguments;
} Call;
