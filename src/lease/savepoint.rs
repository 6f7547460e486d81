//! Things that a transaction remembers, and forgets again when the savepoint they came after is
//! rolled back.

/// Number of a subtransaction, as PostgreSQL counts them within a transaction.
pub type Level = u32;

/// Values in the order they came, each with the subtransaction it belongs to now.
#[derive(Debug)]
pub struct Remembered<T> {
    values: Vec<(Level, T)>,
}

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self { values: Vec::new() }
    }
}

impl<T> Remembered<T> {
    pub fn push(&mut self, level: Level, value: T) {
        self.values.push((level, value));
    }

    /// In the order they came.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter().map(|(_, value)| value)
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// What a subtransaction did now belongs to the one around it.
    pub fn subtransaction_committed(&mut self, level: Level, parent: Level) {
        for (owner, _) in &mut self.values {
            if *owner == level {
                *owner = parent;
            }
        }
    }

    /// What a subtransaction did is undone, the latest first.
    pub fn subtransaction_aborted(&mut self, level: Level, mut undo: impl FnMut(T)) {
        // What came after it belongs to it or to one inside it, which has ended before.
        while self.values.last().is_some_and(|(owner, _)| *owner == level) {
            if let Some((_, value)) = self.values.pop() {
                undo(value);
            }
        }
    }

    /// The transaction ends: hands out everything in order.
    pub fn take(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.values)
            .into_iter()
            .map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(remembered: &mut Remembered<&'static str>) -> Vec<&'static str> {
        remembered.take().collect()
    }

    #[test]
    fn rolling_back_undoes_the_latest_first() {
        let mut remembered = Remembered::default();
        remembered.push(1, "outside");
        remembered.push(2, "first");
        remembered.push(2, "second");
        let mut undone = Vec::new();
        remembered.subtransaction_aborted(2, |value| undone.push(value));
        assert_eq!(undone, ["second", "first"]);
        assert_eq!(values(&mut remembered), ["outside"]);
        assert!(remembered.is_empty());
    }

    #[test]
    fn what_was_released_is_undone_with_the_savepoint_around_it() {
        let mut remembered = Remembered::default();
        remembered.push(2, "around");
        remembered.push(3, "inside");
        remembered.subtransaction_committed(3, 2);
        assert!(remembered.values().eq(&["around", "inside"]));
        remembered.subtransaction_aborted(2, |_| ());
        assert!(remembered.is_empty());
    }

    #[test]
    fn a_savepoint_rolled_back_leaves_what_came_before_and_after() {
        let mut remembered = Remembered::default();
        remembered.push(1, "before");
        remembered.push(2, "undone");
        remembered.subtransaction_aborted(2, |_| ());
        remembered.push(3, "after");
        remembered.subtransaction_committed(3, 1);
        remembered.subtransaction_aborted(4, |_| ());
        assert_eq!(values(&mut remembered), ["before", "after"]);
    }
}
