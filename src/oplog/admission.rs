//! Whether an operation that comes from elsewhere goes into the log: once, and only whole.

use super::op::{self, Content};

/// An operation as it comes: by replication, by gossip, or out of a dump.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub content: Content<'a>,
    /// What it is called by there.
    pub op_id: &'a str,
    /// What it is about.
    pub key: &'a str,
    /// Its transaction at its origin.
    pub xid: u64,
}

/// What this node has of the origin of an operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// What the operation in the log is called that has the same number.
    pub op_id: Option<&'a str>,
    pub is_quarantined: bool,
    /// What was of transactions below this one was here, and what is not in the log was left out of it.
    pub base: u64,
}

/// Why an operation is kept beside the log, and what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Malformed(String),
    /// The log has another operation under its number, which is called so.
    Fork(String),
    Quarantined,
    /// Its stamp is too far ahead.
    Clock(String),
}

impl Refusal {
    /// As `coord.conflict` has it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Fork(_) => "fork",
            Self::Quarantined => "quarantined",
            Self::Clock(_) => "clock",
        }
    }

    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Malformed(detail) | Self::Clock(detail) => Some(detail.clone()),
            Self::Fork(kept) => Some(format!("The log has {kept} under this number.")),
            Self::Quarantined => None,
        }
    }

    /// The operation that the log has in its place.
    pub fn kept(&self) -> Option<&str> {
        match self {
            Self::Fork(kept) => Some(kept),
            Self::Malformed(_) | Self::Quarantined | Self::Clock(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    Admitted,
    /// It is here, or was, and that is enough.
    Repeated,
    Refused(Refusal),
}

/// Decides all but whether this node's clock accepts the stamp.
pub fn decide(arrival: &Arrival, known: Known) -> Admission {
    if let Some(detail) = malformation(arrival) {
        return Admission::Refused(Refusal::Malformed(detail));
    }
    match known.op_id {
        Some(op_id) if op_id == arrival.op_id => Admission::Repeated,
        Some(op_id) => Admission::Refused(Refusal::Fork(op_id.to_owned())),
        None if known.is_quarantined => Admission::Refused(Refusal::Quarantined),
        None if arrival.xid < known.base => Admission::Repeated,
        None => Admission::Admitted,
    }
}

/// Why no log can have it.
fn malformation(arrival: &Arrival) -> Option<String> {
    let content = &arrival.content;
    let name = content.name();
    if name != arrival.op_id {
        return Some(format!("Its name should be {name}."));
    }
    let size = i64::try_from(content.payload.len()).unwrap_or(i64::MAX);
    op::check(content.scope, content.surface, arrival.key, size)
        .err()
        .map(|refusal| refusal.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: Content = Content {
        origin: "b",
        seq: 3,
        hlc: 0x0001_0002,
        scope: "personal",
        surface: "skill",
        payload: "{}",
        tenant: "",
    };

    fn decided(content: Content, op_id: &str, known: Known) -> Admission {
        let arrival = Arrival {
            content,
            op_id,
            key: "k",
            xid: 700,
        };
        decide(&arrival, known)
    }

    #[test]
    fn what_is_new_is_admitted_and_what_is_here_is_not_again() {
        let name = CONTENT.name();
        let of = |known| decided(CONTENT, &name, known);
        assert_eq!(of(Known::default()), Admission::Admitted);
        let here = Known {
            op_id: Some(&name),
            ..Known::default()
        };
        assert_eq!(of(here), Admission::Repeated);
        let quarantined = Known {
            is_quarantined: true,
            ..here
        };
        assert_eq!(of(quarantined), Admission::Repeated);
    }

    #[test]
    fn what_was_left_out_of_the_log_is_not_put_in_again() {
        let name = CONTENT.name();
        for (base, expected) in [(700, Admission::Admitted), (701, Admission::Repeated)] {
            let known = Known {
                base,
                ..Known::default()
            };
            assert_eq!(decided(CONTENT, &name, known), expected, "{base}");
        }
    }

    #[test]
    fn two_operations_of_one_number_are_a_fork_also_in_quarantine() {
        let name = CONTENT.name();
        let other = Content {
            payload: "[]",
            ..CONTENT
        };
        for is_quarantined in [false, true] {
            let known = Known {
                op_id: Some(&name),
                is_quarantined,
                base: 0,
            };
            let Admission::Refused(refusal) = decided(other, &other.name(), known) else {
                panic!("admitted");
            };
            assert_eq!(refusal.reason(), "fork");
            assert_eq!(refusal.kept(), Some(&*name));
        }
    }

    #[test]
    fn an_origin_in_quarantine_is_refused() {
        let known = Known {
            is_quarantined: true,
            base: 800,
            ..Known::default()
        };
        assert_eq!(
            decided(CONTENT, &CONTENT.name(), known),
            Admission::Refused(Refusal::Quarantined)
        );
    }

    #[test]
    fn what_is_not_whole_is_refused_before_all_else() {
        let nowhere = Content {
            scope: "private",
            ..CONTENT
        };
        let cases = [
            (CONTENT, "op-00000000000000000000000000000000".to_owned()),
            (nowhere, nowhere.name()),
        ];
        for (content, op_id) in cases {
            let known = Known {
                op_id: Some(&op_id),
                ..Known::default()
            };
            let Admission::Refused(refusal) = decided(content, &op_id, known) else {
                panic!("not refused");
            };
            assert_eq!(refusal.reason(), "malformed");
        }
    }
}
