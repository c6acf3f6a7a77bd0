//! The residency protocol of one slot: Empty → Loading(g) → Ready(g) → Evicting(g) → Empty.
