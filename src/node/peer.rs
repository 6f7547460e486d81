//! How a peer is reached: the options of its foreign server and user mapping.

use postgres::config::{Host, SslMode};
use tokio_postgres::Config;

use crate::error::{Error, Result, bad_argument};

/// In front of the peer's name, so that its server does not collide with a user's own.
pub const SERVER_PREFIX: &str = "coord_";

/// Options of the foreign server: where the peer is.
pub const SERVER_OPTIONS: [&str; 4] = ["host", "port", "dbname", "sslmode"];

/// Options of the user mapping: who we are there. Only superusers can read these.
pub const MAPPING_OPTIONS: [&str; 2] = ["user", "password"];

pub type PeerOption = (&'static str, String);

/// A connection string taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct PeerOptions {
    pub server: Vec<PeerOption>,
    pub mapping: Vec<PeerOption>,
}

/// The foreign server that describes a peer.
pub fn server_name(peer: &str) -> String {
    format!("{SERVER_PREFIX}{peer}")
}

fn refuse(detail: impl Into<String>) -> Error {
    bad_argument("invalid connection string for a peer", detail)
}

/// Takes a libpq connection string (keywords or URL) apart. What it leaves out defaults to the
/// given user and database, and to port 5432.
pub fn parse_conninfo(
    conninfo: &str,
    default_user: &str,
    default_database: &str,
) -> Result<PeerOptions> {
    // The parser's messages name the option, never its value.
    let config: Config = conninfo
        .parse()
        .map_err(|error: tokio_postgres::Error| refuse(sentence(&error)))?;
    refuse_unsupported(&config)?;
    let mut server = vec![("host", host_list(&config)?), ("port", port_list(&config))];
    server.push((
        "dbname",
        config.get_dbname().unwrap_or(default_database).into(),
    ));
    server.push(("sslmode", ssl_mode(&config)?.into()));
    let mut mapping = vec![("user", config.get_user().unwrap_or(default_user).into())];
    if let Some(password) = config.get_password() {
        let password = String::from_utf8(password.to_vec())
            .map_err(|_| refuse("The password is not valid UTF-8."))?;
        mapping.push(("password", password));
    }
    Ok(PeerOptions { server, mapping })
}

/// What the client library found wrong, as one sentence.
fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let cause = error
        .source()
        .map_or_else(String::new, |cause| cause.to_string());
    format!("The connection string cannot be read: {cause}.")
}

fn refuse_unsupported(config: &Config) -> Result<()> {
    let unsupported = [
        ("options", config.get_options().is_some()),
        ("application_name", config.get_application_name().is_some()),
        ("connect_timeout", config.get_connect_timeout().is_some()),
        ("hostaddr", !config.get_hostaddrs().is_empty()),
    ];
    match unsupported.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(refuse(format!(
            "The option \"{option}\" cannot be set for a peer."
        ))),
        None => Ok(()),
    }
}

fn host_list(config: &Config) -> Result<String> {
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.to_string_lossy().into_owned(),
        })
        .collect();
    if hosts.is_empty() {
        return Err(refuse("The option \"host\" is missing."));
    }
    Ok(hosts.join(","))
}

fn port_list(config: &Config) -> String {
    let ports: Vec<String> = config.get_ports().iter().map(u16::to_string).collect();
    if ports.is_empty() {
        "5432".into()
    } else {
        ports.join(",")
    }
}

fn ssl_mode(config: &Config) -> Result<&'static str> {
    match config.get_ssl_mode() {
        SslMode::Disable => Ok("disable"),
        SslMode::Prefer => Ok("prefer"),
        SslMode::Require => Ok("require"),
        _ => Err(refuse(
            "The sslmode is not one of disable, prefer, require.",
        )),
    }
}

/// Builds the client's configuration from stored options. Values are set one by one, so nothing
/// in them can be taken for another option.
pub fn config(options: &[(String, String)]) -> Result<Config> {
    let mut config = Config::new();
    for (name, value) in options {
        set_option(&mut config, name, value)?;
    }
    Ok(config)
}

fn set_option(config: &mut Config, name: &str, value: &str) -> Result<()> {
    match name {
        "host" => value.split(',').for_each(|host| {
            config.host(host);
        }),
        "port" => {
            for port in value.split(',') {
                config.port(port.parse().map_err(|_| {
                    refuse(format!(
                        "The port \"{port}\" is not a number from 0 to 65535."
                    ))
                })?);
            }
        }
        "dbname" => {
            config.dbname(value);
        }
        "user" => {
            config.user(value);
        }
        "password" => {
            config.password(value);
        }
        "sslmode" => {
            config.ssl_mode(match value {
                "disable" => SslMode::Disable,
                "prefer" => SslMode::Prefer,
                "require" => SslMode::Require,
                _ => {
                    return Err(refuse(
                        "The sslmode is not one of disable, prefer, require.",
                    ));
                }
            });
        }
        _ => return Err(refuse(format!("The option \"{name}\" is not known."))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(conninfo: &str) -> Result<PeerOptions> {
        parse_conninfo(conninfo, "me", "here")
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
    fn what_is_left_out_has_a_default() {
        let options = parse("postgresql://db1?sslmode=require").unwrap();
        assert!(options.server.contains(&("port", "5432".into())));
        assert!(options.server.contains(&("dbname", "here".into())));
        assert!(options.server.contains(&("sslmode", "require".into())));
        assert_eq!(options.mapping, [("user", "me".into())]);
    }

    #[test]
    fn nonsense_is_refused_without_the_password() {
        for bad in [
            "",
            "port=1",
            "host=x nonsense=1",
            "host=x options=-cfoo=1",
            "host=x port=x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let error = parse("host=x password=secret port=y").unwrap_err();
        assert!(!format!("{error:?}").contains("secret"));
    }

    #[test]
    fn stored_options_make_the_same_configuration() {
        let parsed = parse("host=db1,db2 port=5433,5434 user=peer password=p=q").unwrap();
        let stored: Vec<(String, String)> = parsed
            .server
            .into_iter()
            .chain(parsed.mapping)
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let config = config(&stored).unwrap();
        assert_eq!(config.get_ports(), [5433, 5434]);
        assert_eq!(config.get_hosts().len(), 2);
        assert_eq!(config.get_password(), Some(b"p=q".as_slice()));
    }
}
