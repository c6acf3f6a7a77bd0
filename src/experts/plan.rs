//! Where every byte goes: trunk, key/value cache, workspace, buffers, slots, under one budget.
