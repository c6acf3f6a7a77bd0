//! The routed experts in host memory, and on disk below it.
