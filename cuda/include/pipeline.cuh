// A ring of buffers in shared memory between one producer (a thread that issues TMA) and many consumers.
//
// Each stage has two mbarriers. full: the producer arrives once a round and announces the bytes; it completes when they are
// there. empty: every consumer arrives once a round, when it no longer reads the stage. Both sides walk the stages in the
// same order and keep their own place; a place survives from one tile to the next, so the producer runs ahead across tiles.
#pragma once

#include "ptx.cuh"

/// One side's place in a ring of `Stages` buffers.
template <int Stages>
struct Ring {
  /// Bytes of its barriers in shared memory, aligned to 8.
  static constexpr uint32_t kBytes = Stages * 2 * sizeof(uint64_t);

  /// Where the barriers are.
  uint32_t barriers;
  uint32_t stage;
  /// Parity of the round: of the completion that a consumer waits for.
  uint32_t parity;

  __device__ __forceinline__ explicit Ring(uint32_t at) : barriers(at), stage(0), parity(0) {}

  /// By one thread, before all threads of the block synchronise.
  __device__ __forceinline__ void init(uint32_t consumers) const {
    for (uint32_t s = 0; s < Stages; ++s) {
      ptx::barrier_init(full(s), 1);
      ptx::barrier_init(empty(s), consumers);
    }
    ptx::barrier_init_fence();
  }

  /// Producer: waits until the stage is free. In the first round it is, and the parity is that of the phase before.
  __device__ __forceinline__ void acquire() const { ptx::barrier_wait(empty(stage), parity ^ 1); }
  /// Producer: what the copies of this round report to.
  __device__ __forceinline__ uint32_t announce(uint32_t bytes) const {
    ptx::barrier_arrive_expect(full(stage), bytes);
    return full(stage);
  }
  /// Consumer: waits until the stage is filled.
  __device__ __forceinline__ void wait() const { ptx::barrier_wait(full(stage), parity); }
  /// Consumer: the stage may be overwritten. What was read of it has arrived in registers.
  __device__ __forceinline__ void release() const { ptx::barrier_arrive(empty(stage)); }

  __device__ __forceinline__ void advance() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }

 private:
  __device__ __forceinline__ uint32_t full(uint32_t s) const { return barriers + s * 16; }
  __device__ __forceinline__ uint32_t empty(uint32_t s) const { return barriers + s * 16 + 8; }
};
