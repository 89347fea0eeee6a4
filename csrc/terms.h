// The kernels of terms for one instruction set, and the entry points by which Python calls them.
#pragma once
#include "values.h"

struct Terms {
  const Ordered<float>* ordered_single;
  const Ordered<double>* ordered_twice;
  const Binned<float>* binned_single;
  const Binned<double>* binned_twice;

  template <class T> const Ordered<T>& ordered() const {
    if constexpr (sizeof(T) == 4) return *ordered_single;
    else return *ordered_twice;
  }
  template <class T> const Binned<T>& binned() const {
    if constexpr (sizeof(T) == 4) return *binned_single;
    else return *binned_twice;
  }
};
