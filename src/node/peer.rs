//! How a peer is reached: the options of its foreign server and user mapping.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::conninfo;
use crate::error::{self, Error, Result};

/// In front of the peer's name, so that its server does not collide with a user's own.
pub const SERVER_PREFIX: &str = "coord_";

/// Options of the foreign server: where the peer is, and how to know it.
pub const SERVER_OPTIONS: [&str; 5] = ["host", "port", "dbname", "sslmode", "sslrootcert"];

/// Options of the user mapping: who we are there. Only superusers can read these.
pub const MAPPING_OPTIONS: [&str; 5] = ["user", "password", "passfile", "sslcert", "sslkey"];

/// Files that the server can read and their owner may not want to prove anything to a host of
/// somebody else's choice. As with postgres_fdw, only superusers may name them.
pub const SECRET_FILES: [&str; 3] = ["passfile", "sslcert", "sslkey"];

const DEFAULT_PORT: u16 = 5432;

pub type PeerOption = (&'static str, String);

/// A connection string taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct PeerOptions {
    pub server: Vec<PeerOption>,
    pub mapping: Vec<PeerOption>,
}

/// How a peer is reached and who this node is there: the options, understood.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    pub endpoints: Vec<Endpoint>,
    pub database: Option<String>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub passfile: Option<PathBuf>,
    pub tls: Tls,
}

/// One place of possibly several where the peer may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name, an address, or the folder of a Unix-domain socket.
    pub host: String,
    pub port: u16,
}

/// What is asked of a connection's encryption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub mode: SslMode,
    pub root_certificate: Option<PathBuf>,
    pub identity: Option<Identity>,
}

/// The files by which this node shows who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// libpq's modes but `allow`, which begins without encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    const ALL: [Self; 5] = [
        Self::Disable,
        Self::Prefer,
        Self::Require,
        Self::VerifyCa,
        Self::VerifyFull,
    ];

    const fn keyword(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    fn from_keyword(keyword: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.keyword() == keyword)
            .ok_or_else(|| {
                refuse(format!(
                    "The sslmode is not one of {}.",
                    Self::ALL.map(Self::keyword).join(", ")
                ))
            })
    }

    const fn needs_root_certificate(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

impl Endpoint {
    /// Connections by a socket of the same machine are never encrypted.
    pub fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }
}

/// The foreign server that describes a peer.
pub fn server_name(peer: &str) -> String {
    format!("{SERVER_PREFIX}{peer}")
}

fn refuse(detail: impl Into<String>) -> Error {
    error::peer_conninfo_invalid(detail)
}

/// Takes a libpq connection string (keywords or URL) apart. What it leaves out defaults to the
/// given user and database, and to port 5432.
pub fn parse_conninfo(
    conninfo: &str,
    default_user: &str,
    default_database: &str,
) -> Result<PeerOptions> {
    let mut given = given_options(conninfo)?;
    if !given.contains_key("host") {
        return Err(refuse("The option \"host\" is missing."));
    }
    let access = access(&given.clone().into_iter().collect::<Vec<_>>())?;
    given.insert("port".into(), port_list(&access.endpoints));
    given.insert("sslmode".into(), access.tls.mode.keyword().into());
    let mut or_default = |name: &str, value: &str| {
        given.entry(name.into()).or_insert_with(|| value.into());
    };
    or_default("user", default_user);
    or_default("dbname", default_database);
    let mut chosen = |names: &[&'static str]| {
        names
            .iter()
            .filter_map(|name| Some((*name, given.remove(*name)?)))
            .collect()
    };
    Ok(PeerOptions {
        server: chosen(&SERVER_OPTIONS),
        mapping: chosen(&MAPPING_OPTIONS),
    })
}

/// As in libpq an empty value is none.
fn given_options(conninfo: &str) -> Result<BTreeMap<String, String>> {
    let known = [SERVER_OPTIONS, MAPPING_OPTIONS].concat();
    let mut given = BTreeMap::new();
    for (keyword, value) in conninfo::parse(conninfo)? {
        if !known.contains(&keyword.as_str()) {
            return Err(error::peer_keyword_unusable(unusable(&keyword), &known));
        }
        given.insert(keyword, value);
    }
    given.retain(|_, value| !value.is_empty());
    Ok(given)
}

/// A password with a space, not quoted, makes a keyword of its second part. So what does not look
/// like a keyword is not shown.
fn unusable(keyword: &str) -> String {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    if !keyword.is_empty() && keyword.bytes().all(is_word) {
        format!("The option \"{keyword}\" cannot be set for a peer.")
    } else {
        "It has a word in the place of an option that is none.".into()
    }
}

fn port_list(endpoints: &[Endpoint]) -> String {
    let mut ports: Vec<String> = endpoints
        .iter()
        .map(|endpoint| endpoint.port.to_string())
        .collect();
    if ports.iter().all(|port| *port == ports[0]) {
        ports.truncate(1);
    }
    ports.join(",")
}

/// Makes sense of stored options, of a server, of a user mapping or of both.
pub fn access(options: &[(String, String)]) -> Result<Access> {
    let value = |name: &str| {
        options
            .iter()
            .find(|(option, _)| option == name)
            .map(|(_, value)| value.as_str())
    };
    let text = |name: &str| value(name).map(str::to_owned);
    let file = |name: &str| value(name).map(|path| absolute(name, path)).transpose();
    Ok(Access {
        endpoints: endpoints(value("host"), value("port"))?,
        database: text("dbname"),
        user: text("user"),
        password: text("password"),
        passfile: file("passfile")?,
        tls: tls(
            value("sslmode"),
            file("sslrootcert")?,
            file("sslcert")?,
            file("sslkey")?,
        )?,
    })
}

fn endpoints(hosts: Option<&str>, ports: Option<&str>) -> Result<Vec<Endpoint>> {
    let ports: Vec<u16> = ports
        .unwrap_or_default()
        .split(',')
        .map(port)
        .collect::<Result<_>>()?;
    let hosts: Vec<&str> = hosts.map_or_else(Vec::new, |hosts| hosts.split(',').collect());
    if hosts.contains(&"") {
        return Err(refuse("The option \"host\" has an empty name."));
    }
    if !hosts.is_empty() && ports.len() > 1 && ports.len() != hosts.len() {
        return Err(refuse(
            "The option \"port\" has neither one number nor one for each host.",
        ));
    }
    // One port is that of all hosts.
    let endpoint = |(host, port): (&&str, &u16)| Endpoint {
        host: (*host).to_owned(),
        port: *port,
    };
    Ok(hosts
        .iter()
        .zip(ports.iter().cycle())
        .map(endpoint)
        .collect())
}

fn port(text: &str) -> Result<u16> {
    match text {
        "" => Ok(DEFAULT_PORT),
        _ => text
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| refuse("The option \"port\" is not a number from 1 to 65535.")),
    }
}

fn absolute(option: &str, path: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(error::peer_file_relative(option))
    }
}

fn tls(
    mode: Option<&str>,
    root_certificate: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Tls> {
    let mode = mode.map_or(Ok(SslMode::Prefer), SslMode::from_keyword)?;
    if mode.needs_root_certificate() && root_certificate.is_none() {
        return Err(error::peer_root_certificate_missing(mode.keyword()));
    }
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
        (None, None) => None,
        _ => {
            return Err(refuse(
                "The options \"sslcert\" and \"sslkey\" are given together or not at all.",
            ));
        }
    };
    Ok(Tls {
        mode,
        root_certificate,
        identity,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(conninfo: &str) -> Result<PeerOptions> {
        parse_conninfo(conninfo, "me", "here")
    }

    fn stored(conninfo: &str) -> Vec<(String, String)> {
        let options = parse(conninfo).unwrap();
        options
            .server
            .into_iter()
            .chain(options.mapping)
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    fn detail(conninfo: &str) -> String {
        parse(conninfo).unwrap_err().detail.unwrap_or_default()
    }

    #[test]
    fn a_connection_string_is_taken_apart() {
        let options = parse("host=db1,db2 port=5433 user=peer password='a b' dbname=app").unwrap();
        assert_eq!(
            options.server,
            [
                ("host", "db1,db2".into()),
                ("port", "5433".into()),
                ("dbname", "app".into()),
                ("sslmode", "prefer".into())
            ]
        );
        assert_eq!(
            options.mapping,
            [("user", "peer".into()), ("password", "a b".into())]
        );
    }

    #[test]
    fn files_go_where_their_readers_are() {
        let options = parse(
            "host=db1 sslmode=verify-full sslrootcert=/ca sslcert=/crt sslkey=/key passfile=/pass",
        )
        .unwrap();
        assert_eq!(options.server[3], ("sslmode", "verify-full".into()));
        assert_eq!(options.server[4], ("sslrootcert", "/ca".into()));
        assert_eq!(
            options.mapping,
            [
                ("user", "me".into()),
                ("passfile", "/pass".into()),
                ("sslcert", "/crt".into()),
                ("sslkey", "/key".into())
            ]
        );
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let options = parse("postgresql://db1?sslmode=require&password=").unwrap();
        assert!(options.server.contains(&("port", "5432".into())));
        assert!(options.server.contains(&("dbname", "here".into())));
        assert!(options.server.contains(&("sslmode", "require".into())));
        assert_eq!(options.mapping, [("user", "me".into())]);
        let options = parse("postgresql://db1,db2:1").unwrap();
        assert!(options.server.contains(&("port", "5432,1".into())));
    }

    #[test]
    fn nonsense_is_refused_with_the_name_of_the_option() {
        for (bad, option) in [
            ("", "\"host\""),
            ("port=1", "\"host\""),
            ("host=x,", "\"host\""),
            ("host=x nonsense=1", "\"nonsense\""),
            ("host=x options=-cfoo=1", "\"options\""),
            ("host=x port=x", "\"port\""),
            ("host=x port=0", "\"port\""),
            ("host=x port=65536", "\"port\""),
            ("host=x port=1,2", "\"port\""),
            ("host=x sslmode=allow", "disable, prefer"),
            ("host=x sslmode=verify-full", "\"sslrootcert\""),
            ("host=x sslmode=verify-ca", "\"sslrootcert\""),
            ("host=x sslrootcert=ca", "\"sslrootcert\""),
            ("host=x sslrootcert=system", "\"sslrootcert\""),
            ("host=x passfile=~/.pgpass", "\"passfile\""),
            ("host=x sslcert=/crt", "\"sslkey\""),
            ("host=x sslkey=/key", "\"sslcert\""),
        ] {
            assert!(detail(bad).contains(option), "{bad}: {}", detail(bad));
        }
    }

    #[test]
    fn no_part_of_a_password_is_shown() {
        for bad in [
            "host=x password=Secret port=y",
            "host=x password=a Secret",
            "host=x password=a Secret=1",
            "host=x password=a Secret1=",
            "postgresql://me:Secret@x:y",
            "postgresql://me:Secret@x?sslmode=Secret",
            "host=x password=Secret sslcert=Secret sslkey=Secret",
        ] {
            let refused = parse(bad).unwrap_err();
            assert!(!format!("{refused:?}").contains("Secret"), "{refused:?}");
        }
    }

    #[test]
    fn stored_options_are_understood() {
        let access = access(&stored(
            "host=db1,/tmp port=5433,5434 user=peer password=p=q",
        ))
        .unwrap();
        let places: Vec<_> = access
            .endpoints
            .iter()
            .map(|place| (place.host.as_str(), place.port, place.is_socket()))
            .collect();
        assert_eq!(places, [("db1", 5433, false), ("/tmp", 5434, true)]);
        assert_eq!(access.password.as_deref(), Some("p=q"));
        assert_eq!(access.tls.mode, SslMode::Prefer);
    }

    #[test]
    fn one_port_is_that_of_all_hosts() {
        let access = access(&stored("host=db1,db2,db3 port=1")).unwrap();
        assert!(access.endpoints.iter().all(|place| place.port == 1));
        assert_eq!(access.endpoints.len(), 3);
    }
}
