// A binary heap of (key, node), lowest key first. Entries are never changed in place: who pops one checks that it
// still holds.
#pragma once
#include <stdint.h>
#include <stdlib.h>

typedef struct {
  int64_t key;
  int32_t node;
} Entry;

typedef struct {
  Entry *entries;
  int64_t size, capacity;
} Heap;

// 0 when there is no memory for one more.
static int heap_push(Heap *heap, int64_t key, int32_t node) {
  if (heap->size == heap->capacity) {
    int64_t capacity = heap->capacity ? 2 * heap->capacity : 1024;
    Entry *entries = realloc(heap->entries, capacity * sizeof(Entry));
    if (!entries) return 0;
    heap->entries = entries;
    heap->capacity = capacity;
  }
  int64_t at = heap->size++;
  while (at && heap->entries[(at - 1) / 2].key > key) {
    heap->entries[at] = heap->entries[(at - 1) / 2];
    at = (at - 1) / 2;
  }
  heap->entries[at] = (Entry){key, node};
  return 1;
}

static Entry heap_pop(Heap *heap) {
  Entry top = heap->entries[0], last = heap->entries[--heap->size];
  int64_t at = 0, child;
  while ((child = 2 * at + 1) < heap->size) {
    if (child + 1 < heap->size && heap->entries[child + 1].key < heap->entries[child].key) child++;
    if (heap->entries[child].key >= last.key) break;
    heap->entries[at] = heap->entries[child];
    at = child;
  }
  heap->entries[at] = last;
  return top;
}
