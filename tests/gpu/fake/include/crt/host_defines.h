// Stand-in for a header of nvcc, which NVIDIA's wheels lack: attributes of device code, empty for a host compiler.
#pragma once
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __host__
#define __device__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define __specialization_static
#define __no_return__ __attribute__((noreturn))
#define __inline__ inline
#define CUDA_CB
#define __location__(x)
#define __cluster_dims__(...)
