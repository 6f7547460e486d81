//! The lives of a node: how it finds out which one it is in.
//!
//! A database cannot tell by itself whether its history was cut. A copy, a promoted standby or a
//! restored dump lies in another [`Place`]; what was put back in place, as a storage snapshot is,
//! only the peers can tell, by knowing more of the node than it knows itself. So with each start of the
//! server a life is unconfirmed until the peers have been asked, and counts under an actor of its
//! own meanwhile ([`provisional_actor`]).

use serde::{Deserialize, Serialize};

use super::identity::Hello;
use crate::error::{self, Result};

/// Where a life is lived. Two databases that are both there never have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub system_identifier: u64,
    pub timeline: u32,
    pub database: u32,
    /// Which directory: a copy of one, however made, has files of its own.
    pub directory: String,
}

impl Place {
    /// The transaction-number space of a life lived here: what a cursor belongs to.
    pub fn space(&self, incarnation: u64) -> String {
        format!(
            "{}/{}/{}/{incarnation}",
            self.system_identifier, self.timeline, self.database
        )
    }

    /// One string, as it is stored and told.
    pub fn label(&self) -> String {
        format!(
            "{}/{}/{}/{}",
            self.system_identifier, self.timeline, self.database, self.directory
        )
    }
}

/// Longest label that is taken from a peer.
pub const MAX_PLACE_BYTES: usize = 128;

/// A predecessor that has been heard within this time may still be there. Longer than the pauses
/// of a healthy node, which is heard once per gossip interval.
pub const SILENCE_MILLISECONDS: u64 = 3_000;

/// The actor of a node that does not know its life yet. It never leaves the node: before anything is
/// told, its events become those of the actor of a life.
pub fn provisional_actor(name: &str) -> String {
    format!("{name}#0")
}

/// The last range of epochs after which there are others: 2^40 epochs each, below 2^63.
pub const MAX_EPOCH_RANGE: u64 = 1 << 22;

/// What a peer knows of the node that it is talking to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Testimony {
    /// The highest life that was heard of.
    pub incarnation: u64,
    pub life: [u8; 16],
    pub place: String,
    /// How long that life has been silent; `None` when it was not heard since the peer started.
    pub silent_milliseconds: Option<u64>,
    /// No change of that life at or above this transaction number is known.
    pub ceiling: u64,
    /// Where its transaction log had been flushed to when it last told something that was written
    /// down; 0 when nothing was.
    pub log_position: u64,
    /// The highest range of epochs that the peer knows of any lease, by whomever it was granted. A life
    /// grants leases above what it has heard of, and so above its own range; what it granted and told
    /// nobody lies in a range of which somebody else had told it. Follows the message it is part of.
    #[serde(skip)]
    pub epoch_range: u64,
}

impl Testimony {
    /// Whether that life was heard a moment ago, and from another place than this one.
    pub fn goes_on_elsewhere(&self, place: &str) -> bool {
        let is_heard = self
            .silent_milliseconds
            .is_some_and(|silent| silent < SILENCE_MILLISECONDS);
        is_heard && self.place != place
    }
}

/// What a node knows of the life it takes for its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    pub incarnation: u64,
    pub life: [u8; 16],
    /// Its own changes all lie below.
    pub own_ceiling: u64,
    /// Where its transaction log ended when the server started, the latest where that is not known.
    /// Less than it has told means that the log, and with it what it held, was put back; numbers of
    /// transactions alone do not show one that was open in the copy and committed later.
    pub log_position: u64,
}

/// A life as the node's own table has it, and where the node finds itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    pub past: Past,
    pub place: String,
    pub found: String,
    /// The highest range of epochs that its tables know of, as in a testimony.
    pub epoch_range: u64,
}

/// What the node is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The life goes on.
    Confirm,
    Begin {
        incarnation: u64,
        reason: String,
    },
    /// Another node lives under this identity.
    Wait {
        reason: String,
    },
}

/// Decides by what all peers that answered know.
pub fn resolve(own: &Life, testimonies: &[Testimony]) -> Resolution {
    if let Some(other) = testimonies
        .iter()
        .find(|other| other.goes_on_elsewhere(&own.found))
    {
        return Resolution::Wait {
            reason: format!(
                "life {} of this node goes on at {}, this one is at {}",
                other.incarnation, other.place, own.found
            ),
        };
    }
    // The epochs of a life lie in the range before its number.
    let highest = testimonies
        .iter()
        .map(|other| other.incarnation.max(other.epoch_range + 1))
        .fold(own.past.incarnation.max(own.epoch_range + 1), u64::max);
    let moved = (own.place != own.found).then(|| moved(&own.place, &own.found));
    let cut = || testimonies.iter().find_map(|other| cut(other, &own.past));
    match moved.or_else(cut) {
        Some(reason) => Resolution::Begin {
            incarnation: highest + 1,
            reason,
        },
        None => Resolution::Confirm,
    }
}

/// Why a node in another place than its table says has a new life.
fn moved(place: &str, found: &str) -> String {
    const PARTS: [&str; 4] = [
        "restored into another server",
        "promoted or recovered to another timeline",
        "copied within the server",
        "started from a copy of the data directory",
    ];
    let mut before = place.split('/');
    let mut now = found.split('/');
    let part = PARTS.iter().find(|_| before.next() != now.next());
    (*part.unwrap_or(&PARTS[0])).into()
}

/// What of a testimony says that this node has lost a part of its past: a later life, changes it made,
/// or what it once said it holds.
pub fn cut(other: &Testimony, own: &Past) -> Option<String> {
    if other.incarnation != own.incarnation || other.life != own.life {
        return (other.incarnation >= own.incarnation).then(|| {
            format!(
                "a peer has met life {} of this node, this one is {}",
                other.incarnation, own.incarnation
            )
        });
    }
    if other.ceiling > own.own_ceiling {
        return Some(is_ahead(other.ceiling, own.own_ceiling));
    }
    (other.log_position > own.log_position).then(|| {
        format!(
            "this node told a peer what it held at {}, its transaction log now begins at {}",
            log_position(other.log_position),
            log_position(own.log_position)
        )
    })
}

/// As PostgreSQL writes it.
fn log_position(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xffff_ffff)
}

/// In words, that a peer knows of changes below `ceiling`.
pub fn is_ahead(ceiling: u64, own_ceiling: u64) -> String {
    format!(
        "a peer knows of changes of this node up to transaction {}, this node of those below {own_ceiling}",
        ceiling - 1
    )
}

/// What a node knows of another by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub uuid: [u8; 16],
    pub incarnation: u64,
    /// Not known of a node that was only heard of.
    pub life: Option<[u8; 16]>,
    pub has_left: bool,
}

/// How the speaker of a message is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Welcome {
        /// There is something to remember: a new node, or a new life of a known one.
        is_news: bool,
    },
    /// It asks which life it is in. Nothing it says of itself counts.
    Asking,
    /// A later life, or another of the same number, is known: whatever this one says is void.
    Superseded,
}

/// Admits the speaker of a message, or refuses a name that belongs to another uuid.
pub fn admit(hello: &Hello, known: Option<&Known>) -> Result<Admission> {
    let Some(known) = known else {
        return Ok(match hello.is_confirmed {
            true => Admission::Welcome { is_news: true },
            false => Admission::Asking,
        });
    };
    if known.uuid != hello.uuid {
        return Err(error::node_name_taken(
            &hello.name,
            &uuid::Uuid::from_bytes(known.uuid).to_string(),
            &uuid::Uuid::from_bytes(hello.uuid).to_string(),
        ));
    }
    if known.has_left {
        return Err(error::node_left(&hello.name));
    }
    if !hello.is_confirmed {
        return Ok(Admission::Asking);
    }
    let is_same_life = known.life.is_none_or(|life| life == hello.life);
    Ok(match hello.incarnation.cmp(&known.incarnation) {
        std::cmp::Ordering::Greater => Admission::Welcome { is_news: true },
        std::cmp::Ordering::Equal if is_same_life => Admission::Welcome {
            is_news: known.life.is_none(),
        },
        _ => Admission::Superseded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "7/1/5/9";

    fn own() -> Life {
        Life {
            past: Past {
                incarnation: 2,
                life: [2; 16],
                own_ceiling: 100,
                log_position: 1_000,
            },
            place: HERE.into(),
            found: HERE.into(),
            epoch_range: 0,
        }
    }

    fn testimony() -> Testimony {
        Testimony {
            incarnation: 2,
            life: [2; 16],
            place: HERE.into(),
            silent_milliseconds: Some(10),
            ceiling: 100,
            log_position: 1_000,
            epoch_range: 0,
        }
    }

    fn hello(incarnation: u64, life: u8) -> Hello {
        Hello {
            name: "a".into(),
            uuid: [1; 16],
            incarnation,
            life: [life; 16],
            place: HERE.into(),
            is_confirmed: true,
        }
    }

    fn begins(own: &Life, testimonies: &[Testimony]) -> Option<(u64, String)> {
        match resolve(own, testimonies) {
            Resolution::Begin {
                incarnation,
                reason,
            } => Some((incarnation, reason)),
            _ => None,
        }
    }

    #[test]
    fn a_life_that_nobody_contradicts_goes_on() {
        assert_eq!(resolve(&own(), &[]), Resolution::Confirm);
        let less = Testimony {
            ceiling: 50,
            log_position: 0,
            ..testimony()
        };
        let earlier = Testimony {
            incarnation: 1,
            life: [1; 16],
            ceiling: 9_999,
            silent_milliseconds: None,
            ..testimony()
        };
        assert_eq!(
            resolve(&own(), &[testimony(), less, earlier]),
            Resolution::Confirm
        );
    }

    #[test]
    fn another_place_is_a_new_life() {
        for (place, reason) in [
            ("8/1/5/9", "another server"),
            ("7/2/5/9", "timeline"),
            ("7/1/6/9", "within the server"),
            ("7/1/5/8", "copy of the data directory"),
        ] {
            let moved = Life {
                place: place.into(),
                ..own()
            };
            let (incarnation, why) = begins(&moved, &[]).unwrap();
            assert_eq!(incarnation, 3);
            assert!(why.contains(reason), "{why}");
        }
    }

    #[test]
    fn peers_that_know_more_tell_of_a_cut() {
        let more = Testimony {
            ceiling: 101,
            ..testimony()
        };
        assert_eq!(begins(&own(), &[testimony(), more]).unwrap().0, 3);
        // No change of its own has a higher number, yet it does not hold what it said it does.
        let told = Testimony {
            log_position: 0x1_0000_03e9,
            ..testimony()
        };
        let (incarnation, why) = begins(&own(), &[told]).unwrap();
        assert_eq!(incarnation, 3);
        assert!(
            why.contains("at 1/3E9, its transaction log now begins at 0/3E8"),
            "{why}"
        );
        let later = Testimony {
            incarnation: 5,
            ..testimony()
        };
        assert_eq!(begins(&own(), &[later]).unwrap().0, 6);
        let twin = Testimony {
            life: [9; 16],
            ..testimony()
        };
        assert_eq!(begins(&own(), &[twin]).unwrap().0, 3);
    }

    #[test]
    fn a_new_life_lies_above_every_range_of_epochs_that_is_known() {
        let later = Testimony {
            incarnation: 3,
            ..testimony()
        };
        let heard = |epoch_range| Testimony {
            epoch_range,
            ..later.clone()
        };
        // Life 3 has range 2. What lies above was granted above what it heard of.
        for (range, expected) in [(0, 4), (2, 4), (3, 5), (9, 11)] {
            assert_eq!(
                begins(&own(), &[heard(range), testimony()]).unwrap().0,
                expected
            );
        }
        let known_here = Life {
            epoch_range: 9,
            ..own()
        };
        assert_eq!(begins(&known_here, &[later]).unwrap().0, 11);
    }

    #[test]
    fn an_identity_that_is_lived_elsewhere_is_waited_for() {
        let elsewhere = |silent_milliseconds| Testimony {
            place: "7/1/5/8".into(),
            silent_milliseconds,
            ..testimony()
        };
        let copied = Life {
            place: "7/1/5/8".into(),
            ..own()
        };
        assert!(matches!(
            resolve(&copied, &[elsewhere(Some(10))]),
            Resolution::Wait { .. }
        ));
        for silent in [None, Some(SILENCE_MILLISECONDS)] {
            assert_eq!(begins(&copied, &[elsewhere(silent)]).unwrap().0, 3);
        }
    }

    #[test]
    fn earlier_lives_and_twins_are_superseded() {
        let known = Known {
            uuid: [1; 16],
            incarnation: 2,
            life: Some([2; 16]),
            has_left: false,
        };
        let met = |hello: &Hello| admit(hello, Some(&known)).unwrap();
        assert_eq!(met(&hello(2, 2)), Admission::Welcome { is_news: false });
        assert_eq!(met(&hello(3, 3)), Admission::Welcome { is_news: true });
        assert_eq!(met(&hello(1, 1)), Admission::Superseded);
        assert_eq!(met(&hello(2, 9)), Admission::Superseded);
        let asks = Hello {
            is_confirmed: false,
            ..hello(1, 1)
        };
        assert_eq!(met(&asks), Admission::Asking);
        assert_eq!(admit(&asks, None).unwrap(), Admission::Asking);
        let other = Hello {
            uuid: [7; 16],
            ..hello(9, 9)
        };
        assert!(admit(&other, Some(&known)).is_err());
        let left = Known {
            has_left: true,
            ..known
        };
        assert!(admit(&hello(2, 2), Some(&left)).is_err());
    }
}
