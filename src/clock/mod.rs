//! Clocks as the server sees them.
//!
//! Owns: what the served time is worth when somebody else keeps the machine's clock ([`Reference`]), the clock that we
//! steer ([`Clock`]), what others do to it ([`StepWatch`]), and what is remembered of it ([`DriftFile`]). Does not own: reading the time; the kernel's answer
//! about its clock is an argument, so that every state can be injected.

mod drift;
mod leap;
mod reference;
mod steering;
mod steps;

pub use drift::DriftFile;
pub use leap::leap_of_today;
pub use reference::{Reference, ReferenceKind, Trouble};
pub use steering::{Clock, Kept, SystemClock, UntouchedClock};
pub use steps::{Change, Clocks, MachineClocks, StepWatch};
