//! Writing a `constraint_state` front to back: actors, then holes, then elements, each in order.

use super::constraint_state::{FORMAT_VERSION, HAS_POSITION, HEADER_BYTES, TYPE_NAME};
use super::context::{Actor, Dot, MAX_ACTORS, Run, put_run, too_many_actors};
use super::lww::Position;
use super::orset::{DOT_BYTES, Element};
use crate::error::{Result, too_large};

/// A peer takes a whole value in one message, and PostgreSQL's own limit is 1 GiB.
pub const MAX_BYTES: usize = 256 << 20;

/// Dots of one element.
const MAX_DOTS: usize = 65_535;

pub struct Writer {
    bytes: Vec<u8>,
    actors: u32,
    elements: u32,
    holes: u32,
    last_hole: Option<Run>,
    most_dots: usize,
    element_start: usize,
    dots_start: usize,
}

impl Writer {
    pub fn new(capacity: usize, position: Option<Position>) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        let flags = if position.is_some() { HAS_POSITION } else { 0 };
        bytes.extend_from_slice(&[FORMAT_VERSION, flags, 0, 0]);
        bytes.resize(HEADER_BYTES, 0);
        if let Some(position) = position {
            position.put(&mut bytes);
        }
        Self {
            bytes,
            actors: 0,
            elements: 0,
            holes: 0,
            last_hole: None,
            most_dots: 0,
            element_start: 0,
            dots_start: 0,
        }
    }

    pub fn actor(&mut self, actor: &Actor) {
        actor.put(&mut self.bytes);
        self.actors += 1;
    }

    pub fn hole(&mut self, hole: Run) {
        put_run(&mut self.bytes, self.last_hole, hole);
        self.last_hole = Some(hole);
        self.holes += 1;
    }

    /// Writes an element as it is, places of actors included.
    #[inline]
    pub fn copy_element(&mut self, element: &Element) {
        self.bytes.extend_from_slice(element.whole);
        self.elements += 1;
    }

    /// Starts an element; its dots follow, then [`Writer::end_element`].
    #[inline]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "ids have at most 65 535 bytes: checked on every way in"
    )]
    pub fn begin_element(&mut self, id: &[u8]) {
        self.element_start = self.bytes.len();
        let [a, b] = (id.len() as u16).to_le_bytes();
        self.bytes.extend_from_slice(&[a, b, 0, 0]);
        self.bytes.extend_from_slice(id);
        self.dots_start = self.bytes.len();
    }

    #[inline]
    pub fn dot(&mut self, dot: Dot) {
        self.bytes.extend_from_slice(&dot.to_bytes());
    }

    /// Ends an element; one without dots has been removed and leaves nothing.
    #[inline]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "too many dots are refused at the end: a merge carries no error through its inner loop"
    )]
    pub fn end_element(&mut self) {
        let dots = (self.bytes.len() - self.dots_start) / DOT_BYTES;
        if dots == 0 {
            self.bytes.truncate(self.element_start);
            return;
        }
        self.most_dots = self.most_dots.max(dots);
        let count = self.element_start + 2;
        self.bytes[count..count + 2].copy_from_slice(&(dots as u16).to_le_bytes());
        self.elements += 1;
    }

    pub fn finish(mut self) -> Result<Vec<u8>> {
        check_size(self.bytes.len())?;
        if self.actors as usize > MAX_ACTORS {
            return Err(too_many_actors());
        }
        if self.most_dots > MAX_DOTS {
            return Err(too_large(
                TYPE_NAME,
                format!(
                    "One constraint has {} dots; the limit is {MAX_DOTS}.",
                    self.most_dots
                ),
            ));
        }
        self.bytes[4..8].copy_from_slice(&self.actors.to_le_bytes());
        self.bytes[8..12].copy_from_slice(&self.elements.to_le_bytes());
        self.bytes[12..HEADER_BYTES].copy_from_slice(&self.holes.to_le_bytes());
        Ok(self.bytes)
    }
}

pub fn check_size(bytes: usize) -> Result<()> {
    if bytes > MAX_BYTES {
        return Err(too_large(
            TYPE_NAME,
            format!("It takes {bytes} bytes; the limit is {MAX_BYTES}."),
        ));
    }
    Ok(())
}
