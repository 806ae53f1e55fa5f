// Before the kernels of a step (step.cu), which become functions of one kernel: their launches' grids are virtual, and
// they wait at a barrier of the whole grid where a launch of their own would wait for the one before.

__device__ __forceinline__ u32 real_block() { return blockIdx.x; }
__device__ __forceinline__ u32 real_grid() { return gridDim.x; }

#define KERNEL __device__ __noinline__ void
#define BOUNDS(...)
#define blockIdx virtual_block
#define gridDim virtual_grid

extern __shared__ __align__(16) char dynamic_shared[]; // the table of PQ entries, then the phase's own
__shared__ uint3 virtual_block, virtual_grid;
__shared__ u32 row_slot, row_position;   // of the step's first row
__shared__ u32 row_signs[STEP_THREADS];  // see signs_of() in pq_row.cu; 0: none yet
__shared__ const u32* table_of;          // whose entries the table holds
// Of the barrier; 0 behind it. Thread 0's alone: what lies beside it others may read in one load with it.
__shared__ __align__(16) u32 arrivals_wanted[4];
__device__ u32 arrivals;                 // blocks that ended a phase; 0 between steps

__device__ __forceinline__ char* phase_shared() { return dynamic_shared + STEP_TABLE; }
__device__ __forceinline__ void release_next() {}

// Until every block has ended the phase before. A block that died would be waited for in vain: some seconds of that
// end the step with an error.
__device__ __forceinline__ void wait_inputs() {
    if (threadIdx.x == 0) {
        const u32 wanted = *(volatile u32*)arrivals_wanted; // volatile: no other thread shall read it ahead
        for (u32 tries = 0, seen = 0; seen < wanted; tries++) {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(&arrivals) : "memory");
            if (tries >> 24) __trap();
        }
        arrivals_wanted[0] = 0;
    }
    __syncthreads();
}
