#include "tables/leaf_items.h"

#include <algorithm>
#include <tuple>

namespace gram_fast {
namespace {

// Slots [start, end) that a leaf reads.
struct Read {
  int64_t start, end, leaf;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the leaf at `row` reads, with neighbours joined, so that cuts fall where they serve all leaves.
void add_reads(const int64_t* spans, const int64_t* range_offsets, const int64_t* ranges, int64_t num_spans,
               int64_t row, int64_t leaf, std::vector<Read>& reads) {
  int64_t low = 0;
  for (int64_t high = num_spans; high - low > 1;) {
    const int64_t middle = (low + high) / 2;
    (spans[2 * middle] <= row ? low : high) = middle;
  }
  const size_t first = reads.size();
  for (int64_t r = range_offsets[low]; r < range_offsets[low + 1]; ++r) {
    reads.push_back({ranges[2 * r], ranges[2 * r + 1], leaf});
  }
  reads.push_back({spans[2 * low], row + 1, leaf});
  const auto begin = reads.begin() + static_cast<std::ptrdiff_t>(first);
  std::sort(begin, reads.end(), [](const Read& a, const Read& b) { return a.start < b.start; });
  auto last = begin;
  for (auto next = begin + 1; next < reads.end(); ++next) {
    if (next->start <= last->end) {
      last->end = std::max(last->end, next->end);
    } else {
      *++last = *next;
    }
  }
  reads.erase(last + 1, reads.end());
}

// Cuts the reads, sorted by start, into chunks: pieces of one chunk stand together, sorted by start and end. Where no
// read goes on, a chunk ends for free; what lies between is cut evenly.
std::vector<std::vector<Read>> cut(const std::vector<Read>& reads) {
  std::vector<std::vector<Read>> chunks;
  for (size_t first = 0, next = 0; first < reads.size(); first = next) {
    const int64_t start = reads[first].start;
    int64_t end = start;
    for (next = first; next < reads.size() && (next == first || reads[next].start < end); ++next) {
      end = std::max(end, reads[next].end);
    }
    const int64_t count = ceil_div(end - start, kChunkKeys), width = ceil_div(end - start, count);
    const size_t base = chunks.size();
    chunks.resize(base + static_cast<size_t>(count));
    for (size_t i = first; i < next; ++i) {
      const Read& read = reads[i];
      for (int64_t c = (read.start - start) / width; start + c * width < read.end; ++c) {
        const int64_t low = std::max(read.start, start + c * width), high = std::min(read.end, start + (c + 1) * width);
        chunks[base + static_cast<size_t>(c)].push_back({low, high, read.leaf});
      }
    }
  }
  for (std::vector<Read>& chunk : chunks) {
    std::sort(chunk.begin(), chunk.end(), [](const Read& a, const Read& b) {
      return std::tie(a.start, a.end, a.leaf) < std::tie(b.start, b.end, b.leaf);
    });
  }
  return chunks;
}

}  // namespace

std::vector<int32_t> leaf_items(const int64_t* spans, const int64_t* range_offsets, const int64_t* ranges,
                                int64_t num_spans, const int64_t* leaf_rows, int64_t num_leaves, int64_t min_items,
                                int64_t& num_items) {
  std::vector<Read> reads;
  for (int64_t leaf = 0; leaf < num_leaves; ++leaf) {
    add_reads(spans, range_offsets, ranges, num_spans, leaf_rows[leaf], leaf, reads);
  }
  std::sort(reads.begin(), reads.end(), [](const Read& a, const Read& b) { return a.start < b.start; });
  const std::vector<std::vector<Read>> chunks = cut(reads);

  struct Item {
    int64_t start, end;
    const Read* first;
    int64_t count;
    int64_t cost() const { return (end - start) * count; }
  };
  std::vector<Item> items;
  for (const std::vector<Read>& chunk : chunks) {
    const auto size = static_cast<int64_t>(chunk.size());
    const int64_t parts = ceil_div(size, kItemLeaves);
    for (int64_t part = 0; part < parts; ++part) {
      const Read* first = chunk.data() + size * part / parts;
      const Read* last = chunk.data() + size * (part + 1) / parts;
      int64_t end = 0;
      for (const Read* read = first; read < last; ++read) end = std::max(end, read->end);
      items.push_back({first->start, end, first, last - first});
    }
  }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.cost() > b.cost(); });

  num_items = std::max(static_cast<int64_t>(items.size()), min_items);
  std::vector<int32_t> flat;
  const auto put = [&flat](int64_t value) { flat.push_back(static_cast<int32_t>(value)); };
  int64_t num_entries = 0;
  std::vector<int64_t> offsets(static_cast<size_t>(num_leaves + 4) / 4 * 4, 0);
  for (const Item& item : items) {
    for (int64_t value : {item.start, item.end, num_entries, num_entries + item.count}) put(value);
    num_entries += item.count;
    for (int64_t i = 0; i < item.count; ++i) ++offsets[static_cast<size_t>(item.first[i].leaf) + 1];
  }
  flat.resize(static_cast<size_t>(4 * num_items));
  for (size_t leaf = 0; leaf < static_cast<size_t>(num_leaves); ++leaf) offsets[leaf + 1] += offsets[leaf];
  for (int64_t offset : offsets) put(offset);
  for (const Item& item : items) {
    for (int64_t i = 0; i < item.count; ++i) {
      const Read& read = item.first[i];
      for (int64_t value : {read.leaf, read.start, read.end, offsets[static_cast<size_t>(read.leaf)]++}) put(value);
    }
  }
  const auto size = static_cast<int64_t>(flat.size());
  flat.resize(num_items > 0 ? static_cast<size_t>(ceil_div(size, num_items) * num_items) : 0);
  return flat;
}

}  // namespace gram_fast
