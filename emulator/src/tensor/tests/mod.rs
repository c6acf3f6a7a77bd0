//! Tests of layouts, products and tensor maps against independent definitions.
#![allow(clippy::unwrap_used)]

mod layouts;
mod products;
mod tensor_maps;
mod warp_tiles;
