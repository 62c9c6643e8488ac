// Operations one after another, by one team of threads: they meet in C and not in Python.

#include "calls.h"

// A team costs more to call together than a small operation alone takes: it then runs on this thread.
void run(const Call *calls, int64_t count, int64_t together) {
#pragma omp parallel if (together)
    for (int64_t i = 0; i < count; i++) {
        calls[i].operation(calls[i].arguments);
        if (i + 1 < count) {
#pragma omp barrier
        }
    }
}
