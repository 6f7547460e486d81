//! What of the operation log is kept: checkpoints, and what is trimmed.

pub mod content;
pub mod sql;
