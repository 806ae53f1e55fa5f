//! From a checkpoint to a .fasq file: [`Plan`] says how each tensor is stored, [`run()`] does it, [`Report`] says what
//! was lost.
//!
//! # Any size
//!
//! [`Fitter`] finds the [`Plan`] that meets a [`Size`] at the least estimated loss. A matrix's loss is its [`Sensitivities`]
//! (nats of KL divergence over relative error) times the [`distortion`] of its spec; losses add up, and a knapsack
//! of bytes picks one spec for each matrix. Sensitivities are typical ones, of another model, or measured on text that
//! the model writes.
//!
//! # Error feedback
//!
//! The unquantized model writes text ([`text`]), its [`Activations`] go through the model block by block, and the
//! [`Hessian`] of what each linear layer reads tells how a column's error is carried into the next columns
//! ([`crate::pq::Feedback`]). Measured on wiki-32m (docs/log/quality.md): letting quantized layers feed the next ones gains
//! nothing, damping between 0.2 % and 25 % is all the same, and twice the text gains 1 %.

mod activations;
mod budget;
mod cholesky;
mod hessian;
mod plan;
mod report;
mod run;
mod sensitivity;
mod size;
pub mod text;

pub use activations::{Activations, Inputs};
pub use hessian::Hessian;
pub use plan::{Item, Plan, Rules, Target};
pub use report::{Report, TensorReport};
pub use run::{Options, run};
pub use sensitivity::{Sensitivities, distortion};
pub use size::{Fitted, Fitter, Size};
