//! Operations that become part of the matrix beside them: where codebooks stand per subspace, a matrix with one row of x
//! normalises the row itself, and applies SwiGLU to its own output (kernels/pq_matvec_subspace.cu).

use super::commands::{Arg, Kernel, Work};
use super::step::{number, params};

/// Places of pq_matvec_subspace's arguments.
mod matvec {
    pub const PLACES: usize = 1;
    pub const X: usize = 3;
    pub const Y: usize = 4;
    pub const PARAMS: usize = 8;
    pub const NEIGHBOURS: usize = 9;
}

/// Words of its `Neighbours`: addresses of the norm's weights, of its result, of SwiGLU's, and the norm's numbers.
mod neighbours {
    pub const NORM: usize = 0;
    pub const NORMED: usize = 2;
    pub const GATED: usize = 4;
    pub const EPS: usize = 6;
    pub const WEIGHT_OFFSET: usize = 7;
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

/// Whether this is such a matrix with one row of x.
fn takes_neighbours(kernel: &Kernel) -> bool {
    kernel.function.entry == "pq_matvec_subspace" && params(kernel, matvec::PARAMS)[0] == 1
}

fn move_norm(norm: &Kernel, matrix: &mut Kernel) -> bool {
    if norm.function.entry != "rms_norm" || !takes_neighbours(matrix) {
        return false;
    }
    let (x, weight, y) = (number(norm, 0), number(norm, 1), number(norm, 2));
    // RmsNormParams: rows, dim, eps, weight_offset, rotate.
    let [_, _, eps, offset, rotate, ..] = params(norm, 3);
    if rotate > 0 || x == y || number(matrix, matvec::X) != y {
        return false;
    }
    let mut words = params(matrix, matvec::NEIGHBOURS);
    set_address(&mut words, neighbours::NORM, weight);
    set_address(&mut words, neighbours::NORMED, y);
    words[neighbours::EPS] = eps;
    words[neighbours::WEIGHT_OFFSET] = offset;
    matrix.args[matvec::X] = Arg::Address(x);
    matrix.args[matvec::NEIGHBOURS] = Arg::Params(words);
    true
}

fn move_swiglu(matrix: &mut Kernel, swiglu: &Kernel) -> bool {
    if swiglu.function.entry != "swiglu" || !takes_neighbours(matrix) {
        return false;
    }
    // SwiGluParams: rows, dim, rotate; LinearParams: rows, y_stride, y_offset, accumulate.
    let [_, dim, rotate, ..] = params(swiglu, 2);
    let rows = params(matrix, matvec::PLACES)[11]; // the last of rows_end
    let whole = params(matrix, matvec::PARAMS)[2] == 0 && rows == 2 * dim;
    if rotate > 0 || !whole || number(matrix, matvec::Y) != number(swiglu, 0) {
        return false;
    }
    let mut words = params(matrix, matvec::NEIGHBOURS);
    set_address(&mut words, neighbours::GATED, number(swiglu, 1));
    matrix.args[matvec::NEIGHBOURS] = Arg::Params(words);
    true
}

fn set_address(words: &mut [u32; 16], at: usize, address: u64) {
    words[at] = address as u32;
    words[at + 1] = (address >> 32) as u32;
}
