//! SMTP on the receiving side, without I/O (RFC 5321): lines and commands in, replies and effects out.
//!
//! The promise: octets mean the same here at every split of the input, and nothing but CRLF ends a line and nothing but
//! CRLF.CRLF ends a message, so that no second message can be smuggled in the first. What a client wrote is refused
//! or kept; it is never repaired.
//!
//! * [`line`] cuts commands out of the stream, [`command`] understands them, [`xtext`] decodes their values.
//! * [`data`] finds the end of the message content and what is wrong with it.
//! * [`reply`] is what we say. [`session`] decides what to say and what to do.

pub mod command;
pub mod data;
pub mod line;
mod params;
pub mod reply;
mod sasl;
pub mod session;
mod step;
mod terms;
mod transaction;
pub mod verp;
pub mod xtext;
