// The kernels of terms, for both types of numbers.
#include "binned.cuh"
#include "ordered.cuh"
#include "pairs.cuh"
#include "values.cuh"

namespace gpu {

template struct PairValues<float>;
template struct PairValues<double>;
template struct OrderedKernels<float>;
template struct OrderedKernels<double>;
template struct PairKernels<float>;
template struct PairKernels<double>;
template struct BinnedKernels<float>;
template struct BinnedKernels<double>;

}  // namespace gpu
