//! The add-wins set without tombstones: an element is an id and the dots that added it.
//!
//! A dot that a state has seen but does not hold has been removed there. So a merge keeps the dots
//! that both hold and those that only one holds and the other has not seen.

use std::cmp::Ordering;

use super::context::{Dot, Joined, Side};
use super::paired::paired;
use super::writer::Writer;

pub const DOT_BYTES: usize = 10;
pub const ELEMENT_HEADER_BYTES: usize = 4;

impl Dot {
    pub fn to_bytes(self) -> [u8; DOT_BYTES] {
        let mut bytes = [0; DOT_BYTES];
        bytes[..2].copy_from_slice(&self.actor.to_le_bytes());
        bytes[2..].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }

    #[inline]
    fn from_bytes(bytes: [u8; DOT_BYTES]) -> Self {
        let [a, b, counter @ ..] = bytes;
        Self {
            actor: u16::from_le_bytes([a, b]),
            counter: u64::from_le_bytes(counter),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    pub id: &'a [u8],
    /// All bytes of the element.
    pub whole: &'a [u8],
    dots: &'a [[u8; DOT_BYTES]],
}

impl<'a> Element<'a> {
    #[inline]
    pub fn dots(&self) -> impl ExactSizeIterator<Item = Dot> + Clone + use<'a> {
        self.dots.iter().copied().map(Dot::from_bytes)
    }
}

/// The elements, sorted by id: `[u16 length][u16 dots][id]` and `[u16 actor][u64 counter]` per dot.
/// Both lengths stand in front, so that a merge steps from element to element with one look.
#[derive(Clone)]
pub struct Elements<'a> {
    pub rest: &'a [u8],
}

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    #[inline]
    fn next(&mut self) -> Option<Element<'a>> {
        let (&[a, b, c, d], body) = self.rest.split_first_chunk()?;
        let id_bytes = usize::from(u16::from_le_bytes([a, b]));
        let dot_bytes = usize::from(u16::from_le_bytes([c, d])) * DOT_BYTES;
        let (whole, rest) = self
            .rest
            .split_at_checked(ELEMENT_HEADER_BYTES + id_bytes + dot_bytes)?;
        self.rest = rest;
        let (id, dots) = body[..id_bytes + dot_bytes].split_at(id_bytes);
        Some(Element {
            id,
            whole,
            dots: dots.as_chunks().0,
        })
    }
}

impl<'a> Elements<'a> {
    pub fn find(self, id: &[u8]) -> Option<Element<'a>> {
        self.take_while(|element| element.id <= id)
            .find(|element| element.id == id)
    }
}

/// Writes the union of two sets.
pub fn merge(out: &mut Writer, mut left: Elements, mut right: Elements, joined: &Joined) {
    let (mut next_left, mut next_right) = (left.next(), right.next());
    while let (Some(l), Some(r)) = (&next_left, &next_right) {
        match l.id.cmp(r.id) {
            Ordering::Less => {
                keep_unseen(out, l, Side::Left, joined);
                next_left = left.next();
            }
            Ordering::Greater => {
                keep_unseen(out, r, Side::Right, joined);
                next_right = right.next();
            }
            Ordering::Equal => {
                merge_element(out, l, r, joined);
                (next_left, next_right) = (left.next(), right.next());
            }
        }
    }
    for element in next_left.into_iter().chain(left) {
        keep_unseen(out, &element, Side::Left, joined);
    }
    for element in next_right.into_iter().chain(right) {
        keep_unseen(out, &element, Side::Right, joined);
    }
}

/// Writes an element which only one state holds, less the dots the other has seen.
fn keep_unseen(out: &mut Writer, element: &Element, side: Side, joined: &Joined) {
    keep(out, element, side, joined, |dot| {
        !joined.has_seen(side.other(), dot)
    });
}

fn merge_element(out: &mut Writer, left: &Element, right: &Element, joined: &Joined) {
    if same_dots(left, right, joined) {
        keep(out, left, Side::Left, joined, |_| true);
        return;
    }
    out.begin_element(left.id);
    for dots in paired_dots(left, right, joined) {
        match dots {
            (Some(dot), Some(_)) => out.dot(dot),
            (Some(dot), None) if !joined.has_seen(Side::Right, dot) => out.dot(dot),
            (None, Some(dot)) if !joined.has_seen(Side::Left, dot) => out.dot(dot),
            _ => {}
        }
    }
    out.end_element();
}

/// Writes an element with those of its dots, in places of the joined table, that are to be kept.
#[inline]
fn keep(
    out: &mut Writer,
    element: &Element,
    side: Side,
    joined: &Joined,
    is_kept: impl Fn(Dot) -> bool,
) {
    let dots = element.dots().map(|dot| joined.dot(side, dot));
    if joined.keeps_places(side) && dots.clone().all(&is_kept) {
        out.copy_element(element);
        return;
    }
    out.begin_element(element.id);
    for dot in dots.filter(|dot| is_kept(*dot)) {
        out.dot(dot);
    }
    out.end_element();
}

/// The dots of two elements in places of the joined table, side by side.
fn paired_dots<'a>(
    left: &Element<'a>,
    right: &Element<'a>,
    joined: &'a Joined,
) -> impl Iterator<Item = (Option<Dot>, Option<Dot>)> {
    let dots = |side| {
        let element = match side {
            Side::Left => left,
            Side::Right => right,
        };
        element.dots().map(move |dot| joined.dot(side, dot))
    };
    paired(dots(Side::Left), dots(Side::Right), Dot::cmp)
}

fn same_dots(left: &Element, right: &Element, joined: &Joined) -> bool {
    let left = left.dots().map(|dot| joined.dot(Side::Left, dot));
    let right = right.dots().map(|dot| joined.dot(Side::Right, dot));
    left.eq(right)
}

/// Whether merging the right set into the left would change nothing, given that the left state
/// has seen whatever the right one has: what the left holds and the right has seen, the right
/// must hold too.
pub fn left_covers_right(left: Elements, mut right: Elements, joined: &Joined) -> bool {
    let seen = |dot| joined.has_seen(Side::Right, dot);
    let mut next_right = right.next();
    for element in left {
        let order = loop {
            match next_right.as_ref().map(|other| other.id.cmp(element.id)) {
                Some(Ordering::Less) => next_right = right.next(),
                order => break order,
            }
        };
        let removed = match &next_right {
            Some(other) if order == Some(Ordering::Equal) => {
                !same_dots(&element, other, joined)
                    && paired_dots(&element, other, joined)
                        .any(|dots| matches!(dots, (Some(dot), None) if seen(dot)))
            }
            _ => element.dots().any(|dot| seen(joined.dot(Side::Left, dot))),
        };
        if removed {
            return false;
        }
    }
    true
}
