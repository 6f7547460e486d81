//! Every error condition the extension can raise, one constructor each.
//!
//! Rules return [`Error`] as a plain value; `varlena::raise` is where it becomes a PostgreSQL
//! error. The style is PostgreSQL's own: the message starts in lower case and has no full stop,
//! DETAIL and HINT are full sentences.

use std::ffi::CStr;
use std::fmt;

/// SQLSTATEs in use. The five characters are the contract with callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqlState {
    InvalidTextRepresentation,
    InvalidBinaryRepresentation,
    NumericValueOutOfRange,
    InvalidParameterValue,
    ProgramLimitExceeded,
    NotReady,
    UndefinedObject,
    DuplicateObject,
    InsufficientPrivilege,
    ConnectionFailure,
    DataCorrupted,
    IoError,
    ActiveTransaction,
    SerializationFailure,
    LockNotAvailable,
    CheckViolation,
    FeatureNotSupported,
    UndefinedColumn,
    TriggerProtocolViolated,
}

impl SqlState {
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidTextRepresentation => "22P02",
            Self::InvalidBinaryRepresentation => "22P03",
            Self::NumericValueOutOfRange => "22003",
            Self::InvalidParameterValue => "22023",
            Self::ProgramLimitExceeded => "54000",
            Self::NotReady => "55000",
            Self::UndefinedObject => "42704",
            Self::DuplicateObject => "42710",
            Self::InsufficientPrivilege => "42501",
            Self::ConnectionFailure => "08006",
            Self::DataCorrupted => "XX001",
            Self::IoError => "58030",
            Self::ActiveTransaction => "25001",
            Self::SerializationFailure => "40001",
            Self::LockNotAvailable => "55P03",
            Self::CheckViolation => "23514",
            Self::FeatureNotSupported => "0A000",
            Self::UndefinedColumn => "42703",
            Self::TriggerProtocolViolated => "39P01",
        }
    }
}

/// An error as PostgreSQL shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub state: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// Name of the constraint that was violated, for clients that look at it.
    pub constraint: Option<&'static CStr>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.message)?;
        match &self.detail {
            Some(detail) => write!(out, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    fn new(state: SqlState, message: impl Into<String>) -> Self {
        Self {
            state,
            message: message.into(),
            detail: None,
            hint: None,
            constraint: None,
        }
    }

    fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Text that is not of the type's form: `type_name` as SQL knows it, `detail` names the offending part.
pub fn malformed_text(type_name: &str, detail: impl Into<String>) -> Error {
    Error::new(
        SqlState::InvalidTextRepresentation,
        format!("invalid input syntax for type {type_name}"),
    )
    .detail(detail)
}

/// Bytes that are not of the type's form, from `recv`, from a peer or from disk.
pub fn malformed_binary(type_name: &str, detail: impl Into<String>) -> Error {
    Error::new(
        SqlState::InvalidBinaryRepresentation,
        format!("invalid binary form of type {type_name}"),
    )
    .detail(detail)
}

/// A number that is well formed but outside what the type can hold.
pub fn out_of_range(what: &str, detail: impl Into<String>) -> Error {
    Error::new(
        SqlState::NumericValueOutOfRange,
        format!("{what} out of range"),
    )
    .detail(detail)
}

/// An argument that no value of its type makes sense of.
pub fn bad_argument(message: impl Into<String>, detail: impl Into<String>) -> Error {
    Error::new(SqlState::InvalidParameterValue, message).detail(detail)
}

/// A value larger than the format allows.
pub fn too_large(what: &str, detail: impl Into<String>) -> Error {
    Error::new(SqlState::ProgramLimitExceeded, format!("{what} too large")).detail(detail)
}

/// Something that only a preloaded library can do.
pub fn not_preloaded(what: &str) -> Error {
    Error::new(
        SqlState::NotReady,
        format!("{what} needs pg_test to be preloaded"),
    )
    .hint("Add pg_test to shared_preload_libraries and restart the server.")
}

/// Something that needs the node to have a name.
pub fn node_unnamed() -> Error {
    Error::new(
        SqlState::NotReady,
        "this database is not a node of a mesh yet",
    )
    .hint("Name it first: SELECT coord.node_init('a').")
}

/// `node_init` with another name than before.
pub fn node_already_named(current: &str, requested: &str) -> Error {
    Error::new(
        SqlState::DuplicateObject,
        format!("this node is already named \"{current}\""),
    )
    .detail(format!(
        "The name is part of every counter it has written; it cannot become \"{requested}\"."
    ))
}

/// A file in the data directory that could not be written.
pub fn file_not_written(file: &str, failure: &std::io::Error) -> Error {
    Error::new(
        SqlState::IoError,
        format!("could not write file \"{file}\": {failure}"),
    )
}

/// Stored data that contradicts its own definition.
pub fn data_corrupted(message: impl Into<String>) -> Error {
    Error::new(SqlState::DataCorrupted, message)
}

/// What a peer has folded, and what this node makes of the same operations, are not the same.
pub fn checkpoint_mismatch(origin: &str, expected: &str, found: &str) -> Error {
    data_corrupted(format!(
        "operations of this node and of \"{origin}\" fold into different states"
    ))
    .detail(format!(
        "The checkpoint says {expected}, this node has {found}."
    ))
    .hint("Table coord.conflict may have operations that were refused on one of the two.")
}

/// A database whose text is not UTF-8.
pub fn encoding_unsupported() -> Error {
    Error::new(
        SqlState::NotReady,
        "a node needs a database with encoding UTF8",
    )
    .detail("Names and values are compared bytewise between databases.")
    .hint("Create the database with ENCODING 'UTF8'.")
}

pub fn superuser_required(what: &str) -> Error {
    Error::new(
        SqlState::InsufficientPrivilege,
        format!("must be superuser to {what}"),
    )
}

pub fn member_unknown(node: &str) -> Error {
    Error::new(
        SqlState::UndefinedObject,
        format!("member \"{node}\" does not exist"),
    )
    .hint("Members are added by coord.add_peer.")
}

pub fn peer_unknown(name: &str) -> Error {
    Error::new(
        SqlState::UndefinedObject,
        format!("peer \"{name}\" does not exist"),
    )
}

pub fn peer_exists(name: &str) -> Error {
    Error::new(
        SqlState::DuplicateObject,
        format!("peer \"{name}\" already exists"),
    )
    .hint(format!(
        "To change how it is reached: ALTER SERVER \"coord_{name}\" OPTIONS (…), or ALTER USER MAPPING FOR CURRENT_USER SERVER \"coord_{name}\" OPTIONS (…)."
    ))
}

pub fn peer_is_self(name: &str) -> Error {
    bad_argument(
        "a node cannot be its own peer",
        format!("\"{name}\" is the name of this node."),
    )
}

pub fn peer_option_unknown(name: &str, known: &[&str]) -> Error {
    bad_argument(
        format!("invalid option \"{name}\""),
        format!("Options here are: {}.", known.join(", ")),
    )
}

/// A connection string, or an option of a peer, that cannot be used.
pub fn peer_conninfo_invalid(detail: impl Into<String>) -> Error {
    bad_argument("invalid connection string for a peer", detail)
}

/// A keyword that libpq may know and a peer has no use for.
pub fn peer_keyword_unusable(detail: impl Into<String>, known: &[&str]) -> Error {
    peer_conninfo_invalid(detail).hint(format!("Options here are: {}.", known.join(", ")))
}

/// A file named by its place relative to a folder that nobody knows.
pub fn peer_file_relative(option: &str) -> Error {
    peer_conninfo_invalid(format!(
        "The option \"{option}\" is not the absolute path of a file."
    ))
    .hint("The file is read by this server, on its own machine.")
}

/// A certificate to be checked, and nothing to check it against.
pub fn peer_root_certificate_missing(mode: &str) -> Error {
    peer_conninfo_invalid(format!(
        "The sslmode {mode} needs the option \"sslrootcert\"."
    ))
    .hint("Name the file with the certificates of the authorities to trust: sslrootcert=/….")
}

/// A gossip message of another version.
pub fn protocol_unknown(found: u8, oldest: u8, newest: u8) -> Error {
    malformed_binary(
        "gossip message",
        format!("It has protocol version {found}; this node speaks versions {oldest} to {newest}."),
    )
    .hint("Upgrade the older node, one version at a time.")
}

/// A peer that answers under another name than it was added by.
pub fn peer_misnamed(expected: &str, found: &str) -> Error {
    Error::new(
        SqlState::InvalidParameterValue,
        format!("peer \"{expected}\" calls itself \"{found}\""),
    )
    .hint("Remove the peer and add it under its own name.")
}

/// A name that belongs to another node: its counters would be taken for the other's.
pub fn node_name_taken(name: &str, known_uuid: &str, found_uuid: &str) -> Error {
    Error::new(
        SqlState::DuplicateObject,
        format!("the name \"{name}\" belongs to another node"),
    )
    .detail(format!(
        "The node known by that name has uuid {known_uuid}, this one has {found_uuid}."
    ))
    .hint("Give the new node a name that was never used in this mesh.")
}

/// A peer that answers in a life that is over.
pub fn peer_superseded(peer: &str, incarnation: u64) -> Error {
    Error::new(
        SqlState::NotReady,
        format!("peer \"{peer}\" answers in life {incarnation}, which is over"),
    )
    .hint("It is told so and begins a new one, unless the later one is still there.")
}

/// A message that may have been on its way when its sender's server was started again.
pub fn message_overtaken(peer: &str) -> Error {
    Error::new(
        SqlState::NotReady,
        format!("node \"{peer}\" was started again since this connection last spoke for it"),
    )
    .hint("The next message is taken.")
}

/// A change counted before it was known in which life of the node, in a transaction that cannot see
/// that it is known now.
pub fn life_confirmed_meanwhile() -> Error {
    Error::new(
        SqlState::SerializationFailure,
        "could not serialize access because the node has found out its incarnation",
    )
    .hint("Repeat the transaction.")
}

/// Something that must be a transaction of its own.
pub fn in_transaction_block(function: &str) -> Error {
    Error::new(
        SqlState::ActiveTransaction,
        format!("{function} cannot run inside a transaction block"),
    )
}

/// A function that needs to see what has committed meanwhile.
pub fn isolation_too_strict(function: &str) -> Error {
    Error::new(
        SqlState::ActiveTransaction,
        format!("{function} needs isolation level READ COMMITTED"),
    )
    .detail("It goes by what others have committed since the transaction began.")
    .hint("Call it in a transaction of its own: BEGIN ISOLATION LEVEL READ COMMITTED.")
}

/// A peer that does not answer, or answers with an error.
pub fn peer_unreachable(peer: &str, reason: &str) -> Error {
    Error::new(
        SqlState::ConnectionFailure,
        format!("could not gossip with peer \"{peer}\""),
    )
    .detail(format!("{reason}."))
}

pub fn transport_not_started(failure: &std::io::Error) -> Error {
    Error::new(
        SqlState::IoError,
        format!("could not start the gossip transport: {failure}"),
    )
}

/// Gossip on a standby, which is no node of its own.
pub fn in_recovery() -> Error {
    Error::new(
        SqlState::NotReady,
        "a standby does not take part in the mesh",
    )
    .hint("Ask the primary.")
}

/// A change in the transaction that has already answered a peer.
pub fn change_after_answer() -> Error {
    Error::new(
        SqlState::ActiveTransaction,
        "a state cannot change after coord.gossip_exchange has answered in the same transaction",
    )
}

/// A trigger function that something else calls.
pub fn not_a_trigger() -> Error {
    Error::new(
        SqlState::TriggerProtocolViolated,
        "this function can only be called as a trigger",
    )
}

/// An index that somebody has added to a table of ours, and that is written by statements alone.
pub fn index_unsupported(table: &str, index: &str) -> Error {
    Error::new(
        SqlState::FeatureNotSupported,
        format!("index \"{index}\" is not supported on table \"{table}\""),
    )
    .detail("It is of expressions or of a part of the rows, or excludes.")
    .hint("Drop it, or make one of columns.")
}

/// A table whose rows cannot travel by a stream.
pub fn table_not_streamable(target: &str, reason: &str) -> Error {
    bad_argument(format!("table \"{target}\" cannot be streamed"), reason)
        .hint("A streamed table is permanent, and has a primary key and a column \"origin\" of type text.")
}

/// An operation without one of its parts.
pub fn op_incomplete(part: &str) -> Error {
    bad_argument("an operation is incomplete", format!("It has no {part}."))
}

/// A change of what other nodes have been told.
pub fn op_immutable() -> Error {
    Error::new(SqlState::NotReady, "operations in the log do not change")
        .hint("Append another one.")
}

/// A name of a state that is empty or too long.
pub fn state_name_invalid(detail: impl Into<String>) -> Error {
    bad_argument("invalid name of a state", detail)
}

/// A message of a node that has left the mesh.
pub fn node_left(name: &str) -> Error {
    Error::new(
        SqlState::NotReady,
        format!("node \"{name}\" has left the mesh"),
    )
    .hint("To take it in again, add it as a peer on both sides.")
}

/// A database that runs on a new place, or was just started, and has not heard yet which life it is in.
/// Without preloading there is no worker to ask.
pub fn life_unknown(is_preloaded: bool) -> Error {
    Error::new(
        SqlState::NotReady,
        "this node does not know yet in which life it is",
    )
    .detail(
        "Until that is settled, an epoch could be granted that an earlier life has granted too.",
    )
    .hint(if is_preloaded {
        "Try again once a peer has answered; SELECT * FROM coord.problem says what is missing."
    } else {
        "A worker settles it: add pg_test to shared_preload_libraries and restart the server."
    })
}

/// A lease that somebody else has, or is waiting for.
pub fn lease_held(resource: &str, detail: impl Into<String>) -> Error {
    Error::new(
        SqlState::LockNotAvailable,
        format!("lease \"{resource}\" is held"),
    )
    .detail(detail)
}

/// A lease that another node has granted, by what was heard from it.
pub fn lease_held_elsewhere(resource: &str, detail: impl Into<String>, node: &str) -> Error {
    Error::new(
        SqlState::NotReady,
        format!("lease \"{resource}\" is held on another node"),
    )
    .detail(detail)
    .hint(format!(
        "Acquire it on node \"{node}\", or here once it has ended there."
    ))
}

/// A lease that is free, but that transactions in flight have written under, or that others acquire.
pub fn lease_busy(resource: &str, detail: impl Into<String>, hint: &str) -> Error {
    Error::new(
        SqlState::LockNotAvailable,
        format!("lease \"{resource}\" cannot change its holder now"),
    )
    .detail(detail)
    .hint(hint)
}

/// A renewal of a lease that an open transaction may be about to change.
pub fn lease_being_granted(resource: &str) -> Error {
    Error::new(
        SqlState::LockNotAvailable,
        format!("lease \"{resource}\" is being granted"),
    )
    .detail("A transaction that acquires, ends or renews it is still open.")
    .hint("Try again: where that acquires or ends it, the lease is lost once it has committed.")
}

/// A grant that somebody changes or removes by hand.
pub fn lease_kept(resource: &str) -> Error {
    Error::new(
        SqlState::NotReady,
        format!("the row of lease \"{resource}\" stays as it is"),
    )
    .detail("Epochs grow from the last one; without it, tokens of before would pass again.")
    .hint("End the lease with coord.lease_revoke.")
}

/// A lease that the claimant does not have, or has no more. An epoch of 0 stands for none.
pub fn lease_lost(resource: &str, claimed: i64, current: i64, loss: &str) -> Error {
    Error::new(SqlState::NotReady, format!("lease \"{resource}\" is lost")).detail(format!(
        "Claimed epoch {claimed}, current epoch {current}: {loss}."
    ))
}

pub fn lease_in_prepared_transaction() -> Error {
    Error::new(
        SqlState::FeatureNotSupported,
        "cannot PREPARE a transaction that has acquired, renewed or released a lease",
    )
}

const FENCE: &CStr = c"coord_fence";

/// A write under a token that is not the current one, or not any more.
pub fn fence_stale(resource: &str, claimed: i64, detail: impl Into<String>) -> Error {
    Error {
        constraint: Some(FENCE),
        ..Error::new(
            SqlState::CheckViolation,
            format!("stale fencing token {claimed} for lease \"{resource}\""),
        )
        .detail(detail)
    }
}

/// A write to a protected table without a token.
pub fn fence_missing(resource: &str, table: &str) -> Error {
    Error {
        constraint: Some(FENCE),
        ..Error::new(
            SqlState::CheckViolation,
            format!("no fencing token for lease \"{resource}\""),
        )
        .detail(format!("Table \"{table}\" is protected by it."))
        .hint("Name the token first, in the same transaction: SELECT coord.fence_set(resource, epoch).")
    }
}

/// TRUNCATE of a table whose rows are each protected by the lease they name.
pub fn fence_truncate(table: &str) -> Error {
    Error {
        constraint: Some(FENCE),
        ..Error::new(
            SqlState::CheckViolation,
            format!("cannot truncate table \"{table}\""),
        )
        .detail("Each of its rows is protected by the lease that the row names.")
        .hint("Delete the rows, or call coord.unprotect_table first.")
    }
}

/// A row of a protected table that names no resource.
pub fn fence_unnamed(table: &str, column: &str) -> Error {
    Error {
        constraint: Some(FENCE),
        ..Error::new(
            SqlState::CheckViolation,
            format!("null value in column \"{column}\" of protected table \"{table}\""),
        )
        .detail("The column names the lease that protects the row.")
    }
}

/// A protected table whose column was renamed or dropped.
pub fn fence_column_missing(table: &str, column: &str) -> Error {
    Error::new(
        SqlState::UndefinedColumn,
        format!("column \"{column}\" of table \"{table}\" does not exist"),
    )
    .detail("The table is protected by what is in it.")
    .hint("After renaming it, call coord.protect_table again.")
}
