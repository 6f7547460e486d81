//! The format of libpq's password file: lines of `host:port:database:user:password`, of which the
//! first that fits counts. `*` fits everything; a backslash makes `:` and `\` ordinary.

use crate::node::peer::{Access, Endpoint};

/// The password for a database and user at a place.
pub fn look_up(text: &[u8], access: &Access, endpoint: &Endpoint) -> Option<Vec<u8>> {
    text.split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.starts_with(b"#"))
        .find_map(|line| password_of(line, access, endpoint))
}

fn password_of(line: &[u8], access: &Access, endpoint: &Endpoint) -> Option<Vec<u8>> {
    let (host, rest) = take_field(line)?;
    let (port, rest) = take_field(rest)?;
    let (database, rest) = take_field(rest)?;
    let (user, rest) = take_field(rest)?;
    let fits = fits_host(host, endpoint)
        && fits(port, &endpoint.port.to_string())
        && fits(database, access.database.as_deref().unwrap_or_default())
        && fits(user, access.user.as_deref().unwrap_or_default());
    // What may follow after one more colon is nothing of libpq's either.
    let password = take_field(rest).map_or(rest, |(password, _)| password);
    fits.then(|| unescaped(password))
}

/// Up to the next colon that is not escaped, and what follows it.
fn take_field(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut is_escaped = false;
    let end = text.iter().position(|byte| {
        let is_end = *byte == b':' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        is_end
    })?;
    Some((&text[..end], &text[end + 1..]))
}

/// A socket is on this machine, whatever its folder.
fn fits_host(field: &[u8], endpoint: &Endpoint) -> bool {
    fits(field, &endpoint.host) || (endpoint.is_socket() && field == b"localhost")
}

fn fits(field: &[u8], value: &str) -> bool {
    field == b"*" || unescaped(field) == value.as_bytes()
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = field.iter();
    let mut plain = Vec::with_capacity(field.len());
    while let Some(byte) = bytes.next() {
        match byte {
            // A backslash at the very end stands for itself.
            b'\\' => plain.push(*bytes.next().unwrap_or(byte)),
            _ => plain.push(*byte),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::peer;

    fn found(text: &str, conninfo: &str) -> Option<String> {
        let options: Vec<(String, String)> = peer::parse_conninfo(conninfo, "me", "app")
            .map(|options| [options.server, options.mapping].concat())
            .unwrap()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let access = peer::access(&options).unwrap();
        look_up(text.as_bytes(), &access, &access.endpoints[0])
            .map(|password| String::from_utf8(password).unwrap())
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        let text = "# a:5432:app:me:comment\n\nb:5432:app:me:of b\na:5433:app:me:of 5433\n\
                    a:5432:other:me:of other\na:5432:app:you:of you\na:5432:app:me:right\n*:*:*:*:last\n";
        assert_eq!(found(text, "host=a").as_deref(), Some("right"));
        assert_eq!(found(text, "host=a port=5433").as_deref(), Some("of 5433"));
        assert_eq!(found(text, "host=a user=you").as_deref(), Some("of you"));
        assert_eq!(
            found(text, "host=a dbname=other").as_deref(),
            Some("of other")
        );
        assert_eq!(found(text, "host=c").as_deref(), Some("last"));
    }

    #[test]
    fn nothing_fits() {
        for text in [
            "",
            "\n\n",
            "a",
            "a:5432:app:me",
            "*a:*:*:*:x",
            "a*:*:*:*:x",
            "\\*:*:*:*:x",
            " a:5432:app:me:x",
            "A:5432:app:me:x",
            "#a:5432:app:me:x",
        ] {
            assert_eq!(found(text, "host=a"), None, "{text}");
        }
    }

    #[test]
    fn escapes_are_undone() {
        let text = "a:5432:a\\:p\\\\p:me:p\\:q\\\\r\\s\n";
        assert_eq!(
            found(text, "host=a dbname='a:p\\\\p'").as_deref(),
            Some("p:q\\rs")
        );
        assert_eq!(
            found("\\:\\:1:*:*:*:six", "host=::1").as_deref(),
            Some("six")
        );
        assert_eq!(found("*:*:*:*:end\\", "host=a").as_deref(), Some("end\\"));
        assert_eq!(found("*:*:*:*:p:rest", "host=a").as_deref(), Some("p"));
    }

    #[test]
    fn lines_may_end_as_on_other_systems() {
        assert_eq!(found("*:*:*:*:p\r\n", "host=a").as_deref(), Some("p"));
        assert_eq!(found("*:*:*:*:p q ", "host=a").as_deref(), Some("p q "));
        assert_eq!(found("*:*:*:*:", "host=a").as_deref(), Some(""));
    }

    #[test]
    fn localhost_fits_sockets() {
        let text = "localhost:*:*:*:here\n";
        assert_eq!(found(text, "host=/run/postgresql").as_deref(), Some("here"));
        assert_eq!(found(text, "host=localhost").as_deref(), Some("here"));
        assert_eq!(found(text, "host=127.0.0.1"), None);
        let folder = "/run/postgresql:*:*:*:there\n";
        assert_eq!(
            found(folder, "host=/run/postgresql").as_deref(),
            Some("there")
        );
    }
}
