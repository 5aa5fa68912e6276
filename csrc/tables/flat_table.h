#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace gram_fast {

// A table for a kernel: rows of tiles or items, then parts of other shapes, in one array of 32-bit integers. Its length
// is a multiple of `num_rows`: as an array [num_rows, columns] its shape gives the size of the launch, without reading
// anything back from the device.
struct FlatTable {
  int64_t num_rows = 0;
  std::vector<int32_t> values;

  void put(std::initializer_list<int64_t> row) {
    for (const int64_t value : row) values.push_back(static_cast<int32_t>(value));
  }
  // Adds zeros at the end up to `size` integers.
  void fill_to(int64_t size) { values.resize(static_cast<std::size_t>(size)); }
  // Adds zeros at the end up to a multiple of the number of rows; without rows, empties the table.
  void fill_rows() { fill_to(num_rows > 0 ? (size() + num_rows - 1) / num_rows * num_rows : 0); }

  int64_t size() const { return static_cast<int64_t>(values.size()); }
};

}  // namespace gram_fast
