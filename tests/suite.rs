//! What a user of Posthaste can see, by behaviour; one binary, so that the library is linked once.

mod config;
mod partners;
mod tidy;
