//! Making a smaller or differently stored model out of a checkpoint.

pub mod report;
