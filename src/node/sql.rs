//! Binds nodes, members and peers to SQL; the declarations are in `sql/node.sql`.

use std::cell::{OnceCell, RefCell};
use std::ffi::CString;
use std::os::unix::fs::MetadataExt;

use pgrx::prelude::*;
use pgrx::{AllocatedByPostgres, PgList, pg_sys};

use super::identity::{self, Hello};
use super::incarnation::{self, Place};
use super::peer::{self, PeerOption, PeerOptions};
use crate::error::{self, Error, bad_argument};
use crate::heap::{Access, Latest, Row, Table, Version};
use crate::spi::{self, Session, Value};
use crate::varlena::{SqlResult, c_string};
use crate::{is_preloaded, roots};

/// This node as its table has it.
pub struct LocalNode {
    pub name: String,
    pub uuid: String,
    pub incarnation: u64,
    pub life: String,
    /// Where its life was last confirmed.
    pub place: String,
    pub is_confirmed: bool,
}

/// Reads the node's row under the active snapshot. 55000 when there is none.
pub fn local_node(spi: &Session) -> Result<LocalNode, Error> {
    let rows = spi.read(
        c"SELECT name, uuid::text, incarnation, life::text, place,
                 coord.life_is_confirmed(place, started)
            FROM coord.local_node",
        &[],
    );
    if rows.is_empty() {
        return Err(error::node_unnamed());
    }
    let required = || error::data_corrupted("coord.local_node has a null column");
    Ok(LocalNode {
        name: rows.get(0, 0).ok_or_else(required)?,
        uuid: rows.get(0, 1).ok_or_else(required)?,
        incarnation: rows.get::<i64>(0, 2).ok_or_else(required)?.cast_unsigned(),
        life: rows.get(0, 3).ok_or_else(required)?,
        place: rows.get(0, 4).ok_or_else(required)?,
        is_confirmed: rows.get(0, 5).ok_or_else(required)?,
    })
}

impl LocalNode {
    pub fn hello(&self) -> Result<Hello, Error> {
        Ok(Hello {
            name: self.name.clone(),
            uuid: uuid_bytes(&self.uuid)?,
            incarnation: self.incarnation,
            life: uuid_bytes(&self.life)?,
            place: place().label(),
            is_confirmed: self.is_confirmed,
        })
    }
}

/// A uuid as a table of ours has it.
pub fn uuid_bytes(text: &str) -> Result<[u8; 16], Error> {
    uuid::Uuid::parse_str(text)
        .map(uuid::Uuid::into_bytes)
        .map_err(|_| error::data_corrupted("a table of coord has a malformed uuid"))
}

/// The data directory, told from a copy of itself by a file that is written once: its number and
/// the time it was made.
fn directory() -> String {
    let Ok(file) = std::fs::metadata("PG_VERSION") else {
        return String::new();
    };
    let made = file.created().ok().and_then(|made| {
        made.duration_since(std::time::UNIX_EPOCH)
            .ok()
            .map(|made| made.as_micros())
    });
    format!("{}.{}", file.ino(), made.unwrap_or(0))
}

/// Where this database is now.
pub fn place() -> Place {
    thread_local! {
        static DIRECTORY: OnceCell<String> = const { OnceCell::new() };
    }
    // SAFETY: plain getters; the node never runs these on a standby, where nothing is written.
    unsafe {
        Place {
            system_identifier: pg_sys::GetSystemIdentifier(),
            timeline: pg_sys::GetWALInsertionTimeLine(),
            database: pg_sys::MyDatabaseId.to_u32(),
            directory: DIRECTORY.with(|known| known.get_or_init(directory).clone()),
        }
    }
}

/// Whether a label is that of the place where this database is now. Nothing of that but the timeline
/// changes while the process runs, and every grant asks.
fn is_here(label: &str) -> bool {
    thread_local! {
        static KNOWN: RefCell<Option<(u32, String)>> = const { RefCell::new(None) };
    }
    // SAFETY: as above.
    let timeline = unsafe { pg_sys::GetWALInsertionTimeLine() };
    KNOWN.with_borrow_mut(|known| {
        let known = match known.take().filter(|(of, _)| *of == timeline) {
            Some(same) => known.insert(same),
            None => known.insert((timeline, place().label())),
        };
        known.1 == label
    })
}

#[pg_extern(sql = false)]
fn node_place() -> String {
    place().label()
}

/// Whether a life last confirmed at `confirmed_at`, in the server started at `started`, goes on here.
/// Without preloading nobody asks the peers, so the place alone decides.
#[pg_extern(sql = false)]
pub fn life_is_confirmed(confirmed_at: &str, started: TimestampWithTimeZone) -> bool {
    // SAFETY: plain getters.
    let (is_standby, server_started) =
        unsafe { (pg_sys::RecoveryInProgress(), pg_sys::PgStartTime) };
    is_standby
        || (is_here(confirmed_at) && (!is_preloaded() || started.into_inner() == server_started))
}

/// The life that this node is known to be in.
pub struct Life {
    pub incarnation: i64,
    pub actor: String,
    pub uuid: pgrx::Uuid,
}

/// A version of this node's row.
struct Known {
    version: Version,
    incarnation: Option<i64>,
    actor: Option<String>,
    uuid: Option<pgrx::Uuid>,
    place: Option<String>,
    started: Option<TimestampWithTimeZone>,
}

thread_local! {
    /// The one that was looked at last.
    static NODE: RefCell<Option<Known>> = const { RefCell::new(None) };
}

/// The life of this node, without SQL: every grant and every operation asks. None where the database is no
/// node; 55000 while the node does not know yet.
pub fn confirmed_life(seen: &Latest) -> Result<Option<Life>, Error> {
    let table = Table::open(c"local_node", Access::Read);
    let Some(row) = roots::find(&table, seen, &[], || table.first(seen)) else {
        return Ok(None);
    };
    let known = NODE
        .take()
        .filter(|known| known.version == row.version())
        .unwrap_or_else(|| Known::read(&row));
    let life = known.life();
    NODE.set(Some(known));
    life.map(Some)
}

/// What this node counts under in that life.
pub fn confirmed_actor() -> Result<String, Error> {
    let life = confirmed_life(&Latest::take())?;
    life.map(|life| life.actor).ok_or_else(error::node_unnamed)
}

impl Known {
    fn read(node: &Row) -> Self {
        // SAFETY: the types are those of sql/node.sql.
        unsafe {
            Self {
                version: node.version(),
                incarnation: node.get_named(c"incarnation"),
                actor: node.get_named(c"actor"),
                uuid: node.get_named(c"life"),
                place: node.get_named(c"place"),
                started: node.get_named(c"started"),
            }
        }
    }

    fn life(&self) -> Result<Life, Error> {
        let is_confirmed = self
            .place
            .as_deref()
            .zip(self.started)
            .is_some_and(|(place, started)| life_is_confirmed(place, started));
        match self.incarnation.zip(self.actor.clone()).zip(self.uuid) {
            Some(((incarnation, actor), uuid)) if is_confirmed => Ok(Life {
                incarnation,
                actor,
                uuid,
            }),
            _ => Err(error::life_unknown(is_preloaded())),
        }
    }
}

#[pg_extern(sql = false)]
fn actor_provisional(name: &str) -> String {
    incarnation::provisional_actor(name)
}

#[pg_extern(sql = false)]
fn node_required() -> SqlResult<String> {
    Err(error::node_unnamed().into())
}

#[pg_extern(sql = false)]
fn node_init(name: Option<&str>) -> SqlResult<String> {
    // SAFETY: a plain getter.
    if unsafe { pg_sys::GetDatabaseEncoding() } != pg_sys::pg_enc::PG_UTF8.cast_signed() {
        return Err(error::encoding_unsupported().into());
    }
    if let Some(name) = name {
        identity::check_name(name)?;
    }
    spi::connect(|spi| name_node(spi, name)).map_err(Into::into)
}

fn name_node(spi: &Session, name: Option<&str>) -> Result<String, Error> {
    // A second session naming the node at the same moment waits here for the first to commit.
    let inserted = spi.write(
        c"INSERT INTO coord.local_node (name, uuid, actor)
          SELECT n.name, i.uuid, n.name
            FROM (SELECT gen_random_uuid() AS uuid) i,
                 LATERAL (SELECT coalesce($1, 'node-' || i.uuid) AS name) n
          ON CONFLICT DO NOTHING",
        &[Value::Text(name)],
    );
    if !inserted.is_empty() {
        spi.write(
            c"INSERT INTO coord.roster (name, uuid, incarnation, life, place)
              SELECT name, uuid, incarnation, life, place FROM coord.local_node",
            &[],
        );
        spi.write(
            c"INSERT INTO coord.incarnation_log (node, incarnation, life, place, event, reason)
              SELECT name, incarnation, life, place, 'begun', 'named' FROM coord.local_node",
            &[],
        );
        spi.write(
            c"INSERT INTO coord.member (node, role, config_epoch)
              SELECT name, 'voter', coord.config_epoch_raise() FROM coord.local_node",
            &[],
        );
    }
    let current = spi.with_snapshot(local_node)?.name;
    match name {
        Some(name) if name != current => Err(error::node_already_named(&current, name)),
        _ => Ok(current),
    }
}

#[pg_extern(sql = false)]
fn member_set(node: &str, role: &str) -> SqlResult<i64> {
    if !matches!(role, "voter" | "observer") {
        return Err(bad_argument(
            "invalid role of a member",
            format!("The role \"{role}\" is not one of voter, observer."),
        )
        .into());
    }
    spi::connect(|spi| {
        let known = spi.write(
            c"SELECT role FROM coord.member WHERE node = $1 FOR UPDATE",
            &[Value::Text(Some(node))],
        );
        if known.is_empty() {
            return Err(error::member_unknown(node).into());
        }
        if known.get::<String>(0, 0).as_deref() != Some(role) {
            spi.write(
                c"UPDATE coord.member SET role = $2, config_epoch = coord.config_epoch_raise()
                   WHERE node = $1",
                &[Value::Text(Some(node)), Value::Text(Some(role))],
            );
        }
        let epoch = spi.write(c"SELECT config_epoch FROM coord.local_node", &[]);
        Ok(epoch.get(0, 0).unwrap_or_default())
    })
}

fn require_superuser(what: &str) -> Result<(), Error> {
    // SAFETY: a plain getter.
    if unsafe { pg_sys::superuser() } {
        Ok(())
    } else {
        Err(error::superuser_required(what))
    }
}

/// PostgreSQL logs the text of a statement that fails, and here there can be a password in it. Holds
/// until the function ends, as what its SET clause sets does.
fn keep_statement_out_of_log() {
    // SAFETY: constant strings; the function's SET clause has opened the level of settings that this
    // one is undone with.
    unsafe {
        pg_sys::set_config_option(
            c"log_min_error_statement".as_ptr(),
            c"panic".as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
}

#[pg_extern(sql = false)]
fn add_peer(name: &str, conninfo: &str) -> SqlResult<()> {
    keep_statement_out_of_log();
    require_superuser("add a peer")?;
    identity::check_name(name)?;
    let (own_name, user, database) = spi::connect(|spi| {
        let own_name = spi.with_snapshot(local_node)?.name;
        let names = spi.read(c"SELECT current_user::text, current_database()::text", &[]);
        Ok::<_, Error>((
            own_name,
            names.get::<String>(0, 0).unwrap_or_default(),
            names.get::<String>(0, 1).unwrap_or_default(),
        ))
    })?;
    if name == own_name {
        return Err(error::peer_is_self(name).into());
    }
    let options = peer::parse_conninfo(conninfo, &user, &database)?;
    let server = c_string(peer::server_name(name))?;
    if server_oid(&server) != pg_sys::InvalidOid {
        return Err(error::peer_exists(name).into());
    }
    create_server(&server, &options)?;
    spi::connect(|spi| {
        spi.write(
            c"INSERT INTO coord.member AS m (node, role, config_epoch)
              VALUES ($1, 'voter', coord.config_epoch_raise())
              ON CONFLICT (node) DO UPDATE
                 SET role = excluded.role, config_epoch = excluded.config_epoch",
            &[Value::Text(Some(name))],
        );
        // A node that left is welcome again, under its old name and uuid.
        spi.write(
            c"UPDATE coord.roster SET status = 'alive'
               WHERE name = $1 AND status = 'left'
                  OR status = 'left' AND name = (SELECT n.name FROM coord.local_node n)",
            &[Value::Text(Some(name))],
        );
    });
    Ok(())
}

#[pg_extern(sql = false)]
fn remove_peer(name: &str) -> SqlResult<()> {
    require_superuser("remove a peer")?;
    let server = c_string(peer::server_name(name))?;
    if server_oid(&server) == pg_sys::InvalidOid {
        return Err(error::peer_unknown(name).into());
    }
    drop_server(&server);
    spi::connect(|spi| {
        spi.write(
            c"WITH gone AS (DELETE FROM coord.member WHERE node = $1 RETURNING node)
              SELECT coord.config_epoch_raise() FROM gone",
            &[Value::Text(Some(name))],
        );
    });
    Ok(())
}

fn server_oid(server: &CString) -> pg_sys::Oid {
    // SAFETY: a catalog look-up by name; a missing server is the invalid oid.
    unsafe { pg_sys::get_foreign_server_oid(server.as_ptr(), true) }
}

/// Creates the server and its user mapping through PostgreSQL's own functions rather than as SQL
/// text: a failing statement would print the password in its error context.
fn create_server(server: &CString, options: &PeerOptions) -> SqlResult<()> {
    let wrapper = c"coord_mesh";
    let server_options = option_list(&options.server)?;
    let mapping_options = option_list(&options.mapping)?;
    // SAFETY: the statements live in the current memory context for the length of the calls;
    // strings they point to outlive them.
    unsafe {
        let mut create_server =
            PgBox::<pg_sys::CreateForeignServerStmt, AllocatedByPostgres>::alloc_node(
                pg_sys::NodeTag::T_CreateForeignServerStmt,
            );
        create_server.servername = server.as_ptr().cast_mut();
        create_server.fdwname = wrapper.as_ptr().cast_mut();
        create_server.options = server_options.into_pg();
        let address = pg_sys::CreateForeignServer(create_server.as_ptr());
        depend_on_extension(&address);
        pg_sys::CommandCounterIncrement();

        let mut role =
            PgBox::<pg_sys::RoleSpec, AllocatedByPostgres>::alloc_node(pg_sys::NodeTag::T_RoleSpec);
        role.roletype = pg_sys::RoleSpecType::ROLESPEC_CURRENT_USER;
        role.location = -1;
        let mut create_mapping =
            PgBox::<pg_sys::CreateUserMappingStmt, AllocatedByPostgres>::alloc_node(
                pg_sys::NodeTag::T_CreateUserMappingStmt,
            );
        create_mapping.user = role.as_ptr();
        create_mapping.servername = server.as_ptr().cast_mut();
        create_mapping.options = mapping_options.into_pg();
        let address = pg_sys::CreateUserMapping(create_mapping.as_ptr());
        depend_on_extension(&address);
        pg_sys::CommandCounterIncrement();
    }
    Ok(())
}

fn option_list(options: &[PeerOption]) -> SqlResult<PgList<pg_sys::DefElem>> {
    let mut list = PgList::new();
    for (name, value) in options {
        let name = c_string((*name).to_owned())?;
        let value = c_string(value.clone())?;
        // SAFETY: both strings are copied into the current memory context.
        unsafe {
            let value = pg_sys::makeString(pg_sys::pstrdup(value.as_ptr()));
            let name = pg_sys::pstrdup(name.as_ptr());
            list.push(pg_sys::makeDefElem(name, value.cast(), -1));
        }
    }
    Ok(list)
}

/// Makes DROP EXTENSION take the object along, without making it a member, which a dump would
/// leave out.
///
/// # Safety
/// The address must be that of an object created in this transaction.
unsafe fn depend_on_extension(object: &pg_sys::ObjectAddress) {
    // SAFETY: catalog functions with valid addresses.
    unsafe {
        let extension = pg_sys::ObjectAddress {
            classId: pg_sys::ExtensionRelationId,
            objectId: pg_sys::get_extension_oid(c"pg_test".as_ptr(), false),
            objectSubId: 0,
        };
        pg_sys::recordDependencyOn(
            object,
            &raw const extension,
            pg_sys::DependencyType::DEPENDENCY_AUTO,
        );
    }
}

fn drop_server(server: &CString) {
    let address = pg_sys::ObjectAddress {
        classId: pg_sys::ForeignServerRelationId,
        objectId: server_oid(server),
        objectSubId: 0,
    };
    // SAFETY: the server exists; its user mapping goes with it.
    unsafe {
        pg_sys::performDeletion(
            &raw const address,
            pg_sys::DropBehavior::DROP_CASCADE,
            pg_sys::PERFORM_DELETION_QUIETLY.cast_signed(),
        );
        pg_sys::CommandCounterIncrement();
    }
}

/// Validates the options of a server or user mapping of the wrapper `coord_mesh`.
#[pg_extern(sql = false)]
fn peer_options_check(options: Vec<String>, catalog: pg_sys::Oid) -> SqlResult<()> {
    let known: &[&str] = match catalog {
        pg_sys::ForeignServerRelationId => &peer::SERVER_OPTIONS,
        pg_sys::UserMappingRelationId => &peer::MAPPING_OPTIONS,
        _ => &[],
    };
    let mut pairs = Vec::with_capacity(options.len());
    for option in options {
        let (name, value) = option.split_once('=').unwrap_or((&option, ""));
        if !known.contains(&name) {
            return Err(error::peer_option_unknown(name, known).into());
        }
        if peer::SECRET_FILES.contains(&name) {
            require_superuser(&format!("set the option \"{name}\" of a peer"))?;
        }
        pairs.push((name.to_owned(), value.to_owned()));
    }
    peer::access(&pairs)?;
    Ok(())
}
