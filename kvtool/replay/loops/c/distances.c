// Stack distances of LRU over a prefix tree, as distances.py explains them; the twin there gives the same numbers.
#include <stdint.h>
#include <stdlib.h>

// Sums of what each request holds of the stack (Fenwick tree); request 0 stands at index 1.
typedef struct {
  int64_t *sums, size, total;
} Held;

static void add(Held *held, int64_t request, int64_t amount) {
  held->total += amount;
  for (int64_t i = request + 1; i <= held->size; i += i & -i) held->sums[i] += amount;
}

static int64_t above(const Held *held, int64_t request) {
  int64_t sum = held->total;
  for (int64_t i = request + 1; i; i -= i & -i) sum -= held->sums[i];
  return sum;
}

// For each access the room that the stack needs for a hit, or -1 for a node not seen before. `sizes` may be null: 1 each.
// `tail_last`: a request's own nodes are touched head to tail, as plain LRU does, instead of tail to head. 0: no memory.
int lru_distances(const int32_t *nodes, const int64_t *starts, int64_t num_requests, int64_t num_nodes,
                  const int64_t *sizes, int tail_last, int64_t *distances) {
  Held held = {calloc(num_requests + 1, sizeof(int64_t)), num_requests, 0};
  int64_t *own = calloc(num_requests + 1, sizeof(int64_t));    // what each request holds
  int32_t *last = malloc((num_nodes + 1) * sizeof(int32_t));   // the request that touched a node last
  int fits = held.sums && own && last;
  for (int64_t node = 0; fits && node < num_nodes; node++) last[node] = -1;
  for (int64_t request = 0; fits && request < num_requests; request++) {
    int64_t at = starts[request], end = starts[request + 1], taken = 0;
    while (at < end && last[nodes[at]] >= 0) {
      int32_t holder = last[nodes[at]];
      int64_t before = above(&held, holder), run = 0, whole = before + own[holder];
      for (; at < end && last[nodes[at]] == holder; at++) {
        run += sizes ? sizes[nodes[at]] : 1;
        distances[at] = tail_last ? whole : before + run;
        last[nodes[at]] = request;
      }
      own[holder] -= run;
      taken += run;
      // What moves up stays above the holders still to come.
      add(&held, holder, -run);
      add(&held, request, run);
    }
    int64_t fresh = 0;
    for (; at < end; at++) {
      distances[at] = -1;
      last[nodes[at]] = request;
      fresh += sizes ? sizes[nodes[at]] : 1;
    }
    if (fresh) add(&held, request, fresh);
    own[request] = taken + fresh;
  }
  free(held.sums);
  free(own);
  free(last);
  return fits;
}

// For each access the request that uses its node next, counting requests from `first` on; INT32_MAX for none. 0: no memory.
int next_requests(const int32_t *nodes, const int64_t *starts, int64_t num_requests, int64_t num_nodes, int64_t first,
                  int32_t *next) {
  int32_t *coming = malloc((num_nodes + 1) * sizeof(int32_t));
  if (!coming) return 0;
  for (int64_t node = 0; node < num_nodes; node++) coming[node] = INT32_MAX;
  for (int64_t request = num_requests - 1; request >= 0; request--)
    for (int64_t at = starts[request]; at < starts[request + 1]; at++) {
      next[at] = coming[nodes[at]];
      coming[nodes[at]] = request >= first ? request : INT32_MAX;
    }
  free(coming);
  return 1;
}
