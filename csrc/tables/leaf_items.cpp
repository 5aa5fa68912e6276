#include "tables/leaf_items.h"

#include <algorithm>
#include <functional>
#include <tuple>
#include <vector>

namespace gram_fast {
namespace {

// Slots [start, end) that a leaf reads.
struct Read {
  int64_t start, end, leaf;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the leaf at `row` reads, with neighbours joined, so that cuts fall where they serve all leaves.
void add_reads(const SpanTables& tables, int64_t row, int64_t leaf, const Window& window, std::vector<Read>& reads) {
  const auto behind = std::ranges::upper_bound(tables.spans.begin() + 1, tables.spans.end(), row, {}, &Extent::start);
  const int64_t span = behind - tables.spans.begin() - 1;
  const size_t first = reads.size();
  int64_t unread = window.low(tables.num_before(span) + row - tables.spans[span].start);
  for (const Extent& range : tables.read_by(span)) {
    const int64_t start = range.start + std::min(unread, range.length());
    unread -= start - range.start;
    if (start < range.end) reads.push_back({start, range.end, leaf});
  }
  reads.push_back({tables.spans[span].start + unread, row + 1, leaf});
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

// Reads of one chunk that are computed together.
struct Item {
  int64_t start, end;
  std::span<const Read> reads;

  int64_t cost() const { return (end - start) * static_cast<int64_t>(reads.size()); }
};

// The reads of each chunk in as few items as hold them, evenly; the costliest first.
std::vector<Item> deal_out(const std::vector<std::vector<Read>>& chunks) {
  std::vector<Item> items;
  for (const std::vector<Read>& chunk : chunks) {
    const auto size = static_cast<int64_t>(chunk.size());
    const int64_t parts = ceil_div(size, kItemLeaves);
    for (int64_t part = 0; part < parts; ++part) {
      const std::span<const Read> reads{chunk.data() + size * part / parts, chunk.data() + size * (part + 1) / parts};
      const int64_t end = std::ranges::max(reads, {}, &Read::end).end;
      items.push_back({.start = reads.front().start, .end = end, .reads = reads});
    }
  }
  std::ranges::stable_sort(items, std::greater(), &Item::cost);
  return items;
}

// Where the partial results of each leaf begin, [L + 1] and zeros to a multiple.
std::vector<int64_t> count_entries(const std::vector<Item>& items, int64_t num_leaves) {
  std::vector<int64_t> offsets(static_cast<size_t>(leaf_offsets_size(num_leaves)), 0);
  for (const Item& item : items) {
    for (const Read& read : item.reads) ++offsets[static_cast<size_t>(read.leaf) + 1];
  }
  for (size_t leaf = 0; leaf < static_cast<size_t>(num_leaves); ++leaf) offsets[leaf + 1] += offsets[leaf];
  return offsets;
}

}  // namespace

FlatTable leaf_items(const SpanTables& tables, std::span<const int64_t> leaf_rows, int64_t min_items,
                     const Window& window) {
  const auto num_leaves = static_cast<int64_t>(leaf_rows.size());
  std::vector<Read> reads;
  for (int64_t leaf = 0; leaf < num_leaves; ++leaf) add_reads(tables, leaf_rows[leaf], leaf, window, reads);
  std::ranges::sort(reads, {}, &Read::start);
  const std::vector<std::vector<Read>> chunks = cut(reads);
  const std::vector<Item> items = deal_out(chunks);
  std::vector<int64_t> offsets = count_entries(items, num_leaves);

  FlatTable table{.num_rows = std::max(static_cast<int64_t>(items.size()), min_items), .values = {}};
  int64_t num_entries = 0;
  for (const Item& item : items) {
    const int64_t first = num_entries;
    num_entries += static_cast<int64_t>(item.reads.size());
    table.put({item.start, item.end, first, num_entries});
  }
  table.fill_to(kItemColumns * table.num_rows);
  for (const int64_t offset : offsets) table.put({offset});
  for (const Item& item : items) {
    for (const Read& read : item.reads) {
      table.put({read.leaf, read.start, read.end, offsets[static_cast<size_t>(read.leaf)]++});
    }
  }
  table.fill_rows();
  return table;
}

}  // namespace gram_fast
