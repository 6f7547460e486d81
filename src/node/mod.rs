//! A node of the mesh: its name, its lives, its peers and the members that count.

pub mod conninfo;
pub mod detector;
pub mod identity;
pub mod incarnation;
pub mod peer;
pub mod sql;
