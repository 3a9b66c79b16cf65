//! The spool's behaviour, on a disk that fails where it is told to.

mod behaviour;
mod damage;
mod faults;
mod memory;
mod model;
mod support;
