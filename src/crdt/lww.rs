//! Last-writer-wins register holding a position.

use super::wire::{take, take_array, take_u8, take_u64};

/// A position and who wrote it when. The order of the fields is the order of the register: stamp,
/// then actor, then the value itself, so that even two writes of one actor under one stamp merge
/// to the same position everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position<'a> {
    pub at: u64,
    pub actor: &'a [u8],
    pub x: i32,
    pub y: i32,
}

impl<'a> Position<'a> {
    /// Takes `[u64 at][i32 x][i32 y][u8 length][actor]` off the front.
    pub fn take(rest: &mut &'a [u8]) -> Option<Self> {
        let at = take_u64(rest)?;
        let x = i32::from_le_bytes(take_array(rest)?);
        let y = i32::from_le_bytes(take_array(rest)?);
        let length = take_u8(rest)?;
        let actor = take(rest, usize::from(length))?;
        Some(Self { at, actor, x, y })
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "actors have at most 255 bytes: checked on every way in"
    )]
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.at.to_le_bytes());
        out.extend_from_slice(&self.x.to_le_bytes());
        out.extend_from_slice(&self.y.to_le_bytes());
        out.push(self.actor.len() as u8);
        out.extend_from_slice(self.actor);
    }
}

/// The later of two writes; any write is later than none.
pub fn merge<'a>(left: Option<Position<'a>>, right: Option<Position<'a>>) -> Option<Position<'a>> {
    left.max(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(at: u64, actor: &[u8], x: i32, y: i32) -> Position<'_> {
        Position { at, actor, x, y }
    }

    #[test]
    fn later_stamp_then_actor_then_value_wins() {
        let ascending = [
            None,
            Some(position(1, b"b", 9, 9)),
            Some(position(2, b"a", 9, 9)),
            Some(position(2, b"a#2", 0, 9)),
            Some(position(2, b"b", -1, 9)),
            Some(position(2, b"b", 0, -1)),
            Some(position(2, b"b", 0, 0)),
        ];
        for pair in ascending.windows(2) {
            assert_eq!(merge(pair[0], pair[1]), pair[1]);
            assert_eq!(merge(pair[1], pair[0]), pair[1]);
        }
    }

    #[test]
    fn bytes_round_trip() {
        let written = position(u64::MAX, b"actor", i32::MIN, i32::MAX);
        let mut bytes = Vec::new();
        written.put(&mut bytes);
        let mut rest = bytes.as_slice();
        assert_eq!(Position::take(&mut rest), Some(written));
        assert!(rest.is_empty());
        for length in 0..bytes.len() {
            assert_eq!(Position::take(&mut &bytes[..length]), None);
        }
    }
}
