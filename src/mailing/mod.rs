//! Mailings: everything of one broadcast of one list host, recognised and not asked for (design 11).

mod identity;

pub use identity::{Clue, IDLE, Recogniser, SERIES_MAX};
