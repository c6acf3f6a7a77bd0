//! Bit-exact scalar arithmetic.
