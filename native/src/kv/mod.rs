//! The hot loops over keys and values, without Python: what is done for every key of a large batch.

pub mod puts;
