"""What a decoder computes between its attention calls, each operation in as many ways as there are
devices that gain from one of their own. `Kernels` is the seam, `TorchKernels` the plain twin."""
