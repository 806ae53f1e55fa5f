// The persistent decode kernel: a decode step as one launch. One grid of resident blocks, one a multiprocessor, runs a
// program of phases with a grid barrier between them.
//
// A phase is a recorded launch: its arguments, and its grid, whose virtual blocks the real blocks divide among them. The
// kernels' sources stand before this text, each in a namespace of its file's name; step.cuh makes them functions. The
// phases' numbers (PHASE_...) come from the host.
//
// Why: a launch costs some 5 us from the last byte of one kernel to the full stream of the next, and a matrix of 8 MB is
// read in 2 us. A barrier costs 2 us plus the wait for the slowest block; meanwhile codes of the next matrix are loaded, and
// the table of codebook entries is filled only once.
// Bound: see the phases. H200, llama3-8b at 2-256: 1.85 ms a step, 537 tok/s. Where the time goes: docs/log/cuda-decode.md.
#undef blockIdx
#undef gridDim

struct Argument {
    u64 bits;
    template <class T> __device__ __forceinline__ operator T*() const { return reinterpret_cast<T*>(bits); }
    __device__ __forceinline__ operator u32() const { return (u32)bits; }
};

struct __align__(16) Phase {
    u32 kind, grid[3];
    u32 next[2]; // the next phase: with a short context, with a long one
    u32 unused[2];
    Argument arguments[STEP_ARGUMENTS];
};

template <class T> __device__ __forceinline__ T params(const Argument* at) {
    T all;
#pragma unroll
    for (u32 i = 0; i < sizeof(T) / 4; i++) reinterpret_cast<u32*>(&all)[i] = reinterpret_cast<const u32*>(at)[i];
    return all;
}

__device__ __forceinline__ void run_block(const Phase& phase) {
    const Argument* a = phase.arguments;
    switch (phase.kind) {
    case PHASE_rms_norm: return rms_norm::rms_norm(a[0], a[1], a[2], params<RmsNormParams>(a + 3));
    case PHASE_swiglu: return swiglu::swiglu(a[0], a[1], params<SwiGluParams>(a + 2));
    case PHASE_rotate: return rotate::rotate(a[0], a[1], params<RotateParams>(a + 2));
    case PHASE_gather_rows: return gather_rows::gather_rows(a[0], a[1], a[2], params<GatherRowsParams>(a + 3));
#ifdef PQ_D
    case PHASE_embed_pq: return embed::embed_pq(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], params<EmbedParams>(a + 8));
#endif
#ifdef HEAD_DIM
    case PHASE_attention_step:
        return attention_step::attention_step(*reinterpret_cast<const attention_step::Call*>(a));
#endif
    }
}

__device__ __forceinline__ void run(const Phase& phase) {
#ifdef PQ_TOKENS
    if (phase.kind == PHASE_pq_matvec_shared) {
        // Uses the real grid, and waits for its inputs after it has requested its first codes.
        return pq_row::pq_matvec_shared(*reinterpret_cast<const pq_row::Call*>(phase.arguments));
    }
#endif
#ifdef DENSE_DTYPE
    if (phase.kind == PHASE_dense_row) return dense_row::dense_row(*reinterpret_cast<const dense_row::Call*>(phase.arguments));
#endif
    if (phase.kind != PHASE_attention_step) wait_inputs(); // attention_step loads before it waits
    const u32 *grid = phase.grid, count = grid[0] * grid[1] * grid[2];
    for (u32 block = blockIdx.x; block < count; block += gridDim.x) {
        if (threadIdx.x == 0) {
            virtual_block = make_uint3(block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]);
            virtual_grid = make_uint3(grid[0], grid[1], grid[2]);
        }
        __syncthreads();
        run_block(phase);
        __syncthreads();
    }
    wait_inputs(); // blocks without work wait too: none may be a phase ahead
}

extern "C" __global__ void __launch_bounds__(STEP_THREADS, 1) step(const Phase* program, u32 count, const u32* rows) {
    __shared__ Phase phases[2];
    constexpr u32 WORDS = sizeof(Phase) / 4;
    auto load = [&](u32 i, u32 slot) {
        if (i < count && threadIdx.x < WORDS) {
            const u32 to = (u32)__cvta_generic_to_shared(reinterpret_cast<u32*>(&phases[slot]) + threadIdx.x);
            const u32* from = reinterpret_cast<const u32*>(program + i) + threadIdx.x;
            asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
        }
    };
    // The next phase's arguments are copied while one runs.
    auto arrived = [&]() { asm volatile("cp.async.wait_all;" ::: "memory"); };
    load(0, 0);
    arrived();
    row_signs[threadIdx.x] = 0;
    if (threadIdx.x == 0) {
        table_of = nullptr, arrivals_wanted[0] = 0;
        row_slot = rows ? rows[0] : 0, row_position = rows ? rows[1] : 0;
    }
    __syncthreads();
    u32 i = 0;
    for (u32 ended = 1; i < count; ended++) {
        const Phase& phase = phases[(ended - 1) % 2];
        auto next = [&]() { return phase.next[row_position >= STEP_NEAR]; };
        load(next(), ended % 2);
        run(phase);
        arrived();
        i = next();
        __syncthreads();
        if (threadIdx.x) continue;
        arrivals_wanted[0] = ended * gridDim.x;
        if (i < count) {
            asm volatile("red.add.release.gpu.global.u32 [%0], 1;" ::"l"(&arrivals) : "memory");
        } else if (atomicAdd(&arrivals, 1) + 1 == arrivals_wanted[0]) {
            arrivals = 0; // by the last block of all
        }
    }
}
