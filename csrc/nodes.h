// How a pair value is shared between two nodes of a histogram.
#pragma once
#include <cstdint>
#include <cstring>

#include "fn.h"

namespace {

// The place of a value among the nodes: the lower of its two, and the share of the upper one. Not for NaN.
template <class T> MK_FN int32_t lower_node(T v, T low, T per_step, int32_t last, T& share) {
  T place = (v - low) * per_step;
  place = place > T(0) ? place : T(0);
  place = place < T(last) ? place : T(last);
  const int32_t node = int32_t(place) < last ? int32_t(place) : last - 1;
  share = place - T(node);
  return node;
}

// A number from 0 to 2^50, rounded: adding 1.5 * 2^52 leaves the integer in the low bits.
MK_FN int64_t rounded(double x) {
  const double shift = 6755399441055744.0, shifted = x + shift;
  int64_t bits, zero;
  std::memcpy(&bits, &shifted, 8);
  std::memcpy(&zero, &shift, 8);
  return bits - zero;
}

}  // namespace
