// The persistent decode kernel: a decode step as one launch. One grid of resident blocks, one a multiprocessor, runs a
// program of phases with a grid barrier between them.
//
// A phase is a recorded launch: its arguments, and its grid, whose virtual blocks the real blocks divide among them. The
// kernels' sources stand before this text, each in a namespace of its file's name; persistent.cuh makes them functions. The
// phases' numbers (PHASE_...) come from the host.
//
// Why: a launch costs some 5 us from the last byte of one kernel to the full stream of the next, and a matrix of 8 MB is
// read in 2 us. A barrier costs 2 us plus the wait for the slowest block; meanwhile codes of the next matrix are loaded, and
// the table of codebook entries is filled only once.
// Bound: see the phases. H200, llama3-8b at 2-256: 1.85 ms a step, 537 tok/s. Where the time goes: docs/log/cuda-decode.md.
#undef blockIdx
#undef gridDim

struct __align__(16) Phase {
    PhaseHead head;
    u32 call[PHASE_CALL_WORDS];
};

__device__ __forceinline__ void run_block(const Phase& phase) {
    const void* arguments = phase.call;
    switch (phase.head.kind) {
    case PHASE_RMS_NORM: {
        const RmsNormCall& call = *static_cast<const RmsNormCall*>(arguments);
        if (call.residual) return rms_norm::rms_norm_added(call.x, call.weight, call.residual, call.y, call.params);
        return rms_norm::rms_norm(call.x, call.weight, call.y, call.params);
    }
    case PHASE_QK_NORM: {
        const QkNormCall& call = *static_cast<const QkNormCall*>(arguments);
        return qk_norm::qk_norm(call.qkv, call.q_norm, call.k_norm, call.params);
    }
    case PHASE_GLU: {
        const GluCall& call = *static_cast<const GluCall*>(arguments);
        return glu::glu(call.x, call.y, call.params);
    }
    case PHASE_ROTATE: {
        const RotateCall& call = *static_cast<const RotateCall*>(arguments);
        return rotate::rotate(call.x, call.y, call.params);
    }
    case PHASE_GATHER_ROWS: {
        const GatherRowsCall& call = *static_cast<const GatherRowsCall*>(arguments);
        return gather_rows::gather_rows(call.x, call.index, call.y, call.params);
    }
#ifdef PQ_D
    case PHASE_EMBED: {
        const EmbedCall& call = *static_cast<const EmbedCall*>(arguments);
        return embed::embed_pq(call.tokens, call.codes, call.codebook, call.scales, call.y, call.code_tiles, call.group, call.rotate,
                               call.params);
    }
#endif
#ifdef HEAD_DIM
    case PHASE_ATTENTION: return attention_step::attention_step(*static_cast<const AttentionStepCall*>(arguments));
#endif
    }
}

__device__ __forceinline__ void run(const Phase& phase) {
#ifdef PQ_TOKENS
    if (phase.head.kind == PHASE_PQ_ROW) {
        // Uses the real grid, and waits for its inputs after it has requested its first codes.
        return pq_row::pq_row(*reinterpret_cast<const PqRowCall*>(phase.call));
    }
#endif
#ifdef DENSE_DTYPE
    if (phase.head.kind == PHASE_DENSE_ROW) return dense_row::dense_row(*reinterpret_cast<const DenseRowCall*>(phase.call));
#endif
    if (phase.head.kind != PHASE_ATTENTION) wait_inputs(); // attention_step loads before it waits
    const u32 *grid = phase.head.grid, count = grid[0] * grid[1] * grid[2];
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

extern "C" __global__ void __launch_bounds__(PERSISTENT_THREADS, 1) persistent(const Phase* program, u32 count, const u32* rows,
                                                                                 u32 short_context) {
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
        auto next = [&]() { return row_position < short_context ? phase.head.next_short : phase.head.next_long; };
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
