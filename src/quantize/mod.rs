//! From a checkpoint to a .fasq file: [`Plan`] says how each tensor is stored, [`run()`] does it, [`Report`] says what
//! was lost.

mod activations;
mod budget;
mod moments;
mod plan;
mod report;
mod run;
mod sensitivity;
mod size;
pub mod text;

pub use activations::{Activations, Inputs};
pub use budget::{Budget, Choice};
pub use moments::Moments;
pub use plan::{Item, Plan, Rules, Target};
pub use report::{Report, TensorReport};
pub use run::{Options, run};
pub use sensitivity::{Sensitivities, distortion};
pub use size::{Fitted, Fitter, Size};
