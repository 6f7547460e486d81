//! Walking two sorted sequences side by side.

use std::cmp::Ordering;
use std::mem;

/// Yields what the sequences hold in ascending order: equal items together, others alone.
pub struct Paired<I: Iterator, F> {
    left: I,
    right: I,
    next_left: Option<I::Item>,
    next_right: Option<I::Item>,
    order: F,
}

pub fn paired<I: Iterator, F>(mut left: I, mut right: I, order: F) -> Paired<I, F>
where
    F: Fn(&I::Item, &I::Item) -> Ordering,
{
    let (next_left, next_right) = (left.next(), right.next());
    Paired {
        left,
        right,
        next_left,
        next_right,
        order,
    }
}

impl<I: Iterator, F> Iterator for Paired<I, F>
where
    F: Fn(&I::Item, &I::Item) -> Ordering,
{
    type Item = (Option<I::Item>, Option<I::Item>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let order = match (&self.next_left, &self.next_right) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => (self.order)(left, right),
        };
        let left = if order == Ordering::Greater {
            None
        } else {
            mem::replace(&mut self.next_left, self.left.next())
        };
        let right = if order == Ordering::Less {
            None
        } else {
            mem::replace(&mut self.next_right, self.right.next())
        };
        Some((left, right))
    }
}
