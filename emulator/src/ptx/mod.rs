//! The PTX front end.
pub mod ast;
