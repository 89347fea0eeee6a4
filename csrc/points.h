// What the kernels of distances between vectors are given; the C++ form of metric_kernels/vectors.py.
#pragma once
#include <cstdint>

enum class Between { lp, jensen_shannon };

// `number` rows of `features` contiguous numbers each, `stride` apart.
template <class T> struct Points {
  T* data;
  int64_t number, features, stride;

  T* operator[](int64_t i) const { return data + i * stride; }
};

template <class T> struct TripletRows {
  Points<const T> anchor, positive, negative;
  double p, margin, eps;
  bool swap;
  int threads;
};

template <class T> struct Vectors {
  // yt holds the other points as columns.
  void (*distances)(Between, double p, const Points<const T>& x, const Points<const T>& yt, const Points<T>& out, int threads);
  void (*distance_grads)(Between, double p, const Points<const T>& x, const Points<const T>& y, const Points<const T>& d,
                         const Points<const T>& g, const Points<T>& out, int threads);
  void (*triplet_losses)(const TripletRows<T>&, const Points<T>& distances, T* losses);
  // Gradients without data are not wanted.
  void (*triplet_grads)(const TripletRows<T>&, const Points<const T>& distances, const T* g, const Points<T>& anchor,
                        const Points<T>& positive, const Points<T>& negative);
};

struct VectorKernels {
  const Vectors<float>* single;
  const Vectors<double>* twice;

  template <class T> const Vectors<T>& of() const {
    if constexpr (sizeof(T) == 4) return *single;
    else return *twice;
  }
};
