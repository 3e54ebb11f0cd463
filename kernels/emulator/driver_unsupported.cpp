// Driver functions that cudarc and cust know and the emulator does not do. They exist so that a call is an error that
// names them: a missing symbol would end the process.
#include "driver.hpp"

// A C function may be called with more arguments than it looks at.
#define NOT_EMULATED(function) \
  CUDA_API function() { return emulator::report(CUDA_ERROR_NOT_SUPPORTED, #function " is not emulated"); }

// ---- contexts, memory pools, prefetching ------------------------------------------------------------------------------

NOT_EMULATED(cuCtxCreate_v3)
NOT_EMULATED(cuCtxCreate_v4)
NOT_EMULATED(cuCtxGetSharedMemConfig)
NOT_EMULATED(cuCtxSetSharedMemConfig)
NOT_EMULATED(cuFuncSetSharedMemConfig)
NOT_EMULATED(cuDeviceGetDefaultMemPool)
NOT_EMULATED(cuDeviceGetMemPool)
NOT_EMULATED(cuDeviceSetMemPool)
NOT_EMULATED(cuMemPoolCreate)
NOT_EMULATED(cuMemPoolDestroy)
NOT_EMULATED(cuMemPoolGetAttribute)
NOT_EMULATED(cuMemPoolSetAttribute)
NOT_EMULATED(cuMemPoolTrimTo)
NOT_EMULATED(cuMemAllocFromPoolAsync)
NOT_EMULATED(cuMemAllocManaged)
NOT_EMULATED(cuMemAllocPitch)
NOT_EMULATED(cuMemAdvise)
NOT_EMULATED(cuMemAdvise_v2)
NOT_EMULATED(cuMemPrefetchAsync)
NOT_EMULATED(cuMemPrefetchAsync_v2)
NOT_EMULATED(cuMemcpyPeerAsync)
NOT_EMULATED(cuMemcpy2D_v2)
NOT_EMULATED(cuStreamAttachMemAsync)
NOT_EMULATED(cuImportExternalMemory)
NOT_EMULATED(cuDestroyExternalMemory)
NOT_EMULATED(cuExternalMemoryGetMappedBuffer)

// ---- launches ---------------------------------------------------------------------------------------------------------

NOT_EMULATED(cuLaunchCooperativeKernel)
NOT_EMULATED(cuOccupancyAvailableDynamicSMemPerBlock)
NOT_EMULATED(cuOccupancyMaxActiveClusters)
NOT_EMULATED(cuOccupancyMaxPotentialBlockSize)
NOT_EMULATED(cuOccupancyMaxPotentialBlockSizeWithFlags)
NOT_EMULATED(cuOccupancyMaxPotentialClusterSize)
NOT_EMULATED(cuModuleGetGlobal_v2)
NOT_EMULATED(cuLinkCreate_v2)
NOT_EMULATED(cuLinkAddData_v2)
NOT_EMULATED(cuLinkComplete)
NOT_EMULATED(cuLinkDestroy)
NOT_EMULATED(cuProfilerStart)
NOT_EMULATED(cuProfilerStop)

// ---- graphs that are built by hand, arrays, textures ------------------------------------------------------------------

NOT_EMULATED(cuGraphCreate)
NOT_EMULATED(cuGraphAddKernelNode)
NOT_EMULATED(cuGraphDebugDotPrint)
NOT_EMULATED(cuGraphGetEdges)
NOT_EMULATED(cuGraphKernelNodeGetParams)
NOT_EMULATED(cuGraphNodeGetType)
NOT_EMULATED(cuArray3DCreate_v2)
NOT_EMULATED(cuArray3DGetDescriptor_v2)
NOT_EMULATED(cuArrayDestroy)
NOT_EMULATED(cuMemcpyAtoH_v2)
NOT_EMULATED(cuMemcpyHtoA_v2)
NOT_EMULATED(cuSurfObjectCreate)
NOT_EMULATED(cuSurfObjectDestroy)
NOT_EMULATED(cuSurfObjectGetResourceDesc)
NOT_EMULATED(cuTexObjectCreate)
NOT_EMULATED(cuTexObjectDestroy)
NOT_EMULATED(cuTexObjectGetResourceDesc)
NOT_EMULATED(cuTexObjectGetResourceViewDesc)
