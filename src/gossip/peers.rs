//! The peers of this node, as their foreign servers describe them.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::node::peer::{self, Access};
use crate::spi::{Rows, Session, Value};

/// How a peer is reached.
#[derive(Clone)]
pub struct Peer {
    pub name: String,
    pub access: Arc<Access>,
}

fn option_pairs(rows: &Rows, row: usize, column: i32) -> Vec<(String, String)> {
    rows.get::<Vec<String>>(row, column)
        .unwrap_or_default()
        .iter()
        .filter_map(|option| option.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The peers that have not left, or the one of the given name.
pub fn peers(spi: &Session, name: Option<&str>) -> Result<Vec<Peer>> {
    let rows = spi.write(
        c"SELECT p.name, s.srvoptions, m.umoptions
            FROM coord.peer p
            JOIN pg_catalog.pg_foreign_server s ON s.srvname = p.server
            LEFT JOIN pg_catalog.pg_user_mapping m ON m.umserver = s.oid AND m.umuser = s.srvowner
            LEFT JOIN coord.roster r ON r.name = p.name
           WHERE p.name = coalesce($1, p.name) AND r.status IS DISTINCT FROM 'left'
           ORDER BY p.name",
        &[Value::Text(name)],
    );
    (0..rows.len())
        .map(|row| {
            let mut options = option_pairs(&rows, row, 1);
            options.extend(option_pairs(&rows, row, 2));
            Ok::<_, Error>(Peer {
                name: rows.get(row, 0).unwrap_or_default(),
                access: Arc::new(peer::access(&options)?),
            })
        })
        .collect()
}
