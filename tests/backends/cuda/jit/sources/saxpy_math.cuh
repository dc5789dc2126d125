__device__ __forceinline__ float axpy(float a, float x, float y) { return a * x + y; }
