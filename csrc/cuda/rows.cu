// The row kernels of every formula of the package.
#include "rows.cuh"

#define STATS(Stages, Row) Entry<Stages, T>::stats,
#define WEIGHTS(Stages, Row) Entry<Stages, T>::weights,
#define INPUT_GRADS(Stages, Row) Entry<Stages, T>::input_grads,

namespace gpu {

template <class T> void RowKernels<T>::stats(const RowArguments<T>& a, int formula, int stage, const Output<T>& out) {
  static constexpr decltype(&Entry<Stages0, T>::stats) of[] = {FORMULAS(STATS)};
  of[formula](a, stage, out);
}

template <class T> void RowKernels<T>::weights(const RowArguments<T>& a, int formula, bool both, T* norm_grad) {
  static constexpr decltype(&Entry<Stages0, T>::weights) of[] = {FORMULAS(WEIGHTS)};
  of[formula](a, both, norm_grad);
}

template <class T>
void RowKernels<T>::input_grads(const RowArguments<T>& a, int formula, int stage, bool swapped, const Output<T>& out) {
  static constexpr decltype(&Entry<Stages0, T>::input_grads) of[] = {FORMULAS(INPUT_GRADS)};
  of[formula](a, stage, swapped, out);
}

template struct RowKernels<float>;
template struct RowKernels<double>;

}  // namespace gpu
