//! Copies from memory to shared memory that go on while a thread computes.
#pragma once
#include "common.cuh"

namespace async_copy {

// Queues a copy of 4 or 16 bytes, aligned to that; zeros where they are not `there` (nothing is read then). The copied bytes can be
// read once the thread that queued them has waited, and by others after a barrier behind that.
template <int BYTES> __device__ inline void queue(void* shared, const void* from, bool there) {
    static_assert(BYTES == 4 || BYTES == 16, "what one copy moves");
#ifdef MIXPOOL_EMULATION
    if (there) memcpy(shared, from, BYTES);
    else memset(shared, 0, BYTES);
#else
    uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    int length = there ? BYTES : 0;
    if (BYTES == 16)  // not kept in the first-level cache
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(from), "r"(length) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(at), "l"(from), "r"(length) : "memory");
#endif
}

// Waits for what this thread has queued.
__device__ inline void wait() {
#ifndef MIXPOOL_EMULATION
    asm volatile("cp.async.wait_all;\n" ::: "memory");
#endif
}

}  // namespace async_copy
