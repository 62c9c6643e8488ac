// Policies at one capacity: over the leaves of the prefix tree, and plain LFU. policies.py has the twins.
#include <stdint.h>
#include <stdlib.h>

#include "heap.h"

enum { LRU, FIFO, LFU, OPTIMAL };

typedef struct {
  int64_t key;       // the lowest goes first
  int32_t children;  // resident ones
  int32_t resident;
} Node;

static int64_t key_of(int policy, int64_t key, int64_t request, int32_t next) {
  switch (policy) {
    case FIFO: return key ? key : request + 1;
    case LFU: return (((key >> 32) + 1) << 32) | request;
    case OPTIMAL: return -(int64_t)next;
    default: return request + 1;
  }
}

// Blocks hit of each request. `next` (per access) is for OPTIMAL alone; `sizes` may be null: 1 each. 0: no memory.
//
// A child's key is never above its parent's for OPTIMAL, nor below for FIFO, and equal for a path that was touched
// together: such a parent is the next victim at once, so the heap holds one entry a path, not one a block.
int replay_leaves(int policy, int64_t capacity, const int32_t *nodes, const int64_t *starts, int64_t num_requests,
                  const int32_t *parents, int64_t num_nodes, const int64_t *sizes, const int32_t *next, int64_t *hits) {
  Node *tree = calloc(num_nodes + 1, sizeof(Node));
  Heap heap = {0};
  int64_t used = 0;
  int fits = tree != NULL;
  for (int64_t request = 0; fits && request < num_requests; request++) {
    const int64_t start = starts[request], end = starts[request + 1];
    int64_t at = start;
    for (; at < end && tree[nodes[at]].resident; at++) {
      Node *node = &tree[nodes[at]];
      node->key = key_of(policy, node->key, request, next ? next[at] : 0);
    }
    hits[request] = at - start;
    int32_t deepest = at > start ? nodes[at - 1] : -1, ready = -1;
    for (; at < end; at++) {
      const int64_t size = sizes ? sizes[nodes[at]] : 1;
      const int64_t key = key_of(policy, 0, request, next ? next[at] : 0);
      while (used + size > capacity) {
        Entry victim = {0, -1};
        if (ready >= 0) {
          victim = (Entry){tree[ready].key, ready};
          ready = -1;
        }
        while (victim.node < 0 && heap.size) {
          Entry top = heap_pop(&heap);
          const Node *node = &tree[top.node];
          if (node->resident && !node->children && node->key == top.key && top.node != deepest) victim = top;
        }
        if (victim.node < 0) break;
        if (policy == OPTIMAL && victim.key >= key) {
          ready = victim.node;
          break;
        }
        used -= sizes ? sizes[victim.node] : 1;
        tree[victim.node].resident = 0;
        tree[victim.node].key = 0;
        const int32_t parent = parents[victim.node];
        if (parent < 0 || --tree[parent].children || parent == deepest) continue;
        if (tree[parent].key <= victim.key)
          ready = parent;
        else
          fits &= heap_push(&heap, tree[parent].key, parent);
      }
      if (used + size > capacity) break;
      used += size;
      tree[nodes[at]].resident = 1;
      tree[nodes[at]].key = key;
      if (deepest >= 0) tree[deepest].children++;
      deepest = nodes[at];
    }
    if (ready >= 0) fits &= heap_push(&heap, tree[ready].key, ready);
    if (deepest >= 0 && !tree[deepest].children) fits &= heap_push(&heap, tree[deepest].key, deepest);
  }
  free(tree);
  free(heap.entries);
  return fits;
}

typedef struct {
  int64_t count, touched, place;  // `place` in the order, -1 when not resident
} Block;

static int before(const Block *blocks, int32_t a, int32_t b) {
  return blocks[a].count != blocks[b].count ? blocks[a].count < blocks[b].count
                                            : blocks[a].touched < blocks[b].touched;
}

static void put(Block *blocks, int32_t *order, int64_t at, int32_t node) {
  order[at] = node;
  blocks[node].place = at;
}

static void sink(Block *blocks, int32_t *order, int64_t size, int64_t at, int32_t node) {
  for (int64_t child; (child = 2 * at + 1) < size; at = child) {
    if (child + 1 < size && before(blocks, order[child + 1], order[child])) child++;
    if (!before(blocks, order[child], node)) break;
    put(blocks, order, at, order[child]);
  }
  put(blocks, order, at, node);
}

static void rise(Block *blocks, int32_t *order, int64_t at, int32_t node) {
  for (; at && before(blocks, node, order[(at - 1) / 2]); at = (at - 1) / 2) put(blocks, order, at, order[(at - 1) / 2]);
  put(blocks, order, at, node);
}

// Plain LFU: the fewest uses since it came in, then the longest unused, goes first; the tree is ignored. 0: no memory.
int replay_plain_lfu(int64_t capacity, const int32_t *nodes, const int64_t *starts, int64_t num_requests,
                     int64_t num_nodes, const int64_t *sizes, int64_t *hits) {
  Block *blocks = malloc((num_nodes + 1) * sizeof(Block));
  int32_t *order = malloc((num_nodes + 1) * sizeof(int32_t));
  int64_t size = 0, used = 0;
  const int fits = blocks && order;
  for (int64_t node = 0; fits && node < num_nodes; node++) blocks[node].place = -1;
  for (int64_t request = 0; fits && request < num_requests; request++) {
    int64_t at = starts[request];
    while (at < starts[request + 1] && blocks[nodes[at]].place >= 0) at++;
    hits[request] = at - starts[request];
    for (at = starts[request]; at < starts[request + 1]; at++) {
      const int32_t node = nodes[at];
      if (blocks[node].place >= 0) {
        blocks[node].count++;
        blocks[node].touched = at;
        sink(blocks, order, size, blocks[node].place, node);
        continue;
      }
      const int64_t room = sizes ? sizes[node] : 1;
      while (used + room > capacity && size) {
        const int32_t victim = order[0], last = order[--size];
        used -= sizes ? sizes[victim] : 1;
        blocks[victim].place = -1;
        if (size) sink(blocks, order, size, 0, last);
      }
      if (used + room > capacity) continue;
      used += room;
      blocks[node].count = 1;
      blocks[node].touched = at;
      rise(blocks, order, size++, node);
    }
  }
  free(blocks);
  free(order);
  return fits;
}

// Plain FIFO: what came in first goes first, used or not; the tree is ignored. 0: no memory.
int replay_plain_fifo(int64_t capacity, const int32_t *nodes, const int64_t *starts, int64_t num_requests,
                      int64_t num_nodes, const int64_t *sizes, int64_t *hits) {
  char *resident = calloc(num_nodes + 1, 1);
  int32_t *queue = malloc((num_nodes + 1) * sizeof(int32_t));  // a ring: no node is in it twice
  int64_t head = 0, size = 0, used = 0;
  const int fits = resident && queue;
  for (int64_t request = 0; fits && request < num_requests; request++) {
    int64_t at = starts[request];
    while (at < starts[request + 1] && resident[nodes[at]]) at++;
    hits[request] = at - starts[request];
    for (at = starts[request]; at < starts[request + 1]; at++) {
      const int32_t node = nodes[at];
      const int64_t room = sizes ? sizes[node] : 1;
      if (resident[node]) continue;
      while (used + room > capacity && size) {
        const int32_t victim = queue[head];
        used -= sizes ? sizes[victim] : 1;
        resident[victim] = 0;
        head = (head + 1) % (num_nodes + 1);
        size--;
      }
      if (used + room > capacity) continue;
      used += room;
      resident[node] = 1;
      queue[(head + size++) % (num_nodes + 1)] = node;
    }
  }
  free(resident);
  free(queue);
  return fits;
}

// The most that any policy can hit (Belady's MIN over requests): of what is resident and what a request used, the
// blocks with the nearest next use stay, the upper ones of a path first. Blocks of one size. 0: no memory.
int replay_minimum(int64_t capacity, const int32_t *nodes, const int64_t *starts, int64_t num_requests,
                   int64_t num_nodes, const int32_t *next, int64_t *hits) {
  int64_t *keys = calloc(num_nodes + 1, sizeof(int64_t));  // of resident nodes, else 0
  Heap heap = {0};
  int64_t resident = 0;
  int fits = keys != NULL;
  for (int64_t request = 0; fits && request < num_requests; request++) {
    const int64_t start = starts[request], end = starts[request + 1];
    int64_t at = start;
    while (at < end && keys[nodes[at]]) at++;
    hits[request] = at - start;
    for (at = start; at < end; at++) {
      resident -= keys[nodes[at]] != 0;
      keys[nodes[at]] = 0;
      if (next[at] == INT32_MAX) continue;
      resident++;
      keys[nodes[at]] = -(((int64_t)next[at] << 32) | (at - start));
      fits &= heap_push(&heap, keys[nodes[at]], nodes[at]);
    }
    while (resident > capacity) {
      const Entry top = heap_pop(&heap);
      if (keys[top.node] != top.key) continue;
      keys[top.node] = 0;
      resident--;
    }
  }
  free(keys);
  free(heap.entries);
  return fits;
}
