//! State that merges: `constraint_state` and the CRDTs it is made of.
//!
//! Shapiro, Preguiça, Baquero, Zawirski 2011 (CRDTs); Bieniusa and others 2012, arXiv:1210.3368
//! (add-wins set without tombstones); Almeida, Shoker, Baquero 2018 (delta-state CRDTs).

pub mod constraint_state;
pub mod context;
pub mod digest;
pub mod fold;
pub mod gcounter;
pub mod lww;
pub mod orset;
mod paired;
pub mod sql;
pub mod text;
mod wire;
mod writer;

#[cfg(test)]
mod laws;
