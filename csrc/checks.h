// Checks of arrays that come from Python: type, shape, contiguity, alignment, writability. Messages name the argument.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>

namespace py = pybind11;

namespace {

std::string shape_of(const py::array& a) {
  std::string text = "(";
  for (py::ssize_t d = 0; d < a.ndim(); ++d) text += (d ? ", " : "") + std::to_string(a.shape(d));
  return text + ")";
}

template <class T> std::string type_name() { return py::str(py::dtype::of<T>()).template cast<std::string>(); }

template <class T> void check_type(const char* name, const py::array& a) {
  if (reinterpret_cast<uintptr_t>(a.data()) % alignof(T)) throw py::value_error(std::string(name) + ": expected aligned data");
  if (!a.dtype().is(py::dtype::of<T>()) && !py::isinstance<py::array_t<T>>(a))
    throw py::type_error(std::string(name) + ": expected dtype " + type_name<T>() + ", got " +
                         py::str(a.dtype()).cast<std::string>());
}

using Optional = std::optional<py::array>;

const py::array& given(const char* name, const Optional& a) {
  if (!a) throw py::type_error(std::string(name) + ": expected an array, got None");
  return *a;
}

// A vector of n numbers.
template <class T> const T* vector(const char* name, const py::array& a, int64_t n) {
  check_type<T>(name, a);
  if (a.ndim() != 1 || a.shape(0) != n)
    throw py::value_error(std::string(name) + ": expected shape (" + std::to_string(n) + ",), got " + shape_of(a));
  if (n > 1 && a.strides(0) != py::ssize_t(sizeof(T))) throw py::value_error(std::string(name) + ": expected contiguous data");
  return static_cast<const T*>(a.data());
}

template <class T> T* vector_out(const char* name, py::array& a, int64_t n) {
  const T* data = vector<T>(name, a, n);
  if (!a.writeable()) throw py::value_error(std::string(name) + ": expected a writable array");
  return const_cast<T*>(data);
}

// A (k, n) matrix whose rows are contiguous; its row stride in elements goes to `stride`.
template <class T>
const T* matrix(const char* name, const py::array& a, int64_t k, int64_t n, int64_t& stride) {
  check_type<T>(name, a);
  if (a.ndim() != 2 || a.shape(0) != k || a.shape(1) != n)
    throw py::value_error(std::string(name) + ": expected shape (" + std::to_string(k) + ", " + std::to_string(n) +
                          "), got " + shape_of(a));
  if (n > 1 && a.strides(1) != py::ssize_t(sizeof(T)))
    throw py::value_error(std::string(name) + ": expected contiguous rows");
  if (a.strides(0) < 0 || a.strides(0) % py::ssize_t(sizeof(T)))
    throw py::value_error(std::string(name) + ": expected a positive row stride in whole elements");
  stride = a.strides(0) / py::ssize_t(sizeof(T));
  return static_cast<const T*>(a.data());
}

template <class T> T* writable(const char* name, py::array& a, int64_t k, int64_t n, int64_t& stride) {
  const T* data = matrix<T>(name, a, k, n, stride);
  if (!a.writeable()) throw py::value_error(std::string(name) + ": expected a writable array");
  if (k > 1 && stride < n) throw py::value_error(std::string(name) + ": expected rows that do not overlap");
  return const_cast<T*>(data);
}

}  // namespace
