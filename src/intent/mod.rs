//! Intents: whether an agent may do an effect that must happen once.

pub mod dispatch;
mod sql;
