//! What a user of Posthaste can see, by behaviour; one binary, so that the library is linked once.

mod bouncing;
mod config;
mod delivering;
mod handing_over;
mod limits;
mod partners;
mod rehearsing;
mod signing;
mod support;
mod surviving;
mod tidy;
mod tls;
mod watching;
