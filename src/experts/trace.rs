//! Which experts a model's tokens went to, recorded and replayed.
