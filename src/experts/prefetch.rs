//! Bringing experts before they are asked for, on idle link time only.
