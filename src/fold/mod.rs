//! What the operation log folds into, and the digest of it.

pub mod record;
pub mod sql;
pub mod turn;
