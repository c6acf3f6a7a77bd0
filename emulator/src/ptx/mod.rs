//! The PTX front end: a module image as the driver receives it → PTX text → [`ast::Module`].
//!
//! Names are resolved and scopes flattened here, so that lowering meets register and label numbers only; opcodes stay
//! text, for lowering alone knows what they mean. Nothing unknown is skipped.

pub mod ast;
mod body;
mod cubin;
mod error;
pub mod fatbin;
mod function;
mod lexer;
mod literal;
mod operand;
mod parser;
mod show;
mod special;
mod variable;

pub use error::ParseError;
pub use parser::parse;
pub use show::{Shown, describe};
