// The one way by which kernels are started.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "engine/base/status.h"

namespace holdfast {
namespace cuda {

// Queues kernel<<<grid, threads, shared, stream>>>(args). kUnavailable with the driver's words.
template <typename Args>
Status Launch(const char* what, void (*kernel)(Args), dim3 grid, int threads, size_t shared,
              cudaStream_t stream, const Args& args) {
  Args copy = args;
  void* pointers[] = {&copy};
  const cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid,
                                             dim3(threads), pointers, shared, stream);
  if (error == cudaSuccess) return {};
  return Status::Unavailable(std::string("cuda ") + what + ": " + cudaGetErrorString(error));
}

}  // namespace cuda
}  // namespace holdfast
