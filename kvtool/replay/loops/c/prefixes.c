// Block ids to nodes of a prefix tree: a node is an id below a parent, numbered when first seen.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  int64_t *ids;      // of each node
  int32_t *parents;  // of each node, -1 below the root
  int32_t *slots;    // open addressing: node + 1, or 0
  int64_t num_nodes, node_capacity, num_slots;
} Prefixes;

static uint64_t hash(int32_t parent, int64_t id) {
  uint64_t x = (uint64_t)id * 0x9E3779B97F4A7C15u ^ ((uint64_t)(uint32_t)parent + 1) * 0xC2B2AE3D27D4EB4Fu;
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93u;
  return x ^ x >> 32;
}

void prefixes_free(Prefixes *tree) {
  if (!tree) return;
  free(tree->ids);
  free(tree->parents);
  free(tree->slots);
  free(tree);
}

static int grow_slots(Prefixes *tree) {
  int64_t num_slots = tree->num_slots ? 2 * tree->num_slots : 1 << 12;
  int32_t *slots = calloc(num_slots, sizeof(int32_t));
  if (!slots) return 0;
  for (int64_t node = 0; node < tree->num_nodes; node++) {
    uint64_t at = hash(tree->parents[node], tree->ids[node]) & (num_slots - 1);
    while (slots[at]) at = (at + 1) & (num_slots - 1);
    slots[at] = node + 1;
  }
  free(tree->slots);
  tree->slots = slots;
  tree->num_slots = num_slots;
  return 1;
}

static int grow_nodes(Prefixes *tree) {
  int64_t capacity = tree->node_capacity ? tree->node_capacity + tree->node_capacity / 2 : 1 << 12;
  if (capacity > INT32_MAX - 1) return 0;
  int64_t *ids = realloc(tree->ids, capacity * sizeof(int64_t));
  if (ids) tree->ids = ids;
  int32_t *parents = realloc(tree->parents, capacity * sizeof(int32_t));
  if (parents) tree->parents = parents;
  if (!ids || !parents) return 0;
  tree->node_capacity = capacity;
  return 1;
}

Prefixes *prefixes_new(void) {
  Prefixes *tree = calloc(1, sizeof(Prefixes));
  if (tree && grow_slots(tree) && grow_nodes(tree)) return tree;
  prefixes_free(tree);
  return NULL;
}

int64_t prefixes_size(const Prefixes *tree) { return tree->num_nodes; }

void prefixes_copy(const Prefixes *tree, int64_t *ids, int32_t *parents) {
  memcpy(ids, tree->ids, tree->num_nodes * sizeof(int64_t));
  memcpy(parents, tree->parents, tree->num_nodes * sizeof(int32_t));
}

// The node of each id of `num_requests` requests, whose ids stand one after the other. 0 when memory runs out.
int prefixes_add(Prefixes *tree, const int64_t *ids, const int64_t *lengths, int64_t num_requests, int32_t *nodes) {
  for (int64_t request = 0; request < num_requests; request++) {
    int32_t parent = -1;
    for (int64_t i = 0; i < lengths[request]; i++, ids++, nodes++) {
      if (2 * tree->num_nodes >= tree->num_slots && !grow_slots(tree)) return 0;
      uint64_t at = hash(parent, *ids) & (tree->num_slots - 1);
      int32_t node;
      while ((node = tree->slots[at] - 1) >= 0 && (tree->ids[node] != *ids || tree->parents[node] != parent))
        at = (at + 1) & (tree->num_slots - 1);
      if (node < 0) {
        if (tree->num_nodes == tree->node_capacity && !grow_nodes(tree)) return 0;
        node = tree->num_nodes++;
        tree->ids[node] = *ids;
        tree->parents[node] = parent;
        tree->slots[at] = node + 1;
      }
      parent = *nodes = node;
    }
  }
  return 1;
}
