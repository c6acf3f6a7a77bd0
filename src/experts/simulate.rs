//! Replays a routing trace through the real policy, schedule and prefetch code on modelled hardware.
