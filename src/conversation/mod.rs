//! Conversations: turns of the operation log, in order, and as a model can be given them.

pub mod resume;
pub mod sql;
pub mod turn;
