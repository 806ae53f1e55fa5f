// Stands before the kernels of the persistent decode kernel (persistent.cu), which become its functions: a launch's grid is
// virtual, and wait_inputs() is a barrier of the whole grid instead of a wait for the previous launch.

__device__ __forceinline__ u32 real_block() { return blockIdx.x; }
__device__ __forceinline__ u32 real_grid() { return gridDim.x; }

#define KERNEL __device__ __noinline__ void
#define BOUNDS(...)
#define blockIdx virtual_block
#define gridDim virtual_grid

extern __shared__ __align__(16) char dynamic_shared[]; // the table of codebook entries, then the phase's memory
__shared__ uint3 virtual_block, virtual_grid;
__shared__ u32 row_slot, row_position;   // of row 0 of the decode step
__shared__ u32 row_signs[PERSISTENT_THREADS];  // see signs_of() in pq_row.cu; 0: not computed yet
__shared__ const u32* table_of;          // the codebook whose entries the table holds
// Arrivals that end the current barrier, 0 after it. Only thread 0 reads it: 16 bytes of its own, because a wide load of a
// neighbour would read it too.
__shared__ __align__(16) u32 arrivals_wanted[4];
__device__ u32 arrivals;                 // blocks that ended a phase; 0 between launches

__device__ __forceinline__ char* phase_shared() { return dynamic_shared + PERSISTENT_TABLE; }
__device__ __forceinline__ void release_next() {}

// Waits until every block has ended the previous phase. If a block never arrives the kernel traps after some seconds instead
// of hanging.
__device__ __forceinline__ void wait_inputs() {
    if (threadIdx.x == 0) {
        const u32 wanted = *(volatile u32*)arrivals_wanted; // volatile: the compiler must not load it in other threads
        for (u32 tries = 0, seen = 0; seen < wanted; tries++) {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(&arrivals) : "memory");
            if (tries >> 24) __trap();
        }
        arrivals_wanted[0] = 0;
    }
    __syncthreads();
}
