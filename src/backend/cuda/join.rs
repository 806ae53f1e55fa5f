//! Operations on one row that become part of the matrices beside them, where codebooks stand per subspace
//! (kernels/pq_matvec_subspace.cu): a norm is done by the kernel that multiplies its result, SwiGLU by the kernel that makes
//! its input.

use super::commands::{Arg, Kernel, Work, words_of};

/// Places of pq_matvec_subspace's arguments, and of the words of its `Norm`.
mod matvec {
    pub const X: usize = 2;
    pub const PARAMS: usize = 6;
    pub const NORM: usize = 7;
    pub const WEIGHT: usize = 0;
    pub const NORMED: usize = 2;
    pub const EPS: usize = 4;
    pub const WEIGHT_OFFSET: usize = 5;
}

/// Places of pq_sum_parts' arguments.
mod sum {
    pub const PLACES: usize = 0;
    pub const Y: usize = 2;
    pub const PARAMS: usize = 5;
    pub const GATED: usize = 6;
}

/// `work` with what can be part of a matrix moved into it.
pub fn join(work: &[Work]) -> Vec<Work> {
    let mut joined: Vec<Work> = Vec::with_capacity(work.len());
    for next in work {
        let mut next = next.clone();
        if let (Some(Work::Kernel(last)), Work::Kernel(now)) = (joined.last_mut(), &mut next) {
            if move_norm(last, now) {
                joined.pop();
            } else if move_swiglu(last, now) {
                continue;
            }
        }
        joined.push(next);
    }
    joined
}

fn move_norm(norm: &Kernel, matrix: &mut Kernel) -> bool {
    let entries = [norm.function.entry, matrix.function.entry];
    if entries != ["rms_norm", "pq_matvec_subspace"] || matrix.params(matvec::PARAMS)[0] != 1 {
        return false;
    }
    let (x, weight, y) = (norm.number(0), norm.number(1), norm.number(2));
    // RmsNormParams: rows, dim, eps, weight_offset, rotate.
    let [_, _, eps, offset, rotate, ..] = norm.params(3);
    if rotate > 0 || x == y || matrix.number(matvec::X) != y {
        return false;
    }
    let mut words = matrix.params(matvec::NORM);
    set_address(&mut words, matvec::WEIGHT, weight);
    set_address(&mut words, matvec::NORMED, y);
    words[matvec::EPS] = eps;
    words[matvec::WEIGHT_OFFSET] = offset;
    matrix.args[matvec::X] = Arg::Address(x);
    matrix.args[matvec::NORM] = Arg::Params(words);
    true
}

fn move_swiglu(sums: &mut Kernel, swiglu: &Kernel) -> bool {
    if [sums.function.entry, swiglu.function.entry] != ["pq_sum_parts", "swiglu"] {
        return false;
    }
    // SwiGluParams: rows, dim, rotate.
    let [_, dim, rotate, ..] = swiglu.params(2);
    // LinearParams: rows, y_stride, y_offset, accumulate.
    let [rows, _, offset, ..] = sums.params(sum::PARAMS);
    let out = sums.params(sum::PLACES)[11]; // the last of rows_end
    let whole = (rows, offset, out) == (1, 0, 2 * dim) && sums.number(sum::Y) == swiglu.number(0);
    if rotate > 0 || !whole {
        return false;
    }
    sums.args[sum::GATED] = Arg::Address(swiglu.number(1));
    true
}

fn set_address(words: &mut [u32; 16], at: usize, address: u64) {
    words[at..at + 2].copy_from_slice(&words_of(address));
}
