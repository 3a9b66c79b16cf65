//! Routes: from a destination to the site that serves it.

mod options;

pub use options::{Options, ProviderRule};
